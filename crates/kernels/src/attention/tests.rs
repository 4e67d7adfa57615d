//! The blocked attention against the plain loops, on every instruction set.

use proptest::prelude::*;

use super::*;
use crate::cpu::{Isa, with_isa};
use crate::dropout::Dropout;
use crate::tests::numbers;

#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) offsets: Vec<usize>,
    pub(super) heads: Vec<Head>,
    /// Strides of queries, keys, values and output.
    pub(super) widths: [usize; 4],
    pub(super) mask: Mask,
    pub(super) bias: Option<(Vec<f32>, usize)>,
    pub(super) dropout: Option<Dropout>,
}

const CAUSAL: Mask = Mask::Causal { window: None };

/// A head with the same columns in queries and keys, and in values and output.
fn head(key: (usize, usize), value: (usize, usize), bias: usize) -> Head {
    Head { query: key, key, value, output: value, bias }
}

/// `groups` times `sharing` heads of given sizes, one column of no head before each group's columns.
pub(super) fn grouped(groups: usize, sharing: usize, key: usize, value: usize) -> (Vec<Head>, [usize; 4]) {
    let place = |index: usize, width: usize| (index * width + index + 1, width);
    let heads = (0..groups * sharing).map(|head| Head {
        query: place(head, key),
        key: place(head / sharing, key),
        value: place(head / sharing, value),
        output: place(head, value),
        bias: head % 2,
    });
    let widths = [(sharing, key), (1, key), (1, value), (sharing, value)];
    (heads.collect(), widths.map(|(sharing, width)| groups * sharing * (width + 1) + 1))
}

fn cases() -> Vec<Case> {
    let even = vec![head((0, 32), (0, 32), 0), head((32, 32), (32, 32), 1)];
    // Heads of unequal sizes, one without query/key columns, one without value columns, and columns of no head.
    let ragged =
        vec![head((0, 5), (1, 3), 0), head((5, 0), (4, 7), 1), head((5, 4), (11, 0), 2), head((10, 1), (12, 1), 3)];
    let long = ragged.clone();
    let (even_widths, widths) = ([64; 4], [12, 12, 14, 14]);
    let table = |rows: usize, max: usize| Some((numbers(7, rows * (2 * max - 1)), max));
    let dropout = Some(Dropout { rate: 0.3, key: 11 });
    let case = |offsets: &[usize], heads: &[Head], widths, bias, dropout| Case {
        offsets: offsets.to_vec(),
        heads: heads.to_vec(),
        widths,
        mask: Mask::Full,
        bias,
        dropout,
    };
    let full = [
        case(&[0, 1, 41, 58], &even, even_widths, None, None),
        case(&[0, 33, 34], &even, even_widths, table(2, 40), dropout),
        case(&[0, 7, 7, 24], &ragged, widths, table(4, 17), None),
        case(&[0, 3, 130], &ragged, widths, None, dropout),
        case(&[0], &[], [4; 4], None, None),
        // Several blocks of queries, runs of keys and blocks of the depth, with ragged ends.
        case(&[0, 300, 557], &long, widths, table(4, 300), dropout),
        case(&[0, 256, 385], &long, widths, None, None),
    ];
    let (shared, shared_widths) = grouped(2, 3, 20, 9);
    // Keys in common without values in common, the other way round, and keys in common with a head that has no values.
    let mut crossed = grouped(4, 1, 6, 5).0;
    (crossed[1].key, crossed[2].value) = (crossed[0].key, crossed[1].value);
    (crossed[3].key, crossed[3].value, crossed[3].output) = (crossed[0].key, (0, 0), (0, 0));
    let sharing = [
        case(&[0, 1, 70, 275], &shared, shared_widths, None, None),
        case(&[0, 50, 150], &shared, shared_widths, table(2, 100), dropout),
        case(&[0, 17, 40], &crossed, grouped(4, 1, 6, 5).1, None, None),
        case(&[0, 17, 40], &[crossed[3], crossed[0]], grouped(4, 1, 6, 5).1, None, None),
    ];
    let masks = [CAUSAL, Mask::Causal { window: Some(1) }, Mask::Causal { window: Some(40) }];
    let all = full.into_iter().chain(sharing);
    all.flat_map(|case| {
        let masked = masks.map(|mask| Case { mask, ..case.clone() });
        std::iter::once(case).chain(masked)
    })
    .collect()
}

fn exact(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        // Sums of up to 300 products of numbers around 1, and of several heads where they share keys, in f32.
        let error = (f64::from(found) - expected).abs();
        assert!(error <= 2e-5 * expected.abs().max(1.0), "{what} {i}: {found} {expected}");
    }
}

