//! A few rows of activations against panels that are read once, at the speed of memory: two panels side by side, their
//! whole depth, results in registers. One generic body; a thin file an instruction set.
//!
//! Every result is the sum of chains of multiply-adds that the tiles make, so that a row has the same bits either way.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use super::operand::Panels;
use super::packed::PANEL;
use super::tile::{DEPTH_BLOCK, ROW_STRIDE};
use crate::cpu::Isa;

/// Panels of a call: as two streams they keep more lines on their way than one.
pub(crate) const PANELS: usize = 2;

/// Most rows of any instruction set.
const MOST_ROWS: usize = 14;

/// Elements of the results of a call.
pub(crate) const RESULTS: usize = PANELS * MOST_ROWS * PANEL;

/// Most rows that [`multiply`] takes; more are faster as tiles. 0 where there is no such kernel.
pub(crate) fn most_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => MOST_ROWS,
        Isa::Avx2 => 6,
        Isa::Portable => 0,
    }
}

/// One call.
pub(crate) struct Stream<'a> {
    /// `[depth block, rows, ROW_STRIDE]`.
    pub(crate) a: &'a [f32],
    pub(crate) rows: usize,
    /// All panels, each of `depth`.
    pub(crate) panels: Panels<'a>,
    pub(crate) depth: usize,
    /// The first panel and how many from there on.
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// `[count, rows, 32]`.
    pub(crate) c: &'a mut [f32],
}

/// `c = a · panels`.
///
/// # Panics
/// If a shape does not fit.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub(crate) fn multiply(isa: Isa, stream: &mut Stream<'_>) {
    let Stream { a, rows, panels, depth, first, count, .. } = *stream;
    assert!((1..=most_rows(isa)).contains(&rows), "rows of a stream");
    assert!(depth.div_ceil(DEPTH_BLOCK) * rows * ROW_STRIDE <= a.len(), "rows of the left block");
    let (start, length) = match panels {
        Panels::F32(data) => (data.as_ptr(), data.len()),
        Panels::Bf16(words) => (words.as_ptr().cast(), words.len()),
    };
    let panel = panels.panel_length(depth);
    assert!((1..=PANELS).contains(&count) && (first + count) * panel <= length, "panels of a stream");
    assert!(count * rows * PANEL <= stream.c.len(), "rows of the result");
    let job = Job {
        a: a.as_ptr(),
        block: rows * ROW_STRIDE,
        // In bounds by the assertion above.
        b: start.wrapping_add(first * panel),
        depth,
        c: stream.c.as_mut_ptr(),
        c_panel: rows * PANEL,
        fetch: true,
    };
    let bf16 = matches!(panels, Panels::Bf16(_));
    match isa {
        // SAFETY: the instruction set is there, or there would be no such `Isa`; shapes are asserted above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::multiply(job, rows, count, bf16) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::multiply(job, rows, count, bf16) },
        _ => unreachable!("{isa} takes no rows"),
    }
}

/// A call as pointers: rows `ROW_STRIDE` apart at `a`, its depth blocks `block` apart; panels at `b`, one after another;
/// results at `c`, rows `PANEL` apart, panels `c_panel` apart.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
struct Job {
    a: *const f32,
    block: usize,
    b: *const f32,
    depth: usize,
    c: *mut f32,
    c_panel: usize,
    /// Whether to fetch ahead.
    fetch: bool,
}

