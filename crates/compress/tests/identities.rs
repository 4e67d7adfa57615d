//! The independent proof of the law: a plain encoder in f64, its gated form, and the form that is left after removal.
//!
//! Nothing of the model crate computes here but the wiring. In f64 the two forms must agree far below any f32
//! rounding, whatever is closed; a wrong rule shows as a difference of the order of 1.

#![allow(clippy::unwrap_used)]

use finegates_checkpoint::config::Family;
use finegates_compress::removal::open_sets;
use finegates_compress::{OpenSets, liveness};
use finegates_model::GateState;
use finegates_model::wiring::{StackShape, Wiring};
use proptest::prelude::*;

const LAYERS: usize = 2;
const HIDDEN: usize = 6;
const HEADS: usize = 3;
const HEAD_DIM: usize = HIDDEN / HEADS;
const INNER: usize = 5;
const TOKENS: usize = 4;

/// Numbers in (−1, 1) from a seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn take(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// A linear layer whose rows and columns have their original numbers: dense, or what is left of a dense one.
#[derive(Clone)]
struct Linear {
    rows: Vec<usize>,
    columns: Vec<usize>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    width: usize,
}

impl Linear {
    fn random(rows: usize, columns: usize, numbers: &mut Numbers) -> Linear {
        Linear {
            rows: (0..rows).collect(),
            columns: (0..columns).collect(),
            weight: numbers.take(rows * columns),
            bias: numbers.take(rows),
            width: rows,
        }
    }

    /// `ω_r ⊙ (W (ω_c ⊙ x) + b)` by the book, on a vector indexed by original columns.
    fn gated(&self, gates: &GateState, x: &[f64]) -> Vec<f64> {
        let row = |row: usize| {
            let inputs = self.columns.len();
            let sum: f64 =
                (0..inputs).map(|c| self.weight[row * inputs + c] * f64::from(gates.columns[c]) * x[c]).sum();
            f64::from(gates.rows[row]) * (sum + self.bias[row])
        };
        (0..self.rows.len()).map(row).collect()
    }

    /// The gates folded in and everything dead left out.
    fn compact(&self, gates: &GateState, live: &OpenSets) -> Linear {
        let pick = |flags: &[bool]| (0..flags.len()).filter(|&at| flags[at]).collect::<Vec<_>>();
        let (rows, columns) = (pick(&live.rows), pick(&live.columns));
        let inputs = self.columns.len();
        let entry =
            |r: usize, c: usize| f64::from(gates.rows[r]) * self.weight[r * inputs + c] * f64::from(gates.columns[c]);
        Linear {
            weight: rows.iter().flat_map(|&r| columns.iter().map(move |&c| entry(r, c))).collect(),
            bias: rows.iter().map(|&r| f64::from(gates.rows[r]) * self.bias[r]).collect(),
            rows,
            columns,
            width: self.width,
        }
    }

    /// What is left, from a vector indexed by original columns to one by original rows; absent rows are `missing`.
    fn left(&self, x: &[f64], missing: f64) -> Vec<f64> {
        let mut y = vec![missing; self.width];
        for (place, &row) in self.rows.iter().enumerate() {
            let inputs = self.columns.len();
            let weights = &self.weight[place * inputs..(place + 1) * inputs];
            let sum: f64 = weights.iter().zip(&self.columns).map(|(weight, &column)| weight * x[column]).sum();
            y[row] = sum + self.bias[place];
        }
        y
    }
}

fn gelu(x: f64) -> f64 {
    // The tanh form: what matters here is that it is curved and maps 0 to 0.
    0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh())
}

fn norm(x: &mut [f64]) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / x.len() as f64;
    x.iter_mut().for_each(|value| *value = (*value - mean) / (variance + 1e-5).sqrt());
}

