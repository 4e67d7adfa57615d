//! Where the driver's blocks come from: left operands are copied into row-major blocks, gathered, scaled or transposed on
//! the way; right operands lie ready in panels; bf16 panels are widened a block at a time, or by the tiles.

use std::ops::Range;

use super::bf16::{self, panel_words, widen_gathered, widen_run};
use super::packed::PANEL;
#[cfg(target_arch = "x86_64")]
use super::picks::Picks;
#[cfg(target_arch = "x86_64")]
use super::tile::DEPTH_BLOCK;
use super::tile::{self, ROW_STRIDE};
use super::transpose::{GROUP, transpose_group};
use crate::cpu::{Isa, kernel};

// A gather writes up to 15 elements too many.
const _: () = assert!(ROW_STRIDE >= tile::DEPTH_BLOCK + 15);

/// The left operand, `[rows, depth]`.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Row `i` starts at `data[i * stride]`; depth `k` is its column `columns[k]` (or `k`), times `scale[k]`.
    Rows { data: &'a [f32], stride: usize, columns: Option<&'a [u32]>, scale: Option<&'a [f32]> },
    /// Element (i, k) is `data[k * stride + i]`.
    Transposed { data: &'a [f32], stride: usize },
}

impl Left<'_> {
    /// Copies rows `rows` and depths `depth` to `out`, rows [`ROW_STRIDE`] apart. Beyond the depth up to 15 elements are junk.
    pub(crate) fn fill(&self, isa: Isa, rows: Range<usize>, depth: Range<usize>, out: &mut [f32]) {
        let k = depth.len();
        if k == 0 {
            return;
        }
        match *self {
            Left::Rows { data, stride, columns, scale } => {
                #[cfg(target_arch = "x86_64")]
                if let (Isa::Avx512, Some(columns)) = (isa, columns)
                    && let Some(picks) = Picks::<DEPTH_BLOCK>::of(&columns[depth.clone()])
                {
                    for (row, out) in rows.zip(out.chunks_mut(ROW_STRIDE)) {
                        // SAFETY: `Isa::Avx512` exists only where the CPU has it.
                        unsafe { picks.gather(&data[row * stride..], out) };
                        if let Some(scale) = scale {
                            multiply_by(isa, &mut out[..k], &scale[depth.clone()]);
                        }
                    }
                    return;
                }
                for (row, out) in rows.zip(out.chunks_mut(ROW_STRIDE)) {
                    copy_row(isa, &data[row * stride..], columns, scale, depth.clone(), &mut out[..k]);
                }
            }
            Left::Transposed { data, stride } => {
                for start in (0..k).step_by(GROUP) {
                    let group: [&[f32]; GROUP] = std::array::from_fn(|i| {
                        let k = depth.start + (start + i).min(k - 1);
                        &data[k * stride..][rows.clone()]
                    });
                    transpose_group(isa, &group, &mut out[start..], ROW_STRIDE);
                }
            }
        }
    }
}

/// `out[i] = row[columns[k]] · scale[k]` for the depths `k` of `depth` in order.
pub(crate) fn copy_row(
    isa: Isa,
    row: &[f32],
    columns: Option<&[u32]>,
    scale: Option<&[f32]>,
    depth: Range<usize>,
    out: &mut [f32],
) {
    match columns {
        Some(columns) => gather(isa, row, &columns[depth.clone()], out),
        None => out.copy_from_slice(&row[depth.clone()]),
    }
    if let Some(scale) = scale {
        multiply_by(isa, out, &scale[depth]);
    }
}

/// The elements of a right operand, panels of 32 outputs, each with all depths.
#[derive(Clone, Copy)]
pub(crate) enum Panels<'a> {
    /// `[panel, stored_depth, 32]`.
    F32(&'a [f32]),
    /// `[panel, stored_depth / 2, 32]` words of two depths, as in [`bf16`].
    Bf16(&'a [u32]),
}

impl<'a> Panels<'a> {
    /// Elements of four bytes that a panel takes.
    pub(crate) fn panel_length(self, depth: usize) -> usize {
        match self {
            Panels::F32(_) => depth * PANEL,
            Panels::Bf16(_) => panel_words(depth),
        }
    }

    /// Lane `lane` of a panel at depth `k`.
    pub(crate) fn at(self, stored_depth: usize, panel: usize, k: usize, lane: usize) -> f32 {
        let start = panel * self.panel_length(stored_depth);
        match self {
            Panels::F32(data) => data[start + k * PANEL + lane],
            Panels::Bf16(words) => bf16::at(&words[start..], k, lane),
        }
    }
}

/// The right operand, `[depth, outputs]`.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) panels: Panels<'a>,
    pub(crate) stored_depth: usize,
    /// Depth `k` is the stored depth `index[k]`; `None` = `k`.
    pub(crate) index: Option<&'a [u32]>,
}

