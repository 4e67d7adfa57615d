//! AVX-512: tiles of up to 14 rows by one or two vectors of 16 outputs, 28 accumulators in registers.

use std::arch::x86_64::*;

use super::{PANEL, ROW_STRIDE, Tile, split_rows};

const ROWS: usize = 14;

/// # Safety
/// AVX-512 F is available and the tile's shapes were checked.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(tile: &mut Tile<'_>) {
    let (a, b, c) = (tile.a.as_ptr(), tile.b.as_ptr(), tile.c.as_mut_ptr());
    let (k, resume, wide) = (tile.k, tile.resume, tile.outputs > 16);
    // The first tiles fetch what comes next, one line a depth row.
    let mut ahead = tile.next.chunks(16 * k.max(1)).map(<[f32]>::as_ptr);
    split_rows(tile.rows, ROWS, |first, count| {
        let (next, step) = ahead.next().map_or((b, 0), |next| (next, 16));
        // SAFETY: the rows are inside the blocks, which the caller checked.
        unsafe {
            let (a, c) = (a.add(first * ROW_STRIDE), c.add(first * PANEL));
            if wide {
                dispatch::<2>(count, a, b, k, c, resume, (next, step))
            } else {
                dispatch::<1>(count, a, b, k, c, resume, (next, step))
            }
        }
    });
}

/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f")]
unsafe fn dispatch<const V: usize>(
    rows: usize,
    a: *const f32,
    b: *const f32,
    k: usize,
    c: *mut f32,
    resume: bool,
    next: (*const f32, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => tile::<1, V>(a, b, k, c, resume, next),
            2 => tile::<2, V>(a, b, k, c, resume, next),
            3 => tile::<3, V>(a, b, k, c, resume, next),
            4 => tile::<4, V>(a, b, k, c, resume, next),
            5 => tile::<5, V>(a, b, k, c, resume, next),
            6 => tile::<6, V>(a, b, k, c, resume, next),
            7 => tile::<7, V>(a, b, k, c, resume, next),
            8 => tile::<8, V>(a, b, k, c, resume, next),
            9 => tile::<9, V>(a, b, k, c, resume, next),
            10 => tile::<10, V>(a, b, k, c, resume, next),
            11 => tile::<11, V>(a, b, k, c, resume, next),
            12 => tile::<12, V>(a, b, k, c, resume, next),
            13 => tile::<13, V>(a, b, k, c, resume, next),
            _ => tile::<14, V>(a, b, k, c, resume, next),
        }
    }
}

/// # Safety
/// `a` holds `M` rows of `k` elements `ROW_STRIDE` apart, `b` `k` rows of `PANEL`, `c` `M` rows of `PANEL`.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const M: usize, const V: usize>(
    a: *const f32,
    b: *const f32,
    k: usize,
    c: *mut f32,
    resume: bool,
    next: (*const f32, usize),
) {
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    // SAFETY: all offsets stay inside the blocks by the caller's promise.
    unsafe {
        if resume {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(c.add(i * PANEL + 16 * v));
                }
            }
        }
        for k in 0..k {
            _mm_prefetch::<_MM_HINT_T0>(next.0.wrapping_add(k * next.1).cast());
            let mut lanes = [_mm512_setzero_ps(); V];
            for (v, lanes) in lanes.iter_mut().enumerate() {
                *lanes = _mm512_loadu_ps(b.add(k * PANEL + 16 * v));
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
                _mm512_storeu_ps(c.add(i * PANEL + 16 * v), sum);
            }
        }
    }
}
