//! Sums over tokens and plain element-wise additions. A column's sum always runs over its rows in order, so that it does
//! not depend on the number of threads.

use rayon::prelude::*;

use crate::cpu::{self, kernel};
use crate::math::mul_add;
use crate::parallel;

kernel! {
    fn column_sum_part(x: &[f32], t: usize, stride: usize, start: usize, out: &mut [f32]) {
        for row in 0..t {
            for (out, &x) in out.iter_mut().zip(&x[row * stride + start..]) {
                *out += x;
            }
        }
    }

    fn column_dot_part(x: &[f32], y: &[f32], t: usize, stride: usize, start: usize, out: &mut [f32]) {
        for row in 0..t {
            let at = row * stride + start;
            for ((out, &x), &y) in out.iter_mut().zip(&x[at..]).zip(&y[at..]) {
                *out = mul_add::<FMA>(x, y, *out);
            }
        }
    }

    fn add_part(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }

    fn add_scaled_part(x: &[f32], scale: &[f32], out: &mut [f32]) {
        for (out, x) in out.chunks_exact_mut(scale.len().max(1)).zip(x.chunks_exact(scale.len().max(1))) {
            for ((out, &x), &scale) in out.iter_mut().zip(x).zip(scale) {
                *out = mul_add::<FMA>(x, scale, *out);
            }
        }
    }

    fn scale_part(x: &mut [f32], scale: &[f32]) {
        for x in x.chunks_exact_mut(scale.len().max(1)) {
            for (x, &scale) in x.iter_mut().zip(scale) {
                *x *= scale;
            }
        }
    }

    fn scale_all_part(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }

    fn finite_part(x: &[f32]) -> bool {
        // The exponent bits are all set in infinities and NaN only.
        let mut worst = 0;
        for &x in x {
            worst = worst.max(x.to_bits() & 0x7f80_0000);
        }
        worst != 0x7f80_0000
    }

    fn squared_norm_part(x: &[f32]) -> f64 {
        let (chunks, tail) = x.as_chunks::<16>();
        let mut lanes = [0.0_f64; 16];
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        lanes.iter().sum::<f64>() + tail.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    }
}

fn check(what: &str, length: usize, t: usize, stride: usize, n: usize, out: usize) {
    assert!(n <= stride || t <= 1, "{what}: {n} columns in rows of stride {stride}");
    assert!(t == 0 || (t - 1) * stride + n <= length, "{what}: {t} rows of {n} (stride {stride}) in {length} elements");
    assert_eq!(out, n, "{what}: one result a column");
}

/// `out[j] += scale[j] · Σ_t x[t, j]`: the gradient of a bias.
///
/// # Shapes
/// `x` `[t, n]` with rows `stride` apart; `scale`, `out` `[n]`.
///
/// # Panics
/// If a shape does not fit.
pub fn column_sum(x: &[f32], t: usize, stride: usize, n: usize, scale: Option<&[f32]>, out: &mut [f32]) {
    check("column_sum", x.len(), t, stride, n, out.len());
    let isa = cpu::isa();
    let Some(scale) = scale else {
        return parallel::columns_mut(out, t * n, |start, out| column_sum_part(isa, x, t, stride, start, out));
    };
    assert_eq!(scale.len(), n, "column_sum: one scale a column");
    let mut sums = vec![0.0; n];
    parallel::columns_mut(&mut sums, t * n, |start, out| column_sum_part(isa, x, t, stride, start, out));
    add_scaled_part(isa, &sums, scale, out);
}

/// `out[j] += Σ_t x[t, j] · y[t, j]`: the gradient of a gate.
///
/// # Shapes
/// `x`, `y` `[t, n]` with rows `stride` apart; `out` `[n]`.
///
/// # Panics
/// If a shape does not fit.
pub fn column_dot(x: &[f32], y: &[f32], t: usize, stride: usize, n: usize, out: &mut [f32]) {
    check("column_dot", x.len(), t, stride, n, out.len());
    check("column_dot", y.len(), t, stride, n, out.len());
    let isa = cpu::isa();
    parallel::columns_mut(out, t * n, |start, out| column_dot_part(isa, x, y, t, stride, start, out));
}

/// `out[j] = Σ_t x[t, j] / t` (overwritten), 0 without tokens.
///
/// # Panics
/// If a shape does not fit.
pub fn column_mean(x: &[f32], t: usize, stride: usize, n: usize, out: &mut [f32]) {
    out.fill(0.0);
    column_sum(x, t, stride, n, None, out);
    for out in out {
        *out /= t.max(1) as f32;
    }
}

/// `out += x ⊙ scale`, the scale one a column.
///
/// # Shapes
/// `x`, `out` `[T, n]`; `scale` `[n]`.
///
/// # Panics
/// If a shape does not fit.
pub fn add_scaled_columns(x: &[f32], scale: Option<&[f32]>, out: &mut [f32], n: usize) {
    let Some(scale) = scale else { return add(x, out) };
    assert_eq!(x.len(), out.len(), "add_scaled_columns: out as long as x");
    assert_eq!(scale.len(), n, "add_scaled_columns: one scale a column");
    assert!(n > 0 && x.len().is_multiple_of(n) || x.is_empty(), "add_scaled_columns: whole rows of {n}");
    let isa = cpu::isa();
    parallel::rows_mut(out, n, |row, out| add_scaled_part(isa, &x[row * n..][..out.len()], scale, out));
}

/// `out += x`.
///
/// # Panics
/// If the lengths differ.
pub fn add(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "add: out as long as x");
    let isa = cpu::isa();
    parallel::rows_mut(out, 1, |start, out| add_part(isa, &x[start..][..out.len()], out));
}

