//! The blocked attention against the plain loops, on every instruction set.

use super::*;
use crate::cpu::{Isa, with_isa};
use crate::random;

struct Case {
    offsets: Vec<usize>,
    heads: Vec<Head>,
    widths: (usize, usize),
    bias: Option<(Vec<f32>, usize)>,
    dropout: Option<Dropout>,
}

fn cases() -> Vec<Case> {
    let head = |query_key, value, bias| Head { query_key, value, bias };
    let even = vec![head((0, 32), (0, 32), 0), head((32, 32), (32, 32), 1)];
    // Heads of unequal sizes, one without query/key columns, one without value columns, and columns of no head.
    let ragged =
        vec![head((0, 5), (1, 3), 0), head((5, 0), (4, 7), 1), head((5, 4), (11, 0), 2), head((10, 1), (12, 1), 3)];
    let long = ragged.clone();
    let table = |rows: usize, max: usize| {
        let mut table = vec![0.0; rows * (2 * max - 1)];
        random::fill_normal(7, 0.0, 1.0, &mut table);
        Some((table, max))
    };
    let dropout = Some(Dropout { rate: 0.3, key: 11 });
    vec![
        Case { offsets: vec![0, 1, 41, 58], heads: even.clone(), widths: (64, 64), bias: None, dropout: None },
        Case { offsets: vec![0, 33, 34], heads: even, widths: (64, 64), bias: table(2, 40), dropout },
        Case { offsets: vec![0, 7, 7, 24], heads: ragged.clone(), widths: (12, 14), bias: table(4, 17), dropout: None },
        Case { offsets: vec![0, 3, 130], heads: ragged, widths: (12, 14), bias: None, dropout },
        Case { offsets: vec![0], heads: vec![], widths: (4, 4), bias: None, dropout: None },
        // Several blocks of queries, runs of keys and blocks of the depth, with ragged ends.
        Case { offsets: vec![0, 300, 557], heads: long.clone(), widths: (12, 14), bias: table(4, 300), dropout },
        Case { offsets: vec![0, 256, 385], heads: long, widths: (12, 14), bias: None, dropout: None },
    ]
}

fn random(key: u64, length: usize) -> Vec<f32> {
    let mut values = vec![0.0; length];
    random::fill_normal(key, 0.0, 1.0, &mut values);
    values
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        // Sums of up to 300 products of numbers around 1, in another order.
        assert!((found - expected).abs() <= 2e-5 * expected.abs().max(1.0), "{what} {i}: {found} {expected}");
    }
}

#[test]
fn blocked_attention_equals_the_plain_loops() {
    for isa in Isa::available() {
        for (index, case) in cases().iter().enumerate() {
            with_isa(isa, || check(case, &format!("{isa} case {index}")));
        }
    }
}

fn check(case: &Case, what: &str) {
    let tokens = *case.offsets.last().unwrap_or(&0);
    let (key_width, value_width) = case.widths;
    let layout = Layout {
        offsets: &case.offsets,
        heads: &case.heads,
        query_key_stride: key_width,
        value_stride: value_width,
        scale: 0.3,
        position_bias: case.bias.as_ref().map(|(table, max)| (table.as_slice(), *max)),
        dropout: case.dropout,
    };
    let (q, k) = (random(1, tokens * key_width), random(2, tokens * key_width));
    let (v, d_output) = (random(3, tokens * value_width), random(4, tokens * value_width));
    let mut output = vec![f32::NAN; tokens * value_width];
    let mut saved = vec![0.0; tokens * case.heads.len()];
    attention_forward(&layout, &q, &k, &v, &mut output, Some(&mut saved));

    let mut plain_output = vec![0.0; output.len()];
    let mut plain_saved = vec![0.0; saved.len()];
    let tasks = || (0..case.offsets.len() - 1).flat_map(|s| (0..case.heads.len()).map(move |h| (s, h)));
    {
        let (output, saved) = (Shared::new(&mut plain_output), Shared::new(&mut plain_saved));
        for (sequence, head) in tasks() {
            reference::forward(&layout, sequence, head, &q, &k, &v, &output, Some(&saved));
        }
    }
    assert_close(&format!("{what} output"), &output, &plain_output);
    assert_close(&format!("{what} log-sum-exp"), &saved, &plain_saved);

    let mut d_table = case.bias.as_ref().map(|(table, _)| vec![0.0; table.len()]);
    let mut found = [key_width, key_width, value_width].map(|width| vec![f32::NAN; tokens * width]);
    let [d_q, d_k, d_v] = &mut found;
    attention_backward(&layout, &q, &k, &v, &output, &d_output, &saved, d_q, d_k, d_v, d_table.as_deref_mut());
    let mut plain = [key_width, key_width, value_width].map(|width| vec![0.0; tokens * width]);
    let mut plain_table = d_table.as_ref().map(|table| vec![0.0; table.len()]);
    {
        let [d_q, d_k, d_v] = &mut plain;
        let parts = [Shared::new(d_q), Shared::new(d_k), Shared::new(d_v)];
        for (sequence, head) in tasks() {
            let row = case.heads[head].bias;
            let width = case.bias.as_ref().map_or(0, |(_, max)| 2 * max - 1);
            let d_bias = plain_table.as_mut().map_or(&mut [][..], |table| &mut table[row * width..][..width]);
            reference::backward(
                &layout,
                sequence,
                head,
                &q,
                &k,
                &v,
                &plain_output,
                &d_output,
                &plain_saved,
                &parts,
                d_bias,
            );
        }
    }
    for (name, (found, plain)) in ["d_q", "d_k", "d_v"].iter().zip(found.iter().zip(&plain)) {
        assert_close(&format!("{what} {name}"), found, plain);
    }
    if let (Some(found), Some(plain)) = (d_table, plain_table) {
        assert_close(&format!("{what} d_table"), &found, &plain);
    }
}
