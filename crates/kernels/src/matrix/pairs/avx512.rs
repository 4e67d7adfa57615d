//! AVX-512-BF16: tiles of up to 14 rows by two vectors of 16 outputs, one `vdpbf16ps` for two depths of a vector.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{Block, PANEL};
use crate::matrix::operand::Ahead;
use crate::matrix::tile::{AheadOfTiles, split_rows};

pub(super) const ROWS: usize = 14;

/// Rows of words at `a`, `stride` apart; results at `c`.
#[derive(Clone, Copy)]
struct Job<'a> {
    a: *const u32,
    stride: usize,
    /// Rows of 32 words, one after another.
    parts: [&'a [u32]; 2],
    /// At each row of words what lies here is fetched, from one to the next `ahead_step` elements further; need not be valid.
    ahead: *const f32,
    ahead_step: usize,
    c: *mut f32,
    resume: bool,
}

/// # Safety
/// AVX-512-BF16 is available and the block's shapes were checked.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply(block: &mut Block<'_>) {
    let parts = [block.b, block.tail.unwrap_or_default()];
    let words = parts.iter().map(|part| part.len() / PANEL).sum();
    let next = Ahead { start: block.next.cast(), elements: words * PANEL };
    let mut ahead = AheadOfTiles::new(next, block.b.as_ptr().cast(), block.rows.div_ceil(ROWS), words);
    split_rows(block.rows, ROWS, |first, count| {
        (block.before)(first..first + count);
        // SAFETY: the rows are inside the blocks, which the caller checked.
        unsafe {
            let a = block.a.as_ptr().add(first * block.a_stride);
            let (ahead, ahead_step) = (ahead.next(), ahead.step);
            let (stride, c) = (block.a_stride, block.c[first * PANEL..].as_mut_ptr());
            let job = Job { a, stride, parts, ahead, ahead_step, c, resume: block.resume };
            match count {
                1 => tile::<1>(job),
                2 => tile::<2>(job),
                3 => tile::<3>(job),
                4 => tile::<4>(job),
                5 => tile::<5>(job),
                6 => tile::<6>(job),
                7 => tile::<7>(job),
                8 => tile::<8>(job),
                9 => tile::<9>(job),
                10 => tile::<10>(job),
                11 => tile::<11>(job),
                12 => tile::<12>(job),
                13 => tile::<13>(job),
                _ => tile::<14>(job),
            }
        }
        (block.after)(first, &mut block.c[first * PANEL..][..count * PANEL]);
    });
}

/// # Safety
/// `job` holds `M` rows of a word for each row of its parts.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile<const M: usize>(job: Job<'_>) {
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    // SAFETY: all offsets stay inside the blocks by the caller's promise; vectors of words and of pairs are 64 bytes of any
    // value.
    unsafe {
        if job.resume {
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = [0, 16].map(|lane| _mm512_loadu_ps(job.c.add(i * PANEL + lane)));
            }
        }
        let (mut a, mut ahead) = (job.a, job.ahead);
        for part in job.parts {
            for words in part.as_chunks::<PANEL>().0 {
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                ahead = ahead.wrapping_add(job.ahead_step);
                let lanes: [__m512bh; 2] =
                    [0, 16].map(|lane| transmute(_mm512_loadu_si512(words.as_ptr().add(lane).cast())));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let pair: __m512bh = transmute(_mm512_set1_epi32((*a.add(i * job.stride)).cast_signed()));
                    for (sum, &lanes) in sums.iter_mut().zip(&lanes) {
                        *sum = _mm512_dpbf16_ps(*sum, pair, lanes);
                    }
                }
                a = a.add(1);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(job.c.add(i * PANEL + 16 * v), sum);
            }
        }
    }
}
