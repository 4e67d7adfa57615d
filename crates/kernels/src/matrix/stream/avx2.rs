//! AVX2 with FMA: one row by two panels, or two rows by one panel at a time, four vectors of 8 outputs a panel.

use std::arch::x86_64::*;

use super::{Job, PANEL, ROW_STRIDE, Vector, run};

impl Vector for __m256 {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(value: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_set1_ps(*value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_even(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_odd(from: *const f32) -> Self {
        let upper = 0xffff_0000_u32 as i32;
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(from.cast()), _mm256_set1_epi32(upper))) }
    }
    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_fmadd_ps(factor, self, sum) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to, self) }
    }
}

/// # Safety
/// AVX2 and FMA are available; `job` holds `rows` rows and `panels` panels (1 or 2).
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(job: Job, rows: usize, panels: usize, bf16: bool) {
    // SAFETY: the caller's promise, and each panel and row is inside the job.
    unsafe {
        if panels == 2 && rows == 1 {
            return if bf16 { run::<__m256, 4, 1, 2, true>(job) } else { run::<__m256, 4, 1, 2, false>(job) };
        }
        let length = if bf16 { job.depth.div_ceil(2) } else { job.depth } * PANEL;
        for panel in 0..panels {
            for first in (0..rows).step_by(2) {
                let job = Job {
                    a: job.a.add(first * ROW_STRIDE),
                    b: job.b.add(panel * length),
                    c: job.c.add(panel * job.c_panel + first * PANEL),
                    // Later rows find the panel in a cache.
                    fetch: first == 0,
                    ..job
                };
                match (rows - first, bf16) {
                    (1, false) => run::<__m256, 4, 1, 1, false>(job),
                    (1, true) => run::<__m256, 4, 1, 1, true>(job),
                    (_, false) => run::<__m256, 4, 2, 1, false>(job),
                    (_, true) => run::<__m256, 4, 2, 1, true>(job),
                }
            }
        }
    }
}
