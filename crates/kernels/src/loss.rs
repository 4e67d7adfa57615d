//! Losses, each with its gradient. Those of the task heads are in `f64` inside: the logits of a batch are few. Those of a
//! language model go over a vocabulary for every token: vectorised exponentials, long sums in `f64`, the gradient in place.

use crate::cpu::{self, kernel};
use crate::math;
use crate::parallel::{self, Shared};

/// Mean cross entropy of rows of logits against class labels.
///
/// With `d_logits` (`[S, C]`, overwritten) also `scale` times the gradient of the mean.
///
/// # Shapes
/// `logits` `[S, c]`, `labels` `[S]`. 0 for an empty batch.
///
/// # Panics
/// If a shape does not fit or a label is not below `c`.
pub fn cross_entropy(logits: &[f32], labels: &[u32], c: usize, d_logits: Option<&mut [f32]>, scale: f32) -> f64 {
    assert_eq!(logits.len(), labels.len() * c, "cross_entropy: one row of {c} logits a label");
    if let Some(label) = labels.iter().find(|&&label| label as usize >= c) {
        panic!("cross_entropy: label {label} of {c} classes");
    }
    if labels.is_empty() {
        return 0.0;
    }
    let mut d_logits = d_logits;
    if let Some(d) = &d_logits {
        assert_eq!(d.len(), logits.len(), "cross_entropy: d_logits as long as the logits");
    }
    let factor = f64::from(scale) / labels.len() as f64;
    let mut total = 0.0;
    for (row, &label) in labels.iter().enumerate() {
        let logits = &logits[row * c..][..c];
        let (maximum, sum) = maximum_and_sum(logits);
        let log_sum = maximum + sum.ln();
        total += log_sum - f64::from(logits[label as usize]);
        if let Some(d) = d_logits.as_deref_mut() {
            for (class, (d, &logit)) in d[row * c..][..c].iter_mut().zip(logits).enumerate() {
                let probability = (f64::from(logit) - log_sum).exp();
                let target = if class == label as usize { 1.0 } else { 0.0 };
                *d = (factor * (probability - target)) as f32;
            }
        }
    }
    total / labels.len() as f64
}

/// Mean of the squared differences; with `d` (overwritten) also `scale` times its gradient.
///
/// # Panics
/// If the lengths differ.
pub fn mean_squared_error(predictions: &[f32], targets: &[f32], d: Option<&mut [f32]>, scale: f32) -> f64 {
    assert_eq!(predictions.len(), targets.len(), "mean_squared_error: one target a prediction");
    if predictions.is_empty() {
        return 0.0;
    }
    let n = predictions.len() as f64;
    let difference = |(&prediction, &target): (&f32, &f32)| f64::from(prediction) - f64::from(target);
    if let Some(d) = d {
        assert_eq!(d.len(), predictions.len(), "mean_squared_error: one gradient a prediction");
        for (d, pair) in d.iter_mut().zip(predictions.iter().zip(targets)) {
            *d = (f64::from(scale) * 2.0 * difference(pair) / n) as f32;
        }
    }
    predictions.iter().zip(targets).map(|pair| difference(pair) * difference(pair)).sum::<f64>() / n
}

/// Probabilities of each row of logits.
///
/// # Shapes
/// `logits`, `out` `[S, c]`.
///
/// # Panics
/// If a shape does not fit.
pub fn softmax(logits: &[f32], c: usize, out: &mut [f32]) {
    assert_eq!(logits.len(), out.len(), "softmax: out as long as the logits");
    if logits.is_empty() {
        return;
    }
    assert!(c > 0 && logits.len().is_multiple_of(c), "softmax: whole rows of {c}");
    for (logits, out) in logits.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
        let (maximum, sum) = maximum_and_sum(logits);
        for (out, &logit) in out.iter_mut().zip(logits) {
            *out = ((f64::from(logit) - maximum).exp() / sum) as f32;
        }
    }
}

/// The largest logit and `Σ e^(logit − largest)`, NaN if any logit is.
fn maximum_and_sum(logits: &[f32]) -> (f64, f64) {
    let maximum = logits.iter().fold(f64::NEG_INFINITY, |m, &x| if f64::from(x) > m { f64::from(x) } else { m });
    (maximum, logits.iter().map(|&x| (f64::from(x) - maximum).exp()).sum())
}

/// The target of a token that has none: its loss and its gradient are 0.
pub const IGNORED: u32 = u32::MAX;