#[test]
fn blocked_attention_equals_the_plain_loops() {
    for isa in Isa::available() {
        for (index, case) in cases().iter().enumerate() {
            with_isa(isa, || check(case, &format!("{isa} case {index} {:?}", case.mask)));
        }
    }
}

impl Case {
    fn layout(&self) -> Layout<'_> {
        let [query_stride, key_stride, value_stride, output_stride] = self.widths;
        Layout {
            offsets: &self.offsets,
            heads: &self.heads,
            query_stride,
            key_stride,
            value_stride,
            output_stride,
            scale: 0.3,
            mask: self.mask,
            position_bias: self.bias.as_ref().map(|(table, max)| (table.as_slice(), *max)),
            dropout: self.dropout,
        }
    }

    /// Queries, keys, values and gradients of the output.
    fn inputs(&self) -> [Vec<f32>; 4] {
        let tokens = self.layout().tokens();
        let mut key = 0;
        self.widths.map(|width| {
            key += 1;
            numbers(key, tokens * width)
        })
    }
}

fn check(case: &Case, what: &str) {
    let layout = case.layout();
    let tokens = layout.tokens();
    let [q, k, v, d_output] = case.inputs();
    let mut output = vec![f32::NAN; tokens * layout.output_stride];
    let mut saved = vec![0.0; tokens * case.heads.len()];
    attention_forward(&layout, &q, &k, &v, &mut output, Some(&mut saved));
    let mut unsaved = vec![f32::NAN; output.len()];
    attention_forward(&layout, &q, &k, &v, &mut unsaved, None);
    assert_eq!(output, unsaved, "{what}");
    let [exact_q, exact_k, exact_v] = [&q, &k, &v].map(|x| exact(x));
    let plain = reference::forward(&layout, &exact_q, &exact_k, &exact_v);
    assert_close(&format!("{what} output"), &output, &plain.output);
    assert_close(&format!("{what} log-sum-exp"), &saved, &plain.log_sum_exp);

    let mut d_table = case.bias.as_ref().map(|(table, _)| vec![0.0; table.len()]);
    let [mut d_q, mut d_k, mut d_v] = [&q, &k, &v].map(|x| vec![f32::NAN; x.len()]);
    let d_bias = d_table.as_deref_mut();
    attention_backward(&layout, &q, &k, &v, &output, &d_output, &saved, &mut d_q, &mut d_k, &mut d_v, d_bias);
    let plain = reference::backward(&layout, &exact_q, &exact_k, &exact_v, &exact(&d_output));
    assert_close(&format!("{what} d_q"), &d_q, &plain.d_q);
    assert_close(&format!("{what} d_k"), &d_k, &plain.d_k);
    assert_close(&format!("{what} d_v"), &d_v, &plain.d_v);
    assert_close(&format!("{what} d_table"), &d_table.unwrap_or_default(), &plain.d_table);
}

