//! AVX2 with FMA: tiles of up to 6 rows by two vectors of 8 outputs, 12 accumulators in registers, half a panel at a time.

use std::arch::x86_64::*;
use std::ptr;

use super::{AheadOfTiles, Block, INDEXED, Job, PANEL, PLAIN, ROW_STRIDE, STEP, Tile, each_depth, split_rows};

const MOST_ROWS: usize = 6;
const HALF: usize = PANEL / 2;

/// # Safety
/// AVX2 and FMA are available and the tile's shapes were checked.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(tile: &mut Tile<'_>) {
    let c = tile.c.as_mut_ptr();
    let (b, index) = match tile.b {
        Block::Rows(b) => (b.as_ptr(), ptr::null()),
        Block::Indexed(b, index) => (b.as_ptr(), index.as_ptr()),
        Block::Words(_) => unreachable!("refused by the caller"),
    };
    let halves = tile.outputs.div_ceil(HALF);
    let mut ahead = AheadOfTiles::new(tile.next, b, tile.rows.div_ceil(MOST_ROWS) * halves, tile.k);
    for start in (0..tile.outputs).step_by(HALF) {
        split_rows(tile.rows, MOST_ROWS, |first, count| {
            // SAFETY: rows and half panel are inside the blocks, which the caller checked.
            unsafe {
                let b = b.wrapping_add(start);
                let job = Job {
                    a: tile.a.as_ptr().add(first * ROW_STRIDE),
                    b,
                    index,
                    ahead: ahead.next(),
                    ahead_step: ahead.step,
                    k: tile.k,
                    c: c.add(first * PANEL + start),
                    resume: tile.resume,
                };
                if index.is_null() { dispatch::<PLAIN>(count, job) } else { dispatch::<INDEXED>(count, job) }
            }
        });
    }
}

/// # Safety
/// As [`half_tile`].
#[target_feature(enable = "avx2,fma")]
unsafe fn dispatch<const KIND: u8>(rows: usize, job: Job) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => half_tile::<1, KIND>(job),
            2 => half_tile::<2, KIND>(job),
            3 => half_tile::<3, KIND>(job),
            4 => half_tile::<4, KIND>(job),
            5 => half_tile::<5, KIND>(job),
            _ => half_tile::<6, KIND>(job),
        }
    }
}

/// # Safety
/// `job` holds `M` rows, and an index if `KIND` is [`INDEXED`]; only the first 16 elements of the rows of `b` and `c` are used.
#[target_feature(enable = "avx2,fma")]
unsafe fn half_tile<const M: usize, const KIND: u8>(job: Job) {
    let Job { a, b, c, .. } = job;
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    // SAFETY: all offsets stay inside the blocks by the caller's promise.
    unsafe {
        each_depth!(job, |k, _odd| {
            let offset = job.offset::<KIND>(k);
            let lanes = [_mm256_loadu_ps(b.add(offset)), _mm256_loadu_ps(b.add(offset + 8))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = _mm256_set1_ps(*a.add(i * ROW_STRIDE + k));
                for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                    *sum = _mm256_fmadd_ps(factor, lanes, *sum);
                }
            }
        });
        for (i, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let place = c.add(i * PANEL + 8 * v);
                let sum = if job.resume { _mm256_add_ps(_mm256_loadu_ps(place), sum) } else { sum };
                _mm256_storeu_ps(place, sum);
            }
        }
    }
}
