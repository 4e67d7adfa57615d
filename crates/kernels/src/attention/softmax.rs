//! The element-wise middle of attention, forward and backward: scale, position bias, softmax and dropout in one go over a
//! block of scores in panels.

use super::panels::left_place;
use super::sight::{Rows, panels, partial};
use crate::cpu::kernel;
use crate::dropout;
use crate::math::{self, mul_add};
use crate::matrix::packed::PANEL;

/// A block of scores: some queries against the keys that they see.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) queries: Rows,
    pub(super) scale: f32,
    /// The head's row of the position bias table, and the place in it that query 0 starts at.
    pub(super) bias: Option<(&'a [f32], usize)>,
    pub(super) dropout: Option<dropout::Mask>,
}

impl Block<'_> {
    /// Scales scores of row `i` and one panel, and adds the bias.
    #[inline(always)]
    fn finish<const FMA: bool>(&self, i: usize, panel: usize, scores: &mut [f32; PANEL]) {
        let Some((table, origin)) = self.bias else {
            for score in scores.iter_mut() {
                *score *= self.scale;
            }
            return;
        };
        let row = &table[origin - self.queries.first - i + panel * PANEL..];
        let mut biases = [0.0; PANEL];
        match row.first_chunk::<PANEL>() {
            Some(row) => biases = *row,
            None => biases[..row.len()].copy_from_slice(row),
        }
        for (score, &bias) in scores.iter_mut().zip(&biases) {
            *score = mul_add::<FMA>(*score, self.scale, bias);
        }
    }

    /// Dropout factors of row `i` and one panel.
    #[inline(always)]
    fn factors(&self, mask: &dropout::Mask, i: usize, panel: usize) -> [f32; PANEL] {
        // Indices are taken modulo 2^32: they could only repeat in a sequence of more than 65,536 tokens.
        let first = ((self.queries.first + i) * self.queries.sight.keys + panel * PANEL) as u32;
        let mut factors = [0.0; PANEL];
        for (lane, factor) in factors.iter_mut().enumerate() {
            *factor = mask.factor(first.wrapping_add(lane as u32));
        }
        factors
    }
}

/// Puts `other` into all lanes but `low .. high`.
#[inline(always)]
fn keep(values: &mut [f32; PANEL], (low, high): (usize, usize), other: f32) {
    let (low, high) = (low as u32, high as u32);
    for (lane, value) in (0..).zip(values) {
        *value = if lane >= low && lane < high { *value } else { other };
    }
}

/// Zeros in row `i` of a left block, where its strip reads keys that the row does not see.
#[inline(always)]
fn clear(queries: Rows, i: usize, out: &mut [f32]) {
    for panel in queries.unseen(i).into_iter().flatten() {
        out[left_place(queries.rows, i, panel * PANEL)..][..PANEL].fill(0.0);
    }
}

