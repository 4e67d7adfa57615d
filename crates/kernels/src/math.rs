//! Scalar exponential, tanh, erf and what is made of them, written so that a loop over them vectorises: no branches, no
//! calls, no tables. Every function hands NaN on. `FMA` says whether a fused multiply-add is one instruction. With them, the
//! sums over a row that softmax needs.

/// `a * b + c`, fused where that is cheap.
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Limits that let NaN through, unlike `f32::clamp`'s lane-wise relatives `min` and `max`.
#[inline(always)]
pub(crate) fn limit(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// `e^x`, within 2 ulp; 0 below -104, infinity above 88.73.
///
/// `e^x = 2^n e^r` with `|r| ≤ ½ ln 2`, Cody–Waite reduction and a polynomial of degree 6 (Cephes `expf`).
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    let (p, shifted) = exp_reduced::<FMA>(limit(x, -104.0, 89.0));
    // 2^n in two factors, so that both ends of the range are reached.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

/// 1.5 · 2^23: adding and taking it away rounds to an integer.
const ROUND: f32 = 12_582_912.0;

/// `e^r` and `n + ROUND`, for `x = n ln 2 + r`.
#[inline(always)]
fn exp_reduced<const FMA: bool>(x: f32) -> (f32, f32) {
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FMA>(n, -0.693_359_4, x);
    let r = mul_add::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = mul_add::<FMA>(p, r, 1.398_2e-3);
    p = mul_add::<FMA>(p, r, 8.333_452e-3);
    p = mul_add::<FMA>(p, r, 4.166_579_6e-2);
    p = mul_add::<FMA>(p, r, 1.666_666_5e-1);
    p = mul_add::<FMA>(p, r, 0.5);
    (mul_add::<FMA>(p, r * r, r) + 1.0, shifted)
}

/// `e^x` as [`exp`] has it for `|x| < 87`, to the bit, in two thirds of the operations; elsewhere anything.
#[inline(always)]
fn exp_far_from_the_ends<const FMA: bool>(x: f32) -> f32 {
    let (p, shifted) = exp_reduced::<FMA>(x);
    // 2^n p, for n steps of the exponent.
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// `tanh x`, within 3 ulp.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let magnitude = limit(x.abs(), 0.0, 10.0);
    let far = 1.0 - 2.0 / (exp::<FMA>(2.0 * magnitude) + 1.0);
    let s = x * x;
    let mut p = -5.704_988_7e-3;
    p = mul_add::<FMA>(p, s, 2.063_909e-2);
    p = mul_add::<FMA>(p, s, -5.373_971_5e-2);
    p = mul_add::<FMA>(p, s, 1.333_144_2e-1);
    p = mul_add::<FMA>(p, s, -3.333_328e-1);
    let near = mul_add::<FMA>(p * s, x, x);
    if magnitude < 0.625 { near } else { far.copysign(x) }
}

/// The error function, within 2 ulp (N. Juffa's two polynomials).
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    let t = limit(x.abs(), 0.0, 4.0);
    let s = t * t;
    let mut far = mul_add::<FMA>(-1.728_534_7e-5, t, 3.831_971_3e-4);
    let u = mul_add::<FMA>(-3.883_964_4e-3, t, 2.425_462_2e-2);
    far = mul_add::<FMA>(far, s, u);
    far = mul_add::<FMA>(far, t, -1.067_778_8e-1);
    far = mul_add::<FMA>(far, t, -6.348_468_7e-1);
    far = mul_add::<FMA>(far, t, -1.287_175_1e-1);
    far = mul_add::<FMA>(far, t, -t);
    let far = (1.0 - exp_far_from_the_ends::<FMA>(far)).copysign(x);
    let mut near = -5.967_617e-4;
    near = mul_add::<FMA>(near, s, 4.991_194_2e-3);
    near = mul_add::<FMA>(near, s, -2.676_813_5e-2);
    near = mul_add::<FMA>(near, s, 1.128_199_25e-1);
    near = mul_add::<FMA>(near, s, -3.761_253_4e-1);
    near = mul_add::<FMA>(near, s, 1.283_791_7e-1);
    near = mul_add::<FMA>(near, x, x);
    // NaN is near: far away it may be lost.
    if t > 0.927_734_4 { far } else { near }
}

/// `Φ(x)`, the normal distribution function.
#[inline(always)]
pub(crate) fn normal_probability<const FMA: bool>(x: f32) -> f32 {
    mul_add::<FMA>(0.5, erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), 0.5)
}

/// The normal density `φ(x)`.
#[inline(always)]
pub(crate) fn normal_density<const FMA: bool>(x: f32) -> f32 {
    const FACTOR: f32 = 0.398_942_3; // 1/√(2π)
    FACTOR * exp::<FMA>(-0.5 * x * x)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// Sum of lane accumulators in a fixed tree order.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; 16]) -> f32 {
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest of lane accumulators; NaN loses.
#[inline(always)]
pub(crate) fn largest_lane(mut lanes: [f32; 16]) -> f32 {
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest of a row, -∞ of an empty one; NaN loses.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = if x > *lane { x } else { *lane };
    }
    largest_lane(lanes)
}

