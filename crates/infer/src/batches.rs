//! Which texts run together: sorted by length, as many as fit a number of tokens. No text is padded, so this only
//! decides how well the matrix products are filled and how much memory a pass takes.

use std::ops::Range;

/// An order of the sequences and the ranges of it that run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Indices of the sequences, longest first.
    pub order: Vec<usize>,
    /// Runs of `order`, one a batch.
    pub batches: Vec<Range<usize>>,
}

impl Plan {
    /// Sorts by length and cuts where a batch would exceed `tokens`; a sequence longer than that runs alone.
    pub fn new(lengths: &[usize], tokens: usize) -> Plan {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
        let mut batches = Vec::new();
        let (mut start, mut filled) = (0, 0);
        for (position, &index) in order.iter().enumerate() {
            if position > start && filled + lengths[index] > tokens {
                batches.push(start..position);
                (start, filled) = (position, 0);
            }
            filled += lengths[index];
        }
        if start < order.len() {
            batches.push(start..order.len());
        }
        Plan { order, batches }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_runs_once_and_no_batch_exceeds_the_budget_unless_it_is_alone() {
        let lengths = [5, 1, 9, 3, 3, 2, 12, 1];
        for budget in [1, 4, 6, 10, 100] {
            let plan = Plan::new(&lengths, budget);
            let mut seen: Vec<usize> =
                plan.batches.iter().flat_map(|batch| plan.order[batch.clone()].to_vec()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &plan.batches {
                let tokens: usize = plan.order[batch.clone()].iter().map(|&index| lengths[index]).sum();
                assert!(tokens <= budget || batch.len() == 1, "{tokens} tokens in {batch:?} for {budget}");
            }
        }
        assert!(Plan::new(&[], 10).batches.is_empty());
    }

    #[test]
    fn equal_lengths_keep_their_order() {
        assert_eq!(Plan::new(&[2, 2, 2], 4).order, [0, 1, 2]);
    }
}
