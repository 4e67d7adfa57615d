//! Layer normalisation over the last dimension, with or without a residual added on the way, and root mean square
//! normalisation; forward and backward.

use crate::cpu::{self, kernel};
use crate::math::{self, mul_add};
use crate::parallel::{self, Shared};

#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<16>();
    let mut lanes = [0.0; 16];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    math::sum_lanes(lanes) + tail.iter().sum::<f32>()
}

#[inline(always)]
fn sum_of_squares_about<const FMA: bool>(x: &[f32], mean: f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<16>();
    let mut lanes = [0.0; 16];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = mul_add::<FMA>(x - mean, x - mean, *lane);
        }
    }
    math::sum_lanes(lanes) + tail.iter().map(|&x| (x - mean) * (x - mean)).sum::<f32>()
}

kernel! {
    /// `y` = the norm of each row of `x`; answers nothing, writes the statistics of each row.
    fn forward_rows(x: &[f32], d: usize, gamma: &[f32], beta: &[f32], eps: f32, y: &mut [f32], mean: &mut [f32], rstd: &mut [f32]) {
        for (row, (x, y)) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).enumerate() {
            let row_mean = sum(x) / d as f32;
            let variance = sum_of_squares_about::<FMA>(x, row_mean) / d as f32;
            let row_rstd = 1.0 / (variance + eps).sqrt();
            for (((y, &x), &gamma), &beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                *y = mul_add::<FMA>((x - row_mean) * row_rstd, gamma, beta);
            }
            if !mean.is_empty() {
                mean[row] = row_mean;
                rstd[row] = row_rstd;
            }
        }
    }

    fn add_rows(x: &mut [f32], residual: &[f32]) {
        for (x, &residual) in x.iter_mut().zip(residual) {
            *x += residual;
        }
    }

    /// `d_x` of each row: `rstd (g − mean(g) − x̂ mean(g x̂))` with `g = γ d_y`.
    fn backward_rows(x: &[f32], d: usize, gamma: &[f32], mean: &[f32], rstd: &[f32], d_y: &[f32], d_x: &mut [f32]) {
        let rows = x.chunks_exact(d).zip(d_y.chunks_exact(d)).zip(d_x.chunks_exact_mut(d));
        for (row, ((x, d_y), d_x)) in rows.enumerate() {
            let (mean, rstd) = (mean[row], rstd[row]);
            for ((d_x, &d_y), &gamma) in d_x.iter_mut().zip(d_y).zip(gamma) {
                *d_x = d_y * gamma;
            }
            let mean_g = sum(d_x) / d as f32;
            let mut lanes = [0.0; 16];
            let (x_chunks, x_tail) = x.as_chunks::<16>();
            let (g_chunks, g_tail) = d_x.as_chunks::<16>();
            for (x, g) in x_chunks.iter().zip(g_chunks) {
                for ((lane, &x), &g) in lanes.iter_mut().zip(x).zip(g) {
                    *lane = mul_add::<FMA>(x - mean, g, *lane);
                }
            }
            let product = math::sum_lanes(lanes) + x_tail.iter().zip(g_tail).map(|(&x, &g)| (x - mean) * g).sum::<f32>();
            let slope = product * rstd * rstd / d as f32;
            for (d_x, &x) in d_x.iter_mut().zip(x) {
                *d_x = rstd * mul_add::<FMA>(mean - x, slope, *d_x - mean_g);
            }
        }
    }

    /// Gradients of scale and shift over a run of columns, rows in order.
    fn backward_parameters(x: &[f32], d: usize, start: usize, mean: &[f32], rstd: &[f32], d_y: &[f32], d_gamma: &mut [f32], d_beta: &mut [f32]) {
        let end = start + d_gamma.len();
        let rows = x.chunks_exact(d).zip(d_y.chunks_exact(d)).zip(mean).zip(rstd);
        for (((x, d_y), &mean), &rstd) in rows {
            let columns = x[start..end].iter().zip(&d_y[start..end]).zip(d_gamma.iter_mut()).zip(d_beta.iter_mut());
            for (((&x, &d_y), d_gamma), d_beta) in columns {
                *d_gamma = mul_add::<FMA>((x - mean) * rstd, d_y, *d_gamma);
                *d_beta += d_y;
            }
        }
    }

    /// `y` = the root mean square norm of each row of `x`; writes the statistic of each row.
    fn rms_rows(x: &[f32], d: usize, gamma: &[f32], eps: f32, y: &mut [f32], saved: &mut [f32]) {
        for (row, (x, y)) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).enumerate() {
            let reciprocal = 1.0 / (sum_of_squares_about::<FMA>(x, 0.0) / d as f32 + eps).sqrt();
            for ((y, &x), &gamma) in y.iter_mut().zip(x).zip(gamma) {
                *y = x * reciprocal * gamma;
            }
            if !saved.is_empty() {
                saved[row] = reciprocal;
            }
        }
    }

    /// Adds to `d_x` of each row: `r (g − x r² mean(g x))` with `g = γ d_y` and `r` the reciprocal root mean square.
    fn rms_backward_rows(x: &[f32], d: usize, gamma: &[f32], reciprocal_rms: &[f32], d_y: &[f32], d_x: &mut [f32]) {
        let rows = x.chunks_exact(d).zip(d_y.chunks_exact(d)).zip(d_x.chunks_exact_mut(d)).zip(reciprocal_rms);
        for (((x, d_y), d_x), &reciprocal) in rows {
            let mut lanes = [0.0; 16];
            let (x_chunks, x_tail) = x.as_chunks::<16>();
            let (d_y_chunks, d_y_tail) = d_y.as_chunks::<16>();
            let (gamma_chunks, gamma_tail) = gamma.as_chunks::<16>();
            for ((x, d_y), gamma) in x_chunks.iter().zip(d_y_chunks).zip(gamma_chunks) {
                for (((lane, &x), &d_y), &gamma) in lanes.iter_mut().zip(x).zip(d_y).zip(gamma) {
                    *lane = mul_add::<FMA>(x * gamma, d_y, *lane);
                }
            }
            for (((lane, &x), &d_y), &gamma) in lanes.iter_mut().zip(x_tail).zip(d_y_tail).zip(gamma_tail) {
                *lane = mul_add::<FMA>(x * gamma, d_y, *lane);
            }
            let slope = math::sum_lanes(lanes) * reciprocal * reciprocal / d as f32;
            for (((d_x, &x), &d_y), &gamma) in d_x.iter_mut().zip(x).zip(d_y).zip(gamma) {
                *d_x = mul_add::<FMA>(reciprocal, mul_add::<FMA>(-x, slope, gamma * d_y), *d_x);
            }
        }
    }

    /// Gradients of the scale over a run of columns, rows in order.
    fn rms_backward_scale(x: &[f32], d: usize, start: usize, reciprocal_rms: &[f32], d_y: &[f32], d_gamma: &mut [f32]) {
        let end = start + d_gamma.len();
        for ((x, d_y), &reciprocal) in x.chunks_exact(d).zip(d_y.chunks_exact(d)).zip(reciprocal_rms) {
            for ((d_gamma, &x), &d_y) in d_gamma.iter_mut().zip(&x[start..end]).zip(&d_y[start..end]) {
                *d_gamma = mul_add::<FMA>(x * reciprocal, d_y, *d_gamma);
            }
        }
    }
}

