//! Where the driver's blocks come from: left operands are copied into row-major blocks, gathered, scaled or transposed on
//! the way; right operands lie ready in panels.

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

/// The right operand, `[depth, outputs]`, in panels of 32 outputs: `[panel, stored_depth, 32]`.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) panels: &'a [f32],
    pub(crate) stored_depth: usize,
    /// Depth `k` is the stored depth `index[k]`; `None` = `k`.
    pub(crate) index: Option<&'a [u32]>,
}

impl Right<'_> {
    /// The rows of 32 among which the depths of a panel are: all of them with an index, exactly those without.
    pub(crate) fn block(&self, panel: usize, depth: Range<usize>) -> &[f32] {
        let depth = if self.index.is_some() { 0..self.stored_depth } else { depth };
        &self.panels[(panel * self.stored_depth + depth.start) * PANEL..][..depth.len() * PANEL]
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
