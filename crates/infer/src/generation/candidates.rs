//! The tokens that may come next: top-k, top-p and min-p on a row of scores, by partial selection, and a draw among what
//! they leave. Candidates lie in the order of their ids, and so do the sums over them.

use std::cmp::Ordering;

use finegates_kernels::sampling::weights;

use super::SamplingSettings;

/// Tokens that may be drawn, with their scores and weights; reused from step to step.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    /// Token ids, ascending.
    pub ids: Vec<u32>,
    /// The score of each.
    pub scores: Vec<f32>,
    /// `e^(score - maximum)` of each.
    pub weights: Vec<f32>,
    largest: Vec<f32>,
    order: Vec<u32>,
}

impl Candidates {
    /// What the settings leave of `scores`, of which `maximum` is the largest and finite. None of them is NaN.
    pub fn select(&mut self, scores: &[f32], maximum: f32, settings: &SamplingSettings) {
        let threshold = match settings.top_k {
            0 => f32::NEG_INFINITY,
            k => kth_largest(scores, k, &mut self.largest),
        };
        self.ids.clear();
        self.scores.clear();
        for (id, &score) in scores.iter().enumerate() {
            if score >= threshold && score > f32::NEG_INFINITY {
                self.ids.push(id as u32);
                self.scores.push(score);
            }
        }
        self.weights.resize(self.scores.len(), 0.0);
        weights(&self.scores, maximum, &mut self.weights);
        if settings.top_p < 1.0 {
            self.keep_share(f64::from(settings.top_p));
        }
        if settings.min_p > 0.0 {
            // The largest weight is 1. What top-p has left is weighed anew, by one factor for all.
            let kept = |index: usize, weights: &[f32]| weights[index] >= settings.min_p;
            self.order.clear();
            self.order
                .extend((0..self.ids.len()).filter(|&index| kept(index, &self.weights)).map(|index| index as u32));
            self.keep_ordered();
        }
    }

    /// The candidate that `point` of (0, 1) means when each has a part of that interval after its weight.
    pub fn draw(&self, point: f64) -> u32 {
        let goal = point * self.total();
        let mut sum = 0.0;
        let mut last = 0;
        for (&id, &weight) in self.ids.iter().zip(&self.weights) {
            if weight > 0.0 {
                last = id;
                sum += f64::from(weight);
                if sum > goal {
                    break;
                }
            }
        }
        last
    }

    fn total(&self) -> f64 {
        self.weights.iter().map(|&weight| f64::from(weight)).sum()
    }

    /// Keeps the likeliest candidates, one after the other, while those before have less than `share` of all weight. Of equal
    /// scores the larger id comes first, as the end of PyTorch's ascending sort has it.
    fn keep_share(&mut self, share: f64) {
        let goal = share * self.total();
        let scores = &self.scores;
        let likelier = |a: &u32, b: &u32| descending(scores[*a as usize], scores[*b as usize]).then(b.cmp(a));
        self.order.clear();
        self.order.extend(0..scores.len() as u32);
        let (mut count, mut before, mut sorted, mut part) = (0, 0.0, 0, 64);
        'parts: while sorted < self.order.len() {
            let rest = &mut self.order[sorted..];
            let taken = part.min(rest.len());
            if taken < rest.len() {
                rest.select_nth_unstable_by(taken - 1, likelier);
            }
            rest[..taken].sort_unstable_by(likelier);
            for &index in &rest[..taken] {
                if count > 0 && before >= goal {
                    break 'parts;
                }
                count += 1;
                before += f64::from(self.weights[index as usize]);
            }
            sorted += taken;
            part *= 4;
        }
        self.order.truncate(count);
        self.order.sort_unstable();
        self.keep_ordered();
    }

    /// Keeps the candidates whose indices are in `order`, ascending.
    fn keep_ordered(&mut self) {
        for (place, &index) in self.order.iter().enumerate() {
            let index = index as usize;
            self.ids[place] = self.ids[index];
            self.scores[place] = self.scores[index];
            self.weights[place] = self.weights[index];
        }
        self.ids.truncate(self.order.len());
        self.scores.truncate(self.order.len());
        self.weights.truncate(self.order.len());
    }
}

