//! Attention of one sequence and one head, forward and backward, on one thread: blocks of queries against all keys.

use std::cell::Cell;
use std::ops::Range;

use super::panels::{
    Columns, Shape, fill_left, fill_left_transposed, fill_panels, fill_panels_transposed, left_length, panels_length,
    product, write,
};
use super::softmax::{self, Block};
use super::{Layout, task_dropout};
use crate::cpu::Isa;
use crate::dropout::Mask;
use crate::matrix::aligned::Aligned;
use crate::matrix::packed::PANEL;
use crate::parallel::Shared;

/// Most queries of a block: scores of a few hundred keys then stay in the second-level cache.
const QUERIES: usize = 112;
/// Keys whose gradients are made together, whole panels.
const KEYS: usize = 128;

#[derive(Default)]
struct Scratch {
    keys: Aligned,
    values: Aligned,
    rows: Aligned,
    left: Aligned,
    middle: Aligned,
    scores: Aligned,
    gradients: Aligned,
    result: Aligned,
    d_keys: Aligned,
    d_values: Aligned,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// One sequence and one head.
pub(super) struct Task<'a> {
    pub(super) layout: &'a Layout<'a>,
    pub(super) isa: Isa,
    pub(super) sequence: usize,
    pub(super) head: usize,
}

impl<'a> Task<'a> {
    fn tokens(&self) -> Range<usize> {
        self.layout.offsets[self.sequence]..self.layout.offsets[self.sequence + 1]
    }

    /// Width of the head in queries and keys, and in values.
    fn widths(&self) -> (usize, usize) {
        let head = &self.layout.heads[self.head];
        (head.query_key.1, head.value.1)
    }

    /// First element of the head in buffers of queries and keys, and of values.
    fn starts(&self) -> (usize, usize) {
        let (head, first) = (&self.layout.heads[self.head], self.tokens().start);
        (first * self.layout.query_key_stride + head.query_key.0, first * self.layout.value_stride + head.value.0)
    }

