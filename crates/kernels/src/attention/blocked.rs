//! Attention of one sequence and head through the blocked matrix driver: scores, fused softmax, and products with them.

use std::cell::Cell;

use super::{Layout, task_dropout};
use crate::cpu::{Isa, kernel};
use crate::dropout::{self, Dropout};
use crate::math;
use crate::matrix::driver::{Product, Target};
use crate::matrix::operand::{Left, Right};
use crate::parallel::Shared;

#[derive(Default)]
struct Scratch {
    probabilities: Vec<f32>,
    gradients: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// One sequence and head: where its rows and columns begin.
struct Place<'a> {
    layout: &'a Layout<'a>,
    isa: Isa,
    first: usize,
    length: usize,
    head: usize,
    dropout: Option<Dropout>,
}

impl<'a> Place<'a> {
    fn new(layout: &'a Layout<'a>, isa: Isa, sequence: usize, head: usize) -> Self {
        let (first, end) = (layout.offsets[sequence], layout.offsets[sequence + 1]);
        let dropout = layout.dropout.filter(|dropout| dropout.rate > 0.0);
        let dropout = dropout.map(|dropout| task_dropout(&dropout, layout.heads.len(), sequence, head));
        Self { layout, isa, first, length: end - first, head, dropout }
    }

    /// First element of this head's columns in query/key or value space.
    fn query_key(&self) -> usize {
        self.first * self.layout.query_key_stride + self.layout.heads[self.head].query_key.0
    }

    fn value(&self) -> usize {
        self.first * self.layout.value_stride + self.layout.heads[self.head].value.0
    }

    /// `[length, length]` of products of rows of `a` and rows of `b`.
    fn products(&self, a: &[f32], b: &[f32], stride: usize, depth: usize, out: &mut Vec<f32>) {
        let n = self.length;
        out.resize(n * n, 0.0);
        let product = Product {
            rows: n,
            depth,
            outputs: n,
            left: Left::Rows { data: a, stride, columns: None, scale: None },
            right: Right::Transposed { data: b, stride },
            target: Target::plain(Shared::new(out), 0, n, false),
        };
        // SAFETY: the target is this thread's own buffer.
        unsafe { product.run_serial(self.isa) };
    }

    /// `target = matrix · rows` or `matrixᵀ · rows`, for a matrix `[length, length]` and rows of `width` elements.
    ///
    /// # Safety
    /// The places of the target belong to this sequence and head alone.
    unsafe fn combine(
        &self,
        matrix: &[f32],
        transposed: bool,
        rows: &[f32],
        stride: usize,
        width: usize,
        target: (&Shared<'_>, usize),
    ) {
        let n = self.length;
        let left = match transposed {
            true => Left::Transposed { data: matrix, stride: n },
            false => Left::Rows { data: matrix, stride: n, columns: None, scale: None },
        };
        let target = Target::plain(*target.0, target.1, stride, false);
        let product =
            Product { rows: n, depth: n, outputs: width, left, right: Right::Rows { data: rows, stride }, target };
        // SAFETY: the caller's promise.
        unsafe { product.run_serial(self.isa) };
    }

    /// The position biases of query `i`, one a key.
    fn bias(&self, i: usize) -> Option<&'a [f32]> {
        let (table, max) = self.layout.position_bias?;
        let row = &table[self.layout.heads[self.head].bias * (2 * max - 1)..];
        Some(&row[max - 1 - i..][..self.length])
    }
}

