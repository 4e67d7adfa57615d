//! The packed form of a frozen weight: panels of 32 outputs, each `[depth, 32]`, the last one padded. The form is the same
//! for every instruction set.

use std::ops::Range;

use super::aligned::Aligned;
use super::operand::Right;
use super::transpose::{GROUP, transpose_group};
use crate::cpu;
use crate::parallel::{self, Shared};

/// Outputs of a panel: two vectors of the widest instruction set. Products with a multiple of it waste nothing.
pub const PANEL: usize = 32;

/// Depths or rows packed at a time: what is read and written together stays in the first-level cache.
const RUN: usize = 64;

/// A weight packed once for many products.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    outputs: usize,
    depth: usize,
    panels: Aligned,
}

impl PackedMatrix {
    /// Packs the (kept) rows of `weight` as outputs, its columns as depth: for `y = x Wᵀ`.
    ///
    /// # Panics
    /// If the weight is not `rows × columns` or a kept row is not below `rows`.
    pub fn rows(weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) -> Self {
        assert_eq!(weight.len(), rows * columns, "PackedMatrix::rows: weight of {rows} rows and {columns} columns");
        let outputs = kept_count("PackedMatrix::rows", kept, rows);
        let isa = cpu::isa();
        let mut panels = Aligned::zeros(outputs.div_ceil(PANEL) * columns * PANEL);
        let shared = Shared::new(panels.as_mut_slice());
        parallel::tasks(outputs.div_ceil(PANEL), outputs * columns > parallel::TASK_ELEMENTS, |panel| {
            let last = outputs - panel * PANEL - 1;
            // SAFETY: every task has a panel of its own.
            let out = unsafe { shared.slice(panel * columns * PANEL, columns * PANEL) };
            for first in (0..columns).step_by(RUN) {
                let run = first..columns.min(first + RUN);
                for start in (0..PANEL).step_by(GROUP) {
                    // Lanes beyond the outputs repeat the last one; nobody reads their results.
                    let group: [&[f32]; GROUP] = std::array::from_fn(|i| {
                        let output = panel * PANEL + (start + i).min(last);
                        let row = kept.map_or(output, |kept| kept[output] as usize);
                        &weight[row * columns..][run.clone()]
                    });
                    transpose_group(isa, &group, &mut out[first * PANEL + start..], PANEL);
                }
            }
        });
        Self { outputs, depth: columns, panels }
    }

    /// Packs the (kept) columns of `weight` as outputs, its rows as depth: for `dx = dy W`.
    ///
    /// # Panics
    /// If the weight is not `rows × columns` or a kept column is not below `columns`.
    pub fn columns(weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) -> Self {
        assert_eq!(weight.len(), rows * columns, "PackedMatrix::columns: weight of {rows} rows and {columns} columns");
        let outputs = kept_count("PackedMatrix::columns", kept, columns);
        let mut panels = Aligned::zeros(outputs.div_ceil(PANEL) * rows * PANEL);
        pack_columns(weight, columns, rows, outputs, kept, panels.as_mut_slice());
        Self { outputs, depth: rows, panels }
    }

    /// Outputs `N`.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Depth `K`.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Memory of the panels.
    pub fn size_bytes(&self) -> usize {
        size_of_val(self.panels.as_slice())
    }

    pub(crate) fn operand<'a>(&'a self, index: Option<&'a [u32]>) -> Right<'a> {
        Right { panels: self.panels.as_slice(), stored_depth: self.depth, index }
    }
}

/// Copies the (kept) columns of `rows` rows, `stride` apart, into panels `[panel, rows, 32]`; lanes beyond the outputs stay.
pub(crate) fn pack_columns(
    data: &[f32],
    stride: usize,
    rows: usize,
    outputs: usize,
    kept: Option<&[u32]>,
    panels: &mut [f32],
) {
    let shared = Shared::new(panels);
    // A task goes through some whole rows, so that every line is read while it is in the cache.
    parallel::tasks(rows.div_ceil(RUN), rows * outputs > parallel::TASK_ELEMENTS, |run| {
        let run = run * RUN..rows.min((run + 1) * RUN);
        for first in (0..outputs).step_by(PANEL) {
            let count = PANEL.min(outputs - first);
            // SAFETY: every task has rows of its own in each panel.
            let out = unsafe { shared.slice((first / PANEL * rows + run.start) * PANEL, run.len() * PANEL) };
            copy_columns(data, stride, run.clone(), first, count, kept, out);
        }
    });
}

/// Copies `count` (kept) columns from `first` on of the rows `run` into lanes, one row of 32 each.
pub(crate) fn copy_columns(
    data: &[f32],
    stride: usize,
    run: Range<usize>,
    first: usize,
    count: usize,
    kept: Option<&[u32]>,
    out: &mut [f32],
) {
    let (out, _) = out.as_chunks_mut::<PANEL>();
    for (out, row) in out.iter_mut().zip(run) {
        let row = &data[row * stride..];
        match kept {
            Some(kept) => {
                for (out, &column) in out.iter_mut().zip(&kept[first..][..count]) {
                    *out = row[column as usize];
                }
            }
            None => match row[first..].first_chunk::<PANEL>() {
                Some(row) if count == PANEL => *out = *row,
                _ => out[..count].copy_from_slice(&row[first..][..count]),
            },
        }
    }
}

fn kept_count(what: &str, kept: Option<&[u32]>, total: usize) -> usize {
    let Some(kept) = kept else { return total };
    if let Some(index) = kept.iter().find(|&&index| index as usize >= total) {
        panic!("{what}: kept index {index} of {total}");
    }
    kept.len()
}
