//! Every product against f64 loops, on every instruction set and in both precisions, with sizes 0, 1 and ragged tails.

use proptest::prelude::*;

use super::*;
use crate::cpu::{Isa, with_isa};
use crate::random;

pub(super) fn numbers(key: u64, length: usize) -> Vec<f32> {
    let mut values = vec![0.0; length];
    random::fill_normal(key, 0.0, 1.0, &mut values);
    values
}

/// Every element of `0..length` with the given share, ascending.
fn subset(key: u64, length: usize, share: u64) -> Vec<u32> {
    (0..length as u32).filter(|&i| random::mix(key, u64::from(i)) % 100 < share).collect()
}

#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) rows: usize,
    outputs: usize,
    depth: usize,
    gather: Option<u64>,
    keep: Option<u64>,
    scatter: bool,
    scaled: bool,
    add: bool,
    transposed: bool,
    pub(super) precision: Precision,
    activation: Activation,
    key: u64,
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let size = prop_oneof![Just(0_usize), Just(1), 2..40_usize, 60..70_usize, 250..300_usize];
    let share = prop::option::of(0..=100_u64);
    let activation = prop::sample::select(vec![Activation::None, Activation::Gelu, Activation::Relu, Activation::Tanh]);
    let precision = prop::sample::select(vec![Precision::F32, Precision::Bf16]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), precision);
    // A few rows go another way than many.
    let rows = prop_oneof![1..16_usize, size.clone()];
    (rows, size.clone(), size, share.clone(), share, flags, activation, any::<u64>()).prop_map(
        |(rows, outputs, depth, gather, keep, (scatter, scaled, add, transposed, precision), activation, key)| Case {
            rows,
            outputs,
            depth,
            gather,
            keep,
            scatter,
            scaled,
            add,
            transposed,
            precision,
            activation,
            key,
        },
    )
}

