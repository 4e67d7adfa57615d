//! Where the driver's blocks come from: left operands are copied into row-major blocks, gathered, scaled or transposed on
//! the way; right operands are packed panels, or are made into one panel's block on the fly.

use std::ops::Range;

use super::packed::PANEL;
use super::tile::ROW_STRIDE;
use super::transpose::{GROUP, transpose_group};
use crate::cpu::{Isa, kernel};

/// The left operand, `[rows, depth]`.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Row `i` starts at `data[i * stride]`; depth `k` is its column `columns[k]` (or `k`), times `scale[k]`.
    Rows { data: &'a [f32], stride: usize, columns: Option<&'a [u32]>, scale: Option<&'a [f32]> },
    /// Element (i, k) is `data[k * stride + i]`.
    Transposed { data: &'a [f32], stride: usize },
}

impl Left<'_> {
    /// Copies rows `rows` and depths `depth` to `out`, rows [`ROW_STRIDE`] apart. Beyond the depth up to 7 elements are junk.
    pub(crate) fn fill(&self, isa: Isa, rows: Range<usize>, depth: Range<usize>, out: &mut [f32]) {
        let k = depth.len();
        if k == 0 {
            return;
        }
        match *self {
            Left::Rows { data, stride, columns, scale } => {
                for (row, out) in rows.zip(out.chunks_mut(ROW_STRIDE)) {
                    let (row, out) = (&data[row * stride..], &mut out[..k]);
                    match columns {
                        Some(columns) => gather(isa, row, &columns[depth.clone()], out),
                        None => out.copy_from_slice(&row[depth.clone()]),
                    }
                    if let Some(scale) = scale {
                        multiply_by(isa, out, &scale[depth.clone()]);
                    }
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

/// The right operand, `[depth, outputs]`, seen as panels of 32 outputs.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// Panels `[stored_depth, 32]`; depth `k` is their row `index[k]` (or `k`).
    Packed { panels: &'a [f32], stored_depth: usize, index: Option<&'a [u32]> },
    /// Element (k, n) is `data[k * stride + n]`.
    Rows { data: &'a [f32], stride: usize },
    /// Element (k, n) is `data[n * stride + k]`.
    Transposed { data: &'a [f32], stride: usize },
}

impl Right<'_> {
    /// The block that [`Right::block`] will give if it lies ready, else nothing.
    pub(crate) fn ready(&self, panel: usize, depth: Range<usize>) -> &[f32] {
        match *self {
            Right::Packed { panels, stored_depth, index: None } => {
                &panels[(panel * stored_depth + depth.start) * PANEL..][..depth.len() * PANEL]
            }
            _ => &[],
        }
    }

    /// The block `[depth, 32]` of a panel with `outputs` outputs, made in `scratch` if it does not lie ready.
    pub(crate) fn block<'b>(
        &'b self,
        isa: Isa,
        panel: usize,
        outputs: usize,
        depth: Range<usize>,
        scratch: &'b mut [f32],
    ) -> &'b [f32] {
        let k = depth.len();
        match *self {
            Right::Packed { panels, stored_depth, index: None } => {
                &panels[(panel * stored_depth + depth.start) * PANEL..][..k * PANEL]
            }
            Right::Packed { panels, stored_depth, index: Some(index) } => {
                let panel = &panels[panel * stored_depth * PANEL..][..stored_depth * PANEL];
                let (rows, _) = panel.as_chunks::<PANEL>();
                let (out, _) = scratch.as_chunks_mut::<PANEL>();
                for (out, &row) in out.iter_mut().zip(&index[depth]) {
                    *out = rows[row as usize];
                }
                &scratch[..k * PANEL]
            }
            Right::Rows { data, stride } => {
                for (out, k) in scratch.chunks_exact_mut(PANEL).zip(depth) {
                    out[..outputs].copy_from_slice(&data[k * stride + panel * PANEL..][..outputs]);
                }
                &scratch[..k * PANEL]
            }
            Right::Transposed { data, stride } => {
                for start in (0..outputs).step_by(GROUP) {
                    let group: [&[f32]; GROUP] = std::array::from_fn(|i| {
                        let n = panel * PANEL + (start + i).min(outputs - 1);
                        &data[n * stride..][depth.clone()]
                    });
                    transpose_group(isa, &group, &mut scratch[start..], PANEL);
                }
                &scratch[..k * PANEL]
            }
        }
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