/// What the body needs of a vector of `LANES` elements.
///
/// # Safety
/// Methods are called where the instruction set is available, with pointers to `LANES` elements.
#[cfg(target_arch = "x86_64")]
trait Vector: Copy {
    const LANES: usize;
    unsafe fn zero() -> Self;
    unsafe fn splat(value: *const f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The lower halves of words, widened.
    unsafe fn load_even(from: *const f32) -> Self;
    /// The upper halves of words, widened.
    unsafe fn load_odd(from: *const f32) -> Self;
    /// `factor * self + sum`.
    unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn store(self, to: *mut f32);
}

/// Rows of 32 words that are fetched ahead of their use, 128 bytes each.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 32;

/// `M` rows times `P` panels of `N` vectors.
///
/// # Safety
/// `job` holds `M` rows and `P` panels, of words of two depths if `BF16`; `V`'s instruction set is available.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn run<V: Vector, const N: usize, const M: usize, const P: usize, const BF16: bool>(job: Job) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let depths = if BF16 { 2 } else { 1 };
    let panel = job.depth.div_ceil(depths) * PANEL;
    // Rows of words without a last one that holds one depth only.
    let whole = job.depth / depths;
    // Near its end a panel's stream goes on with the panel that it takes next.
    let turn = whole.saturating_sub(AHEAD);
    // SAFETY: offsets stay inside the blocks by the caller's promise; a prefetch may go anywhere.
    unsafe {
        let mut sums = [[[V::zero(); N]; P]; M];
        let mut first = 0;
        while first < whole {
            let block = first * depths / DEPTH_BLOCK;
            let limit = if first < turn { turn } else { whole };
            let end = limit.min((block + 1) * DEPTH_BLOCK / depths);
            let a = job.a.add(block * job.block + first * depths % DEPTH_BLOCK);
            let b = job.b.add(first * PANEL);
            let skip = if first < turn { 0 } else { (P - 1) * panel };
            let ahead = if job.fetch { AHEAD * PANEL + skip } else { 0 };
            for row in 0..end - first {
                for p in 0..P {
                    let b = b.add(p * panel + row * PANEL);
                    for line in 0..PANEL / 16 {
                        _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(ahead + 16 * line).cast());
                    }
                    for odd in 0..depths {
                        let mut lanes = [V::zero(); N];
                        for (n, lanes) in lanes.iter_mut().enumerate() {
                            let from = b.add(n * V::LANES);
                            *lanes = match (BF16, odd) {
                                (false, _) => V::load(from),
                                (true, 0) => V::load_even(from),
                                (true, _) => V::load_odd(from),
                            };
                        }
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let factor = V::splat(a.add(i * ROW_STRIDE + row * depths + odd));
                            for (sum, &lanes) in sums[p].iter_mut().zip(&lanes) {
                                *sum = lanes.multiply_add(factor, *sum);
                            }
                        }
                    }
                }
            }
            first = end;
            if (first * depths).is_multiple_of(DEPTH_BLOCK) && first < whole {
                put(&job, &sums, block);
                sums = [[[V::zero(); N]; P]; M];
            }
        }
        if whole * depths < job.depth {
            let last = job.depth - 1;
            if last > 0 && last.is_multiple_of(DEPTH_BLOCK) {
                put(&job, &sums, last / DEPTH_BLOCK - 1);
                sums = [[[V::zero(); N]; P]; M];
            }
            let a = job.a.add(last / DEPTH_BLOCK * job.block + last % DEPTH_BLOCK);
            for (i, sums) in sums.iter_mut().enumerate() {
                for (p, sums) in sums.iter_mut().enumerate() {
                    for (n, sum) in sums.iter_mut().enumerate() {
                        let lanes = V::load_even(job.b.add(p * panel + whole * PANEL + n * V::LANES));
                        *sum = lanes.multiply_add(V::splat(a.add(i * ROW_STRIDE)), *sum);
                    }
                }
            }
        }
        put(&job, &sums, job.depth.saturating_sub(1) / DEPTH_BLOCK);
    }
}

/// Writes the sums of a depth block, the first one, or adds them.
///
/// # Safety
/// As [`run`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn put<V: Vector, const N: usize, const M: usize, const P: usize>(
    job: &Job,
    sums: &[[[V; N]; P]; M],
    block: usize,
) {
    for (i, sums) in sums.iter().enumerate() {
        for (p, sums) in sums.iter().enumerate() {
            for (n, &sum) in sums.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe {
                    let place = job.c.add(p * job.c_panel + i * PANEL + n * V::LANES);
                    let sum = if block > 0 { V::load(place).add(sum) } else { sum };
                    sum.store(place);
                }
            }
        }
    }
}