kernel! {
    fn row_loss(logits: &[f32], target: usize) -> f64 {
        let maximum = math::largest(logits);
        let sum = math::sum_exp::<FMA>(logits, maximum);
        sum.ln() + (f64::from(maximum) - f64::from(logits[target]))
    }

    /// The same; the row becomes its gradient times `factor`.
    fn row_cross_entropy(logits: &mut [f32], target: usize, factor: f64) -> f64 {
        let maximum = math::largest(logits);
        let distance = f64::from(maximum) - f64::from(logits[target]);
        let sum = math::exp_in_place::<FMA>(logits, maximum);
        let at_target = factor * (f64::from(logits[target]) / sum - 1.0);
        let scale = (factor / sum) as f32;
        for x in logits.iter_mut() {
            *x *= scale;
        }
        logits[target] = at_target as f32;
        sum.ln() + distance
    }

    /// The divergence of one row at the temperature; the row becomes the difference of the probabilities times `factor`.
    fn row_divergence(logits: &mut [f32], teacher: &[f32], inverse_temperature: f32, factor: f64) -> f64 {
        let (maximum, teacher_maximum) = (math::largest(logits), math::largest(teacher));
        let (mut sum, mut teacher_sum, mut cross) = (0.0, 0.0, 0.0);
        for (logits, teacher) in logits.chunks_mut(math::SUM_RUN).zip(teacher.chunks(math::SUM_RUN)) {
            let [mut sums, mut teacher_sums, mut crosses] = [[0.0; 16]; 3];
            let (whole, tail) = logits.as_chunks_mut::<16>();
            let (teacher_whole, teacher_tail) = teacher.as_chunks::<16>();
            macro_rules! add {
                ($logits:expr, $teacher:expr) => {
                    let lanes = sums.iter_mut().zip(&mut teacher_sums).zip(&mut crosses);
                    for (((sum, teacher_sum), cross), (x, &teacher)) in lanes.zip($logits.iter_mut().zip($teacher)) {
                        let teacher = (teacher - teacher_maximum) * inverse_temperature;
                        let student = (*x - maximum) * inverse_temperature;
                        let weight = math::exp::<FMA>(teacher);
                        *x = math::exp::<FMA>(student);
                        *sum += *x;
                        *teacher_sum += weight;
                        // What the teacher rules out counts nothing, however far away the student is.
                        *cross += if weight == 0.0 { 0.0 } else { weight * (teacher - student) };
                    }
                };
            }
            for (logits, teacher) in whole.iter_mut().zip(teacher_whole) {
                add!(logits, teacher);
            }
            add!(tail, teacher_tail);
            sum += f64::from(math::sum_lanes(sums));
            teacher_sum += f64::from(math::sum_lanes(teacher_sums));
            cross += f64::from(math::sum_lanes(crosses));
        }
        let (scale, teacher_scale) = ((factor / sum) as f32, (factor / teacher_sum) as f32);
        for (x, &teacher) in logits.iter_mut().zip(teacher) {
            *x = *x * scale - teacher_scale * math::exp::<FMA>((teacher - teacher_maximum) * inverse_temperature);
        }
        cross / teacher_sum - teacher_sum.ln() + sum.ln()
    }
}

fn check_targets(what: &str, length: usize, targets: &[u32], v: usize, losses: usize) {
    assert_eq!(length, targets.len() * v, "{what}: one row of {v} logits a target");
    assert_eq!(losses, targets.len(), "{what}: one loss a target");
    if let Some(target) = targets.iter().find(|&&target| target != IGNORED && target as usize >= v) {
        panic!("{what}: target {target} of {v} tokens");
    }
}

/// `−log softmax(logits)` at the target of each row; 0 where the target is [`IGNORED`].
///
/// # Shapes
/// `logits` `[T, v]`; `targets`, `losses` `[T]`.
///
/// # Panics
/// If a shape does not fit or a target is neither below `v` nor [`IGNORED`].
pub fn token_losses(logits: &[f32], targets: &[u32], v: usize, losses: &mut [f64]) {
    check_targets("token_losses", logits.len(), targets, v, losses.len());
    let isa = cpu::isa();
    parallel::row_results_mut(losses, v, |first, losses| {
        for (row, loss) in (first..).zip(losses) {
            *loss = match targets[row] {
                IGNORED => 0.0,
                target => row_loss(isa, &logits[row * v..][..v], target as usize),
            };
        }
    });
}

