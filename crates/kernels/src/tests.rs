//! Element-wise kernels, norms and the optimizer against f64 and finite differences, on every instruction set.

mod decoder;
mod threads;

use crate::activation::{Activation, activate_backward, activate_in_place};
use crate::cpu::{Isa, with_isa};
use crate::dropout::{Dropout, dropout};
use crate::optimizer::{AdamW, Moved, adamw_step};
use crate::{norm, random};

pub(crate) fn numbers(key: u64, length: usize) -> Vec<f32> {
    let mut values = vec![0.0; length];
    random::fill_normal(key, 0.0, 1.0, &mut values);
    values
}

/// `erf` in f64: its series for small arguments, the continued fraction of `erfc` for large ones.
pub(crate) fn erf(x: f64) -> f64 {
    let t = x.abs();
    let value = if t < 2.5 {
        let (mut term, mut sum, mut n) = (t, t, 0.0);
        while term.abs() > 1e-18 {
            n += 1.0;
            term *= -t * t / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..=80).rev().fold(t, |tail, k| t + f64::from(k) / 2.0 / tail);
        1.0 - (-t * t).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    value.copysign(x)
}

fn reference(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::None => x,
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2.0_f64.sqrt())),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}

const KINDS: [Activation; 6] =
    [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh];

#[test]
fn activations_are_within_a_millionth_of_f64() {
    let inputs: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 0.003_1).chain([-1e30, -88.0, 88.0, 1e30]).collect();
    for isa in Isa::available() {
        for kind in KINDS {
            let mut found = inputs.clone();
            with_isa(isa, || activate_in_place(kind, &mut found));
            for (&x, &y) in inputs.iter().zip(&found) {
                let expected = reference(kind, f64::from(x));
                assert!(
                    (f64::from(y) - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                    "{isa} {kind:?} {x}: {y} {expected}"
                );
            }
        }
    }
}

#[test]
fn activation_gradients_are_differences_of_the_f64_reference() {
    // Away from ReLU's corner.
    let inputs: Vec<f32> = (-600..=600).map(|i| i as f32 * 0.011 + 0.003_7).collect();
    for isa in Isa::available() {
        for kind in KINDS {
            let mut d = vec![2.0; inputs.len()];
            with_isa(isa, || activate_backward(kind, &inputs, &mut d));
            for (&x, &d) in inputs.iter().zip(&d) {
                let (x, h) = (f64::from(x), 1e-5);
                let expected = (reference(kind, x + h) - reference(kind, x - h)) / h;
                assert!((f64::from(d) - expected).abs() < 5e-6, "{isa} {kind:?} {x}: {d} {expected}");
            }
        }
    }
}

#[test]
fn a_nan_is_not_hidden() {
    for isa in Isa::available() {
        for kind in KINDS {
            let mut x = vec![f32::NAN; 37];
            with_isa(isa, || activate_in_place(kind, &mut x));
            assert!(x.iter().all(|x| x.is_nan()), "{isa} {kind:?}");
        }
    }
}

fn norm_reference(x: &[f64], gamma: &[f32], beta: &[f32], eps: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let factor = 1.0 / (variance + eps).sqrt();
    x.iter()
        .zip(gamma.iter().zip(beta))
        .map(|(x, (&g, &b))| (x - mean) * factor * f64::from(g) + f64::from(b))
        .collect()
}

#[test]
fn layer_norm_and_its_gradient_follow_the_f64_reference() {
    for isa in Isa::available() {
        for d in [1_usize, 2, 15, 16, 33, 384] {
            with_isa(isa, || check_norm(d, isa));
        }
    }
}

