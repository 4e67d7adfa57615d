//! The packed form of a frozen weight: panels of 32 outputs, each `[depth, 32]`, the last one padded with zeros.

use crate::cpu::kernel;
use crate::math::mul_add;

/// Outputs of a panel: two vectors of the widest instruction set.
pub(crate) const PANEL: usize = 32;

/// A weight packed once for many products.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    outputs: usize,
    depth: usize,
    panels: Vec<f32>,
}

impl PackedMatrix {
    /// Packs the (kept) rows of `weight` as outputs, its columns as depth: for `y = x Wᵀ`.
    ///
    /// # Panics
    /// If the weight is not `rows × columns` or a kept row is not below `rows`.
    pub fn rows(weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) -> Self {
        assert_eq!(weight.len(), rows * columns, "PackedMatrix::rows: weight of {rows} rows and {columns} columns");
        let outputs = kept_count("PackedMatrix::rows", kept, rows);
        let mut panels = vec![0.0; outputs.div_ceil(PANEL) * PANEL * columns];
        for output in 0..outputs {
            let row = kept.map_or(output, |kept| kept[output] as usize);
            for k in 0..columns {
                panels[(output / PANEL * columns + k) * PANEL + output % PANEL] = weight[row * columns + k];
            }
        }
        Self { outputs, depth: columns, panels }
    }

    /// Packs the (kept) columns of `weight` as outputs, its rows as depth: for `dx = dy W`.
    ///
    /// # Panics
    /// If the weight is not `rows × columns` or a kept column is not below `columns`.
    pub fn columns(weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) -> Self {
        assert_eq!(weight.len(), rows * columns, "PackedMatrix::columns: weight of {rows} rows and {columns} columns");
        let outputs = kept_count("PackedMatrix::columns", kept, columns);
        let mut panels = vec![0.0; outputs.div_ceil(PANEL) * PANEL * rows];
        for output in 0..outputs {
            let column = kept.map_or(output, |kept| kept[output] as usize);
            for k in 0..rows {
                panels[(output / PANEL * rows + k) * PANEL + output % PANEL] = weight[k * columns + column];
            }
        }
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
        self.panels.len() * size_of::<f32>()
    }

    pub(crate) fn panel(&self, panel: usize) -> &[f32] {
        &self.panels[panel * self.depth * PANEL..][..self.depth * PANEL]
    }
}

fn kept_count(what: &str, kept: Option<&[u32]>, total: usize) -> usize {
    let Some(kept) = kept else { return total };
    if let Some(index) = kept.iter().find(|&&index| index as usize >= total) {
        panic!("{what}: kept index {index} of {total}");
    }
    kept.len()
}

kernel! {
    pub(crate) fn dot_panel(a: &[f32], panel: &[f32], depth: Option<&[u32]>, sums: &mut [f32; PANEL]) {
        for (k, &a) in a.iter().enumerate() {
            let row = depth.map_or(k, |depth| depth[k] as usize);
            for (sum, &b) in sums.iter_mut().zip(&panel[row * PANEL..][..PANEL]) {
                *sum = mul_add::<FMA>(a, b, *sum);
            }
        }
    }
}