/// [`token_losses`]; the logits are overwritten by `factor` times the gradient of their row's loss, `p − onehot`, or 0 where
/// the target is [`IGNORED`].
///
/// # Shapes
/// As there.
///
/// # Panics
/// As there.
pub fn token_cross_entropy(logits: &mut [f32], targets: &[u32], v: usize, factor: f32, losses: &mut [f64]) {
    check_targets("token_cross_entropy", logits.len(), targets, v, losses.len());
    let isa = cpu::isa();
    let logits = Shared::new(logits);
    parallel::row_results_mut(losses, v, |first, losses| {
        for (row, loss) in (first..).zip(losses) {
            // SAFETY: every task has rows of its own.
            let logits = unsafe { logits.slice(row * v, v) };
            *loss = match targets[row] {
                IGNORED => {
                    logits.fill(0.0);
                    0.0
                }
                target => row_cross_entropy(isa, logits, target as usize, f64::from(factor)),
            };
        }
    });
}

/// `τ² KL(softmax(teacher / τ) ‖ softmax(logits / τ))` of each row (G. Hinton et al., 2015); the logits, the student's, are
/// overwritten by `factor` times its gradient, `τ (p − p_teacher)`. Both are 0 where the target is [`IGNORED`].
///
/// # Shapes
/// `logits`, `teacher` `[T, v]`; `targets`, `losses` `[T]`.
///
/// # Panics
/// If a shape does not fit, a target is neither below `v` nor [`IGNORED`] or the temperature is not positive.
pub fn token_distillation(
    logits: &mut [f32],
    teacher: &[f32],
    targets: &[u32],
    v: usize,
    temperature: f32,
    factor: f32,
    losses: &mut [f64],
) {
    check_targets("token_distillation", logits.len(), targets, v, losses.len());
    assert_eq!(teacher.len(), logits.len(), "token_distillation: as many logits of the teacher as of the student");
    assert!(temperature > 0.0 && temperature.is_finite(), "token_distillation: a positive temperature");
    if v == 0 {
        losses.fill(0.0);
        return;
    }
    let isa = cpu::isa();
    let temperature = f64::from(temperature);
    let (inverse, factor) = ((1.0 / temperature) as f32, f64::from(factor) * temperature);
    let logits = Shared::new(logits);
    parallel::row_results_mut(losses, v, |first, losses| {
        for (row, loss) in (first..).zip(losses) {
            // SAFETY: every task has rows of its own.
            let logits = unsafe { logits.slice(row * v, v) };
            *loss = match targets[row] {
                IGNORED => {
                    logits.fill(0.0);
                    0.0
                }
                _ => {
                    let teacher = &teacher[row * v..][..v];
                    temperature * temperature * row_divergence(isa, logits, teacher, inverse, factor)
                }
            };
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::numbers;

    #[test]
    fn cross_entropy_and_its_gradient_agree_with_differences() {
        let (s, c) = (5, 3);
        let logits = numbers(1, s * c);
        let labels = [0, 2, 1, 1, 2];
        let mut d = vec![0.0; s * c];
        let loss = cross_entropy(&logits, &labels, c, Some(&mut d), 0.5);
        let mut probabilities = vec![0.0; s * c];
        softmax(&logits, c, &mut probabilities);
        let expected: f64 =
            labels.iter().enumerate().map(|(s, &l)| -f64::from(probabilities[s * c + l as usize]).ln()).sum();
        assert!((loss - expected / s as f64).abs() < 1e-6);
        for i in 0..s * c {
            let (mut up, mut down) = (logits.clone(), logits.clone());
            (up[i], down[i]) = (up[i] + 1e-2, down[i] - 1e-2);
            let difference = cross_entropy(&up, &labels, c, None, 1.0) - cross_entropy(&down, &labels, c, None, 1.0);
            let step = f64::from(up[i]) - f64::from(down[i]);
            assert!((f64::from(d[i]) - 0.5 * difference / step).abs() < 1e-5, "{i}");
        }
    }

    #[test]
    fn far_logits_stay_finite_and_nan_shows() {
        let mut out = [0.0; 3];
        softmax(&[1e30, -1e30, 0.0], 3, &mut out);
        assert_eq!(out, [1.0, 0.0, 0.0]);
        assert!(cross_entropy(&[f32::NAN, 0.0], &[1], 2, None, 1.0).is_nan());
        assert_eq!(cross_entropy(&[], &[], 2, None, 1.0), 0.0);
        assert_eq!(mean_squared_error(&[], &[], None, 1.0), 0.0);
    }

    #[test]
    fn mean_squared_error_is_its_definition() {
        let mut d = [0.0; 2];
        assert_eq!(mean_squared_error(&[1.0, 3.0], &[0.0, 5.0], Some(&mut d), 2.0), 2.5);
        assert_eq!(d, [2.0, -4.0]);
    }
}
