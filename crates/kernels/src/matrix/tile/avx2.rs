//! AVX2 with FMA: tiles of up to 6 rows by two vectors of 8 outputs, 12 accumulators in registers, half a panel at a time.

use std::arch::x86_64::*;

use super::{PANEL, ROW_STRIDE, Tile, split_rows};

const ROWS: usize = 6;
const HALF: usize = PANEL / 2;

/// # Safety
/// AVX2 and FMA are available and the tile's shapes were checked.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(tile: &mut Tile<'_>) {
    let (a, b, c) = (tile.a.as_ptr(), tile.b.as_ptr(), tile.c.as_mut_ptr());
    let (k, resume) = (tile.k, tile.resume);
    for start in (0..tile.outputs).step_by(HALF) {
        split_rows(tile.rows, ROWS, |first, count| {
            // SAFETY: rows and half panel are inside the blocks, which the caller checked.
            unsafe {
                let (a, b, c) = (a.add(first * ROW_STRIDE), b.add(start), c.add(first * PANEL + start));
                match count {
                    1 => half_tile::<1>(a, b, k, c, resume),
                    2 => half_tile::<2>(a, b, k, c, resume),
                    3 => half_tile::<3>(a, b, k, c, resume),
                    4 => half_tile::<4>(a, b, k, c, resume),
                    5 => half_tile::<5>(a, b, k, c, resume),
                    _ => half_tile::<6>(a, b, k, c, resume),
                }
            }
        });
    }
}

/// # Safety
/// `a` holds `M` rows of `k` elements `ROW_STRIDE` apart; `b` `k` rows and `c` `M` rows of 16 elements, `PANEL` apart.
#[target_feature(enable = "avx2,fma")]
unsafe fn half_tile<const M: usize>(a: *const f32, b: *const f32, k: usize, c: *mut f32, resume: bool) {
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    // SAFETY: all offsets stay inside the blocks by the caller's promise.
    unsafe {
        if resume {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_loadu_ps(c.add(i * PANEL + 8 * v));
                }
            }
        }
        for k in 0..k {
            let lanes = [_mm256_loadu_ps(b.add(k * PANEL)), _mm256_loadu_ps(b.add(k * PANEL + 8))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = _mm256_set1_ps(*a.add(i * ROW_STRIDE + k));
                for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                    *sum = _mm256_fmadd_ps(factor, lanes, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(c.add(i * PANEL + 8 * v), sum);
            }
        }
    }
}
