//! Multi-head self attention over ragged sequences, forward and backward, with heads that may share keys and values, and
//! with or without a causal mask. Probabilities are never stored: the backward pass makes them again from the scores and
//! their log-sum-exp.

mod head;
mod layout;
mod panels;
#[cfg(test)]
mod reference;
mod sight;
mod softmax;
mod step;
#[cfg(test)]
mod tests;

use crate::cpu;
use crate::dropout::Dropout;
use crate::parallel::{self, Shared};
use head::{Gradients, Saved, Task};
pub use layout::{Head, Layout, Mask};
use layout::{covers, groups};
pub use step::{Cached, Strides, attention_step};

/// `softmax(scale · q kᵀ + bias) v` for every sequence and head, over the keys that the mask lets a query see.
///
/// A head without query and key columns has zero scores (but its bias); one without value columns is skipped. Output columns
/// of no head become 0.
///
/// # Shapes
/// `q` `[T, query_stride]`, `k` `[T, key_stride]`, `v` `[T, value_stride]`, `output` `[T, output_stride]`; `log_sum_exp`
/// `[T, heads]`, for the backward pass.
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
    assert_eq!(q.len(), tokens * layout.query_stride, "attention_forward: queries");
    assert_eq!(k.len(), tokens * layout.key_stride, "attention_forward: keys");
    assert_eq!(v.len(), tokens * layout.value_stride, "attention_forward: values");
    assert_eq!(output.len(), tokens * layout.output_stride, "attention_forward: output");
    if let Some(saved) = &log_sum_exp {
        assert_eq!(saved.len(), tokens * layout.heads.len(), "attention_forward: log-sum-exp");
    }
    if !covers(layout.heads, |head| head.output, layout.output_stride) {
        parallel::rows_mut(output, 1, |_, output| output.fill(0.0));
    }
    let output = Shared::new(output);
    let saved = log_sum_exp.map(Shared::new);
    let isa = cpu::isa();
    layout.for_each(layout.heads.len(), |sequence, head, packed| {
        // SAFETY: sequences have rows and heads have output columns of their own, inside the buffers, as checked.
        unsafe { Task { layout, isa, sequence, head }.forward(q, k, v, &output, saved.as_ref(), packed) };
    });
}

/// Gradients of [`attention_forward`]. Those of keys and values that heads share are sums over these heads in their order.
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
    for (name, length, width) in [
        ("queries", q.len(), layout.query_stride),
        ("keys", k.len(), layout.key_stride),
        ("values", v.len(), layout.value_stride),
        ("output", output.len(), layout.output_stride),
        ("d_output", d_output.len(), layout.output_stride),
        ("d_q", d_q.len(), layout.query_stride),
        ("d_k", d_k.len(), layout.key_stride),
        ("d_v", d_v.len(), layout.value_stride),
    ] {
        assert_eq!(length, tokens * width, "attention_backward: {name}");
    }
    assert_eq!(log_sum_exp.len(), tokens * layout.heads.len(), "attention_backward: log-sum-exp");
    if let Some(d_table) = &d_bias_table {
        let table = layout.position_bias.map_or(0, |(table, _)| table.len());
        assert_eq!(d_table.len(), table, "attention_backward: gradient of the position bias table");
    }
    for (d, head, stride) in [
        (&mut *d_q, (|head| head.query) as fn(&Head) -> _, layout.query_stride),
        (&mut *d_k, |head| head.key, layout.key_stride),
        (&mut *d_v, |head| head.value, layout.value_stride),
    ] {
        if !covers(layout.heads, head, stride) {
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
    let groups = groups(layout.heads);
    layout.for_each(groups.len(), |sequence, group, packed| {
        for member in &groups[group] {
            let head = member.head;
            // SAFETY: every sequence and head has a run of biases of its own, sequences have rows and groups have columns of
            // their own, inside the buffers, as checked.
            unsafe {
                let d_bias = shared_bias.slice((sequence * heads + head) * width, width);
                Task { layout, isa, sequence, head }.backward(&saved, &gradients, d_bias, member, packed);
            }
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
