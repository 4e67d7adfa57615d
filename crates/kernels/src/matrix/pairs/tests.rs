//! Products of pairs against the definition and against what Intel documents, on `vdpbf16ps` where the CPU has it, in
//! emulation everywhere, and with the machine code of AMX: on AMX itself, or trapped ([`super::trap`]).

use proptest::prelude::*;

use super::*;
use crate::cpu::{self, with_bf16_unit};
use crate::matrix::packed::{PackedMatrix, Precision};
use crate::matrix::tests::{Case, DEPTHS, bits, case, check, numbers, plain};
use crate::matrix::{self, Activation, Input, Output};
use crate::random;

/// Every unit that can run here, one way or another.
fn units() -> Vec<Bf16Unit> {
    let mut units = vec![Bf16Unit::Emulated];
    if Bf16Unit::has_avx512() {
        units.push(Bf16Unit::Avx512Bf16);
    }
    units.extend(amx_unit());
    units
}

/// AMX, by the trap where the CPU lacks it. What is around its tiles needs AVX-512-BF16 all the same.
fn amx_unit() -> Option<Bf16Unit> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if Bf16Unit::has_avx512() {
        trap::install();
        return Some(Bf16Unit::Amx);
    }
    None
}

fn pairs_case() -> impl Strategy<Value = Case> {
    (case(), 15..90_usize).prop_map(|(mut case, rows)| {
        (case.rows, case.precision) = (rows, Precision::Bf16);
        case
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pairs_multiply_as_defined(case in pairs_case()) {
        for unit in units() {
            with_bf16_unit(unit, || check(&case));
        }
    }
}

/// Depths beyond a block of a panel and beyond a filling, beside the usual ones; rows and outputs at the edges of tiles.
#[test]
fn amx_gives_the_bits_of_the_documented_sums() {
    let Some(amx) = amx_unit() else { return };
    let deep = [FILL_STEPS * STEP, FILL_STEPS * STEP + 1, 2_600];
    for (i, depth) in DEPTHS.into_iter().chain(deep).enumerate() {
        for (rows, outputs) in [(15, 32), (16, 1), (17, 33), (32, 40), (33, 31), (49, 16), (65, 17)] {
            // Few outputs where the depth is long: every trapped instruction takes its time.
            let outputs = if depth > 1_000 { outputs.min(33) } else { outputs };
            let packed = PackedMatrix::rows_in(Precision::Bf16, &numbers(1, outputs * depth), outputs, depth, None);
            let x = numbers(i as u64, rows * depth);
            let run = |unit| with_bf16_unit(unit, || bits(&plain(&x, rows, &packed)));
            let (found, expected) = (run(amx), run(Bf16Unit::Emulated));
            if trapped() {
                assert_eq!(found, expected, "{rows} rows, depth {depth}, {outputs} outputs");
            } else {
                // The order of sums inside the unit is the CPU's own affair.
                for (found, expected) in found.iter().zip(expected) {
                    let (found, expected) = (f32::from_bits(*found), f32::from_bits(expected));
                    assert!((found - expected).abs() <= 1e-4 * (depth as f32).sqrt(), "{depth}: {found} {expected}");
                }
            }
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn trapped() -> bool {
    trap::install()
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn trapped() -> bool {
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn amx_runs_its_instructions_and_gives_its_tiles_back() {
    let Some(amx) = amx_unit() else { return };
    if !trap::install() {
        return;
    }
    let packed = PackedMatrix::rows_in(Precision::Bf16, &numbers(1, 40 * 70), 40, 70, None);
    let x = numbers(2, 48 * 70);
    let (before, _) = trap::state();
    with_bf16_unit(amx, || plain(&x, 48, &packed));
    let (after, configured) = trap::state();
    // Two panels, each of 2 by 2 tiles and 1 by 2: zeros, three steps of loads and products, stores; configuration, release.
    assert_eq!(after - before, 2 * (4 + 3 * 8 + 4 + 2 + 3 * 5 + 2) + 2);
    assert!(!configured, "released");
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn as_many_products_of_tiles_are_made_as_are_asked_for() {
    let Some(amx) = amx_unit() else { return };
    if !trap::install() {
        return;
    }
    for repeats in [0, 1, 3] {
        let (before, _) = trap::state();
        multiply_tiles(amx, repeats);
        let (after, configured) = trap::state();
        // Eight zeros, configuration and release.
        assert_eq!(after - before, 8 + 4 * repeats + 2);
        assert!(!configured, "released");
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_check_before_use_tells_a_unit_that_computes_something_else() {
    if amx_unit().is_none() {
        return;
    }
    // SAFETY: AMX is available, if by the trap.
    assert!(unsafe { amx::computes_as_documented() });
    if trap::install() {
        for fault in trap::FAULTS {
            // SAFETY: as above.
            let found = trap::with_fault(fault, || unsafe { amx::computes_as_documented() });
            assert!(!found, "{fault:?}");
        }
    }
}

/// What the documentation says of order, rounding and small numbers, on the CPU itself. AMD documents the same.
#[cfg(target_arch = "x86_64")]
#[test]
fn vector_pairs_give_the_documented_sums() {
    if !Bf16Unit::has_avx512() {
        return;
    }
    let packed_words = 2 * PANEL_STEP;
    // All magnitudes, so that sums round, overflow never, and products fall below the smallest normal number.
    let bases = [(0x3800_3800, 0), (0x3800_3800, 0x0100_0100), (0x3800_3800, 0x0700_0700), (0, 0x3f00_3f00)];
    for (base, spread) in bases.into_iter().chain([(0x1f80_1f80, 0), (0x1f00_1f00, 0x0080_0080)]) {
        let word = |key: u64, i: usize| {
            let bits = random::mix(key, i as u64) as u32;
            (bits & 0x807f_807f) | ((bits >> 7) & spread) | base
        };
        let rows = 31;
        let a: Vec<u32> = (0..32 * 2 * STEP_WORDS).map(|i| word(1, i)).collect();
        let b: Vec<u32> = (0..packed_words).map(|i| word(2, i)).collect();
        // From zero even the smallest products show.
        let mut c: Vec<f32> = (0..32 * PANEL).map(|i| [0.0, 0.5][i % 2]).collect();
        let mut expected = c.clone();
        let (whole, tail) = b.split_at(PANEL_STEP);
        let next = b.as_ptr();
        multiply(
            Bf16Unit::Avx512Bf16,
            &mut Block {
                a: &a,
                a_stride: 2 * STEP_WORDS,
                rows,
                b: whole,
                tail: Some(tail),
                next,
                before: &|_| (),
                after: &|_, _| (),
                c: &mut c,
                resume: true,
            },
        );
        for (i, expected) in expected.iter_mut().enumerate().take(rows * PANEL) {
            for k in 0..2 * STEP_WORDS {
                *expected =
                    emulation::vector_lane(*expected, a[i / PANEL * 2 * STEP_WORDS + k], b[k * PANEL + i % PANEL]);
            }
        }
        assert_eq!(bits(&c), bits(&expected), "{base:#x} {spread:#x}");
    }
}

#[test]
fn small_numbers_count_as_zero_and_large_ones_stay() {
    let smallest = f32::MIN_POSITIVE;
    let weight = [1.0, smallest / 2.0, f32::INFINITY, 0.0, f32::NAN];
    let packed = PackedMatrix::rows_in(Precision::Bf16, &weight, 5, 1, None);
    for unit in units() {
        for (x, expected) in [
            (1.0, [1.0, 0.0, f32::INFINITY, 0.0, f32::NAN]),
            (smallest, [smallest, 0.0, f32::INFINITY, 0.0, f32::NAN]),
            (smallest / 2.0, [0.0, 0.0, f32::NAN, 0.0, f32::NAN]),
            (f32::MAX, [f32::INFINITY, f32::NAN, f32::INFINITY, f32::NAN, f32::NAN]),
            (f32::NAN, [f32::NAN; 5]),
        ] {
            let found = with_bf16_unit(unit, || plain(&[x; 20], 20, &packed));
            for (found, expected) in found[19 * 5..].iter().zip(expected) {
                assert!(*found == expected || found.is_nan() && expected.is_nan(), "{unit} {x:e}: {found} {expected}");
            }
        }
    }
}

/// Steps are filled up in memory that earlier products used, and nothing times zero is zero only if it is a number.
#[test]
fn what_earlier_products_left_behind_does_not_show() {
    let of = |value: f32, depth: usize| {
        let packed = PackedMatrix::rows_in(Precision::Bf16, &vec![value; 33 * depth], 33, depth, None);
        (packed, vec![value; 40 * depth])
    };
    let ((nothing, bad), (packed, x)) = (of(f32::NAN, 29), of(2.0, 3));
    for unit in units() {
        with_bf16_unit(unit, || {
            assert!(plain(&bad, 40, &nothing).iter().all(|value| value.is_nan()), "{unit}");
            assert_eq!(plain(&x, 40, &packed), vec![12.0; 40 * 33], "{unit}");
        });
    }
}

#[test]
fn pairs_give_the_same_bits_for_any_number_of_threads_and_rows() {
    // Beyond the multiply-adds of a task, the rows of a block and the results that are not fetched: all is split that can be.
    let (rows, outputs, depth) = (530, 510, 70);
    let packed = PackedMatrix::rows_in(Precision::Bf16, &numbers(1, outputs * depth), outputs, depth, None);
    let x = numbers(2, rows * depth);
    assert!(
        units().into_iter().all(|unit| rows * outputs * depth > 2 * task_multiply_adds(unit)) && rows * outputs > FAR
    );
    for unit in units() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| with_bf16_unit(unit, || bits(&plain(&x, rows, &packed))))
        };
        let one = run(1);
        assert!(one.iter().any(|&bits| bits != 0));
        for threads in [2, 3, 5] {
            assert_eq!(one, run(threads), "{unit}, {threads} threads");
        }
        for few in [15, 16, 17, 31, 100] {
            let found = with_bf16_unit(unit, || bits(&plain(&x[..few * depth], few, &packed)));
            assert_eq!(found, one[..few * outputs], "{unit}, {few} rows");
        }
    }
}

/// One part of rows, which several tasks share, over depths of several blocks and fillings: gathered close together and far apart, and
/// scaled. One thread takes the depth in fillings, several take the copy that they share; few elements are rounded by one, many by all.
#[test]
fn what_tasks_share_of_the_left_operand_does_not_show() {
    for (rows, stored) in [(20, 600), (40, 2_600)] {
        let (x, scale) = (numbers(2, rows * stored), numbers(3, stored));
        let of = |step: u32| (0..stored as u32).filter(|k| k % step == step / 2).collect::<Vec<u32>>();
        for columns in [None, Some(of(6)), Some((0..stored as u32).filter(|k| k % 5 != 1).collect())] {
            let depth = columns.as_ref().map_or(stored, Vec::len);
            // Two tasks for a unit that takes the largest ones.
            let outputs = ((2 << 22) / (rows * depth)).next_multiple_of(PANEL) + 7;
            assert!((rows * depth < PARALLEL_ROUNDING) == (rows == 20));
            let packed = PackedMatrix::rows_in(Precision::Bf16, &numbers(1, outputs * stored), outputs, stored, None);
            for unit in units() {
                let run = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
                    let mut found = vec![0.0; rows * outputs];
                    let (columns, scale) = (columns.as_deref(), columns.as_ref().map(|_| &scale[..depth]));
                    let input = Input { data: &x, rows, stride: stored, columns, scale };
                    let (bias, activation) = (None, Activation::None);
                    let mut output = Output {
                        data: &mut found,
                        stride: outputs,
                        columns: None,
                        bias,
                        scale: None,
                        activation,
                        add: false,
                    };
                    pool.install(|| {
                        with_bf16_unit(unit, || matrix::multiply(&input, &packed, input.columns, &mut output))
                    });
                    found
                };
                let one = run(1);
                for threads in [2, 3] {
                    assert_eq!(bits(&one), bits(&run(threads)), "{unit}: {rows} rows of {depth}, {threads} threads");
                }
                // The last row against the definition.
                let mut weight = vec![0.0; stored];
                for n in [0, 77, outputs - 1] {
                    packed.unpack_row(n, &mut weight);
                    let sum: f64 = (0..depth)
                        .map(|k| {
                            let column = columns.as_ref().map_or(k, |columns| columns[k] as usize);
                            let scale = columns.as_ref().map_or(1.0, |_| scale[k]);
                            let left = Precision::Bf16.round(scale * x[(rows - 1) * stored + column]);
                            f64::from(left) * f64::from(weight[column])
                        })
                        .sum();
                    let found = f64::from(one[(rows - 1) * outputs + n]);
                    assert!((found - sum).abs() < 1e-3 * (depth as f64).sqrt(), "{unit}: {found} {sum}");
                }
            }
        }
    }
}

#[test]
fn few_rows_and_f32_weights_do_not_go_through_a_unit() {
    let (outputs, depth) = (40, 300);
    let few = 1..=crate::matrix::stream::most_rows(cpu::isa());
    for (precision, rows) in [(Precision::F32, 40)].into_iter().chain(few.map(|rows| (Precision::Bf16, rows))) {
        let packed = PackedMatrix::rows_in(precision, &numbers(1, outputs * depth), outputs, depth, None);
        let x = numbers(2, rows * depth);
        let wide = cpu::with_isa(cpu::Isa::available()[0], || bits(&plain(&x, rows, &packed)));
        for unit in units() {
            assert_eq!(with_bf16_unit(unit, || bits(&plain(&x, rows, &packed))), wide, "{unit} {precision} {rows}");
        }
    }
}