fn check(what: &str, length: usize, d: usize, gamma: &[f32], beta: usize) -> usize {
    assert!(d > 0 || length == 0, "{what}: rows of at least one element");
    assert_eq!(gamma.len(), d, "{what}: one scale a column");
    assert_eq!(beta, d, "{what}: one shift a column");
    let rows = length.checked_div(d).unwrap_or(0);
    assert_eq!(rows * d, length, "{what}: whole rows of {d}");
    rows
}

/// `y = (x − mean) / √(variance + eps) · γ + β` for every row, the variance over all `d` elements (J. L. Ba et al., 2016).
///
/// # Shapes
/// `x`, `y` `[T, d]`; `gamma`, `beta` `[d]`; `saved` = the mean and the reciprocal standard deviation of each row, `[T]`.
///
/// # Panics
/// If a shape does not fit.
pub fn layer_norm_forward(
    x: &[f32],
    d: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    y: &mut [f32],
    saved: Option<(&mut [f32], &mut [f32])>,
) {
    let rows = check("layer_norm_forward", x.len(), d, gamma, beta.len());
    assert_eq!(y.len(), x.len(), "layer_norm_forward: y as long as x");
    let isa = cpu::isa();
    let saved = shared(saved, rows);
    parallel::rows_mut(y, d, |row, y| {
        let count = y.len() / d;
        // SAFETY: every task has rows of its own.
        let (mean, rstd) = unsafe { statistics(&saved, row, count) };
        forward_rows(isa, &x[row * d..][..y.len()], d, gamma, beta, eps, y, mean, rstd);
    });
}