fn any_case() -> impl Strategy<Value = Case> {
    let lengths = prop::collection::vec(prop_oneof![Just(0_usize), Just(1), 2..70_usize, 110..240_usize], 0..4);
    let mask = prop_oneof![
        Just(Mask::Full),
        Just(CAUSAL),
        (1..130_usize).prop_map(|window| Mask::Causal { window: Some(window) })
    ];
    let heads = (0..3_usize, 1..4_usize, 0..40_usize, 0..40_usize);
    (lengths, mask, heads, any::<bool>(), any::<bool>()).prop_map(
        |(lengths, mask, (groups, sharing, key, value), biased, dropped)| {
            let mut offsets = vec![0];
            lengths.iter().for_each(|length| offsets.push(offsets[offsets.len() - 1] + length));
            let (heads, widths) = grouped(groups, sharing, key, value);
            let bias = biased.then(|| (numbers(7, 2 * (2 * 240 - 1)), 240));
            Case { offsets, heads, widths, mask, bias, dropout: dropped.then_some(Dropout { rate: 0.3, key: 5 }) }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn attention_of_any_shape_equals_the_plain_loops(case in any_case()) {
        for isa in Isa::available() {
            with_isa(isa, || check(&case, &format!("{isa} {:?} {:?}", case.mask, case.offsets)));
        }
    }
}

#[test]
fn gradients_are_differences_of_the_plain_loops() {
    let (heads, widths) = grouped(1, 3, 3, 2);
    let case = Case {
        offsets: vec![0, 5, 8],
        heads,
        widths,
        mask: Mask::Causal { window: Some(3) },
        bias: Some((numbers(7, 18), 5)),
        dropout: Some(Dropout { rate: 0.2, key: 3 }),
    };
    let layout = case.layout();
    let inputs = case.inputs().map(|x| exact(&x));
    let [q, k, v, d_output] = &inputs;
    let found = reference::backward(&layout, q, k, v, d_output);
    let loss = |layout: &Layout<'_>, [q, k, v]: [&[f64]; 3]| {
        let output = reference::forward(layout, q, k, v).output;
        output.iter().zip(d_output).map(|(out, d)| out * d).sum::<f64>()
    };
    for (which, gradients) in [&found.d_q, &found.d_k, &found.d_v].into_iter().enumerate() {
        for (i, &gradient) in gradients.iter().enumerate() {
            let at = |step: f64| {
                let mut moved = inputs.clone();
                moved[which][i] += step;
                loss(&layout, [&moved[0], &moved[1], &moved[2]])
            };
            let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((gradient - expected).abs() < 1e-8, "input {which}, {i}: {gradient} {expected}");
        }
    }
    let (table, max) = case.bias.as_ref().expect("a table");
    for (i, &gradient) in found.d_table.iter().enumerate() {
        let at = |step: f32| {
            let mut table = table.clone();
            table[i] += step;
            let layout = Layout { position_bias: Some((&table, *max)), ..layout };
            (f64::from(table[i]), loss(&layout, [q, k, v]))
        };
        let ((up, above), (down, below)) = (at(1e-3), at(-1e-3));
        let expected = (above - below) / (up - down);
        assert!((gradient - expected).abs() < 1e-5, "table {i}: {gradient} {expected}");
    }
}

#[test]
fn what_follows_a_causal_prefix_changes_nothing_in_it() {
    for mask in [CAUSAL, Mask::Causal { window: Some(50) }] {
        let (heads, widths) = grouped(2, 2, 24, 40);
        let case =
            |length| Case { offsets: vec![0, length], heads: heads.clone(), widths, mask, bias: None, dropout: None };
        let (whole, prefix) = (case(290), case(133));
        let [q, k, v, d_output] = whole.inputs();
        for isa in Isa::available() {
            let run = |case: &Case| {
                let layout = case.layout();
                let part = |x: &[f32], width: usize| x[..layout.tokens() * width].to_vec();
                let (q, k, v) = (part(&q, widths[0]), part(&k, widths[1]), part(&v, widths[2]));
                let d_output = part(&d_output, widths[3]);
                let (mut output, mut saved) = (d_output.clone(), vec![0.0; layout.tokens() * heads.len()]);
                let [mut d_q, mut d_k, mut d_v] = [&q, &k, &v].map(|x| vec![0.0; x.len()]);
                with_isa(isa, || {
                    attention_forward(&layout, &q, &k, &v, &mut output, Some(&mut saved));
                    attention_backward(
                        &layout, &q, &k, &v, &output, &d_output, &saved, &mut d_q, &mut d_k, &mut d_v, None,
                    );
                });
                [output, saved, d_q]
            };
            for (whole, prefix) in run(&whole).iter().zip(&run(&prefix)) {
                assert_eq!(whole[..prefix.len()], prefix[..], "{isa} {mask:?}");
            }
        }
    }
}

#[test]
fn what_lies_beyond_the_diagonal_is_not_multiplied() {
    let (heads, widths) = grouped(1, 2, 16, 16);
    let case = Case { offsets: vec![0, 200], heads, widths, mask: CAUSAL, bias: None, dropout: None };
    let layout = case.layout();
    let [q, mut k, mut v, d_output] = case.inputs();
    k[96 * widths[1]..].fill(f32::NAN);
    v[96 * widths[2]..].fill(f32::NAN);
    let (mut output, mut saved) = (d_output.clone(), vec![0.0; 400]);
    let [mut d_q, mut d_k, mut d_v] = [&q, &k, &v].map(|x| vec![0.0; x.len()]);
    attention_forward(&layout, &q, &k, &v, &mut output, Some(&mut saved));
    attention_backward(&layout, &q, &k, &v, &output, &d_output, &saved, &mut d_q, &mut d_k, &mut d_v, None);
    // The rows of strips that end before token 96.
    for (values, width) in [(&output, widths[3]), (&d_q, widths[0])] {
        assert!(values[..82 * width].iter().all(|x| x.is_finite()));
        assert!(values[96 * width..].iter().any(|x| x.is_nan()));
    }
}

#[test]
#[should_panic(expected = "keys of heads inside the columns, the same or disjoint")]
fn keys_that_overlap_in_part_are_a_bug() {
    let (mut heads, widths) = grouped(2, 1, 4, 4);
    heads[1].key.0 -= 2;
    let case = Case { offsets: vec![0, 1], heads, widths, mask: CAUSAL, bias: None, dropout: None };
    let [q, k, v, mut output] = case.inputs();
    attention_forward(&case.layout(), &q, &k, &v, &mut output, None);
}