kernel! {
    /// Scales scores and adds the bias.
    fn finish_scores(scores: &mut [f32], scale: f32, bias: Option<&[f32]>) {
        match bias {
            Some(bias) => {
                for (score, &bias) in scores.iter_mut().zip(bias) {
                    *score = math::mul_add::<FMA>(*score, scale, bias);
                }
            }
            None => {
                for score in scores.iter_mut() {
                    *score *= scale;
                }
            }
        }
    }

    /// Softmax of one row in place; answers its log-sum-exp.
    fn softmax_row(row: &mut [f32]) -> f32 {
        let mut largest = [f32::NEG_INFINITY; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        for chunk in chunks {
            for (largest, &x) in largest.iter_mut().zip(chunk) {
                *largest = if x > *largest { x } else { *largest };
            }
        }
        for (largest, &x) in largest.iter_mut().zip(rest) {
            *largest = if x > *largest { x } else { *largest };
        }
        let mut maximum = f32::NEG_INFINITY;
        for &x in &largest {
            maximum = if x > maximum { x } else { maximum };
        }
        let mut sums = [0.0; 16];
        let (chunks, rest) = row.as_chunks_mut::<16>();
        for chunk in chunks {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = math::exp::<FMA>(*x - maximum);
                *sum += *x;
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *x = math::exp::<FMA>(*x - maximum);
            *sum += *x;
        }
        let sum = math::sum_lanes(sums);
        let factor = 1.0 / sum;
        for x in row.iter_mut() {
            *x *= factor;
        }
        maximum + sum.ln()
    }

    /// `e^(x - log_sum_exp)` in place.
    fn probabilities_row(row: &mut [f32], log_sum_exp: f32) {
        for x in row.iter_mut() {
            *x = math::exp::<FMA>(*x - log_sum_exp);
        }
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [0.0; 16];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
        for (a, b) in a.iter().zip(b) {
            for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
                *sum = math::mul_add::<FMA>(a, b, *sum);
            }
        }
        for ((sum, &a), &b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
            *sum = math::mul_add::<FMA>(a, b, *sum);
        }
        math::sum_lanes(sums)
    }

    /// `d = p · (d - delta)`: through the softmax.
    fn score_gradient(d: &mut [f32], p: &[f32], delta: f32) {
        for (d, &p) in d.iter_mut().zip(p) {
            *d = p * (*d - delta);
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    layout: &Layout<'_>,
    isa: Isa,
    sequence: usize,
    head: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: &Shared<'_>,
    log_sum_exp: Option<&Shared<'_>>,
) {
    let place = Place::new(layout, isa, sequence, head);
    let (key_width, width) = (layout.heads[head].query_key.1, layout.heads[head].value.1);
    if width == 0 || place.length == 0 {
        return;
    }
    let mut scratch = SCRATCH.take();
    let scores = &mut scratch.probabilities;
    let at = place.query_key();
    place.products(&q[at..], &k[at..], layout.query_key_stride, key_width, scores);
    for (i, row) in scores.chunks_exact_mut(place.length).enumerate() {
        finish_scores(isa, row, layout.scale, place.bias(i));
        let saved = softmax_row(isa, row);
        if let Some(log_sum_exp) = log_sum_exp {
            // SAFETY: every (sequence, head) has places of its own.
            unsafe { log_sum_exp.slice((place.first + i) * layout.heads.len() + head, 1)[0] = saved };
        }
    }
    if let Some(mask) = &place.dropout {
        dropout::apply(isa, scores, mask);
    }
    let at = place.value();
    // SAFETY: every (sequence, head) has output columns of its own.
    unsafe { place.combine(scores, false, &v[at..], layout.value_stride, width, (output, at)) };
    SCRATCH.set(scratch);
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    layout: &Layout<'_>,
    isa: Isa,
    sequence: usize,
    head: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: &[f32],
    d_output: &[f32],
    log_sum_exp: &[f32],
    parts: &[Shared<'_>; 3],
    d_bias: &mut [f32],
) {
    let place = Place::new(layout, isa, sequence, head);
    let (key_width, width) = (layout.heads[head].query_key.1, layout.heads[head].value.1);
    let (key_stride, stride, n) = (layout.query_key_stride, layout.value_stride, place.length);
    if width == 0 || n == 0 {
        return;
    }
    let mut scratch = SCRATCH.take();
    let Scratch { probabilities, gradients } = &mut scratch;
    let (key_at, value_at) = (place.query_key(), place.value());
    place.products(&q[key_at..], &k[key_at..], key_stride, key_width, probabilities);
    place.products(&d_output[value_at..], &v[value_at..], stride, width, gradients);
    if let Some(mask) = &place.dropout {
        dropout::apply(isa, gradients, mask);
    }
    for (i, (p, d)) in probabilities.chunks_exact_mut(n).zip(gradients.chunks_exact_mut(n)).enumerate() {
        finish_scores(isa, p, layout.scale, place.bias(i));
        probabilities_row(isa, p, log_sum_exp[(place.first + i) * layout.heads.len() + head]);
        let at = value_at + i * stride;
        let delta = dot(isa, &output[at..][..width], &d_output[at..][..width]);
        score_gradient(isa, d, p, delta);
        if let (false, Some((_, max))) = (d_bias.is_empty(), layout.position_bias) {
            let d_bias = &mut d_bias[max - 1 - i..][..n];
            d_bias.iter_mut().zip(&*d).for_each(|(sum, &d)| *sum += d);
        }
        finish_scores(isa, d, layout.scale, None);
    }
    if let Some(mask) = &place.dropout {
        dropout::apply(isa, probabilities, mask);
    }
    // SAFETY: every (sequence, head) has columns of its own in each of the three gradients.
    unsafe {
        place.combine(probabilities, true, &d_output[value_at..], stride, width, (&parts[2], value_at));
        place.combine(gradients, false, &k[key_at..], key_stride, key_width, (&parts[0], key_at));
        place.combine(gradients, true, &q[key_at..], key_stride, key_width, (&parts[1], key_at));
    }
    SCRATCH.set(scratch);
}