fn check_norm(d: usize, isa: Isa) {
    let rows = 5;
    let x: Vec<f32> = numbers(1, rows * d).iter().map(|x| 3.0 * x + 1.0).collect();
    let (gamma, beta, d_y) = (numbers(2, d), numbers(3, d), numbers(4, rows * d));
    let eps = 1e-5_f32;
    let (mut y, mut mean, mut rstd) = (vec![0.0; rows * d], vec![0.0; rows], vec![0.0; rows]);
    norm::layer_norm_forward(&x, d, &gamma, &beta, eps, &mut y, Some((&mut mean, &mut rstd)));
    let (mut d_x, mut d_gamma, mut d_beta) = (vec![0.0; rows * d], vec![0.0; d], vec![0.0; d]);
    norm::layer_norm_backward(&x, d, &gamma, &mean, &rstd, &d_y, &mut d_x, Some((&mut d_gamma, &mut d_beta)));
    for row in 0..rows {
        let range = row * d..(row + 1) * d;
        let exact: Vec<f64> = x[range.clone()].iter().map(|&x| f64::from(x)).collect();
        let expected = norm_reference(&exact, &gamma, &beta, f64::from(eps));
        for (found, expected) in y[range.clone()].iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{isa} width {d}: {found} {expected}");
        }
        let loss = |x: &[f64]| -> f64 {
            let y = norm_reference(x, &gamma, &beta, f64::from(eps));
            y.iter().zip(&d_y[range.clone()]).map(|(y, &d)| y * f64::from(d)).sum()
        };
        for i in 0..d.min(20) {
            let (mut up, mut down) = (exact.clone(), exact.clone());
            up[i] += 1e-4;
            down[i] -= 1e-4;
            let expected = (loss(&up) - loss(&down)) / 2e-4;
            let found = f64::from(d_x[row * d + i]);
            assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{isa} width {d}: {found} {expected}");
        }
    }
    let expected: f64 = d_y.iter().step_by(d).map(|&d| f64::from(d)).sum();
    assert!((f64::from(d_beta[0]) - expected).abs() < 1e-4);
}

#[test]
fn dropout_keeps_its_share_and_scales_the_rest() {
    let mut x = vec![1.0; 100_000];
    dropout(&mut x, &Dropout { rate: 0.1, key: 5 });
    let dropped = x.iter().filter(|&&x| x == 0.0).count();
    // Six standard deviations of a binomial of 100,000 draws.
    assert!((dropped as f64 - 10_000.0).abs() < 570.0, "{dropped}");
    assert!(x.iter().all(|&x| x == 0.0 || (x - 1.0 / 0.9).abs() < 1e-6));
    let mut other = vec![1.0; 100_000];
    dropout(&mut other, &Dropout { rate: 0.1, key: 6 });
    let both = x.iter().zip(&other).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
    assert!((both as f64 - 1_000.0).abs() < 200.0, "masks of two keys are independent: {both}");
}

#[test]
fn adamw_follows_its_definition_in_f64() {
    for isa in Isa::available() {
        with_isa(isa, || {
            let mut value = numbers(1, 37);
            let mut exact: Vec<f64> = value.iter().map(|&x| f64::from(x)).collect();
            let (mut first, mut second) = (vec![0.0; 37], vec![0.0; 37]);
            let (mut m, mut v) = (vec![0.0_f64; 37], vec![0.0_f64; 37]);
            for step in 1..=20_u64 {
                let gradient = numbers(100 + step, 37);
                let settings =
                    AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, learning_rate: 1e-2, step };
                let mut used = gradient.clone();
                let moved = Moved { value: &mut value, gradient: &mut used, first: &mut first, second: &mut second };
                assert!(adamw_step(&settings, 1.0, moved, None));
                for i in 0..37 {
                    let g = f64::from(gradient[i]);
                    exact[i] *= 1.0 - 1e-2 * 0.01;
                    m[i] = 0.9 * m[i] + 0.1 * g;
                    v[i] = 0.999 * v[i] + 0.001 * g * g;
                    let (m_hat, v_hat) =
                        (m[i] / (1.0 - 0.9_f64.powi(step as i32)), v[i] / (1.0 - 0.999_f64.powi(step as i32)));
                    exact[i] -= 1e-2 * m_hat / (v_hat.sqrt() + 1e-8);
                }
            }
            for (found, expected) in value.iter().zip(&exact) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{isa}: {found} {expected}");
            }
        });
    }
}