    fn query_key<'b>(&self, data: &'b [f32]) -> Columns<'b> {
        let start = self.starts().0.min(data.len());
        Columns { data: &data[start..], stride: self.layout.query_key_stride, width: self.widths().0 }
    }

    fn value<'b>(&self, data: &'b [f32]) -> Columns<'b> {
        Columns { data: &data[self.starts().1..], stride: self.layout.value_stride, width: self.widths().1 }
    }

    /// The blocks of queries, as equal as can be.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let length = self.tokens().len();
        let count = length.div_ceil(QUERIES);
        (0..count).map(move |block| length * block / count..length * (block + 1) / count)
    }

    fn block(&self, queries: &Range<usize>) -> Block<'a> {
        let layout = self.layout;
        let dropout = layout.dropout.filter(|dropout| dropout.rate > 0.0);
        let dropout = dropout.map(|dropout| task_dropout(&dropout, layout.heads.len(), self.sequence, self.head));
        Block {
            rows: queries.len(),
            first_query: queries.start,
            keys: self.tokens().len(),
            scale: layout.scale,
            bias: layout.position_bias.map(|(table, max)| {
                let width = 2 * max - 1;
                (&table[layout.heads[self.head].bias * width..][..width], max - 1)
            }),
            mask: dropout.map(|dropout| Mask::new(&dropout, 0)),
        }
    }

    /// `output` of this sequence and head, and the log-sum-exp of each query.
    ///
    /// # Safety
    /// This sequence's rows of this head's columns belong to this call alone.
    pub(super) unsafe fn forward(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        output: &Shared<'_>,
        log_sum_exp: Option<&Shared<'_>>,
    ) {
        let (isa, n) = (self.isa, self.tokens().len());
        let (key_width, width) = self.widths();
        if width == 0 || n == 0 {
            return;
        }
        let mut scratch = SCRATCH.take();
        let rows = n.min(QUERIES);
        let keys = scratch.keys.room(panels_length(key_width, n));
        let values = scratch.values.room(panels_length(n, width));
        let left = scratch.left.room(left_length(rows, key_width));
        let middle = scratch.middle.room(left_length(rows, n));
        let scores = scratch.scores.room(panels_length(rows, n));
        let result = scratch.result.room(panels_length(rows, width));
        let sums = scratch.rows.room(2 * rows);
        let (inverse, log_sums) = sums.split_at_mut(rows);
        fill_panels_transposed(isa, self.query_key(k), n, keys);
        fill_panels(self.value(v), 0..n, values);
        for queries in self.blocks() {
            let rows = queries.len();
            fill_left(isa, self.query_key(q), queries.clone(), left);
            product(isa, Shape { rows, depth: key_width, outputs: n }, left, keys, scores, false);
            softmax::forward(isa, &self.block(&queries), scores, middle, inverse, log_sums);
            product(isa, Shape { rows, depth: n, outputs: width }, middle, values, result, false);
            let stride = self.layout.value_stride;
            // SAFETY: the caller's promise.
            unsafe {
                write(result, rows, width, Some(inverse), output, self.starts().1 + queries.start * stride, stride)
            };
            if let Some(saved) = log_sum_exp {
                let heads = self.layout.heads.len();
                for (i, &value) in queries.zip(log_sums.iter()) {
                    // SAFETY: the caller's promise.
                    let place = unsafe { saved.slice((self.tokens().start + i) * heads + self.head, 1) };
                    place[0] = value;
                }
            }
        }
        SCRATCH.set(scratch);
    }

    /// Gradients of queries, keys and values of this sequence and head; `d_bias`, one row of the table, is added to.
    ///
    /// # Safety
    /// This sequence's rows of this head's columns belong to this call alone.
    pub(super) unsafe fn backward(&self, saved: &Saved<'_>, d: &Gradients<'_>, d_bias: &mut [f32]) {
        let (isa, n) = (self.isa, self.tokens().len());
        let (key_width, width) = self.widths();
        let (key_start, value_start) = self.starts();
        let (key_stride, stride) = (self.layout.query_key_stride, self.layout.value_stride);
        if n == 0 {
            return;
        }
        if width == 0 {
            for token in (0..n).filter(|_| key_width > 0) {
                // SAFETY: the caller's promise.
                unsafe {
                    d.q.slice(key_start + token * key_stride, key_width).fill(0.0);
                    d.k.slice(key_start + token * key_stride, key_width).fill(0.0);
                }
            }
            return;
        }
        let mut scratch = SCRATCH.take();
        let rows = n.min(QUERIES);
        let widest = key_width.max(width);
        let keys = scratch.keys.room(panels_length(key_width, n) + panels_length(n, key_width));
        let (keys, keys_as_depth) = keys.split_at_mut(panels_length(key_width, n));
        let values = scratch.values.room(panels_length(width, n));
        let left = scratch.left.room(left_length(rows, widest).max(left_length(KEYS, rows)));
        let middle = scratch.middle.room(left_length(rows, n));
        let scores = scratch.scores.room(panels_length(rows, n));
        let gradients = scratch.gradients.room(panels_length(rows, n));
        let result = scratch.result.room(panels_length(rows, widest));
        let sums = scratch.rows.room(2 * rows);
        let (delta, log_sums) = sums.split_at_mut(rows);
        // Gradients of keys and values pile up over the blocks of queries.
        let d_keys = scratch.d_keys.room(panels_length(n, key_width));
        let d_values = scratch.d_values.room(panels_length(n, width));
        fill_panels_transposed(isa, self.query_key(saved.k), n, keys);
        fill_panels(self.query_key(saved.k), 0..n, keys_as_depth);
        fill_panels_transposed(isa, self.value(saved.v), n, values);
        for queries in self.blocks() {
            let rows = queries.len();
            fill_left(isa, self.query_key(saved.q), queries.clone(), left);
            product(isa, Shape { rows, depth: key_width, outputs: n }, left, keys, scores, false);
            fill_left(isa, self.value(saved.d_output), queries.clone(), left);
            product(isa, Shape { rows, depth: width, outputs: n }, left, values, gradients, false);
            let (output, d_output) = (self.value(saved.output).data, self.value(saved.d_output).data);
            let at = queries.start * stride;
            softmax::row_dots(isa, &output[at..], &d_output[at..], stride, width, &mut delta[..rows]);
            let heads = self.layout.heads.len();
            for (value, i) in log_sums.iter_mut().zip(queries.clone()) {
                *value = saved.log_sum_exp[(self.tokens().start + i) * heads + self.head];
            }
            softmax::backward(isa, &self.block(&queries), scores, gradients, log_sums, delta, middle, d_bias);
            product(isa, Shape { rows, depth: n, outputs: key_width }, middle, keys_as_depth, result, false);
            // SAFETY: the caller's promise.
            unsafe { write(result, rows, key_width, None, d.q, key_start + queries.start * key_stride, key_stride) };
            let resume = queries.start > 0;
            fill_panels(self.query_key(saved.q), queries.clone(), result);
            let shape = Shape { rows: n, depth: rows, outputs: key_width };
            add_transposed(isa, shape, gradients, result, left, d_keys, resume);
            fill_panels(self.value(saved.d_output), queries.clone(), result);
            let shape = Shape { rows: n, depth: rows, outputs: width };
            add_transposed(isa, shape, scores, result, left, d_values, resume);
        }
        // SAFETY: the caller's promise.
        unsafe {
            write_runs(d_keys, n, key_width, d.k, key_start, key_stride);
            write_runs(d_values, n, width, d.v, value_start, stride);
        }
        SCRATCH.set(scratch);
    }
}

