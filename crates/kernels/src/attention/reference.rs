//! The definition of attention in plain `f64` loops over sequences and heads, which the fast version is tested against.

use super::{Layout, Mask};

/// Results of the forward pass.
pub(super) struct Forward {
    pub(super) output: Vec<f64>,
    pub(super) log_sum_exp: Vec<f64>,
}

/// Results of the backward pass.
pub(super) struct Backward {
    pub(super) d_q: Vec<f64>,
    pub(super) d_k: Vec<f64>,
    pub(super) d_v: Vec<f64>,
    pub(super) d_table: Vec<f64>,
}

/// What one query of one head sees: the places in keys and values, the score, and the dropout's factor of each key.
struct Seen {
    key: usize,
    value: usize,
    bias: usize,
    score: f64,
    factor: f64,
}

/// Shows every query that has an output: its sequence's and head's number, its row, and what it sees.
fn for_each_query(layout: &Layout<'_>, q: &[f64], k: &[f64], mut work: impl FnMut(usize, usize, &[Seen])) {
    for (sequence, pair) in layout.offsets.windows(2).enumerate() {
        let (first, length) = (pair[0], pair[1] - pair[0]);
        for (h, head) in layout.heads.iter().enumerate().filter(|(_, head)| head.value.1 > 0) {
            for i in 0..length {
                let visible = |j: &usize| match layout.mask {
                    Mask::Full => true,
                    Mask::Causal { window } => *j <= i && window.is_none_or(|window| i - j < window),
                };
                let query = &q[(first + i) * layout.query_stride + head.query.0..][..head.query.1];
                let seen = (0..length).filter(visible).map(|j| {
                    let key = (first + j) * layout.key_stride + head.key.0;
                    let product: f64 = query.iter().zip(&k[key..]).map(|(q, k)| q * k).sum();
                    let (bias, add) = layout.position_bias.map_or((0, 0.0), |(table, max)| {
                        let place = head.bias * (2 * max - 1) + max - 1 + j - i;
                        (place, f64::from(table[place]))
                    });
                    let factor = layout.dropout.map_or(1.0, |dropout| {
                        super::element_factor(&dropout, layout.heads.len(), sequence, h, i, j, length)
                    });
                    Seen {
                        key,
                        value: (first + j) * layout.value_stride + head.value.0,
                        bias,
                        score: f64::from(layout.scale) * product + add,
                        factor: f64::from(factor),
                    }
                });
                work(h, first + i, &seen.collect::<Vec<_>>());
            }
        }
    }
}

fn log_sum_exp(seen: &[Seen]) -> f64 {
    let maximum = seen.iter().fold(f64::NEG_INFINITY, |m, seen| m.max(seen.score));
    maximum + seen.iter().map(|seen| (seen.score - maximum).exp()).sum::<f64>().ln()
}

pub(super) fn forward(layout: &Layout<'_>, q: &[f64], k: &[f64], v: &[f64]) -> Forward {
    let (tokens, heads) = (layout.tokens(), layout.heads.len());
    let mut result =
        Forward { output: vec![0.0; tokens * layout.output_stride], log_sum_exp: vec![0.0; tokens * heads] };
    for_each_query(layout, q, k, |h, row, seen| {
        let (start, width) = layout.heads[h].output;
        let log_sum = log_sum_exp(seen);
        result.log_sum_exp[row * heads + h] = log_sum;
        let output = &mut result.output[row * layout.output_stride + start..][..width];
        for seen in seen {
            let probability = (seen.score - log_sum).exp() * seen.factor;
            output.iter_mut().zip(&v[seen.value..]).for_each(|(out, v)| *out += probability * v);
        }
    });
    result
}

pub(super) fn backward(layout: &Layout<'_>, q: &[f64], k: &[f64], v: &[f64], d_output: &[f64]) -> Backward {
    let table = layout.position_bias.map_or(0, |(table, _)| table.len());
    let mut d = Backward {
        d_q: vec![0.0; q.len()],
        d_k: vec![0.0; k.len()],
        d_v: vec![0.0; v.len()],
        d_table: vec![0.0; table],
    };
    for_each_query(layout, q, k, |h, row, seen| {
        let head = &layout.heads[h];
        let log_sum = log_sum_exp(seen);
        let query = row * layout.query_stride + head.query.0;
        let d_out = &d_output[row * layout.output_stride + head.output.0..][..head.output.1];
        let weights: Vec<(f64, f64)> = seen
            .iter()
            .map(|seen| {
                let d_probability: f64 = d_out.iter().zip(&v[seen.value..]).map(|(d, v)| d * v).sum();
                ((seen.score - log_sum).exp(), seen.factor * d_probability)
            })
            .collect();
        let delta: f64 = weights.iter().map(|(probability, d)| probability * d).sum();
        for (seen, (probability, d_probability)) in seen.iter().zip(weights) {
            let d_score = probability * (d_probability - delta);
            let d_values = d.d_v[seen.value..].iter_mut();
            d_values.zip(d_out).for_each(|(d, d_out)| *d += probability * seen.factor * d_out);
            if table > 0 {
                d.d_table[seen.bias] += d_score;
            }
            for c in 0..head.query.1 {
                d.d_q[query + c] += f64::from(layout.scale) * d_score * k[seen.key + c];
                d.d_k[seen.key + c] += f64::from(layout.scale) * d_score * q[query + c];
            }
        }
    });
    d
}
