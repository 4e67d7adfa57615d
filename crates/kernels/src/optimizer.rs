//! The optimizer's element-wise step.

use crate::cpu::{self, kernel};
use crate::math::mul_add;
use crate::parallel::{self, Shared};

/// Settings of one AdamW step (I. Loshchilov, F. Hutter, 2019), as in `torch.optim.AdamW`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Step size.
    pub learning_rate: f64,
    /// Number of this step, from 1.
    pub step: u64,
}

struct Factors {
    decay: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    step_size: f32,
    root: f32,
    eps: f32,
}

kernel! {
    fn run(factors: &Factors, value: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let Factors { decay, beta1, rest1, beta2, rest2, step_size, root, eps } = *factors;
        for (((value, &gradient), first), second) in value.iter_mut().zip(gradient).zip(first).zip(second) {
            *first = mul_add::<FMA>(rest1, gradient, beta1 * *first);
            *second = mul_add::<FMA>(rest2 * gradient, gradient, beta2 * *second);
            let denominator = mul_add::<FMA>(second.sqrt(), root, eps);
            *value = *value * decay - step_size * *first / denominator;
        }
    }
}

/// One AdamW step:
///
/// `θ ← θ (1 − η λ)`, `m ← β₁ m + (1−β₁) g`, `v ← β₂ v + (1−β₂) g²`, `θ ← θ − η/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)`.
///
/// # Shapes
/// All of one length; `first` and `second` are the moments `m` and `v`, zero before step 1.
///
/// # Panics
/// If the lengths differ or the step is 0.
pub fn adamw_step(settings: &AdamW, value: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
    assert!(settings.step > 0, "adamw_step: steps count from 1");
    assert_eq!(gradient.len(), value.len(), "adamw_step: one gradient a value");
    assert_eq!(first.len(), value.len(), "adamw_step: one first moment a value");
    assert_eq!(second.len(), value.len(), "adamw_step: one second moment a value");
    let power = |beta: f64| beta.powi(i32::try_from(settings.step).unwrap_or(i32::MAX));
    let factors = Factors {
        decay: (1.0 - settings.learning_rate * settings.weight_decay) as f32,
        beta1: settings.beta1 as f32,
        rest1: (1.0 - settings.beta1) as f32,
        beta2: settings.beta2 as f32,
        rest2: (1.0 - settings.beta2) as f32,
        step_size: (settings.learning_rate / (1.0 - power(settings.beta1))) as f32,
        root: (1.0 / (1.0 - power(settings.beta2)).sqrt()) as f32,
        eps: settings.eps as f32,
    };
    let isa = cpu::isa();
    let (first, second) = (Shared::new(first), Shared::new(second));
    parallel::rows_mut(value, 1, |start, value| {
        // SAFETY: every task has elements of its own.
        let (first, second) = unsafe { (first.slice(start, value.len()), second.slice(start, value.len())) };
        run(isa, &factors, value, &gradient[start..][..value.len()], first, second);
    });
}
