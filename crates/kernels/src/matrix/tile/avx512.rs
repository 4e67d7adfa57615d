//! AVX-512: tiles of up to 14 rows by one or two vectors of 16 outputs, 28 accumulators in registers.

use std::arch::x86_64::*;
use std::ptr;

use super::{AheadOfTiles, Block, INDEXED, Job, PANEL, PLAIN, ROW_STRIDE, STEP, Tile, WORDS, each_depth, split_rows};

pub(super) const MOST_ROWS: usize = 14;

/// # Safety
/// AVX-512 F and BW are available and the tile's shapes were checked.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn multiply(tile: &mut Tile<'_>) {
    let c = tile.c.as_mut_ptr();
    let (b, index) = match tile.b {
        Block::Rows(b) => (b.as_ptr(), ptr::null()),
        Block::Indexed(b, index) => (b.as_ptr(), index.as_ptr()),
        Block::Words(words) => (words.as_ptr().cast(), ptr::null()),
    };
    let mut ahead = AheadOfTiles::new(tile.next, b, tile.rows.div_ceil(MOST_ROWS), tile.k);
    split_rows(tile.rows, MOST_ROWS, |first, count| {
        // SAFETY: the rows are inside the blocks, which the caller checked.
        unsafe {
            let job = Job {
                a: tile.a.as_ptr().add(first * ROW_STRIDE),
                b,
                index,
                ahead: ahead.next(),
                ahead_step: ahead.step,
                k: tile.k,
                c: c.add(first * PANEL),
                resume: tile.resume,
            };
            match (tile.outputs > 16, tile.b) {
                (true, Block::Rows(_)) => dispatch::<2, PLAIN>(count, job),
                (true, Block::Indexed(..)) => dispatch::<2, INDEXED>(count, job),
                (true, Block::Words(_)) => dispatch::<2, WORDS>(count, job),
                (false, Block::Rows(_)) => dispatch::<1, PLAIN>(count, job),
                (false, Block::Indexed(..)) => dispatch::<1, INDEXED>(count, job),
                (false, Block::Words(_)) => dispatch::<1, WORDS>(count, job),
            }
        }
    });
}

/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn dispatch<const V: usize, const KIND: u8>(rows: usize, job: Job) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => tile::<1, V, KIND>(job),
            2 => tile::<2, V, KIND>(job),
            3 => tile::<3, V, KIND>(job),
            4 => tile::<4, V, KIND>(job),
            5 => tile::<5, V, KIND>(job),
            6 => tile::<6, V, KIND>(job),
            7 => tile::<7, V, KIND>(job),
            8 => tile::<8, V, KIND>(job),
            9 => tile::<9, V, KIND>(job),
            10 => tile::<10, V, KIND>(job),
            11 => tile::<11, V, KIND>(job),
            12 => tile::<12, V, KIND>(job),
            13 => tile::<13, V, KIND>(job),
            _ => tile::<14, V, KIND>(job),
        }
    }
}

/// # Safety
/// `job` holds `M` rows, with an index if `KIND` is [`INDEXED`] and a row of words for every two depths if [`WORDS`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn tile<const M: usize, const V: usize, const KIND: u8>(job: Job) {
    let Job { a, b, c, .. } = job;
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    // SAFETY: all offsets stay inside the blocks by the caller's promise.
    unsafe {
        each_depth!(job, |k, odd| {
            let offset = job.offset::<KIND>(k);
            let mut lanes = [_mm512_setzero_ps(); V];
            for (v, lanes) in lanes.iter_mut().enumerate() {
                let from = b.add(offset + 16 * v);
                *lanes = match (KIND, odd) {
                    (WORDS, false) => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(from.cast()))),
                    // The mask lives in a register of its own kind: the sums leave no vector register for a constant.
                    (WORDS, true) => _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(0xaaaa_aaaa, from.cast())),
                    _ => _mm512_loadu_ps(from),
                };
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = _mm512_set1_ps(*a.add(i * ROW_STRIDE + k));
                for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                    *sum = _mm512_fmadd_ps(factor, lanes, *sum);
                }
            }
        });
        for (i, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let place = c.add(i * PANEL + 16 * v);
                let sum = if job.resume { _mm512_add_ps(_mm512_loadu_ps(place), sum) } else { sum };
                _mm512_storeu_ps(place, sum);
            }
        }
    }
}
