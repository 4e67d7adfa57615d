//! The weights from which a token is drawn. Which candidates there are, and which one a random number means, is not
//! decided here.

use crate::math::exp;

/// `e^(score - maximum)` for each score, within 2 ulp; 0 for a score far below. The same bits on every machine, for which
/// it is written without fused operations, whatever the instruction set.
///
/// # Panics
/// If the two are not of the same length.
pub fn weights(scores: &[f32], maximum: f32, out: &mut [f32]) {
    assert_eq!(scores.len(), out.len(), "sampling weights: one a score");
    for (out, &score) in out.iter_mut().zip(scores) {
        *out = exp::<false>(score - maximum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_exponentials_with_pinned_bits() {
        let scores: Vec<f32> =
            (0..2000).map(|i| 5.0 - i as f32 * 0.0437).chain([f32::NEG_INFINITY, f32::MIN]).collect();
        let mut found = vec![f32::NAN; scores.len()];
        weights(&scores, 5.0, &mut found);
        for (&score, &weight) in scores.iter().zip(&found) {
            let exact = f64::from(score - 5.0).exp();
            assert!((f64::from(weight) - exact).abs() <= 3e-7 * exact + 1e-45, "{score}: {weight}, exactly {exact}");
        }
        assert_eq!((found[0], found[2000], found[2001]), (1.0, 0.0, 0.0));
        let bits = [found[1], found[500], found[1999]].map(f32::to_bits);
        assert_eq!(bits, PINNED, "{bits:#x?}");
        weights(&[], 0.0, &mut []);
    }

    const PINNED: [u32; 3] = [0x3f75_0dbd, 0x2fb2_2bad, 0x007d_7f00];
}
