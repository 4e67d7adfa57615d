//! AVX-512: tiles of up to 14 rows by one or two vectors of 16 outputs, 28 accumulators in registers.

use std::arch::x86_64::*;
use std::ptr;

use super::{Job, PANEL, ROW_STRIDE, Tile, split_rows};

const ROWS: usize = 14;

/// # Safety
/// AVX-512 F is available and the tile's shapes were checked.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(tile: &mut Tile<'_>) {
    let c = tile.c.as_mut_ptr();
    let index = tile.index.map_or(ptr::null(), <[u32]>::as_ptr);
    // The first tiles fetch what comes next, one of the lines of a row each.
    let mut ahead = (0..tile.next.step / 16).map(|line| tile.next.start.wrapping_add(16 * line));
    split_rows(tile.rows, ROWS, |first, count| {
        // SAFETY: the rows are inside the blocks, which the caller checked.
        unsafe {
            let (ahead, ahead_step) = ahead.next().map_or((tile.b.as_ptr(), 0), |start| (start, tile.next.step));
            let job = Job {
                a: tile.a.as_ptr().add(first * ROW_STRIDE),
                b: tile.b.as_ptr(),
                index,
                ahead,
                ahead_step,
                k: tile.k,
                c: c.add(first * PANEL),
                resume: tile.resume,
            };
            match (tile.outputs > 16, tile.index.is_some()) {
                (true, false) => dispatch::<2, false>(count, job),
                (true, true) => dispatch::<2, true>(count, job),
                (false, false) => dispatch::<1, false>(count, job),
                (false, true) => dispatch::<1, true>(count, job),
            }
        }
    });
}

/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f")]
unsafe fn dispatch<const V: usize, const INDEXED: bool>(rows: usize, job: Job) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => tile::<1, V, INDEXED>(job),
            2 => tile::<2, V, INDEXED>(job),
            3 => tile::<3, V, INDEXED>(job),
            4 => tile::<4, V, INDEXED>(job),
            5 => tile::<5, V, INDEXED>(job),
            6 => tile::<6, V, INDEXED>(job),
            7 => tile::<7, V, INDEXED>(job),
            8 => tile::<8, V, INDEXED>(job),
            9 => tile::<9, V, INDEXED>(job),
            10 => tile::<10, V, INDEXED>(job),
            11 => tile::<11, V, INDEXED>(job),
            12 => tile::<12, V, INDEXED>(job),
            13 => tile::<13, V, INDEXED>(job),
            _ => tile::<14, V, INDEXED>(job),
        }
    }
}

/// # Safety
/// `job` holds `M` rows, and an index if `INDEXED`.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const M: usize, const V: usize, const INDEXED: bool>(job: Job) {
    let Job { a, b, c, .. } = job;
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    // SAFETY: all offsets stay inside the blocks by the caller's promise.
    unsafe {
        for k in 0..job.k {
            let offset = job.offset::<INDEXED>(k);
            job.fetch::<INDEXED>(k, offset);
            let mut lanes = [_mm512_setzero_ps(); V];
            for (v, lanes) in lanes.iter_mut().enumerate() {
                *lanes = _mm512_loadu_ps(b.add(offset + 16 * v));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = _mm512_set1_ps(*a.add(i * ROW_STRIDE + k));
                for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                    *sum = _mm512_fmadd_ps(factor, lanes, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let place = c.add(i * PANEL + 16 * v);
                let sum = if job.resume { _mm512_add_ps(_mm512_loadu_ps(place), sum) } else { sum };
                _mm512_storeu_ps(place, sum);
            }
        }
    }
}
