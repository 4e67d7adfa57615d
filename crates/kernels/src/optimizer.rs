//! The optimizer's element-wise step.

use std::sync::atomic::{AtomicBool, Ordering};

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

/// The numbers of one parameter that a step goes over, all of one length.
#[derive(Debug)]
pub struct Moved<'a> {
    /// `θ`.
    pub value: &'a mut [f32],
    /// `g`; zero after the step, in selected rows where some are selected.
    pub gradient: &'a mut [f32],
    /// `m`, zero before step 1.
    pub first: &'a mut [f32],
    /// `v`, zero before step 1.
    pub second: &'a mut [f32],
}

/// Which elements of a matrix a step updates. Of the others it changes neither value nor moments.
#[derive(Debug, Clone, Copy)]
pub struct Selected<'a> {
    /// Elements of a row.
    pub width: usize,
    /// The rows, ascending.
    pub rows: &'a [u32],
    /// Of these rows, the columns at which this is not 0; `None` = all.
    pub columns: Option<&'a [f32]>,
}

struct Factors {
    scale: f32,
    decay: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    step_size: f32,
    root: f32,
    eps: f32,
}

/// The exponent bits are all set in infinities and NaN only.
const EXPONENT: u32 = 0x7f80_0000;

kernel! {
    /// Answers the largest exponent bits among the new values.
    fn run(factors: &Factors, value: &mut [f32], gradient: &mut [f32], first: &mut [f32], second: &mut [f32]) -> u32 {
        let Factors { scale, decay, beta1, rest1, beta2, rest2, step_size, root, eps } = *factors;
        let mut worst = 0;
        for (((value, gradient), first), second) in value.iter_mut().zip(gradient).zip(first).zip(second) {
            let g = *gradient * scale;
            *gradient = 0.0;
            *first = mul_add::<FMA>(rest1, g, beta1 * *first);
            *second = mul_add::<FMA>(rest2 * g, g, beta2 * *second);
            let denominator = mul_add::<FMA>(second.sqrt(), root, eps);
            *value = *value * decay - step_size * *first / denominator;
            worst = worst.max(value.to_bits() & EXPONENT);
        }
        worst
    }

    /// The same where the mask is not 0.
    fn run_masked(factors: &Factors, mask: &[f32], value: &mut [f32], gradient: &mut [f32], first: &mut [f32], second: &mut [f32]) -> u32 {
        let Factors { scale, decay, beta1, rest1, beta2, rest2, step_size, root, eps } = *factors;
        let mut worst = 0;
        for ((((value, gradient), first), second), &mask) in value.iter_mut().zip(gradient).zip(first).zip(second).zip(mask) {
            let g = *gradient * scale;
            *gradient = 0.0;
            let new_first = mul_add::<FMA>(rest1, g, beta1 * *first);
            let new_second = mul_add::<FMA>(rest2 * g, g, beta2 * *second);
            let denominator = mul_add::<FMA>(new_second.sqrt(), root, eps);
            let new_value = *value * decay - step_size * new_first / denominator;
            *first = if mask != 0.0 { new_first } else { *first };
            *second = if mask != 0.0 { new_second } else { *second };
            *value = if mask != 0.0 { new_value } else { *value };
            worst = worst.max(value.to_bits() & EXPONENT);
        }
        worst
    }
}

