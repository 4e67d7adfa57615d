//! One step of decoding against the last row of the whole, for every instruction set and number of threads.

use proptest::prelude::*;

use super::super::tests::grouped;
use super::super::{Layout, Mask, attention_forward, reference};
use super::*;
use crate::cpu::with_isa;
use crate::tests::numbers;

/// The step against the last rows of the reference and of the forward pass.
fn check(lengths: &[usize], heads: &[Head], [query, key, value, out]: [usize; 4], window: Option<usize>, what: &str) {
    let mut offsets = vec![0];
    lengths.iter().for_each(|length| offsets.push(offsets[offsets.len() - 1] + length));
    let tokens = offsets[lengths.len()];
    let layout = Layout {
        offsets: &offsets,
        heads,
        query_stride: query,
        key_stride: key,
        value_stride: value,
        output_stride: out,
        scale: 0.3,
        mask: Mask::Causal { window },
        position_bias: None,
        dropout: None,
    };
    let [q, k, v] = [(1, query), (2, key), (3, value)].map(|(key, width)| numbers(key, tokens * width));
    let mut whole = vec![0.0; tokens * out];
    attention_forward(&layout, &q, &k, &v, &mut whole, None);
    let exact = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let plain = reference::forward(&layout, &exact(&q), &exact(&k), &exact(&v)).output;
    let (caches, last): (Vec<Cached<'_>>, Vec<usize>) = offsets
        .windows(2)
        .map(|pair| {
            // Behind a sequence's own rows lie those of the next.
            let (keys, values) = (&k[pair[0] * key..], &v[pair[0] * value..]);
            (Cached { keys, values, length: pair[1] - pair[0] }, pair[1] - 1)
        })
        .unzip();
    let queries: Vec<f32> = last.iter().flat_map(|&row| &q[row * query..][..query]).copied().collect();
    let mut found = vec![f32::NAN; last.len() * out];
    let strides = Strides { query, key, value, output: out };
    attention_step(&queries, &caches, heads, strides, 0.3, window, &mut found);
    for (row, found) in last.iter().zip(found.chunks_exact(out.max(1))) {
        for (c, &found) in found.iter().enumerate() {
            let (plain, whole) = (plain[row * out + c], f64::from(whole[row * out + c]));
            let error = (f64::from(found) - plain).abs();
            assert!(error <= 2e-5 * plain.abs().max(1.0), "{what} {c}: {found} {plain}");
            assert!((f64::from(found) - whole).abs() <= 2e-5 * plain.abs().max(1.0), "{what} {c}: {found} {whole}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_step_is_the_last_row_of_the_whole(
        lengths in prop::collection::vec(prop_oneof![Just(1_usize), 2..20_usize, 100..200_usize], 0..4),
        (groups, sharing) in (0..3_usize, 1..5_usize),
        (key, value) in (0..70_usize, 0..70_usize),
        window in prop::option::of(1..120_usize),
    ) {
        let (heads, widths) = grouped(groups, sharing, key, value);
        for isa in Isa::available() {
            let what = format!("{isa} {lengths:?} {groups} x {sharing} heads, {key}, {value} {window:?}");
            with_isa(isa, || check(&lengths, &heads, widths, window, &what));
        }
    }
}

#[test]
fn heads_that_share_only_keys_or_only_values_are_right_too() {
    let (mut heads, widths) = grouped(4, 1, 17, 33);
    (heads[1].key, heads[2].value) = (heads[0].key, heads[1].value);
    (heads[3].key, heads[3].value, heads[3].output) = (heads[0].key, (0, 0), (0, 0));
    for isa in Isa::available() {
        with_isa(isa, || check(&[3, 60], &heads, widths, None, isa.name()));
    }
}

#[test]
fn a_step_has_the_same_bits_for_any_number_of_threads() {
    let (heads, [query, key, value, output]) = grouped(3, 3, 64, 48);
    let strides = Strides { query, key, value, output };
    let (q, k, v) = (numbers(1, 2 * query), numbers(2, 900 * key), numbers(3, 900 * value));
    let caches = [900, 333].map(|length| Cached { keys: &k, values: &v, length });
    let run = |threads: usize| {
        let mut out = vec![0.0; 2 * output];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
        pool.install(|| attention_step(&q, &caches, &heads, strides, 0.1, None, &mut out));
        out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

#[test]
#[should_panic(expected = "caches hold the new token")]
fn an_empty_cache_is_a_bug() {
    let (heads, [query, key, value, output]) = grouped(1, 1, 2, 2);
    let strides = Strides { query, key, value, output };
    let cached = Cached { keys: &[], values: &[], length: 0 };
    attention_step(&numbers(1, query), &[cached], &heads, strides, 1.0, None, &mut vec![0.0; output]);
}