/// `x[t, j] *= scale[j]`.
///
/// # Panics
/// If a shape does not fit.
pub fn scale_columns(x: &mut [f32], n: usize, scale: &[f32]) {
    assert_eq!(scale.len(), n, "scale_columns: one scale a column");
    assert!(n > 0 && x.len().is_multiple_of(n) || x.is_empty(), "scale_columns: whole rows of {n}");
    let isa = cpu::isa();
    parallel::rows_mut(x, n, |_, x| scale_part(isa, x, scale));
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    let isa = cpu::isa();
    parallel::rows_mut(x, 1, |_, x| scale_all_part(isa, x, factor));
}

/// Whether no element is infinite or NaN.
pub fn all_finite(x: &[f32]) -> bool {
    let isa = cpu::isa();
    if x.len() <= parallel::TASK_ELEMENTS {
        return finite_part(isa, x);
    }
    x.par_chunks(parallel::TASK_ELEMENTS).all(|x| finite_part(isa, x))
}

/// `Σ x²`, accumulated in `f64` over chunks fixed by the length.
pub fn squared_norm(x: &[f32]) -> f64 {
    let isa = cpu::isa();
    if x.len() <= parallel::TASK_ELEMENTS {
        return squared_norm_part(isa, x);
    }
    let parts: Vec<f64> = x.par_chunks(parallel::TASK_ELEMENTS).map(|x| squared_norm_part(isa, x)).collect();
    parts.iter().sum()
}

/// `Σ x²` over these rows of `width` elements, accumulated in `f64` over runs of rows fixed by the width.
///
/// # Panics
/// If a row is not part of `x`.
pub fn squared_norm_of_rows(x: &[f32], width: usize, rows: &[u32]) -> f64 {
    let isa = cpu::isa();
    let part = |rows: &[u32]| -> f64 {
        rows.iter().map(|&row| squared_norm_part(isa, &x[row as usize * width..][..width])).sum()
    };
    let parts: Vec<f64> = rows.par_chunks(parallel::rows_per_task(width)).map(part).collect();
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, with_isa};
    use crate::tests::numbers;

    #[test]
    fn sums_follow_f64_on_every_instruction_set() {
        for isa in Isa::available() {
            for (t, stride, n) in [(0, 3, 3), (1, 0, 0), (1, 5, 1), (7, 20, 17), (300, 130, 129)] {
                with_isa(isa, || check(t, stride, n));
            }
        }
    }

    fn check(t: usize, stride: usize, n: usize) {
        let (x, y, scale) = (numbers(1, t * stride), numbers(2, t * stride), numbers(3, n));
        let sum = |term: &dyn Fn(usize) -> f64| (0..t).map(|row| term(row * stride)).sum::<f64>();
        let mut found = [numbers(4, n), numbers(4, n), numbers(4, n), numbers(4, n)];
        let before = numbers(4, n);
        column_sum(&x, t, stride, n, None, &mut found[0]);
        column_sum(&x, t, stride, n, Some(&scale), &mut found[1]);
        column_dot(&x, &y, t, stride, n, &mut found[2]);
        column_mean(&x, t, stride, n, &mut found[3]);
        for j in 0..n {
            let total = sum(&|row| f64::from(x[row + j]));
            let product = sum(&|row| f64::from(x[row + j]) * f64::from(y[row + j]));
            let expected = [
                f64::from(before[j]) + total,
                f64::from(before[j]) + f64::from(scale[j]) * total,
                f64::from(before[j]) + product,
                total / t.max(1) as f64,
            ];
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(found[j]) - expected).abs() < 1e-4, "{t} {stride} {n}: {} {expected}", found[j]);
            }
        }
        // [t, n] without gaps.
        let (x, scale) = (numbers(5, t * n), numbers(6, n));
        let before = numbers(7, t * n);
        let (mut plain, mut scaled, mut own, mut half) = (before.clone(), before.clone(), x.clone(), x.clone());
        super::scale(&mut half, 0.5);
        add(&x, &mut plain);
        add_scaled_columns(&x, Some(&scale), &mut scaled, n);
        scale_columns(&mut own, n, &scale);
        for i in 0..t * n {
            assert_eq!(plain[i], before[i] + x[i]);
            assert_eq!(own[i], x[i] * scale[i % n]);
            assert_eq!(half[i], x[i] * 0.5);
            assert!((scaled[i] - (before[i] + x[i] * scale[i % n])).abs() < 1e-5);
        }
        let norm: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((squared_norm(&x) - norm).abs() <= 1e-12 * norm);
        assert!(all_finite(&x));
    }

    #[test]
    fn one_number_that_is_not_finite_is_found_wherever_it_is() {
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
                for at in [0, 17, 39_999] {
                    let mut x = vec![f32::MAX; 40_000];
                    x[at] = bad;
                    assert!(!with_isa(isa, || all_finite(&x)), "{isa} {bad} at {at}");
                }
            }
            assert!(with_isa(isa, || all_finite(&[])));
        }
    }

    #[test]
    fn sums_have_the_same_bits_for_any_number_of_threads() {
        let (t, n) = (700, 390);
        let (x, y) = (numbers(1, t * n), numbers(2, t * n));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| {
                let mut out = vec![0.0; n];
                column_sum(&x, t, n, n, None, &mut out);
                column_dot(&x, &y, t, n, n, &mut out);
                (out.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), squared_norm(&x).to_bits())
            })
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(3));
    }
}
