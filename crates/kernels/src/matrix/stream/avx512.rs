//! AVX-512: up to 6 rows by two panels or 14 rows by one, two vectors of 16 outputs a panel.

use std::arch::x86_64::*;

use super::{Job, PANEL, Vector, run};

/// Most rows whose results for two panels fit the registers.
const PAIRED_ROWS: usize = 6;

impl Vector for __m512 {
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(value: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_set1_ps(*value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_even(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_odd(from: *const f32) -> Self {
        // The mask lives in a register of its own kind: 14 rows leave no vector register for a constant.
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(0xaaaa_aaaa, from.cast())) }
    }
    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, sum: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(factor, self, sum) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_add_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, self) }
    }
}

/// # Safety
/// AVX-512 F and BW are available; `job` holds `rows` rows (1 to 14) and `panels` panels (1 or 2).
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn multiply(job: Job, rows: usize, panels: usize, bf16: bool) {
    // SAFETY: the caller's promise, and each panel is inside the job.
    unsafe {
        if panels == 2 && rows <= PAIRED_ROWS {
            return if bf16 { paired::<true>(rows, job) } else { paired::<false>(rows, job) };
        }
        let length = if bf16 { job.depth.div_ceil(2) } else { job.depth } * PANEL;
        for panel in 0..panels {
            let job = Job { b: job.b.add(panel * length), c: job.c.add(panel * job.c_panel), ..job };
            if bf16 { single::<true>(rows, job) } else { single::<false>(rows, job) }
        }
    }
}

/// # Safety
/// As [`run`], for two panels and 1 to 6 rows.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn paired<const BF16: bool>(rows: usize, job: Job) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => run::<__m512, 2, 1, 2, BF16>(job),
            2 => run::<__m512, 2, 2, 2, BF16>(job),
            3 => run::<__m512, 2, 3, 2, BF16>(job),
            4 => run::<__m512, 2, 4, 2, BF16>(job),
            5 => run::<__m512, 2, 5, 2, BF16>(job),
            _ => run::<__m512, 2, 6, 2, BF16>(job),
        }
    }
}

/// # Safety
/// As [`run`], for one panel and 1 to 14 rows.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn single<const BF16: bool>(rows: usize, job: Job) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => run::<__m512, 2, 1, 1, BF16>(job),
            2 => run::<__m512, 2, 2, 1, BF16>(job),
            3 => run::<__m512, 2, 3, 1, BF16>(job),
            4 => run::<__m512, 2, 4, 1, BF16>(job),
            5 => run::<__m512, 2, 5, 1, BF16>(job),
            6 => run::<__m512, 2, 6, 1, BF16>(job),
            7 => run::<__m512, 2, 7, 1, BF16>(job),
            8 => run::<__m512, 2, 8, 1, BF16>(job),
            9 => run::<__m512, 2, 9, 1, BF16>(job),
            10 => run::<__m512, 2, 10, 1, BF16>(job),
            11 => run::<__m512, 2, 11, 1, BF16>(job),
            12 => run::<__m512, 2, 12, 1, BF16>(job),
            13 => run::<__m512, 2, 13, 1, BF16>(job),
            _ => run::<__m512, 2, 14, 1, BF16>(job),
        }
    }
}