/// One AdamW step with `scale` times the gradient, which is zero afterwards (in the rows that are selected):
///
/// `θ ← θ (1 − η λ)`, `m ← β₁ m + (1−β₁) g`, `v ← β₂ v + (1−β₂) g²`, `θ ← θ − η/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)`.
///
/// With `selected`, only of those elements. Says whether every value it made is finite.
///
/// # Panics
/// If the lengths differ, the step is 0, or what is selected is not part of the parameter.
pub fn adamw_step(settings: &AdamW, scale: f32, moved: Moved<'_>, selected: Option<&Selected<'_>>) -> bool {
    let Moved { value, gradient, first, second } = moved;
    assert!(settings.step > 0, "adamw_step: steps count from 1");
    assert_eq!(gradient.len(), value.len(), "adamw_step: one gradient a value");
    assert_eq!(first.len(), value.len(), "adamw_step: one first moment a value");
    assert_eq!(second.len(), value.len(), "adamw_step: one second moment a value");
    let power = |beta: f64| beta.powi(i32::try_from(settings.step).unwrap_or(i32::MAX));
    let factors = Factors {
        scale,
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
    let finite = AtomicBool::new(true);
    let tell = |worst: u32| {
        if worst == EXPONENT {
            finite.store(false, Ordering::Relaxed);
        }
    };
    let (gradient, first, second) = (Shared::new(gradient), Shared::new(first), Shared::new(second));
    match selected {
        None => parallel::rows_mut(value, 1, |start, value| {
            // SAFETY: every task has elements of its own.
            let (gradient, first, second) = unsafe {
                (gradient.slice(start, value.len()), first.slice(start, value.len()), second.slice(start, value.len()))
            };
            tell(run(isa, &factors, value, gradient, first, second));
        }),
        Some(&Selected { width, rows, columns }) => {
            check_selected(value.len(), width, rows, columns);
            let value = Shared::new(value);
            let each = parallel::rows_per_task(width);
            parallel::tasks(rows.len().div_ceil(each), true, |task| {
                for &row in rows.iter().skip(task * each).take(each) {
                    let start = row as usize * width;
                    // SAFETY: inside the parameter and no row twice (`check_selected`), and every task has rows of its own.
                    let [value, gradient, first, second] =
                        [&value, &gradient, &first, &second].map(|shared| unsafe { shared.slice(start, width) });
                    tell(match columns {
                        None => run(isa, &factors, value, gradient, first, second),
                        Some(mask) => run_masked(isa, &factors, mask, value, gradient, first, second),
                    });
                }
            });
        }
    }
    finite.into_inner()
}

fn check_selected(length: usize, width: usize, rows: &[u32], columns: Option<&[f32]>) {
    assert!(rows.is_sorted_by(|a, b| a < b), "adamw_step: ascending rows");
    let last = rows.last().map_or(0, |&row| row as usize + 1);
    assert!(last.checked_mul(width).is_some_and(|end| end <= length), "adamw_step: row {last} of {width} in {length}");
    assert!(columns.is_none_or(|mask| mask.len() == width), "adamw_step: one mask value a column");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, with_isa};
    use crate::tests::numbers;

    const SETTINGS: AdamW =
        AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, learning_rate: 0.01, step: 3 };

    /// One element after another, in `f64`.
    fn reference(theta: f32, g: f32, m: f32, v: f32) -> [f64; 3] {
        let AdamW { beta1, beta2, eps, weight_decay, learning_rate, step } = SETTINGS;
        let [theta, g, m, v] = [theta, g, m, v].map(f64::from);
        let m = beta1 * m + (1.0 - beta1) * g;
        let v = beta2 * v + (1.0 - beta2) * g * g;
        let root = (v / (1.0 - beta2.powi(step as i32))).sqrt();
        let moved = learning_rate / (1.0 - beta1.powi(step as i32)) * m / (root + eps);
        [theta * (1.0 - learning_rate * weight_decay) - moved, m, v]
    }

    #[test]
    fn a_step_updates_what_is_selected_and_nothing_else() {
        for isa in Isa::available() {
            for (rows, width) in [(1, 1), (7, 19), (40, 33), (300, 128)] {
                with_isa(isa, || check(rows, width));
            }
        }
    }

    fn check(rows: usize, width: usize) {
        let n = rows * width;
        let chosen: Vec<u32> = (0..rows as u32).filter(|row| row % 3 != 1).collect();
        let mask: Vec<f32> = (0..width).map(|column| if column % 4 == 2 { 0.0 } else { 1.0 }).collect();
        let ways = [
            None,
            Some(Selected { width, rows: &chosen, columns: None }),
            Some(Selected { width, rows: &chosen, columns: Some(&mask) }),
        ];
        for selected in ways {
            let before = [1, 2, 3, 4].map(|key| numbers(key, n));
            let before =
                [before[0].clone(), before[1].clone(), before[2].clone(), before[3].iter().map(|v| v.abs()).collect()];
            let [mut value, mut gradient, mut first, mut second] = before.clone();
            let moved = Moved { value: &mut value, gradient: &mut gradient, first: &mut first, second: &mut second };
            assert!(adamw_step(&SETTINGS, 0.5, moved, selected.as_ref()));
            for i in 0..n {
                let row_taken = selected.is_none() || chosen.contains(&((i / width) as u32));
                let taken = row_taken && selected.and_then(|s| s.columns).is_none_or(|mask| mask[i % width] != 0.0);
                let [theta, g, m, v] = [0, 1, 2, 3].map(|part| before[part][i]);
                if taken {
                    let expected = reference(theta, 0.5 * g, m, v);
                    for (found, expected) in [value[i], first[i], second[i]].into_iter().zip(expected) {
                        assert!((f64::from(found) - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{i}");
                    }
                    assert_eq!(gradient[i], 0.0);
                } else {
                    assert_eq!([value[i], first[i], second[i]], [theta, m, v], "{i} stays as it was");
                }
            }
        }
    }

    #[test]
    fn a_value_that_became_infinite_is_told() {
        let [mut value, mut gradient, mut first, mut second] = [[0.0], [f32::INFINITY], [0.0], [1.0]];
        let moved = Moved { value: &mut value, gradient: &mut gradient, first: &mut first, second: &mut second };
        assert!(!adamw_step(&SETTINGS, 1.0, moved, None));
    }
}
