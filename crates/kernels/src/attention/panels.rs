//! The small products of one sequence and head, straight on the tiles of the matrix module: what is multiplied once is
//! packed once, and softmax works on results where the tiles leave them.
//!
//! Two forms occur. A *left block* holds rows `ROW_STRIDE` apart, one run of rows for every `DEPTH_BLOCK` of the depth.
//! *Panels* are `[panel, rows, 32]`, as right operand and as result.

use std::ops::Range;

use crate::cpu::Isa;
use crate::matrix::operand::{Ahead, Block, Left};
use crate::matrix::packed::{PANEL, copy_columns};
use crate::matrix::tile::{self, DEPTH_BLOCK, ROW_STRIDE, Tile};
use crate::matrix::transpose::{GROUP, transpose_group};
use crate::parallel::Shared;

/// One head's columns in a buffer of whole rows: element (i, c) is `data[i * stride + c]`.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
    pub(super) width: usize,
}

/// Elements of a left block.
pub(super) fn left_length(rows: usize, depth: usize) -> usize {
    rows * depth.div_ceil(DEPTH_BLOCK).max(1) * ROW_STRIDE
}

/// Elements of panels.
pub(super) fn panels_length(rows: usize, outputs: usize) -> usize {
    outputs.div_ceil(PANEL) * PANEL * rows
}

/// Where depth `k` of row `i` is in a left block.
pub(super) fn left_place(rows: usize, i: usize, k: usize) -> usize {
    (k / DEPTH_BLOCK * rows + i) * ROW_STRIDE + k % DEPTH_BLOCK
}

/// Copies `rows` into a left block.
pub(super) fn fill_left(isa: Isa, from: Columns<'_>, rows: Range<usize>, out: &mut [f32]) {
    let left = Left::Rows { data: from.data, stride: from.stride, columns: None, scale: None };
    for first in (0..from.width).step_by(DEPTH_BLOCK) {
        let depth = first..from.width.min(first + DEPTH_BLOCK);
        left.fill(isa, rows.clone(), depth, &mut out[left_place(rows.len(), 0, first)..]);
    }
}

/// Copies `rows` into panels with the rows as depth.
pub(super) fn fill_panels(from: Columns<'_>, rows: Range<usize>, out: &mut [f32]) {
    let length = rows.len() * PANEL;
    for first in (0..from.width).step_by(PANEL) {
        let count = PANEL.min(from.width - first);
        copy_columns(
            from.data,
            from.stride,
            rows.clone(),
            first,
            count,
            None,
            &mut out[first / PANEL * length..][..length],
        );
    }
}

/// Copies all `rows` rows into panels with the rows as outputs and the columns as depth.
pub(super) fn fill_panels_transposed(isa: Isa, from: Columns<'_>, rows: usize, out: &mut [f32]) {
    if from.width == 0 {
        return;
    }
    for first in (0..rows).step_by(GROUP) {
        let group: [&[f32]; GROUP] =
            std::array::from_fn(|i| &from.data[(first + i).min(rows - 1) * from.stride..][..from.width]);
        let place = first / PANEL * from.width * PANEL + first % PANEL;
        transpose_group(isa, &group, &mut out[place..], PANEL);
    }
}

/// Turns panels `[panel, depth, 32]` of one result into a left block with 32 rows a panel and one depth block.
pub(super) fn fill_left_transposed(isa: Isa, panels: &[f32], depth: usize, out: &mut [f32]) {
    assert!(depth <= DEPTH_BLOCK, "one depth block");
    for (panel, out) in panels.chunks_exact(depth * PANEL).zip(out.chunks_exact_mut(PANEL * ROW_STRIDE)) {
        for first in (0..depth).step_by(GROUP) {
            let group: [&[f32]; GROUP] = std::array::from_fn(|i| &panel[(first + i).min(depth - 1) * PANEL..][..PANEL]);
            transpose_group(isa, &group, &mut out[first..], ROW_STRIDE);
        }
    }
}

/// The shape of a product: `[rows, depth]` times `[depth, outputs]`.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) outputs: usize,
}

/// The part of a product that is made: some rows, from some of the depth, for some panels of the outputs.
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    pub(super) depth: Range<usize>,
    pub(super) panels: Range<usize>,
}

/// `c = a b`, or `c += a b` if `resume`, for a part of the shape: a left block times panels, into panels.
pub(super) fn product(isa: Isa, shape: Shape, part: Part, a: &[f32], b: &[f32], c: &mut [f32], resume: bool) {
    let Part { rows, depth, panels } = part;
    for panel in panels {
        let c = &mut c[(panel * shape.rows + rows.start) * PANEL..][..rows.len() * PANEL];
        let b = &b[panel * shape.depth * PANEL..][..shape.depth * PANEL];
        let outputs = PANEL.min(shape.outputs - panel * PANEL);
        let mut first = depth.start;
        // Without depth once, for the zeros.
        loop {
            let end = depth.end.min((first / DEPTH_BLOCK + 1) * DEPTH_BLOCK);
            tile::multiply(
                isa,
                &mut Tile {
                    a: &a[left_place(shape.rows, rows.start, first)..],
                    rows: rows.len(),
                    b: Block::Rows(&b[first * PANEL..]),
                    next: Ahead::NOTHING,
                    k: end - first,
                    outputs,
                    c,
                    resume: resume || first > depth.start,
                },
            );
            first = end;
            if first >= depth.end {
                break;
            }
        }
    }
}

/// Writes panels of `rows` rows as the columns of one head, row `i` times `factors[i]` if there are any.
///
/// # Safety
/// The columns `at .. at + width` of the rows belong to this head alone.
pub(super) unsafe fn write(
    panels: &[f32],
    rows: usize,
    width: usize,
    factors: Option<&[f32]>,
    out: &Shared<'_>,
    at: usize,
    stride: usize,
) {
    for (index, panel) in panels.chunks_exact((rows * PANEL).max(1)).take(width.div_ceil(PANEL)).enumerate() {
        let count = PANEL.min(width - index * PANEL);
        let (values, _) = panel.as_chunks::<PANEL>();
        for (i, values) in values.iter().enumerate() {
            let factor = factors.map_or(1.0, |factors| factors[i]);
            // SAFETY: the caller's promise.
            let out = unsafe { out.slice(at + i * stride + index * PANEL, count) };
            match <&mut [f32; PANEL]>::try_from(&mut *out) {
                Ok(out) => out.iter_mut().zip(values).for_each(|(out, &value)| *out = value * factor),
                Err(_) => out.iter_mut().zip(values).for_each(|(out, &value)| *out = value * factor),
            }
        }
    }
}

/// Adds panels of `rows` rows to the columns of one head.
///
/// # Safety
/// As [`write`].
pub(super) unsafe fn add(panels: &[f32], rows: usize, width: usize, out: &Shared<'_>, at: usize, stride: usize) {
    for (index, panel) in panels.chunks_exact((rows * PANEL).max(1)).take(width.div_ceil(PANEL)).enumerate() {
        let count = PANEL.min(width - index * PANEL);
        for (i, values) in panel.as_chunks::<PANEL>().0.iter().enumerate() {
            // SAFETY: the caller's promise.
            let out = unsafe { out.slice(at + i * stride + index * PANEL, count) };
            out.iter_mut().zip(values).for_each(|(out, &value)| *out += value);
        }
    }
}
