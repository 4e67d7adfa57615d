//! Multi-head self attention over ragged sequences, forward and backward. Probabilities are never stored: the backward
//! pass makes them again from the scores and their log-sum-exp.

mod head;
mod panels;
#[cfg(test)]
mod reference;
mod softmax;
#[cfg(test)]
mod tests;

use crate::cpu;
use crate::dropout::Dropout;
use crate::parallel::{self, Shared};
use head::{Gradients, Saved, Task};

/// Where one head lives in the columns of queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Start and length in the columns of queries and keys.
    pub query_key: (usize, usize),
    /// Start and length in the columns of values and of the output.
    pub value: (usize, usize),
    /// Row of the position bias table.
    pub bias: usize,
}

/// Shapes and settings of an attention, the same for forward and backward.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// First token of each sequence, and `T` at the end; `[S + 1]`.
    pub offsets: &'a [usize],
    /// The heads; their columns do not overlap.
    pub heads: &'a [Head],
    /// Width of queries and keys.
    pub query_key_stride: usize,
    /// Width of values and output.
    pub value_stride: usize,
    /// Multiplies the products of queries and keys.
    pub scale: f32,
    /// A table `[rows, 2·max − 1]` added to the scores, its column `key − query + max − 1`, and `max`, the longest sequence.
    pub position_bias: Option<(&'a [f32], usize)>,
    /// Dropout of the probabilities.
    pub dropout: Option<Dropout>,
}

impl Layout<'_> {
    pub(crate) fn tokens(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether the heads, which do not overlap, leave none of `width` columns out.
    fn covers(&self, columns: fn(&Head) -> (usize, usize), width: usize) -> bool {
        self.heads.iter().map(|head| columns(head).1).sum::<usize>() == width
    }

    /// Runs `work(sequence, head)` for all of them.
    fn for_each(&self, work: impl Fn(usize, usize) + Sync) {
        let heads = self.heads.len();
        let pairs = self.sequences() * heads;
        let scores: usize = self.offsets.windows(2).map(|pair| (pair[1] - pair[0]).pow(2)).sum();
        // Some groups a thread even out sequences of unequal length; a score costs some tens of multiply-adds.
        let groups = pairs.min(16 * rayon::current_num_threads());
        parallel::tasks(groups, scores * heads > 4096, |group| {
            for pair in pairs * group / groups..pairs * (group + 1) / groups {
                work(pair / heads, pair % heads);
            }
        });
    }

    fn check(&self, what: &str) {
        assert!(self.offsets.is_sorted(), "{what}: ascending offsets");
        assert!(self.offsets.first().is_none_or(|&first| first == 0), "{what}: offsets from 0");
        let disjoint = |mut ranges: Vec<(usize, usize)>, width: usize| {
            ranges.retain(|range| range.1 > 0);
            ranges.sort_unstable();
            ranges.iter().all(|range| range.0 + range.1 <= width) && ranges.is_sorted_by(|a, b| a.0 + a.1 <= b.0)
        };
        let query_keys = self.heads.iter().map(|head| head.query_key).collect();
        assert!(
            disjoint(query_keys, self.query_key_stride),
            "{what}: heads disjoint and inside the query and key columns"
        );
        let values = self.heads.iter().map(|head| head.value).collect();
        assert!(disjoint(values, self.value_stride), "{what}: heads disjoint and inside the value columns");
        if let Some((table, max)) = self.position_bias {
            let longest = self.offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
            assert!(longest <= max, "{what}: a sequence of {longest} tokens with position biases for {max}");
            let rows = self.heads.iter().map(|head| head.bias + 1).max().unwrap_or(0);
            assert!(rows * (2 * max).saturating_sub(1) <= table.len(), "{what}: position bias table of {rows} rows");
        }
    }
}