/// Elements of a long sum that are added up in `f32` before it goes on in `f64`.
pub(crate) const SUM_RUN: usize = 1024;

/// `Σ e^(x − maximum)` over a row of any length.
#[inline(always)]
pub(crate) fn sum_exp<const FMA: bool>(x: &[f32], maximum: f32) -> f64 {
    let mut total = 0.0;
    for run in x.chunks(SUM_RUN) {
        let mut lanes = [0.0; 16];
        let (chunks, tail) = run.as_chunks::<16>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += exp::<FMA>(x - maximum);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(tail) {
            *lane += exp::<FMA>(x - maximum);
        }
        total += f64::from(sum_lanes(lanes));
    }
    total
}

/// `x = e^(x − maximum)` over a row of any length; answers the sum, that of [`sum_exp`] to the bit.
#[inline(always)]
pub(crate) fn exp_in_place<const FMA: bool>(x: &mut [f32], maximum: f32) -> f64 {
    let mut total = 0.0;
    for run in x.chunks_mut(SUM_RUN) {
        let mut lanes = [0.0; 16];
        let (chunks, tail) = run.as_chunks_mut::<16>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *x = exp::<FMA>(*x - maximum);
                *lane += *x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(tail) {
            *x = exp::<FMA>(*x - maximum);
            *lane += *x;
        }
        total += f64::from(sum_lanes(lanes));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, kernel};
    use crate::tests::erf as exact_erf;

    kernel! {
        fn map_exp(x: &mut [f32]) {
            for x in x {
                *x = exp::<FMA>(*x);
            }
        }
        fn map_tanh(x: &mut [f32]) {
            for x in x {
                *x = tanh::<FMA>(*x);
            }
        }
        fn map_erf(x: &mut [f32]) {
            for x in x {
                *x = erf::<FMA>(*x);
            }
        }
    }

    /// The largest error in units of the last place of the exact value.
    fn worst(name: &str, f: fn(Isa, &mut [f32]), exact: fn(f64) -> f64, range: (f32, f32)) -> f64 {
        let mut worst = 0.0_f64;
        for isa in Isa::available() {
            let inputs: Vec<f32> = (0..=100_003).map(|i| range.0 + (range.1 - range.0) * i as f32 / 1e5).collect();
            let mut found = inputs.clone();
            f(isa, &mut found);
            for (&x, &y) in inputs.iter().zip(&found) {
                let expected = exact(f64::from(x));
                let nearest = expected as f32;
                let unit = f64::from(nearest.abs().next_up() - nearest.abs()).max(f64::from(f32::MIN_POSITIVE) * 1e-7);
                let error = (f64::from(y) - expected).abs() / unit;
                assert!(error < 4.0, "{isa} {name}({x}) = {y}, exactly {expected}");
                worst = worst.max(error);
            }
        }
        worst
    }

    #[test]
    fn exp_tanh_and_erf_are_within_a_few_units_of_the_last_place() {
        assert!(worst("exp", map_exp, f64::exp, (-87.0, 88.0)) < 2.0);
        assert!(worst("exp", map_exp, f64::exp, (-1e-3, 1e-3)) < 2.0);
        assert!(worst("tanh", map_tanh, f64::tanh, (-11.0, 11.0)) < 3.0);
        assert!(worst("tanh", map_tanh, f64::tanh, (-0.7, 0.7)) < 3.0);
        assert!(worst("erf", map_erf, exact_erf, (-4.5, 4.5)) < 2.0);
        assert!(worst("erf", map_erf, exact_erf, (-1e-3, 1e-3)) < 2.0);
    }

    #[test]
    fn ends_of_the_range_are_met_and_nan_passes() {
        for isa in Isa::available() {
            let run = |f: fn(Isa, &mut [f32]), x: f32| {
                let mut x = [x; 19];
                f(isa, &mut x);
                assert!(x.iter().all(|y| y.to_bits() == x[0].to_bits()), "the same in vectors and in the tail");
                x[0]
            };
            for x in [f32::NEG_INFINITY, f32::MIN, -105.0] {
                assert_eq!(run(map_exp, x), 0.0, "{isa} {x}");
            }
            for x in [f32::INFINITY, f32::MAX, 89.0] {
                assert_eq!(run(map_exp, x), f32::INFINITY, "{isa} {x}");
            }
            assert_eq!(run(map_exp, 0.0), 1.0);
            for x in [20.0, f32::MAX, f32::INFINITY] {
                assert_eq!((run(map_tanh, x), run(map_tanh, -x)), (1.0, -1.0), "{isa} {x}");
                assert_eq!((run(map_erf, x), run(map_erf, -x)), (1.0, -1.0), "{isa} {x}");
            }
            assert_eq!((run(map_tanh, 0.0), run(map_erf, 0.0)), (0.0, 0.0));
            for f in [map_exp as fn(Isa, &mut [f32]), map_tanh, map_erf] {
                // Which NaN comes out may differ between vectors and the tail.
                for nan in [0x7fc0_0000, 0x7fc0_0001, 0xffff_ffff] {
                    let mut x = [f32::from_bits(nan); 19];
                    f(isa, &mut x);
                    assert!(x.iter().all(|y| y.is_nan()), "{isa} {nan:x}");
                }
            }
        }
    }
}