/// The `k`-th largest number, counting equal ones; negative infinity when there are fewer above it.
fn kth_largest(numbers: &[f32], k: usize, largest: &mut Vec<f32>) -> f32 {
    let k = k.min(numbers.len());
    let room = k.saturating_mul(2).max(64);
    largest.clear();
    // What is not above it cannot change the k-th largest any more.
    let mut threshold = f32::NEG_INFINITY;
    for &number in numbers {
        if number > threshold {
            largest.push(number);
            if largest.len() == room {
                largest.select_nth_unstable_by(k - 1, |a, b| descending(*a, *b));
                largest.truncate(k);
                threshold = largest[k - 1];
            }
        }
    }
    if k == 0 || largest.len() < k {
        return f32::NEG_INFINITY;
    }
    *largest.select_nth_unstable_by(k - 1, |a, b| descending(*a, *b)).1
}

fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same by a full sort, step by step as transformers has it.
    fn reference(scores: &[f32], settings: &SamplingSettings) -> Vec<u32> {
        let mut order: Vec<usize> = (0..scores.len()).filter(|&id| scores[id] > f32::NEG_INFINITY).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        if settings.top_k > 0 && settings.top_k < order.len() {
            let least = scores[order[order.len() - settings.top_k]];
            order.retain(|&id| scores[id] >= least);
        }
        let maximum = scores[order[order.len() - 1]];
        let weight = |id: usize| f64::from(scores[id] - maximum).exp();
        if settings.top_p < 1.0 {
            let total: f64 = order.iter().map(|&id| weight(id)).sum();
            let mut sum = 0.0;
            let below = order.iter().take_while(|&&id| {
                sum += weight(id);
                sum <= (1.0 - f64::from(settings.top_p)) * total
            });
            let below = below.count().min(order.len() - 1);
            order.drain(..below);
        }
        order.retain(|&id| weight(id) >= f64::from(settings.min_p));
        order.sort_unstable();
        order.into_iter().map(|id| id as u32).collect()
    }

    fn select(scores: &[f32], settings: &SamplingSettings) -> Candidates {
        let maximum = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut candidates = Candidates::default();
        candidates.select(scores, maximum, settings);
        candidates
    }

    proptest! {
        /// Scores on a coarse grid have many equals; shares off the grid of their sums leave rounding out of it.
        #[test]
        fn partial_selection_leaves_what_a_full_sort_leaves(
            grid in proptest::collection::vec(-40i32..40, 1..3000),
            fine in proptest::bool::ANY,
            top_k in prop_oneof![Just(0usize), 1usize..5, 1usize..4000],
            top_p in prop_oneof![Just(1.0f32), 0.0f32..1.0],
            min_p in prop_oneof![Just(0.0f32), 0.0f32..0.9],
        ) {
            let step = |index: usize| if fine { (index * 7919 % 1000) as f32 * 1e-4 } else { 0.0 };
            let scores: Vec<f32> = grid.iter().enumerate().map(|(index, &score)| match score {
                -40 => f32::NEG_INFINITY,
                _ => score as f32 * 0.25 + step(index),
            }).collect();
            prop_assume!(scores.iter().any(|score| score.is_finite()));
            let settings = SamplingSettings { top_k, top_p, min_p, ..SamplingSettings::default() };
            let found = select(&scores, &settings);
            prop_assert_eq!(&found.ids, &reference(&scores, &settings));
            prop_assert!(found.ids.iter().zip(&found.scores).all(|(&id, &score)| scores[id as usize] == score));
            prop_assert_eq!(found.weights.len(), found.ids.len());
        }

        #[test]
        fn the_kth_largest_is_that_of_a_sort(
            numbers in proptest::collection::vec(-50i32..50, 0..1500), k in 1usize..2000,
        ) {
            let numbers: Vec<f32> = numbers.into_iter().map(|number| number as f32).collect();
            let mut sorted = numbers.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let expected = sorted.get(k.min(numbers.len()).wrapping_sub(1)).copied().unwrap_or(f32::NEG_INFINITY);
            prop_assert_eq!(kth_largest(&numbers, k, &mut Vec::new()), expected);
        }
    }

    #[test]
    fn a_point_means_the_candidate_whose_part_it_lies_in() {
        let scores = [0.0, f32::NEG_INFINITY, 3f32.ln(), -1000.0, 0.0];
        let candidates = select(&scores, &SamplingSettings { top_k: 0, ..SamplingSettings::default() });
        assert_eq!(candidates.ids, [0, 2, 3, 4]);
        let draws = [1e-9, 0.199, 0.201, 0.799, 0.801, 1.0 - 1e-9].map(|point| candidates.draw(point));
        assert_eq!(draws, [0, 0, 2, 2, 4, 4], "a weight of 0 is never drawn");
        assert_eq!(candidates.draw(1.0), 4, "whatever rounding makes of the end");
    }
}
