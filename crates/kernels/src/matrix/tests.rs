//! Every product against f64 loops, on every instruction set, with sizes 0, 1 and ragged tails.

use proptest::prelude::*;

use super::*;
use crate::cpu::{Isa, with_isa};
use crate::random;

fn numbers(key: u64, length: usize) -> Vec<f32> {
    let mut values = vec![0.0; length];
    random::fill_normal(key, 0.0, 1.0, &mut values);
    values
}

/// Every element of `0..length` with the given share, ascending.
fn subset(key: u64, length: usize, share: u64) -> Vec<u32> {
    (0..length as u32).filter(|&i| random::mix(key, u64::from(i)) % 100 < share).collect()
}

#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    outputs: usize,
    depth: usize,
    gather: Option<u64>,
    keep: Option<u64>,
    scatter: bool,
    scaled: bool,
    add: bool,
    transposed: bool,
    activation: Activation,
    key: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let size = prop_oneof![Just(0_usize), Just(1), 2..40_usize, 60..70_usize, 250..300_usize];
    let share = prop::option::of(0..=100_u64);
    let activation = prop::sample::select(vec![Activation::None, Activation::Gelu, Activation::Relu, Activation::Tanh]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (size.clone(), size.clone(), size, share.clone(), share, flags, activation, any::<u64>()).prop_map(
        |(rows, outputs, depth, gather, keep, (scatter, scaled, add, transposed), activation, key)| Case {
            rows,
            outputs,
            depth,
            gather,
            keep,
            scatter,
            scaled,
            add,
            transposed,
            activation,
            key,
        },
    )
}

fn check(case: &Case) {
    let Case { rows, outputs, depth, key, .. } = *case;
    let weight = numbers(key, outputs * depth);
    let kept: Vec<u32> = case.keep.map_or((0..outputs as u32).collect(), |share| subset(key ^ 1, outputs, share));
    let kept_option = case.keep.map(|_| kept.as_slice());
    let packed = if case.transposed {
        let turned: Vec<f32> =
            (0..depth).flat_map(|k| (0..outputs).map(move |n| (n, k))).map(|(n, k)| weight[n * depth + k]).collect();
        PackedMatrix::columns(&turned, depth, outputs, kept_option)
    } else {
        PackedMatrix::rows(&weight, outputs, depth, kept_option)
    };
    // A gated product: the input's open columns pair with the same rows of the packed weight.
    let open: Vec<u32> = case.gather.map_or((0..depth as u32).collect(), |share| subset(key ^ 2, depth, share));
    let open_option = case.gather.map(|_| open.as_slice());
    let x = numbers(key ^ 3, rows * depth);
    let scale_in = numbers(key ^ 4, open.len());
    let (bias, scale_out) = (numbers(key ^ 5, kept.len()), numbers(key ^ 6, kept.len()));
    let width = if case.scatter { outputs } else { kept.len() };
    let before = numbers(key ^ 7, rows * width);
    let mut found = before.clone();
    multiply(
        &Input { data: &x, rows, stride: depth, columns: open_option, scale: case.scaled.then_some(&scale_in) },
        &packed,
        open_option,
        &mut Output {
            data: &mut found,
            stride: width,
            columns: case.scatter.then_some(&kept),
            bias: case.scaled.then_some(&bias),
            scale: case.scaled.then_some(&scale_out),
            activation: case.activation,
            add: case.add,
        },
    );
    let mut expected: Vec<f64> = before.iter().map(|&value| f64::from(value)).collect();
    for t in 0..rows {
        for (n, &output) in kept.iter().enumerate() {
            let mut sum = 0.0;
            for (&k, &scale) in open.iter().zip(&scale_in) {
                let scale = if case.scaled { f64::from(scale) } else { 1.0 };
                sum += scale
                    * f64::from(x[t * depth + k as usize])
                    * f64::from(weight[output as usize * depth + k as usize]);
            }
            if case.scaled {
                sum = f64::from(scale_out[n]) * (sum + f64::from(bias[n]));
            }
            let mut value = [sum as f32];
            crate::activation::activate_in_place(case.activation, &mut value);
            let place = &mut expected[t * width + if case.scatter { output as usize } else { n }];
            *place = if case.add { *place + f64::from(value[0]) } else { f64::from(value[0]) };
        }
    }
    for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
        // Up to 300 products of numbers around 1, the row scale around 1: f32 rounding stays far below this.
        let tolerance = 1e-4 * expected.abs().max(1.0) * (depth as f64).sqrt().max(1.0);
        assert!((f64::from(found) - expected).abs() <= tolerance, "{case:?} at {i}: {found} {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn multiply_equals_the_definition(case in case()) {
        for isa in Isa::available() {
            with_isa(isa, || check(&case));
        }
    }

    #[test]
    fn multiply_transposed_equals_the_definition(t in 0..80_usize, n in 0..70_usize, k in 0..70_usize, key: u64) {
        let (a, b) = (numbers(key, t * n), numbers(key ^ 1, t * k));
        for isa in Isa::available() {
            let mut found = vec![1.0; n * k];
            with_isa(isa, || multiply_transposed(&a, n, n, &b, k, k, t, &mut found));
            for i in 0..n {
                for j in 0..k {
                    let sum: f64 = (0..t).map(|t| f64::from(a[t * n + i]) * f64::from(b[t * k + j])).sum();
                    prop_assert!((f64::from(found[i * k + j]) - 1.0 - sum).abs() < 1e-4, "{isa} {i} {j}");
                }
            }
        }
    }
}

/// More tokens than are packed at a time.
#[test]
fn multiply_transposed_goes_on_where_packing_starts_anew() {
    let (n, k) = (5, 40);
    for t in [2_047, 2_048, 2_049, 2_100, 4_097] {
        let (a, b) = (numbers(1, t * n), numbers(2, t * k));
        for isa in Isa::available() {
            let mut found = vec![1.0; n * k];
            with_isa(isa, || multiply_transposed(&a, n, n, &b, k, k, t, &mut found));
            for i in 0..n {
                for j in 0..k {
                    let sum: f64 = (0..t).map(|t| f64::from(a[t * n + i]) * f64::from(b[t * k + j])).sum();
                    // Sums of thousands of products of numbers around 1, in f32.
                    assert!((f64::from(found[i * k + j]) - 1.0 - sum).abs() < 1e-3, "{isa} {t} tokens: {i} {j}");
                }
            }
        }
    }
}

#[test]
fn products_have_the_same_bits_for_any_number_of_threads() {
    let (rows, outputs, depth) = (203, 390, 517);
    let packed = PackedMatrix::rows(&numbers(1, outputs * depth), outputs, depth, None);
    let x = numbers(2, rows * depth);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
        let mut out = vec![0.0; rows * outputs];
        pool.install(|| {
            multiply(
                &Input { data: &x, rows, stride: depth, columns: None, scale: None },
                &packed,
                None,
                &mut Output {
                    data: &mut out,
                    stride: outputs,
                    columns: None,
                    bias: None,
                    scale: None,
                    activation: Activation::None,
                    add: false,
                },
            );
        });
        out.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}
