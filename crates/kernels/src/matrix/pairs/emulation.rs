//! What `tdpbf16ps` and `vdpbf16ps` compute, in plain numbers, as Intel documents them: operands and results below the
//! smallest normal number count as zero, every sum is rounded to nearest even. AMX is checked against it before its first
//! use; tests check everything against it; no product is made of it.

#[cfg(test)]
use super::{Block, PANEL, PANEL_STEP, STEP_WORDS};

/// Zero, with its sign, for what is below the smallest normal number.
fn flush(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0_f32.copysign(value) } else { value }
}

/// `sum + a b`, rounded once: the product of two bf16 is exact in f64, and 24 and 16 bits lie never so far apart that
/// rounding to f64 first would show.
fn multiply_add(sum: f32, a: f32, b: f32) -> f32 {
    flush((f64::from(flush(a)) * f64::from(flush(b)) + f64::from(flush(sum))) as f32)
}

fn low(word: u32) -> f32 {
    f32::from_bits(word << 16)
}

fn high(word: u32) -> f32 {
    f32::from_bits(word & 0xffff_0000)
}

/// One row of `tdpbf16ps`: up to 16 results `c`, a pair of `a` for each row of `b`, `b_stride` words apart. The even depths
/// make one chain from zero and the odd ones another; their sum is added to the result.
pub(super) fn tile_row(c: &mut [f32], a: &[u32], b: &[u32], b_stride: usize) {
    let mut sums = [[0.0_f32; 2]; 16];
    for (&a, b) in a.iter().zip(b.chunks(b_stride)) {
        for (sums, &b) in sums.iter_mut().zip(&b[..c.len()]) {
            *sums = [multiply_add(sums[0], low(a), low(b)), multiply_add(sums[1], high(a), high(b))];
        }
    }
    for (c, [even, odd]) in c.iter_mut().zip(sums) {
        *c = flush(flush(*c) + flush(even + odd));
    }
}

/// One lane of `vdpbf16ps`: first the odd depth, then the even one.
#[cfg(test)]
pub(super) fn vector_lane(sum: f32, a: u32, b: u32) -> f32 {
    multiply_add(multiply_add(sum, high(a), high(b)), low(a), low(b))
}

/// The block product with the sums of AMX.
#[cfg(test)]
pub(super) fn multiply(block: &mut Block<'_>) {
    (block.before)(0..block.rows);
    let steps = block.b.chunks(PANEL_STEP).chain(block.tail);
    if !block.resume {
        block.c[..block.rows * PANEL].fill(0.0);
    }
    for (step, b) in steps.enumerate() {
        for row in 0..block.rows {
            let a = &block.a[row * block.a_stride + step * STEP_WORDS..][..STEP_WORDS];
            let c = &mut block.c[row * PANEL..][..PANEL];
            for (half, c) in c.chunks_mut(16).enumerate() {
                tile_row(c, a, &b[16 * half..], PANEL);
            }
        }
    }
    (block.after)(0, &mut block.c[..block.rows * PANEL]);
}
