//! The packed form of a frozen weight: panels of 32 outputs, each `[depth, 32]`, the last one padded. The form is the same
//! for every instruction set.

use super::aligned::Aligned;
use super::operand::Right;
use super::transpose::{GROUP, transpose_group};
use crate::cpu;
use crate::parallel::{self, Shared};

/// Outputs of a panel: two vectors of the widest instruction set.
pub(crate) const PANEL: usize = 32;

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
        Self::fill(outputs, columns, |panel, out| {
            let last = outputs - panel * PANEL - 1;
            for start in (0..PANEL).step_by(GROUP) {
                // Lanes beyond the outputs repeat the last one; nobody reads their results.
                let group: [&[f32]; GROUP] = std::array::from_fn(|i| {
                    let output = panel * PANEL + (start + i).min(last);
                    let row = kept.map_or(output, |kept| kept[output] as usize);
                    &weight[row * columns..][..columns]
                });
                transpose_group(isa, &group, &mut out[start..], PANEL);
            }
        })
    }

    /// Packs the (kept) columns of `weight` as outputs, its rows as depth: for `dx = dy W`.
    ///
    /// # Panics
    /// If the weight is not `rows × columns` or a kept column is not below `columns`.
    pub fn columns(weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) -> Self {
        assert_eq!(weight.len(), rows * columns, "PackedMatrix::columns: weight of {rows} rows and {columns} columns");
        let outputs = kept_count("PackedMatrix::columns", kept, columns);
        Self::fill(outputs, rows, |panel, out| {
            let first = panel * PANEL;
            let count = PANEL.min(outputs - first);
            let (out, _) = out.as_chunks_mut::<PANEL>();
            for (out, row) in out.iter_mut().zip(weight.chunks_exact(columns)) {
                match kept {
                    Some(kept) => {
                        for (out, &column) in out.iter_mut().zip(&kept[first..][..count]) {
                            *out = row[column as usize];
                        }
                    }
                    None => out[..count].copy_from_slice(&row[first..][..count]),
                }
            }
        })
    }

    fn fill(outputs: usize, depth: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let count = outputs.div_ceil(PANEL);
        let length = depth * PANEL;
        let mut panels = Aligned::zeros(count * length);
        if depth > 0 {
            let shared = Shared::new(panels.as_mut_slice());
            parallel::tasks(count, count * length > parallel::TASK_ELEMENTS, |panel| {
                // SAFETY: every task has a panel of its own.
                fill(panel, unsafe { shared.slice(panel * length, length) });
            });
        }
        Self { outputs, depth, panels }
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
        Right::Packed { panels: self.panels.as_slice(), stored_depth: self.depth, index }
    }
}

fn kept_count(what: &str, kept: Option<&[u32]>, total: usize) -> usize {
    let Some(kept) = kept else { return total };
    if let Some(index) = kept.iter().find(|&&index| index as usize >= total) {
        panic!("{what}: kept index {index} of {total}");
    }
    kept.len()
}