kernel! {
    /// From products in panels to `e^(score − largest)` after dropout as a left block; `inverse` gets what to multiply a
    /// row's results by, `log_sum_exp` the logarithm of a row's sum.
    ///
    /// The largest scores of all rows come first and the exponentials after them: rows do not wait for each other then.
    pub(super) fn forward(block: &Block<'_>, scores: &mut [f32], out: &mut [f32], inverse: &mut [f32], log_sum_exp: &mut [f32]) {
        let (scores, _) = scores.as_chunks_mut::<PANEL>();
        let queries = block.queries;
        let (inverse, log_sum_exp) = (&mut inverse[..queries.rows], &mut log_sum_exp[..queries.rows]);
        for (i, maximum) in log_sum_exp.iter_mut().enumerate() {
            let mut largest = [f32::NEG_INFINITY; 16];
            let keys = queries.keys_of(i);
            for panel in panels(&keys) {
                let scores = &mut scores[panel * queries.rows + i];
                block.finish::<FMA>(i, panel, scores);
                let mut seen = &*scores;
                let mut masked;
                if let Some(lanes) = partial(&keys, panel) {
                    masked = *scores;
                    keep(&mut masked, lanes, f32::NEG_INFINITY);
                    seen = &masked;
                }
                for half in seen.as_chunks::<16>().0 {
                    for (largest, &score) in largest.iter_mut().zip(half) {
                        *largest = if score > *largest { score } else { *largest };
                    }
                }
            }
            *maximum = math::largest_lane(largest);
        }
        for (i, (inverse, log_sum_exp)) in inverse.iter_mut().zip(log_sum_exp).enumerate() {
            let maximum = *log_sum_exp;
            let mut sums = [[0.0; 16]; PANEL / 16];
            let keys = queries.keys_of(i);
            for panel in panels(&keys) {
                let (scores, _) = scores[panel * queries.rows + i].as_chunks::<16>();
                let place = left_place(queries.rows, i, panel * PANEL);
                let Some(out) = out[place..].first_chunk_mut::<PANEL>() else { unreachable!("room for whole panels") };
                match partial(&keys, panel) {
                    None => {
                        for ((out, scores), sums) in out.as_chunks_mut::<16>().0.iter_mut().zip(scores).zip(&mut sums) {
                            for ((out, &score), sum) in out.iter_mut().zip(scores).zip(sums) {
                                *out = math::exp::<FMA>(score - maximum);
                                *sum += *out;
                            }
                        }
                    }
                    Some((low, high)) => {
                        // Lanes of a half without keys are read by nobody, unless other rows of the strip see them.
                        let halves = if queries.sight.full() { high.div_ceil(16) } else { PANEL / 16 };
                        for (out, scores) in out.as_chunks_mut::<16>().0.iter_mut().zip(scores).take(halves) {
                            for (out, &score) in out.iter_mut().zip(scores) {
                                *out = math::exp::<FMA>(score - maximum);
                            }
                        }
                        // Not by way of e^-∞: results that underflow cost a hundred times as much.
                        keep(out, (low, high), 0.0);
                        for (sums, out) in sums.iter_mut().zip(out.as_chunks::<16>().0) {
                            for (sum, &out) in sums.iter_mut().zip(out) {
                                *sum += out;
                            }
                        }
                    }
                }
                if let Some(mask) = &block.dropout {
                    for (out, &factor) in out.iter_mut().zip(&block.factors(mask, i, panel)) {
                        *out *= factor;
                    }
                }
            }
            clear(queries, i, out);
            let [mut lanes, others] = sums;
            for (lane, other) in lanes.iter_mut().zip(others) {
                *lane += other;
            }
            let sum = math::sum_lanes(lanes);
            *inverse = 1.0 / sum;
            *log_sum_exp = maximum + sum.ln();
        }
    }

    /// From products in panels to what the gradients need: `scores` become probabilities after dropout and `d` (gradients of
    /// those) gradients of the scaled products, in place, the latter also as a left block. `d_bias` is added to.
    pub(super) fn backward(
        block: &Block<'_>, scores: &mut [f32], d: &mut [f32], log_sum_exp: &[f32], delta: &[f32], out: &mut [f32],
        d_bias: &mut [f32],
    ) {
        let (scores, _) = scores.as_chunks_mut::<PANEL>();
        let (d, _) = d.as_chunks_mut::<PANEL>();
        let queries = block.queries;
        for i in 0..queries.rows {
            let (log_sum_exp, delta) = (log_sum_exp[i], delta[i]);
            let keys = queries.keys_of(i);
            for panel in panels(&keys) {
                let p = &mut scores[panel * queries.rows + i];
                let d = &mut d[panel * queries.rows + i];
                block.finish::<FMA>(i, panel, p);
                for p in p.iter_mut() {
                    *p = math::exp::<FMA>(*p - log_sum_exp);
                }
                match &block.dropout {
                    Some(mask) => {
                        let factors = block.factors(mask, i, panel);
                        for ((p, d), &factor) in p.iter_mut().zip(d.iter_mut()).zip(&factors) {
                            *d = *p * mul_add::<FMA>(*d, factor, -delta);
                            *p *= factor;
                        }
                    }
                    None => {
                        for (p, d) in p.iter().zip(d.iter_mut()) {
                            *d = *p * (*d - delta);
                        }
                    }
                }
                if let (false, Some(lanes)) = (queries.sight.full(), partial(&keys, panel)) {
                    keep(p, lanes, 0.0);
                    keep(d, lanes, 0.0);
                }
                if let (false, Some((_, origin))) = (d_bias.is_empty(), block.bias) {
                    let count = PANEL.min(queries.sight.keys - panel * PANEL);
                    let row = &mut d_bias[origin - block.queries.first - i + panel * PANEL..][..count];
                    for (sum, &d) in row.iter_mut().zip(d.iter()) {
                        *sum += d;
                    }
                }
                let place = left_place(queries.rows, i, panel * PANEL);
                let Some(out) = out[place..].first_chunk_mut::<PANEL>() else { unreachable!("room for whole panels") };
                for (out, d) in out.iter_mut().zip(d.iter_mut()) {
                    *d *= block.scale;
                    *out = *d;
                }
            }
            clear(queries, i, out);
        }
    }

    /// `Σ_c a[i, c] b[i, c]` of each row.
    pub(super) fn row_dots(a: &[f32], b: &[f32], stride: usize, width: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            let (a, b) = (&a[i * stride..][..width], &b[i * stride..][..width]);
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
            let mut sums = [0.0; 16];
            for (a, b) in a.iter().zip(b) {
                for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
                    *sum = mul_add::<FMA>(a, b, *sum);
                }
            }
            for ((sum, &a), &b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
                *sum = mul_add::<FMA>(a, b, *sum);
            }
            *out = math::sum_lanes(sums);
        }
    }
}
