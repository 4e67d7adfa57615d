//! Verification: the written model, read back, must say what the gated one says.

use finegates_model::{Batch, Model};

use crate::Error;
use crate::report::Verification;

/// The most that two logits may differ, relative to the greatest magnitude among the gated model's.
pub const TOLERANCE: f64 = 1e-4;

/// Runs both models on the probe and compares their logits.
///
/// # Errors
/// If the probe holds no sequence, a model cannot run it, logits are not finite, or they differ by more than
/// [`TOLERANCE`] of their scale.
pub fn verify(gated: &Model, compact: &Model, probe: &[Batch]) -> Result<Verification, Error> {
    let mut found = Comparison::default();
    for batch in probe.iter().filter(|batch| batch.sequences() > 0) {
        found.add(&gated.forward(batch)?, &compact.forward(batch)?)?;
    }
    let verification = Verification {
        sequences: probe.iter().map(Batch::sequences).sum(),
        tokens: probe.iter().map(Batch::tokens_count).sum(),
        max_abs_difference: found.max_abs_difference,
        scale: found.scale,
        tolerance: TOLERANCE,
    };
    if verification.sequences == 0 {
        return Err(Error::EmptyProbe);
    }
    if found.max_abs_difference > TOLERANCE * found.scale {
        return Err(Error::LogitsDiffer { difference: found.max_abs_difference, scale: found.scale });
    }
    Ok(verification)
}

#[derive(Default)]
struct Comparison {
    max_abs_difference: f64,
    scale: f64,
}

impl Comparison {
    fn add(&mut self, gated: &[f32], compact: &[f32]) -> Result<(), Error> {
        if gated.len() != compact.len() {
            return Err(Error::LogitCount { expected: gated.len(), found: compact.len() });
        }
        for (&gated, &compact) in gated.iter().zip(compact) {
            if !gated.is_finite() || !compact.is_finite() {
                return Err(Error::LogitsNotFinite { model: if gated.is_finite() { "compact" } else { "gated" } });
            }
            self.scale = self.scale.max(f64::from(gated.abs()));
            self.max_abs_difference = self.max_abs_difference.max((f64::from(gated) - f64::from(compact)).abs());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_is_measured_against_the_greatest_gated_logit() {
        let mut found = Comparison::default();
        found.add(&[1.0, -4.0], &[1.5, -4.0]).expect("finite");
        found.add(&[2.0], &[2.25]).expect("finite");
        assert_eq!((found.max_abs_difference, found.scale), (0.5, 4.0));
    }

    #[test]
    fn logits_that_are_not_finite_never_pass() {
        let mut found = Comparison::default();
        assert!(matches!(found.add(&[f32::NAN], &[f32::NAN]), Err(Error::LogitsNotFinite { model: "gated" })));
        assert!(matches!(found.add(&[0.0], &[f32::INFINITY]), Err(Error::LogitsNotFinite { model: "compact" })));
        assert!(matches!(found.add(&[0.0], &[]), Err(Error::LogitCount { .. })));
    }
}