/// The runs of at most `KEYS` keys.
fn runs(keys: usize) -> impl Iterator<Item = Range<usize>> {
    (0..keys).step_by(KEYS).map(move |first| first..keys.min(first + KEYS))
}

/// `sums += valuesᵀ right`, for keys as rows and queries as depth: values in panels `[depth, rows]`, `right` in panels
/// `[depth, outputs]`; the sums are panels of one run of keys after the other.
fn add_transposed(
    isa: Isa,
    shape: Shape,
    values: &[f32],
    right: &[f32],
    left: &mut [f32],
    sums: &mut [f32],
    resume: bool,
) {
    let Shape { rows: keys, depth: queries, outputs: width } = shape;
    for run in runs(keys) {
        let panels = &values[run.start * queries..][..run.len().next_multiple_of(PANEL) * queries];
        fill_left_transposed(isa, panels, queries, left);
        let sums = &mut sums[panels_length(run.start, width)..][..panels_length(run.len(), width)];
        product(isa, Shape { rows: run.len(), depth: queries, outputs: width }, left, right, sums, resume);
    }
}

/// Writes the sums of [`add_transposed`].
///
/// # Safety
/// As [`write`].
unsafe fn write_runs(sums: &[f32], keys: usize, width: usize, out: &Shared<'_>, at: usize, stride: usize) {
    for run in runs(keys) {
        let sums = &sums[panels_length(run.start, width)..][..panels_length(run.len(), width)];
        // SAFETY: the caller's promise.
        unsafe { write(sums, run.len(), width, None, out, at + run.start * stride, stride) };
    }
}

/// What the forward pass left and what came in.
pub(super) struct Saved<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) output: &'a [f32],
    pub(super) d_output: &'a [f32],
    pub(super) log_sum_exp: &'a [f32],
}

/// Where gradients go.
pub(super) struct Gradients<'a> {
    pub(super) q: &'a Shared<'a>,
    pub(super) k: &'a Shared<'a>,
    pub(super) v: &'a Shared<'a>,
}