/// Attention over one sequence; `scores` and `values` say which dimensions of a token's vectors take part.
fn attention(q: &[Vec<f64>], k: &[Vec<f64>], v: &[Vec<f64>], scores: &[bool], values: &[bool]) -> Vec<Vec<f64>> {
    let mut out = vec![vec![f64::NAN; HIDDEN]; q.len()];
    for head in 0..HEADS {
        let dims = head * HEAD_DIM..(head + 1) * HEAD_DIM;
        for (i, query) in q.iter().enumerate() {
            let score = |j: usize| {
                let live = dims.clone().filter(|&d| scores[d]);
                // A position bias a head, as MPNet has it, so that scores differ where all products are 0.
                live.map(|d| query[d] * k[j][d]).sum::<f64>() + ((i + 2 * j + head) % 3) as f64 * 0.3
            };
            let weights: Vec<f64> = (0..k.len()).map(|j| score(j).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in dims.clone().filter(|&d| values[d]) {
                out[i][d] = (0..k.len()).map(|j| weights[j] / total * v[j][d]).sum();
            }
        }
    }
    out
}

/// Post-norm layers over one sequence, `apply(projection index, input)` being the linear layers.
fn encode(x: &[Vec<f64>], live: &[OpenSets], missing: f64, apply: &dyn Fn(usize, &[f64]) -> Vec<f64>) -> Vec<Vec<f64>> {
    let mut x = x.to_vec();
    for layer in 0..LAYERS {
        let first = layer * 6;
        let each = |projection: usize, x: &[Vec<f64>]| -> Vec<Vec<f64>> {
            x.iter().map(|token| apply(first + projection, token)).collect()
        };
        let (q, k, v) = (each(0, &x), each(1, &x), each(2, &x));
        let context = attention(&q, &k, &v, &live[first].rows, &live[first + 2].rows);
        for (token, delta) in x.iter_mut().zip(each(3, &context)) {
            token.iter_mut().zip(delta).for_each(|(value, delta)| *value += delta);
            norm(token);
        }
        let mut inner = each(4, &x);
        for (unit, value) in inner.iter_mut().flat_map(|token| token.iter_mut().enumerate()) {
            // A missing unit stays what it is: reading it would spoil the result.
            *value = if live[first + 4].rows[unit] { gelu(*value) } else { missing };
        }
        for (token, delta) in x.iter_mut().zip(each(5, &inner)) {
            token.iter_mut().zip(delta).for_each(|(value, delta)| *value += delta);
            norm(token);
        }
    }
    x
}

fn wiring() -> Wiring {
    let shape = StackShape::encoder(LAYERS, HIDDEN, HEADS, INNER);
    Wiring::stack(Family::Bert, &shape).unwrap()
}

/// Greatest difference between the gated encoder and what is left of it.
fn difference(seed: u64, wiring: &Wiring, gates: &[GateState]) -> f64 {
    let mut numbers = Numbers(seed);
    let linears: Vec<Linear> =
        wiring.projections.iter().map(|place| Linear::random(place.rows, place.columns, &mut numbers)).collect();
    let x: Vec<Vec<f64>> = (0..TOKENS).map(|_| numbers.take(HIDDEN)).collect();
    let all: Vec<_> = wiring.projections.iter().map(|place| OpenSets::all(place.rows, place.columns)).collect();
    let gated = encode(&x, &all, 0.0, &|index, x| linears[index].gated(&gates[index], x));

    let live = liveness(wiring, &open_sets(wiring, gates).unwrap());
    let compact: Vec<_> = (0..live.len()).map(|at| linears[at].compact(&gates[at], &live[at])).collect();
    let left = encode(&x, &live, f64::NAN, &|index, x| {
        // Into the residual stream absent rows add nothing; elsewhere nobody may look at them.
        let missing = if matches!(index % 6, 3 | 5) { 0.0 } else { f64::NAN };
        compact[index].left(x, missing)
    });
    let pairs = gated.iter().flatten().zip(left.iter().flatten());
    pairs
        .map(|(gated, left)| (gated - left).abs())
        .fold(0.0, |most, gap| if gap > most || gap.is_nan() { gap } else { most })
}

/// Gates from a source of numbers: closed with the given probability, else open or in between.
fn gates(wiring: &Wiring, closed: f64, numbers: &mut Numbers) -> Vec<GateState> {
    let mut draw = |count: usize| -> Vec<f32> {
        let value = |numbers: &mut Numbers| match (numbers.next() + 1.0) / 2.0 < closed {
            true => 0.0,
            false => (numbers.next() + 1.0).clamp(0.05, 1.0) as f32,
        };
        (0..count).map(|_| value(numbers)).collect()
    };
    let places = wiring.projections.iter();
    places
        .map(|place| GateState { path: place.path.clone(), rows: draw(place.rows), columns: draw(place.columns) })
        .collect()
}

/// What is closed altogether besides the random gates: (projection, rows or columns).
fn close(gates: &mut [GateState], projection: usize, rows: bool) {
    let side = if rows { &mut gates[projection].rows } else { &mut gates[projection].columns };
    side.fill(0.0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_computes_what_the_gated_encoder_computes(
        seed in any::<u64>(),
        closed in prop_oneof![Just(0.0), 0.0..0.9f64, Just(0.95)],
        extremes in prop::collection::vec((0..12usize, any::<bool>()), 0..4),
    ) {
        let wiring = wiring();
        let mut gates = gates(&wiring, closed, &mut Numbers(seed ^ 0x5eed));
        for (projection, rows) in extremes {
            close(&mut gates, projection, rows);
        }
        let difference = difference(seed, &wiring, &gates);
        prop_assert!(difference < 1e-12, "difference {difference:e}");
    }
}

#[test]
fn everything_closed_in_a_layer_leaves_the_norms() {
    let wiring = wiring();
    let mut gates = gates(&wiring, 0.3, &mut Numbers(1));
    for projection in 0..6 {
        close(&mut gates, projection, true);
        close(&mut gates, projection, false);
    }
    assert!(difference(7, &wiring, &gates) < 1e-12);
}

#[test]
fn every_side_of_every_projection_may_close_alone() {
    let wiring = wiring();
    for projection in 0..12 {
        for rows in [true, false] {
            let mut gates = gates(&wiring, 0.0, &mut Numbers(2));
            close(&mut gates, projection, rows);
            let difference = difference(11, &wiring, &gates);
            assert!(difference < 1e-12, "{}: {difference:e}", wiring.projections[projection].path);
        }
    }
}

#[test]
fn wrong_rule_is_seen() {
    let mut wiring = wiring();
    let (value, output) = (2, 3);
    let wrong = finegates_model::wiring::Slots::columns(output, 1, 1);
    let when = vec![finegates_model::wiring::Slots::rows(value, 0, 1)];
    wiring.rules.push(finegates_model::wiring::Rule { when, then: vec![wrong] });
    let mut gates = gates(&wiring, 0.0, &mut Numbers(3));
    gates[value].rows[0] = 0.0;
    assert!(difference(13, &wiring, &gates) > 1e-3, "the proof must be able to fail");
}
