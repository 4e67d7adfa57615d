//! The definition of attention in plain loops over one sequence and head, which the fast version is tested against.

use super::Layout;
use crate::parallel::Shared;

fn scores(layout: &Layout<'_>, sequence: usize, head: usize, q: &[f32], k: &[f32], i: usize) -> Vec<f32> {
    let (first, end) = (layout.offsets[sequence], layout.offsets[sequence + 1]);
    let head = &layout.heads[head];
    let (start, length) = head.query_key;
    let stride = layout.query_key_stride;
    let query = &q[(first + i) * stride + start..][..length];
    (0..end - first)
        .map(|j| {
            let key = &k[(first + j) * stride + start..][..length];
            let product: f32 = query.iter().zip(key).map(|(&q, &k)| q * k).sum();
            let bias =
                layout.position_bias.map_or(0.0, |(table, max)| table[head.bias * (2 * max - 1) + max - 1 + j - i]);
            layout.scale * product + bias
        })
        .collect()
}

fn factor(layout: &Layout<'_>, sequence: usize, head: usize, i: usize, j: usize, length: usize) -> f32 {
    layout
        .dropout
        .map_or(1.0, |dropout| super::element_factor(&dropout, layout.heads.len(), sequence, head, i, j, length))
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(
    layout: &Layout<'_>,
    sequence: usize,
    head: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    output: &Shared<'_>,
    log_sum_exp: Option<&Shared<'_>>,
) {
    let (first, end) = (layout.offsets[sequence], layout.offsets[sequence + 1]);
    let (start, width) = layout.heads[head].value;
    let stride = layout.value_stride;
    if width == 0 {
        return;
    }
    for i in 0..end - first {
        let scores = scores(layout, sequence, head, q, k, i);
        let maximum = scores.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
        let sum: f32 = scores.iter().map(|&s| (s - maximum).exp()).sum();
        // SAFETY: every (sequence, head) has places of its own.
        let out = unsafe { output.slice((first + i) * stride + start, width) };
        for (j, &score) in scores.iter().enumerate() {
            let probability = (score - maximum).exp() / sum * factor(layout, sequence, head, i, j, end - first);
            let value = &v[(first + j) * stride + start..][..width];
            out.iter_mut().zip(value).for_each(|(out, &v)| *out += probability * v);
        }
        if let Some(saved) = log_sum_exp {
            // SAFETY: as above.
            let saved = unsafe { saved.slice((first + i) * layout.heads.len() + head, 1) };
            saved[0] = maximum + sum.ln();
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    layout: &Layout<'_>,
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
    let (first, end) = (layout.offsets[sequence], layout.offsets[sequence + 1]);
    let (start, width) = layout.heads[head].value;
    let (key_start, key_width) = layout.heads[head].query_key;
    let (stride, key_stride) = (layout.value_stride, layout.query_key_stride);
    if width == 0 {
        return;
    }
    for i in 0..end - first {
        let scores = scores(layout, sequence, head, q, k, i);
        let at = (first + i) * stride + start;
        let (out, d_out) = (&output[at..][..width], &d_output[at..][..width]);
        let delta: f32 = out.iter().zip(d_out).map(|(&o, &d)| o * d).sum();
        for (j, &score) in scores.iter().enumerate() {
            let probability = (score - log_sum_exp[(first + i) * layout.heads.len() + head]).exp();
            let factor = factor(layout, sequence, head, i, j, end - first);
            let at = (first + j) * stride + start;
            let d_probability: f32 = d_out.iter().zip(&v[at..]).map(|(&d, &v)| d * v).sum();
            let d_score = probability * (factor * d_probability - delta);
            // SAFETY: every (sequence, head) has places of its own.
            let (d_query, d_key, d_value) = unsafe {
                (
                    parts[0].slice((first + i) * key_stride + key_start, key_width),
                    parts[1].slice((first + j) * key_stride + key_start, key_width),
                    parts[2].slice(at, width),
                )
            };
            d_value.iter_mut().zip(d_out).for_each(|(d, &d_out)| *d += probability * factor * d_out);
            if let (false, Some((_, max))) = (d_bias.is_empty(), layout.position_bias) {
                d_bias[max - 1 + j - i] += d_score;
            }
            for (c, (d_query, d_key)) in d_query.iter_mut().zip(d_key).enumerate() {
                *d_query += layout.scale * d_score * k[(first + j) * key_stride + key_start + c];
                *d_key += layout.scale * d_score * q[(first + i) * key_stride + key_start + c];
            }
        }
    }
}
