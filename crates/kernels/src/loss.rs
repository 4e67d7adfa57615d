//! Losses of the task heads, each with its gradient, in `f64` inside: the logits of a batch are few.

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
