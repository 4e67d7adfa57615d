//! The operands of a product of pairs: rows rounded to words of two depths, and the steps of a bf16 panel, which are taken
//! as they lie, or paired anew where depths are gathered.

use std::cell::Cell;
use std::ops::Range;

use super::{PANEL_STEP, STEP, STEP_WORDS};
use crate::cpu::{Bf16Unit, Isa, kernel};
use crate::matrix::aligned::Aligned;
use crate::matrix::bf16::{panel_words, round};
use crate::matrix::operand::Left;
use crate::matrix::packed::PANEL;
use crate::matrix::tile::{DEPTH_BLOCK, ROW_STRIDE};

// A block that is gathered is whole steps.
const _: () = assert!(DEPTH_BLOCK.is_multiple_of(STEP));

/// Rows that are gathered together before they are rounded: with a block of the depth they stay in the first-level cache.
pub(super) const GROUP_ROWS: usize = 16;

thread_local! {
    static GATHERED: Cell<Aligned> = Cell::default();
}

/// Rounds the depths `depth` of rows of a left operand, from the row `first` on, to rows of words `stride` apart that fill `out`; each
/// is filled up with zeros to whole steps.
pub(super) fn round_rows(
    left: &Left<'_>,
    isa: Isa,
    unit: Bf16Unit,
    first: usize,
    depth: Range<usize>,
    out: &mut [u32],
    stride: usize,
) {
    let words = STEP_WORDS * depth.len().div_ceil(STEP);
    if let Left::Rows { data, stride: row, columns: None, scale: None } = *left {
        for (index, out) in out.chunks_mut(stride).enumerate() {
            let values = &data[(first + index) * row..][depth.clone()];
            round_row(isa, unit, values, &mut out[..words]);
        }
        return;
    }
    let mut scratch = GATHERED.take();
    let gathered = scratch.room(GROUP_ROWS * ROW_STRIDE);
    for (group, out) in out.chunks_mut(GROUP_ROWS * stride).enumerate() {
        let first = first + group * GROUP_ROWS;
        let rows = first..first + out.len().div_ceil(stride);
        for start in depth.clone().step_by(DEPTH_BLOCK) {
            let block = start..depth.end.min(start + DEPTH_BLOCK);
            left.fill(isa, rows.clone(), block.clone(), gathered);
            let place = (start - depth.start) / 2;
            for (values, out) in gathered.chunks(ROW_STRIDE).zip(out.chunks_mut(stride)) {
                let end = words.min(place + DEPTH_BLOCK / 2);
                round_row(isa, unit, &values[..block.len()], &mut out[place..end]);
            }
        }
    }
    GATHERED.set(scratch);
}

/// Rounds a row to bf16, two depths a word, and fills up with zeros.
///
/// Units take what is below the smallest normal number for zero; whether the rounding does so does not show.
fn round_row(isa: Isa, unit: Bf16Unit, values: &[f32], out: &mut [u32]) {
    let words = values.len().div_ceil(2);
    out[words..].fill(0);
    #[allow(unused_mut)]
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if matches!(unit, Bf16Unit::Amx | Bf16Unit::Avx512Bf16) {
        let values = values.as_chunks::<32>().0;
        // SAFETY: these units are only made where the CPU was found to have AVX-512-BF16; `out` holds a word for two values.
        unsafe { round_vectors(values, &mut out[..16 * values.len()]) };
        done = values.len();
    }
    let _ = unit;
    round_words(isa, &values[32 * done..], &mut out[16 * done..words]);
}

/// # Safety
/// AVX-512-BF16 is available.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round_vectors(values: &[[f32; 32]], out: &mut [u32]) {
    use std::arch::x86_64::*;
    for (values, out) in values.iter().zip(out.as_chunks_mut::<16>().0) {
        // SAFETY: two vectors of 16 numbers are read, one of 16 words is written; both types are 64 bytes of any value.
        unsafe {
            let low = _mm512_loadu_ps(values.as_ptr());
            let high = _mm512_loadu_ps(values.as_ptr().add(16));
            let words: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), words);
        }
    }
}

kernel! {
    fn round_words(values: &[f32], out: &mut [u32]) {
        let (pairs, last) = values.as_chunks::<2>();
        for (out, pair) in out.iter_mut().zip(pairs) {
            *out = u32::from(round(pair[0])) | u32::from(round(pair[1])) << 16;
        }
        if let (Some(out), Some(&last)) = (out.last_mut(), last.first()) {
            *out = u32::from(round(last));
        }
    }

    /// `out` is what pairs the rows `index` of a panel.
    fn regroup(panel: &[u32], index: &[u32], out: &mut [u32]) {
        let (words, _) = panel.as_chunks::<PANEL>();
        let (pairs, last) = index.as_chunks::<2>();
        let (out, _) = out.as_chunks_mut::<PANEL>();
        for (out, &[even, odd]) in out.iter_mut().zip(pairs) {
            let (low, high) = (&words[even as usize / 2], &words[odd as usize / 2]);
            let (right, left) = (16 * (even % 2), 16 * (1 - odd % 2));
            for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
                *out = ((low >> right) & 0xffff) | ((high << left) & 0xffff_0000);
            }
        }
        if let (Some(out), Some(&even)) = (out.last_mut(), last.first()) {
            let right = 16 * (even % 2);
            for (out, &low) in out.iter_mut().zip(&words[even as usize / 2]) {
                *out = (low >> right) & 0xffff;
            }
        }
    }
}

/// Bf16 panels, and which of their depths take part.
#[derive(Clone, Copy)]
pub(super) struct Weight<'a> {
    pub(super) words: &'a [u32],
    pub(super) stored_depth: usize,
    /// Depth `k` is the stored depth `index[k]`; `None` = `k`.
    pub(super) index: Option<&'a [u32]>,
}

impl<'a> Weight<'a> {
    /// The steps of a panel for the depths `depth`, which begin with a step: whole ones, and a last one filled up with
    /// zeros. `room` holds the steps of a block.
    pub(super) fn block<'b>(
        &self,
        isa: Isa,
        panel: usize,
        depth: Range<usize>,
        room: &'b mut [u32],
    ) -> (&'b [u32], Option<&'b [u32]>)
    where
        'a: 'b,
    {
        let length = panel_words(self.stored_depth);
        let words = &self.words[panel * length..][..length];
        let rows = depth.len().div_ceil(2);
        if let Some(index) = self.index {
            let whole = &mut room[..rows.next_multiple_of(STEP_WORDS) * PANEL];
            regroup(isa, words, &index[depth], &mut whole[..rows * PANEL]);
            whole[rows * PANEL..].fill(0);
            return (whole, None);
        }
        let words = &words[depth.start / 2 * PANEL..][..rows * PANEL];
        let (whole, rest) = words.split_at(words.len() / PANEL_STEP * PANEL_STEP);
        if rest.is_empty() {
            return (whole, None);
        }
        let tail = &mut room[..PANEL_STEP];
        tail[..rest.len()].copy_from_slice(rest);
        tail[rest.len()..].fill(0);
        (whole, Some(tail))
    }

    /// Where the depths from `depth` on of a panel begin, for fetching ahead.
    pub(super) fn start(&self, panel: usize, depth: usize) -> *const u32 {
        let depth = self.index.map_or(depth, |index| index.get(depth).map_or(0, |&k| k as usize));
        self.words.as_ptr().wrapping_add(panel * panel_words(self.stored_depth) + depth / 2 * PANEL)
    }
}
