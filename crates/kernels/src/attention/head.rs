//! Attention of one sequence and one head, forward and backward, on one thread: blocks of queries against the keys that
//! they see.

use std::cell::Cell;
use std::ops::Range;

use super::layout::Member;
use super::panels::{
    Columns, Part, Shape, add, fill_left, fill_left_transposed, fill_panels, fill_panels_transposed, left_length,
    panels_length, product, write,
};
use super::sight::{Rows, Sight, panels};
use super::softmax::{self, Block};
use super::{Head, Layout, task_dropout};
use crate::cpu::Isa;
use crate::dropout;
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

type Place = (usize, (usize, usize));

/// Whose keys and values, by sequence and columns, the task before left packed on this thread. Heads that share them come
/// one after the other as a rule.
#[derive(Default)]
pub(super) struct Packed {
    keys: Option<Place>,
    values: Option<Place>,
}

/// Runs `pack` unless `slot` says that it is done.
fn pack_once(slot: &mut Option<Place>, place: Place, pack: impl FnOnce()) {
    if *slot != Some(place) {
        pack();
        *slot = Some(place);
    }
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

    fn head(&self) -> &'a Head {
        &self.layout.heads[self.head]
    }

    /// First element of the head's columns in a buffer of rows.
    fn start(&self, (column, _): (usize, usize), stride: usize) -> usize {
        self.tokens().start * stride + column
    }

    fn columns<'b>(&self, data: &'b [f32], columns: (usize, usize), stride: usize) -> Columns<'b> {
        Columns { data: &data[self.start(columns, stride).min(data.len())..], stride, width: columns.1 }
    }

    fn queries<'b>(&self, data: &'b [f32]) -> Columns<'b> {
        self.columns(data, self.head().query, self.layout.query_stride)
    }

    fn keys<'b>(&self, data: &'b [f32]) -> Columns<'b> {
        self.columns(data, self.head().key, self.layout.key_stride)
    }

    fn values<'b>(&self, data: &'b [f32]) -> Columns<'b> {
        self.columns(data, self.head().value, self.layout.value_stride)
    }

    fn output<'b>(&self, data: &'b [f32]) -> Columns<'b> {
        self.columns(data, self.head().output, self.layout.output_stride)
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
        let sight = Sight::new(layout.mask, self.tokens().len());
        Block {
            queries: Rows { first: queries.start, rows: queries.len(), sight },
            scale: layout.scale,
            bias: layout.position_bias.map(|(table, max)| {
                let width = 2 * max - 1;
                (&table[self.head().bias * width..][..width], max - 1)
            }),
            dropout: dropout.map(|dropout| dropout::Mask::new(&dropout, 0)),
        }
    }

    /// `output` of this sequence and head, and the log-sum-exp of each query.
    ///
    /// # Safety
    /// This sequence's rows of this head's columns in the output belong to this call alone.
    pub(super) unsafe fn forward(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        output: &Shared<'_>,
        log_sum_exp: Option<&Shared<'_>>,
        packed: &mut Packed,
    ) {
        let (isa, n) = (self.isa, self.tokens().len());
        let (head, stride) = (self.head(), self.layout.output_stride);
        let (key_width, width) = (head.key.1, head.value.1);
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
        pack_once(&mut packed.keys, (self.sequence, head.key), || fill_panels_transposed(isa, self.keys(k), n, keys));
        pack_once(&mut packed.values, (self.sequence, head.value), || fill_panels(self.values(v), 0..n, values));
        for queries in self.blocks() {
            let block = self.block(&queries);
            fill_left(isa, self.queries(q), queries.clone(), left);
            with_keys(isa, &block.queries, key_width, left, keys, scores);
            softmax::forward(isa, &block, scores, middle, inverse, log_sums);
            over_keys(isa, &block.queries, width, middle, values, result);
            let at = self.start(head.output, stride) + queries.start * stride;
            // SAFETY: the caller's promise.
            unsafe { write(result, queries.len(), width, Some(inverse), output, at, stride) };
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

    /// Gradients of queries, keys and values of this sequence and head; those of keys and values are added to unless the
    /// head is the first of its group that has them; `d_bias`, one row of the table, is added to.
    ///
    /// # Safety
    /// This sequence's rows of this head's columns belong to this call alone.
    pub(super) unsafe fn backward(
        &self,
        saved: &Saved<'_>,
        d: &Gradients<'_>,
        d_bias: &mut [f32],
        member: &Member,
        packed: &mut Packed,
    ) {
        let (isa, n, layout) = (self.isa, self.tokens().len(), self.layout);
        let head = self.head();
        let (key_width, width) = (head.key.1, head.value.1);
        let (query_stride, key_stride) = (layout.query_stride, layout.key_stride);
        let (query_start, key_start) = (self.start(head.query, query_stride), self.start(head.key, key_stride));
        if n == 0 {
            return;
        }
        if width == 0 {
            for token in (0..n).filter(|_| key_width > 0) {
                // SAFETY: the caller's promise.
                unsafe {
                    d.q.slice(query_start + token * query_stride, key_width).fill(0.0);
                    if member.first_of_keys {
                        d.k.slice(key_start + token * key_stride, key_width).fill(0.0);
                    }
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
        pack_once(&mut packed.keys, (self.sequence, head.key), || {
            fill_panels_transposed(isa, self.keys(saved.k), n, keys);
            fill_panels(self.keys(saved.k), 0..n, keys_as_depth);
        });
        pack_once(&mut packed.values, (self.sequence, head.value), || {
            fill_panels_transposed(isa, self.values(saved.v), n, values);
        });
        for queries in self.blocks() {
            let rows = queries.len();
            let block = self.block(&queries);
            fill_left(isa, self.queries(saved.q), queries.clone(), left);
            with_keys(isa, &block.queries, key_width, left, keys, scores);
            fill_left(isa, self.output(saved.d_output), queries.clone(), left);
            with_keys(isa, &block.queries, width, left, values, gradients);
            let (output, d_output) = (self.output(saved.output), self.output(saved.d_output));
            let (stride, at) = (output.stride, queries.start * output.stride);
            softmax::row_dots(isa, &output.data[at..], &d_output.data[at..], stride, width, &mut delta[..rows]);
            let heads = layout.heads.len();
            for (value, i) in log_sums.iter_mut().zip(queries.clone()) {
                *value = saved.log_sum_exp[(self.tokens().start + i) * heads + self.head];
            }
            softmax::backward(isa, &block, scores, gradients, log_sums, delta, middle, d_bias);
            over_keys(isa, &block.queries, key_width, middle, keys_as_depth, result);
            let at = query_start + queries.start * query_stride;
            // SAFETY: the caller's promise.
            unsafe { write(result, rows, key_width, None, d.q, at, query_stride) };
            fill_panels(self.queries(saved.q), queries.clone(), result);
            add_transposed(isa, &block.queries, key_width, gradients, result, left, d_keys);
            fill_panels(self.output(saved.d_output), queries.clone(), result);
            add_transposed(isa, &block.queries, width, scores, result, left, d_values);
        }
        let value_start = self.start(head.value, layout.value_stride);
        // SAFETY: the caller's promise.
        unsafe {
            write_runs(d_keys, n, key_width, d.k, key_start, key_stride, member.first_of_keys);
            write_runs(d_values, n, width, d.v, value_start, layout.value_stride, member.first_of_values);
        }
        SCRATCH.set(scratch);
    }
}

/// Products of a block's rows, `depth` columns of a left block, with the keys that they see, into panels.
fn with_keys(isa: Isa, queries: &Rows, depth: usize, left: &[f32], keys: &[f32], out: &mut [f32]) {
    let shape = Shape { rows: queries.rows, depth, outputs: queries.sight.keys };
    for panel in panels(&queries.keys_of_all(&(0..queries.rows))) {
        let part = Part { rows: queries.rows_of(panel), depth: 0..depth, panels: panel..panel + 1 };
        product(isa, shape, part, left, keys, out, false);
    }
}

/// Products of a block's rows, a left block with keys as depth, with `outputs` columns of panels, over the keys that a strip
/// of rows sees.
fn over_keys(isa: Isa, queries: &Rows, outputs: usize, left: &[f32], right: &[f32], out: &mut [f32]) {
    let shape = Shape { rows: queries.rows, depth: queries.sight.keys, outputs };
    for rows in queries.strips() {
        let depth = queries.keys_of_all(&rows);
        product(isa, shape, Part { rows, depth, panels: 0..outputs.div_ceil(PANEL) }, left, right, out, false);
    }
}

/// The runs of at most `KEYS` keys.
fn runs(keys: usize) -> impl Iterator<Item = Range<usize>> {
    (0..keys).step_by(KEYS).map(move |first| first..keys.min(first + KEYS))
}

/// `sums += valuesᵀ right`, for keys as rows and the queries that see them as depth: values in panels of the block's rows,
/// `right` in panels `[rows, outputs]`; the sums, begun by the first block that sees a key, are panels of one run of keys
/// after the other.
fn add_transposed(
    isa: Isa,
    queries: &Rows,
    outputs: usize,
    values: &[f32],
    right: &[f32],
    left: &mut [f32],
    sums: &mut [f32],
) {
    let full = queries.sight.full();
    for run in runs(queries.sight.keys) {
        if panels(&run).all(|panel| queries.rows_of(panel).is_empty()) {
            continue;
        }
        let in_panels = &values[run.start * queries.rows..][..run.len().next_multiple_of(PANEL) * queries.rows];
        fill_left_transposed(isa, in_panels, queries.rows, left);
        let sums = &mut sums[panels_length(run.start, outputs)..][..panels_length(run.len(), outputs)];
        let shape = Shape { rows: run.len(), depth: queries.rows, outputs };
        for first in (0..run.len()).step_by(if full { KEYS } else { PANEL }) {
            let panel = (run.start + first) / PANEL;
            let depth = queries.rows_of(panel);
            if depth.is_empty() {
                continue;
            }
            let rows = first..if full { run.len() } else { run.len().min(first + PANEL) };
            let resume = queries.first > queries.sight.queries_of(panel).start;
            product(isa, shape, Part { rows, depth, panels: 0..outputs.div_ceil(PANEL) }, left, right, sums, resume);
        }
    }
}

/// Writes the sums of [`add_transposed`], or adds them to what is there.
///
/// # Safety
/// As [`write`].
unsafe fn write_runs(
    sums: &[f32],
    keys: usize,
    width: usize,
    out: &Shared<'_>,
    at: usize,
    stride: usize,
    overwrite: bool,
) {
    for run in runs(keys) {
        let sums = &sums[panels_length(run.start, width)..][..panels_length(run.len(), width)];
        let at = at + run.start * stride;
        // SAFETY: the caller's promise.
        unsafe {
            if overwrite {
                write(sums, run.len(), width, None, out, at, stride);
            } else {
                add(sums, run.len(), width, out, at, stride);
            }
        }
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