/// `x += residual`, then [`layer_norm_forward`] of the sum, which stays in `x` for the backward pass.
///
/// # Panics
/// If a shape does not fit.
#[allow(clippy::too_many_arguments)]
pub fn add_layer_norm_forward(
    x: &mut [f32],
    residual: &[f32],
    d: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    y: &mut [f32],
    saved: Option<(&mut [f32], &mut [f32])>,
) {
    let rows = check("add_layer_norm_forward", x.len(), d, gamma, beta.len());
    assert_eq!(residual.len(), x.len(), "add_layer_norm_forward: residual as long as x");
    assert_eq!(y.len(), x.len(), "add_layer_norm_forward: y as long as x");
    let isa = cpu::isa();
    let saved = shared(saved, rows);
    let y = Shared::new(y);
    parallel::rows_mut(x, d, |row, x| {
        let count = x.len() / d;
        // SAFETY: every task has rows of its own.
        let (y, (mean, rstd)) = unsafe { (y.slice(row * d, x.len()), statistics(&saved, row, count)) };
        add_rows(isa, x, &residual[row * d..][..x.len()]);
        forward_rows(isa, x, d, gamma, beta, eps, y, mean, rstd);
    });
}

fn shared<'a>(saved: Option<(&'a mut [f32], &'a mut [f32])>, rows: usize) -> Option<(Shared<'a>, Shared<'a>)> {
    saved.map(|(mean, rstd)| {
        assert_eq!(mean.len(), rows, "layer norm: one mean a row");
        assert_eq!(rstd.len(), rows, "layer norm: one reciprocal standard deviation a row");
        (Shared::new(mean), Shared::new(rstd))
    })
}

/// # Safety
/// As [`Shared::slice`].
unsafe fn statistics<'a>(
    saved: &Option<(Shared<'a>, Shared<'a>)>,
    row: usize,
    count: usize,
) -> (&'a mut [f32], &'a mut [f32]) {
    match saved {
        // SAFETY: the caller's promise.
        Some((mean, rstd)) => unsafe { (mean.slice(row, count), rstd.slice(row, count)) },
        None => (&mut [], &mut []),
    }
}

