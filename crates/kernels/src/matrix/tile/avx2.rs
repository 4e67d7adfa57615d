//! AVX2 with FMA: tiles of up to 6 rows by two vectors of 8 outputs, 12 accumulators in registers, half a panel at a time.

use std::arch::x86_64::*;
use std::ptr;

use super::{Job, PANEL, ROW_STRIDE, Tile, split_rows};

const ROWS: usize = 6;
const HALF: usize = PANEL / 2;

/// # Safety
/// AVX2 and FMA are available and the tile's shapes were checked.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(tile: &mut Tile<'_>) {
    let c = tile.c.as_mut_ptr();
    let index = tile.index.map_or(ptr::null(), <[u32]>::as_ptr);
    for start in (0..tile.outputs).step_by(HALF) {
        // The first tile fetches this half of what comes next.
        let mut ahead = (start < tile.next.step).then(|| tile.next.start.wrapping_add(start)).into_iter();
        split_rows(tile.rows, ROWS, |first, count| {
            // SAFETY: rows and half panel are inside the blocks, which the caller checked.
            unsafe {
                let b = tile.b.as_ptr().wrapping_add(start);
                let (ahead, ahead_step) = ahead.next().map_or((b, 0), |start| (start, tile.next.step));
                let job = Job {
                    a: tile.a.as_ptr().add(first * ROW_STRIDE),
                    b,
                    index,
                    ahead,
                    ahead_step,
                    k: tile.k,
                    c: c.add(first * PANEL + start),
                    resume: tile.resume,
                };
                if tile.index.is_some() { dispatch::<true>(count, job) } else { dispatch::<false>(count, job) }
            }
        });
    }
}

/// # Safety
/// As [`half_tile`].
#[target_feature(enable = "avx2,fma")]
unsafe fn dispatch<const INDEXED: bool>(rows: usize, job: Job) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => half_tile::<1, INDEXED>(job),
            2 => half_tile::<2, INDEXED>(job),
            3 => half_tile::<3, INDEXED>(job),
            4 => half_tile::<4, INDEXED>(job),
            5 => half_tile::<5, INDEXED>(job),
            _ => half_tile::<6, INDEXED>(job),
        }
    }
}

/// # Safety
/// `job` holds `M` rows, and an index if `INDEXED`; only the first 16 elements of the rows of `b` and `c` are used.
#[target_feature(enable = "avx2,fma")]
unsafe fn half_tile<const M: usize, const INDEXED: bool>(job: Job) {
    let Job { a, b, c, .. } = job;
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    // SAFETY: all offsets stay inside the blocks by the caller's promise.
    unsafe {
        for k in 0..job.k {
            let offset = job.offset::<INDEXED>(k);
            job.fetch::<INDEXED>(k, offset);
            let lanes = [_mm256_loadu_ps(b.add(offset)), _mm256_loadu_ps(b.add(offset + 8))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = _mm256_set1_ps(*a.add(i * ROW_STRIDE + k));
                for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                    *sum = _mm256_fmadd_ps(factor, lanes, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let place = c.add(i * PANEL + 8 * v);
                let sum = if job.resume { _mm256_add_ps(_mm256_loadu_ps(place), sum) } else { sum };
                _mm256_storeu_ps(place, sum);
            }
        }
    }
}
