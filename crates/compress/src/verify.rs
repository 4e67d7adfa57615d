//! Verification: the written model, read back, must say what the gated one says. Both are run one after the other, so that
//! neither has to be in memory beside the other.

use finegates_model::Batch;

use crate::Error;
use crate::report::Verification;

/// The most that two logits may differ, relative to the greatest magnitude among the gated model's.
pub const TOLERANCE: f64 = 1e-4;

/// Compares what both models said of each batch of the probe.
///
/// # Errors
/// If the probe holds no sequence, logits are not finite or not as many, or they differ by more than [`TOLERANCE`] of
/// their scale.
pub fn verify(gated: &[Vec<f32>], compact: &[Vec<f32>], probe: &[Batch]) -> Result<Verification, Error> {
    let mut found = Comparison::default();
    if let Some(other) = [gated.len(), compact.len()].into_iter().find(|&count| count != probe.len()) {
        return Err(Error::LogitCount { expected: probe.len(), found: other });
    }
    for (gated, compact) in gated.iter().zip(compact) {
        found.add(gated, compact)?;
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
    fn what_was_not_compared_does_not_pass() {
        let probe = [Batch::new([(&[1_u32][..], &[0][..])])];
        let said = [vec![1.0]];
        assert!(verify(&said, &said, &probe).is_ok());
        for (gated, compact) in [(&said[..0], &said[..0]), (&said[..], &said[..0]), (&said[..0], &said[..])] {
            assert!(matches!(verify(gated, compact, &probe), Err(Error::LogitCount { .. })));
        }
        assert!(matches!(verify(&[], &[], &[]), Err(Error::EmptyProbe)));
    }

    #[test]
    fn logits_that_are_not_finite_never_pass() {
        let mut found = Comparison::default();
        assert!(matches!(found.add(&[f32::NAN], &[f32::NAN]), Err(Error::LogitsNotFinite { model: "gated" })));
        assert!(matches!(found.add(&[0.0], &[f32::INFINITY]), Err(Error::LogitsNotFinite { model: "compact" })));
        assert!(matches!(found.add(&[0.0], &[]), Err(Error::LogitCount { .. })));
    }
}
