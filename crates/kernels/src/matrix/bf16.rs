//! The upper half of an `f32`: rounding to it, widening it, and the packed form of two depths a word. Sums are never bf16.
//!
//! A word of a packed weight holds an even depth in its lower half and the next one in its upper half; a row of 32 words is
//! one cache line a vector of 16 outputs. That is the form that AMX and `vdpbf16ps` take (`super::pairs`), and widening it
//! costs one operation a vector.

use crate::cpu::kernel;
use crate::matrix::packed::PANEL;

/// Rounds to bf16, to nearest, ties to even; what is beyond the largest becomes infinite, NaN stays NaN.
#[inline(always)]
pub fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A NaN keeps its upper bits and becomes quiet, or cutting could leave an infinity.
    (if value.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// The `f32` of the same value.
#[inline(always)]
pub fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Words of a panel of a given depth; a last odd depth has a zero for its partner.
pub(crate) fn panel_words(depth: usize) -> usize {
    depth.div_ceil(2) * PANEL
}

/// Depth `k` in a row of words.
#[inline(always)]
fn half(word: u32, k: usize) -> f32 {
    f32::from_bits((word << (16 * (1 - k % 2))) & 0xffff_0000)
}

/// Lane `lane` at depth `k` of a panel.
pub(crate) fn at(panel: &[u32], k: usize, lane: usize) -> f32 {
    half(panel[k / 2 * PANEL + lane], k)
}

kernel! {
    /// `out[i] = panel[first + i]`, rows of 32 for `out.len() / 32` depths.
    pub(crate) fn widen_run(panel: &[u32], first: usize, out: &mut [f32]) {
        let (words, _) = panel.as_chunks::<PANEL>();
        for (i, out) in out.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            widen_row(&words[(first + i) / 2], first + i, out);
        }
    }

    /// `out[i] = panel[index[i]]`, rows of 32.
    pub(crate) fn widen_gathered(panel: &[u32], index: &[u32], out: &mut [f32]) {
        let (words, _) = panel.as_chunks::<PANEL>();
        for (&k, out) in index.iter().zip(out.as_chunks_mut::<PANEL>().0) {
            widen_row(&words[k as usize / 2], k as usize, out);
        }
    }

    /// Rounds rows of 32, one a depth from an even one on, into words; a missing last partner counts as zero.
    pub(crate) fn narrow_run(rows: &[f32], out: &mut [u32]) {
        let (rows, _) = rows.as_chunks::<PANEL>();
        for (pair, out) in rows.chunks(2).zip(out.as_chunks_mut::<PANEL>().0) {
            let zeros = [0.0; PANEL];
            let odd = pair.get(1).unwrap_or(&zeros);
            for ((out, &even), &odd) in out.iter_mut().zip(&pair[0]).zip(odd) {
                *out = u32::from(round(even)) | u32::from(round(odd)) << 16;
            }
        }
    }
}

#[inline(always)]
fn widen_row(words: &[u32; PANEL], k: usize, out: &mut [f32; PANEL]) {
    for (out, &word) in out.iter_mut().zip(words) {
        *out = half(word, k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_comes_back_and_nan_stays_nan() {
        for bits in 0..=u16::MAX {
            let value = widen(bits);
            if value.is_nan() {
                assert_eq!(round(value), bits | 0x40, "{bits:#x}");
                // Payloads that live in the lower half alone.
                assert!(widen(round(f32::from_bits(u32::from(bits & 0xff80) << 16 | 1))).is_nan(), "{bits:#x}");
            } else {
                assert_eq!(round(value), bits, "{bits:#x}");
            }
        }
    }

    #[test]
    fn rounding_goes_to_the_nearest_and_ties_to_even() {
        for upper in (0..0x7f7f_u16).chain(0x8000..0xff7f) {
            let (low, high) = (widen(upper), widen(upper + 1));
            let tie = f32::from_bits(u32::from(upper) << 16 | 0x8000);
            assert_eq!(2.0 * f64::from(tie), f64::from(low) + f64::from(high), "{upper:#x} is a tie");
            assert_eq!(round(tie), upper + (upper & 1), "{upper:#x}");
            assert_eq!(round(f32::from_bits(tie.to_bits() - 1)), upper, "{upper:#x}");
            assert_eq!(round(f32::from_bits(tie.to_bits() + 1)), upper + 1, "{upper:#x}");
        }
        assert_eq!(widen(round(f32::MAX)), f32::INFINITY);
        assert_eq!(widen(round(f32::MIN)), f32::NEG_INFINITY);
    }
}
