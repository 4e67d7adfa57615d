//! Dropout with a counter-based mask: whether an element is kept is a pure function of a key and its index, so the
//! backward pass makes the mask again instead of storing it.

use crate::cpu::{self, kernel};
use crate::parallel;

/// A dropout mask: each element is zeroed with probability `rate`, the others are scaled by `1 / (1 - rate)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability that an element is dropped, in `[0, 1]`.
    pub rate: f32,
    /// Names the mask: the same key gives the same mask, different keys give independent ones.
    pub key: u64,
}

impl Dropout {
    /// What element `index` is multiplied by: 0 or `1 / (1 - rate)`.
    pub fn factor(&self, index: u64) -> f32 {
        Mask::new(self, index >> 32).factor(index as u32)
    }
}

/// A mask prepared for the indices `high << 32 ..`.
#[derive(Clone, Copy)]
pub(crate) struct Mask {
    first: u32,
    second: u32,
    /// Hashes below this are dropped. All of them when `keep` is 0.
    threshold: u32,
    keep: f32,
}

impl Mask {
    pub(crate) fn new(dropout: &Dropout, high: u64) -> Self {
        let key = crate::random::mix(dropout.key, high);
        let rate = f64::from(dropout.rate).clamp(0.0, 1.0);
        let keep = if rate < 1.0 { (1.0 / (1.0 - rate)) as f32 } else { 0.0 };
        let threshold = (rate * 4_294_967_296.0).round().min(4_294_967_295.0) as u32;
        Self { first: key as u32, second: (key >> 32) as u32 | 1, threshold, keep }
    }

    /// The factor of element `low`. The hash is two rounds of multiply and xor-shift, with half of the key ahead of each.
    #[inline(always)]
    pub(crate) fn factor(&self, low: u32) -> f32 {
        let mut x = low.wrapping_mul(0x9e37_79b1).wrapping_add(self.first);
        x ^= x >> 16;
        x = x.wrapping_mul(0x7feb_352d);
        x ^= x >> 15;
        x = x.wrapping_add(self.second).wrapping_mul(0x846c_a68b);
        x ^= x >> 16;
        if x >= self.threshold { self.keep } else { 0.0 }
    }
}

kernel! {
    fn run(x: &mut [f32], mask: &Mask, start: u32) {
        let mask = *mask;
        for (offset, x) in x.iter_mut().enumerate() {
            *x *= mask.factor(start.wrapping_add(offset as u32));
        }
    }
}

/// Multiplies every element of `x` by its factor of the mask. Applied to the gradient, it is its own backward pass.
///
/// A rate of 0 leaves `x` as it is.
pub fn dropout(x: &mut [f32], dropout: &Dropout) {
    if dropout.rate <= 0.0 {
        return;
    }
    let isa = cpu::isa();
    parallel::rows_mut(x, 1, |start, chunk| {
        // Chunks are far shorter than 2^32 and start at multiples of a power of two: the high half is one number.
        run(isa, chunk, &Mask::new(dropout, start as u64 >> 32), start as u32);
    });
}