pub(super) fn check(case: &Case) {
    let Case { rows, outputs, depth, precision, key, .. } = *case;
    let mut weight = numbers(key, outputs * depth);
    let kept: Vec<u32> = case.keep.map_or((0..outputs as u32).collect(), |share| subset(key ^ 1, outputs, share));
    let kept_option = case.keep.map(|_| kept.as_slice());
    let packed = if case.transposed {
        let turned: Vec<f32> =
            (0..depth).flat_map(|k| (0..outputs).map(move |n| (n, k))).map(|(n, k)| weight[n * depth + k]).collect();
        PackedMatrix::columns_in(precision, &turned, depth, outputs, kept_option)
    } else {
        PackedMatrix::rows_in(precision, &weight, outputs, depth, kept_option)
    };
    // The weight as it is held is the operand: products add no rounding of their own.
    weight.iter_mut().for_each(|value| *value = precision.round(*value));
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
    // A unit for bf16 takes the left operand rounded, which moves it by up to half a unit in the last of its 8 bits: far more
    // than the tolerance below, so that a unit that did not round would show.
    let rounded = cpu::bf16_unit().is_some() && precision == Precision::Bf16 && rows > stream::most_rows(cpu::isa());
    for t in 0..rows {
        for (n, &output) in kept.iter().enumerate() {
            let (mut sum, mut exact, mut size) = (0.0, 0.0, 0.0);
            for (&k, &scale) in open.iter().zip(&scale_in) {
                let (x, weight) = (x[t * depth + k as usize], f64::from(weight[output as usize * depth + k as usize]));
                let scale = if case.scaled { scale } else { 1.0 };
                let left = f64::from(scale) * f64::from(x);
                exact += left * weight;
                size += (left * weight).abs();
                sum += weight * if rounded { f64::from(Precision::Bf16.round(scale * x)) } else { left };
            }
            if rounded {
                assert!((sum - exact).abs() <= size * 2.0_f64.powi(-8), "{case:?}: rounding moved {exact} to {sum}");
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
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

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
            with_isa(isa, || multiply_transposed(&side(&a, n), &side(&b, k), t, &mut found));
            for i in 0..n {
                for j in 0..k {
                    let sum: f64 = (0..t).map(|t| f64::from(a[t * n + i]) * f64::from(b[t * k + j])).sum();
                    prop_assert!((f64::from(found[i * k + j]) - 1.0 - sum).abs() < 1e-4, "{isa} {i} {j}");
                }
            }
        }
    }
}

fn side(data: &[f32], width: usize) -> Side<'_> {
    Side { data, width, columns: None, scale: None }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gradients_of_some_rows_and_columns_equal_the_definition(
        t in 0..90_usize,
        n in 0..70_usize,
        k in 0..70_usize,
        left_out in (2..6_u64, 2..6_u64),
        scaled: [bool; 2],
        key: u64,
    ) {
        let (a, b) = (numbers(key, t * n), numbers(key ^ 1, t * k));
        let taken = |count: usize, one_of: u64, key: u64| -> Vec<u32> {
            (0..count as u32).filter(|&at| !crate::random::mix(key, at.into()).is_multiple_of(one_of)).collect()
        };
        let (rows, columns) = (taken(n, left_out.0, key), taken(k, left_out.1, key ^ 3));
        let (row_scale, column_scale) = (numbers(key ^ 4, rows.len()), numbers(key ^ 5, columns.len()));
        for isa in Isa::available() {
            let mut found = vec![1.0; n * k];
            let left = Side { columns: Some(&rows), scale: scaled[0].then_some(&row_scale), ..side(&a, n) };
            let right = Side { columns: Some(&columns), scale: scaled[1].then_some(&column_scale), ..side(&b, k) };
            with_isa(isa, || multiply_transposed(&left, &right, t, &mut found));
            let mut expected = vec![1.0_f64; n * k];
            for (i, &row) in rows.iter().enumerate() {
                for (j, &column) in columns.iter().enumerate() {
                    let (row, column) = (row as usize, column as usize);
                    let sum: f64 = (0..t).map(|t| f64::from(a[t * n + row]) * f64::from(b[t * k + column])).sum();
                    let scale = |scaled, scale: f32| if scaled { f64::from(scale) } else { 1.0 };
                    expected[row * k + column] += sum * scale(scaled[0], row_scale[i]) * scale(scaled[1], column_scale[j]);
                }
            }
            for (at, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                prop_assert!((f64::from(found) - expected).abs() < 5e-4, "{isa} at {at}: {found} {expected}");
            }
        }
    }

    #[test]
    fn a_refilled_pack_is_a_new_one(n in 1..90_usize, k in 1..90_usize, one_of in 2..6_u64, key: u64) {
        let [old, new] = [0, 1].map(|shift| numbers(key ^ shift, n * k));
        let kept = |count: usize| -> Vec<u32> {
            (0..count as u32).filter(|&at| !crate::random::mix(key, at.into()).is_multiple_of(one_of)).collect()
        };
        let (rows, columns) = (kept(n), kept(k));
        let x = numbers(key ^ 2, 3 * n.max(k));
        for before in [None, Some(&rows[..])] {
            for after in [None, Some(&rows[..])] {
                let mut packed = PackedMatrix::rows(&old, n, k, before);
                packed.refill_rows(&new, n, k, after);
                let fresh = PackedMatrix::rows(&new, n, k, after);
                prop_assert_eq!(bits(&plain(&x, 3, &packed)), bits(&plain(&x, 3, &fresh)));
            }
        }
        for after in [None, Some(&columns[..])] {
            let mut packed = PackedMatrix::columns(&old, n, k, None);
            packed.refill_columns(&new, n, k, after);
            let fresh = PackedMatrix::columns(&new, n, k, after);
            prop_assert_eq!(bits(&plain(&x, 3, &packed)), bits(&plain(&x, 3, &fresh)));
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
            with_isa(isa, || multiply_transposed(&side(&a, n), &side(&b, k), t, &mut found));
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

/// `x · packedᵀ` for `rows` rows.
pub(super) fn plain(x: &[f32], rows: usize, packed: &PackedMatrix) -> Vec<f32> {
    let (stride, outputs) = (packed.depth(), packed.outputs());
    let mut out = vec![0.0; rows * outputs];
    multiply(
        &Input { data: x, rows, stride, columns: None, scale: None },
        packed,
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
    out
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

const BOTH: [Precision; 2] = [Precision::F32, Precision::Bf16];

#[test]
fn products_have_the_same_bits_for_any_number_of_threads() {
    // Beyond the bytes below which a few rows stay on one thread; 60 rows are one part, whose copy tasks on several threads share.
    let (outputs, depth) = (1_110, 517);
    let weight = numbers(1, outputs * depth);
    for (precision, rows) in BOTH.into_iter().flat_map(|precision| [1, 5, 9, 60, 203].map(|rows| (precision, rows))) {
        let packed = PackedMatrix::rows_in(precision, &weight, outputs, depth, None);
        let x = numbers(2, rows * depth);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            bits(&pool.install(|| plain(&x, rows, &packed)))
        };
        let one = run(1);
        assert!(one.iter().any(|&bits| bits != 0));
        assert_eq!(one, run(2), "{precision}, {rows} rows");
        assert_eq!(one, run(3), "{precision}, {rows} rows");
    }
}

/// Many outputs make several tasks even where there is nothing to multiply.
#[test]
fn without_depth_the_bias_is_left() {
    let outputs = 1_100;
    let bias = numbers(1, outputs);
    for (precision, stored, rows) in BOTH.into_iter().flat_map(|precision| {
        [0, 5].into_iter().flat_map(move |stored| [1, 2, 20, 130].map(|rows| (precision, stored, rows)))
    }) {
        let packed = PackedMatrix::rows_in(precision, &numbers(2, outputs * stored), outputs, stored, None);
        for isa in Isa::available() {
            let mut found = vec![f32::NAN; rows * outputs];
            let (data, columns) = (&numbers(3, rows * stored)[..], Some(&[][..]));
            let input = Input { data, rows, stride: stored, columns, scale: None };
            let (columns, activation) = (None, Activation::None);
            let mut output = Output {
                data: &mut found,
                stride: outputs,
                columns,
                bias: Some(&bias),
                scale: None,
                activation,
                add: false,
            };
            with_isa(isa, || multiply(&input, &packed, Some(&[]), &mut output));
            assert!(found.chunks(outputs).all(|row| row == bias), "{isa} {precision}: {rows} rows of {stored}");
        }
    }
}

/// Depths around blocks, odd ones, and the distance that is fetched ahead.
pub(super) const DEPTHS: [usize; 10] = [1, 2, 31, 33, 65, 255, 256, 257, 511, 770];

#[test]
fn a_row_has_the_same_bits_alone_as_among_others() {
    for (precision, depth) in BOTH.into_iter().flat_map(|precision| DEPTHS.map(|depth| (precision, depth))) {
        let outputs = 100;
        let packed = PackedMatrix::rows_in(precision, &numbers(1, outputs * depth), outputs, depth, None);
        // So many that a weight of bf16 is widened before the tiles.
        let x = numbers(2, 80 * depth);
        for isa in Isa::available() {
            with_isa(isa, || {
                let all = plain(&x, 80, &packed);
                for rows in (1..=16).chain([40]) {
                    let few = plain(&x[..rows * depth], rows, &packed);
                    assert_eq!(bits(&few), bits(&all[..rows * outputs]), "{isa} {precision} {depth}: {rows} rows");
                }
            });
        }
    }
}

#[test]
fn columns_in_any_order_are_taken_as_given() {
    let (rows, width, depth, outputs) = (33, 90, 70, 40);
    let (x, weight) = (numbers(1, rows * width), numbers(2, outputs * depth));
    let packed = PackedMatrix::rows(&weight, outputs, depth, None);
    let reversed = |count: usize| (0..count as u32).rev().collect::<Vec<_>>();
    let (columns, depths, places) = (reversed(depth), reversed(depth), reversed(outputs));
    for isa in Isa::available() {
        with_isa(isa, || {
            let mut out = vec![f32::NAN; rows * width];
            let input = Input { data: &x, rows, stride: width, columns: Some(&columns), scale: None };
            let mut output = Output {
                data: &mut out,
                stride: width,
                columns: Some(&places),
                bias: None,
                scale: None,
                activation: Activation::None,
                add: false,
            };
            multiply(&input, &packed, Some(&depths), &mut output);
            for (row, output) in (0..rows).flat_map(|row| (0..outputs).map(move |output| (row, output))) {
                let product = |k: usize| f64::from(x[row * width + k]) * f64::from(weight[output * depth + k]);
                let expected: f64 = (0..depth).map(product).sum();
                let found = out[row * width + outputs - 1 - output];
                assert!((f64::from(found) - expected).abs() < 1e-4, "{isa} {row} {output}: {found} {expected}");
            }
            assert!(out.chunks(width).all(|row| row[outputs..].iter().all(|value| value.is_nan())), "{isa}");
        });
    }
}

#[test]
fn a_bf16_weight_gives_the_bits_of_its_rounded_twin() {
    for depth in DEPTHS {
        let outputs = 70;
        let mut weight = numbers(1, outputs * depth);
        let packed = PackedMatrix::rows_in(Precision::Bf16, &weight, outputs, depth, None);
        weight.iter_mut().for_each(|value| *value = Precision::Bf16.round(*value));
        let twin = PackedMatrix::rows(&weight, outputs, depth, None);
        assert_eq!(packed.size_bytes(), twin.size_bytes() / depth * depth.div_ceil(2), "half the memory");
        let x = numbers(2, 40 * depth);
        for isa in Isa::available() {
            for rows in [1, 2, 7, 14, 40] {
                let run = |packed| with_isa(isa, || bits(&plain(&x[..rows * depth], rows, packed)));
                assert_eq!(run(&packed), run(&twin), "{isa} {depth} {rows}");
            }
        }
    }
}

#[test]
fn a_weight_beyond_the_range_of_a_product_stays_what_it_is() {
    let weight = [f32::NAN, f32::MAX, f32::INFINITY, -0.0, f32::MIN_POSITIVE, 1.0, 0.0];
    let packed = PackedMatrix::rows_in(Precision::Bf16, &weight, 7, 1, None);
    for isa in Isa::available() {
        for rows in [1, 20] {
            let found = with_isa(isa, || plain(&vec![1.0; rows], rows, &packed));
            let row = &found[(rows - 1) * 7..];
            assert!(row[0].is_nan(), "{isa}");
            assert_eq!(row[1..], [f32::INFINITY, f32::INFINITY, 0.0, f32::MIN_POSITIVE, 1.0, 0.0], "{isa}");
        }
    }
}

/// The weight `[outputs, depth]` that a packed one holds.
fn unpacked(packed: &PackedMatrix) -> Vec<f32> {
    let mut weight = vec![f32::NAN; packed.outputs() * packed.depth()];
    for output in 0..packed.outputs() {
        packed.unpack_row(output, &mut weight[output * packed.depth()..][..packed.depth()]);
    }
    weight
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_packed_comes_back_and_can_be_packed_anew(
        outputs in 0..150_usize, depth in 0..150_usize, share in prop::option::of(0..=100_u64), key: u64,
    ) {
        for precision in BOTH {
            let weight: Vec<f32> = numbers(key, outputs * depth).into_iter().map(|w| precision.round(w)).collect();
            let packed = PackedMatrix::rows_in(precision, &weight, outputs, depth, None);
            prop_assert_eq!(unpacked(&packed), weight.clone());
            prop_assert_eq!(packed.precision(), precision);
            let rows = share.map(|share| subset(key ^ 1, outputs, share));
            let again = packed.repack(rows.as_deref());
            let direct = PackedMatrix::rows_in(precision, &weight, outputs, depth, rows.as_deref());
            prop_assert_eq!((again.outputs(), again.depth()), (direct.outputs(), direct.depth()));
            prop_assert_eq!(unpacked(&again), unpacked(&direct));
            let columns = share.map(|share| subset(key ^ 2, depth, share));
            let turned = packed.transposed(columns.as_deref());
            let direct = PackedMatrix::columns_in(precision, &weight, outputs, depth, columns.as_deref());
            prop_assert_eq!((turned.outputs(), turned.depth()), (direct.outputs(), direct.depth()));
            prop_assert_eq!(unpacked(&turned), unpacked(&direct));
        }
    }
}