/// `softmax(scale · q kᵀ + bias) v` for every sequence and head.
///
/// A head without query and key columns has zero scores (but its bias); one without value columns is skipped. Output columns
/// of no head become 0.
///
/// # Shapes
/// `q`, `k` `[T, query_key_stride]`; `v`, `output` `[T, value_stride]`; `log_sum_exp` `[T, heads]`, for the backward pass.
///
/// # Panics
/// If a shape does not fit.
pub fn attention_forward(
    layout: &Layout<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: &mut [f32],
    log_sum_exp: Option<&mut [f32]>,
) {
    layout.check("attention_forward");
    let tokens = layout.tokens();
    assert_eq!(q.len(), tokens * layout.query_key_stride, "attention_forward: queries");
    assert_eq!(k.len(), tokens * layout.query_key_stride, "attention_forward: keys");
    assert_eq!(v.len(), tokens * layout.value_stride, "attention_forward: values");
    assert_eq!(output.len(), tokens * layout.value_stride, "attention_forward: output");
    if let Some(saved) = &log_sum_exp {
        assert_eq!(saved.len(), tokens * layout.heads.len(), "attention_forward: log-sum-exp");
    }
    if !layout.covers(|head| head.value, layout.value_stride) {
        parallel::rows_mut(output, 1, |_, output| output.fill(0.0));
    }
    let output = Shared::new(output);
    let saved = log_sum_exp.map(Shared::new);
    let isa = cpu::isa();
    layout.for_each(|sequence, head| {
        // SAFETY: sequences have rows and heads have columns of their own, inside the buffers, as checked.
        unsafe { Task { layout, isa, sequence, head }.forward(q, k, v, &output, saved.as_ref()) };
    });
}

/// Gradients of [`attention_forward`].
///
/// # Shapes
/// As there; `d_q`, `d_k`, `d_v` are overwritten (columns of no head with 0); `d_bias_table`, shaped as the table, is added to.
///
/// # Panics
/// If a shape does not fit.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    layout: &Layout<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: &[f32],
    d_output: &[f32],
    log_sum_exp: &[f32],
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
    d_bias_table: Option<&mut [f32]>,
) {
    layout.check("attention_backward");
    let tokens = layout.tokens();
    for (name, length) in [("queries", q.len()), ("keys", k.len()), ("d_q", d_q.len()), ("d_k", d_k.len())] {
        assert_eq!(length, tokens * layout.query_key_stride, "attention_backward: {name}");
    }
    for (name, length) in
        [("values", v.len()), ("output", output.len()), ("d_output", d_output.len()), ("d_v", d_v.len())]
    {
        assert_eq!(length, tokens * layout.value_stride, "attention_backward: {name}");
    }
    assert_eq!(log_sum_exp.len(), tokens * layout.heads.len(), "attention_backward: log-sum-exp");
    if let Some(d_table) = &d_bias_table {
        let table = layout.position_bias.map_or(0, |(table, _)| table.len());
        assert_eq!(d_table.len(), table, "attention_backward: gradient of the position bias table");
    }
    for (d, head, stride) in [
        (&mut *d_q, (|head| head.query_key) as fn(&Head) -> _, layout.query_key_stride),
        (&mut *d_k, |head| head.query_key, layout.query_key_stride),
        (&mut *d_v, |head| head.value, layout.value_stride),
    ] {
        if !layout.covers(head, stride) {
            parallel::rows_mut(d, 1, |_, d| d.fill(0.0));
        }
    }
    let saved = Saved { q, k, v, output, d_output, log_sum_exp };
    let gradients = Gradients { q: &Shared::new(d_q), k: &Shared::new(d_k), v: &Shared::new(d_v) };
    let heads = layout.heads.len();
    // One run of bias gradients a sequence and head, added up afterwards in the order of the sequences.
    let width =
        layout.position_bias.filter(|_| d_bias_table.is_some()).map_or(0, |(_, max)| (2 * max).saturating_sub(1));
    let mut bias_parts = vec![0.0; layout.sequences() * heads * width];
    let shared_bias = Shared::new(&mut bias_parts);
    let isa = cpu::isa();
    layout.for_each(|sequence, head| {
        // SAFETY: every sequence and head has a run of its own, rows and columns of its own, inside the buffers, as checked.
        unsafe {
            let d_bias = shared_bias.slice((sequence * heads + head) * width, width);
            Task { layout, isa, sequence, head }.backward(&saved, &gradients, d_bias);
        }
    });
    if let Some(d_table) = d_bias_table.filter(|_| width > 0) {
        for (task, part) in bias_parts.chunks_exact(width).enumerate() {
            let row = layout.heads[task % heads].bias;
            d_table[row * width..][..width].iter_mut().zip(part).for_each(|(d, &part)| *d += part);
        }
    }
}

/// The dropout mask of one sequence and head.
fn task_dropout(dropout: &Dropout, heads: usize, sequence: usize, head: usize) -> Dropout {
    Dropout { rate: dropout.rate, key: crate::random::mix(dropout.key, (sequence * heads + head) as u64) }
}

/// The factor of the probability of query `i` and key `j`.
#[cfg(test)]
fn element_factor(
    dropout: &Dropout,
    heads: usize,
    sequence: usize,
    head: usize,
    i: usize,
    j: usize,
    length: usize,
) -> f32 {
    task_dropout(dropout, heads, sequence, head).factor(u64::from((i * length + j) as u32))
}