/// Gradients of [`layer_norm_forward`].
///
/// # Shapes
/// `x` (the norm's input), `d_y` and `d_x` `[T, d]`; `mean`, `rstd` `[T]` as saved. `d_x` is overwritten; `d_gamma_beta`
/// (`[d]` each) is added to.
///
/// # Panics
/// If a shape does not fit.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward(
    x: &[f32],
    d: usize,
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
    d_y: &[f32],
    d_x: &mut [f32],
    d_gamma_beta: Option<(&mut [f32], &mut [f32])>,
) {
    let rows = check("layer_norm_backward", x.len(), d, gamma, d);
    assert_eq!(mean.len(), rows, "layer_norm_backward: one mean a row");
    assert_eq!(rstd.len(), rows, "layer_norm_backward: one reciprocal standard deviation a row");
    assert_eq!(d_y.len(), x.len(), "layer_norm_backward: d_y as long as x");
    assert_eq!(d_x.len(), x.len(), "layer_norm_backward: d_x as long as x");
    let isa = cpu::isa();
    parallel::rows_mut(d_x, d, |row, d_x| {
        let count = d_x.len() / d;
        let part = row * d..row * d + d_x.len();
        backward_rows(isa, &x[part.clone()], d, gamma, &mean[row..][..count], &rstd[row..][..count], &d_y[part], d_x);
    });
    if let Some((d_gamma, d_beta)) = d_gamma_beta {
        assert_eq!(d_gamma.len(), d, "layer_norm_backward: one scale gradient a column");
        assert_eq!(d_beta.len(), d, "layer_norm_backward: one shift gradient a column");
        let d_beta = Shared::new(d_beta);
        parallel::columns_mut(d_gamma, x.len(), |start, d_gamma| {
            // SAFETY: every task has columns of its own.
            let d_beta = unsafe { d_beta.slice(start, d_gamma.len()) };
            backward_parameters(isa, x, d, start, mean, rstd, d_y, d_gamma, d_beta);
        });
    }
}

/// `y = x / √(mean(x²) + eps) · γ` for every row (B. Zhang, R. Sennrich, 2019).
///
/// # Shapes
/// `x`, `y` `[T, d]`; `gamma` `[d]`; `reciprocal_rms` = what a row was multiplied by, `[T]`, for the backward pass.
///
/// # Panics
/// If a shape does not fit.
pub fn rms_norm_forward(
    x: &[f32],
    d: usize,
    gamma: &[f32],
    eps: f32,
    y: &mut [f32],
    reciprocal_rms: Option<&mut [f32]>,
) {
    let rows = check("rms_norm_forward", x.len(), d, gamma, d);
    assert_eq!(y.len(), x.len(), "rms_norm_forward: y as long as x");
    let saved = reciprocal_rms.map(|saved| {
        assert_eq!(saved.len(), rows, "rms_norm_forward: one statistic a row");
        Shared::new(saved)
    });
    let isa = cpu::isa();
    parallel::rows_mut(y, d, |row, y| {
        // SAFETY: every task has rows of its own.
        let saved = saved.as_ref().map_or(&mut [][..], |saved| unsafe { saved.slice(row, y.len() / d) });
        rms_rows(isa, &x[row * d..][..y.len()], d, gamma, eps, y, saved);
    });
}

/// Gradients of [`rms_norm_forward`].
///
/// # Shapes
/// `x` (the norm's input), `d_y` and `d_x` `[T, d]`; `reciprocal_rms` `[T]` as saved. `d_x`, where the gradient of the
/// residual lies, and `d_gamma` (`[d]`) are added to.
///
/// # Panics
/// If a shape does not fit.
pub fn rms_norm_backward(
    x: &[f32],
    d: usize,
    gamma: &[f32],
    reciprocal_rms: &[f32],
    d_y: &[f32],
    d_x: &mut [f32],
    d_gamma: Option<&mut [f32]>,
) {
    let rows = check("rms_norm_backward", x.len(), d, gamma, d);
    assert_eq!(reciprocal_rms.len(), rows, "rms_norm_backward: one statistic a row");
    assert_eq!(d_y.len(), x.len(), "rms_norm_backward: d_y as long as x");
    assert_eq!(d_x.len(), x.len(), "rms_norm_backward: d_x as long as x");
    let isa = cpu::isa();
    parallel::rows_mut(d_x, d, |row, d_x| {
        let part = row * d..row * d + d_x.len();
        let saved = &reciprocal_rms[row..][..d_x.len() / d];
        rms_backward_rows(isa, &x[part.clone()], d, gamma, saved, &d_y[part], d_x);
    });
    if let Some(d_gamma) = d_gamma {
        assert_eq!(d_gamma.len(), d, "rms_norm_backward: one scale gradient a column");
        if rows > 0 {
            parallel::columns_mut(d_gamma, x.len(), |start, d_gamma| {
                rms_backward_scale(isa, x, d, start, reciprocal_rms, d_y, d_gamma);
            });
        }
    }
}