/// A block of a panel as the tiles take it, each row of 32.
#[derive(Clone, Copy)]
pub(crate) enum Block<'a> {
    /// A row a depth.
    Rows(&'a [f32]),
    /// Rows, and which of them each depth has.
    Indexed(&'a [f32], &'a [u32]),
    /// A row of words for every two depths, as in [`bf16`]; only for tiles that take it.
    Words(&'a [u32]),
}

impl<'a> Right<'a> {
    /// The depths `depth` of a panel, from a multiple of two on, for so many rows. `wide` has room for them: where tiles do not take
    /// bf16, or depths are to be gathered, it is widened to `f32` first, and gives the same bits.
    pub(crate) fn block<'b>(
        &self,
        isa: Isa,
        rows: usize,
        panel: usize,
        depth: Range<usize>,
        wide: &'b mut [f32],
    ) -> Block<'b>
    where
        'a: 'b,
    {
        let index = self.index.map(|index| &index[depth.clone()]);
        match self.panels {
            Panels::F32(data) => {
                let panel = &data[panel * self.stored_depth * PANEL..][..self.stored_depth * PANEL];
                match index {
                    Some(index) => Block::Indexed(panel, index),
                    None => Block::Rows(&panel[depth.start * PANEL..depth.end * PANEL]),
                }
            }
            Panels::Bf16(words) => {
                let length = panel_words(self.stored_depth);
                let words = &words[panel * length..][..length];
                let wide = &mut wide[..depth.len() * PANEL];
                match index {
                    None if tile::takes_words(isa, rows) => {
                        return Block::Words(&words[depth.start / 2 * PANEL..depth.end.div_ceil(2) * PANEL]);
                    }
                    None => widen_run(isa, words, depth.start, wide),
                    Some(index) => widen_gathered(isa, words, index, wide),
                }
                Block::Rows(wide)
            }
        }
    }

    /// Where the depths `depth` of a panel lie, for fetching ahead.
    pub(crate) fn ahead(&self, panel: usize, depth: Range<usize>) -> Ahead {
        let start = panel * self.panels.panel_length(self.stored_depth);
        let stored = match self.index.map(|index| &index[depth.clone()]) {
            Some([]) => 0..0,
            Some(index) => index[0] as usize..index[index.len() - 1] as usize + 1,
            None => depth,
        };
        match self.panels {
            Panels::F32(data) => Ahead {
                start: data.as_ptr().wrapping_add(start + stored.start * PANEL),
                elements: stored.len() * PANEL,
            },
            Panels::Bf16(words) => {
                let (first, end) = (stored.start / 2, stored.end.div_ceil(2));
                Ahead {
                    start: words.as_ptr().wrapping_add(start + first * PANEL).cast(),
                    elements: end.saturating_sub(first) * PANEL,
                }
            }
        }
    }
}

/// What is fetched into the cache while a tile is computed. Need not be valid.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct Ahead {
    pub(crate) start: *const f32,
    /// Of four bytes.
    pub(crate) elements: usize,
}

impl Ahead {
    pub(crate) const NOTHING: Ahead = Ahead { start: std::ptr::null(), elements: 0 };

    /// What falls to `count` rows from `first` on, if `rows` rows share it.
    pub(crate) fn part(self, rows: usize, first: usize, count: usize) -> Ahead {
        let start = self.elements * first / rows;
        Ahead { start: self.start.wrapping_add(start), elements: self.elements * (first + count) / rows - start }
    }
}

kernel! {
    fn multiply_by(x: &mut [f32], scale: &[f32]) {
        for (x, &scale) in x.iter_mut().zip(scale) {
            *x *= scale;
        }
    }
}

/// `out[k] = row[columns[k]]`.
fn gather(isa: Isa, row: &[f32], columns: &[u32], out: &mut [f32]) {
    #[allow(unused_mut)]
    let mut start = 0;
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && row.len() <= i32::MAX as usize {
        start = gather_avx512(row, columns, out);
    }
    let _ = isa;
    for (out, &column) in out[start..].iter_mut().zip(&columns[start..]) {
        *out = row[column as usize];
    }
}

/// Gathers whole vectors and answers how many elements that were.
#[cfg(target_arch = "x86_64")]
fn gather_avx512(row: &[f32], columns: &[u32], out: &mut [f32]) -> usize {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx512f")]
    fn run(row: &[f32], columns: &[[u32; 16]], out: &mut [[f32; 16]]) {
        let limit = _mm512_set1_epi32(row.len() as i32);
        for (columns, out) in columns.iter().zip(out) {
            // SAFETY: the loads and the store are of 16 elements that the references hold; the mask lets only indices
            // below the row's length through, the others read nothing.
            unsafe {
                let index = _mm512_loadu_si512(columns.as_ptr().cast());
                let inside = _mm512_cmplt_epu32_mask(index, limit);
                assert!(inside == 0xffff, "a gathered column beyond the row");
                let values = _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), inside, index, row.as_ptr());
                _mm512_storeu_ps(out.as_mut_ptr(), values);
            }
        }
    }
    let (columns, _) = columns.as_chunks::<16>();
    let (out, _) = out.as_chunks_mut::<16>();
    // SAFETY: called for `Isa::Avx512` only, which exists only where the CPU has it.
    unsafe { run(row, columns, out) };
    columns.len().min(out.len()) * 16
}
