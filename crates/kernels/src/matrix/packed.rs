//! The packed form of a frozen weight: panels of 32 outputs, the last one padded, in `f32` or bf16. The form is the same for
//! every instruction set, and other packings can be made from it exactly, so that no plain weight has to be kept.

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;

use super::aligned::Aligned;
use super::bf16::{narrow_run, panel_words, round, widen};
use super::operand::{Panels, Right};
use super::transpose::{GROUP, transpose_group};
use super::weights::{Place, Weights};
use crate::cpu;
use crate::parallel::{self, Shared};

/// Outputs of a panel: two vectors of the widest instruction set. Products with a multiple of it waste nothing.
pub const PANEL: usize = 32;

/// Depths or rows packed at a time: what is read and written together stays in the first-level cache.
const RUN: usize = 64;

/// Panels of bf16 that a task fills, so that it reads whole lines of the weight's rows.
const PANELS: usize = 8;

/// What a packed weight is held in. Activations and sums are `f32` with either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Four bytes a weight.
    #[default]
    F32,
    /// Two bytes a weight, the upper half of an `f32`, rounded to nearest even.
    Bf16,
}

impl Precision {
    /// `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }

    /// The value that a weight has once it is held in this precision.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Precision::F32 => value,
            Precision::Bf16 => widen(round(value)),
        }
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            other => Err(format!("expected f32 or bf16, found {other:?}")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone)]
enum Storage {
    F32(Weights<f32>),
    Bf16(Weights<u32>),
}

/// A weight packed once for many products.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    outputs: usize,
    depth: usize,
    panels: Storage,
}

impl PackedMatrix {
    /// Packs the (kept) rows of `weight` as outputs, its columns as depth: for `y = x Wᵀ`.
    ///
    /// # Panics
    /// If the weight is not `rows × columns` or a kept row is not below `rows`.
    pub fn rows(weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) -> Self {
        Self::rows_in(Precision::F32, weight, rows, columns, kept)
    }

    /// As [`PackedMatrix::rows`], held in `precision`.
    ///
    /// # Panics
    /// As [`PackedMatrix::rows`].
    pub fn rows_in(precision: Precision, weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) -> Self {
        assert_eq!(weight.len(), rows * columns, "PackedMatrix::rows: weight of {rows} rows and {columns} columns");
        let outputs = kept_count("PackedMatrix::rows", kept, rows);
        Self::filled(precision, Place::of(kept), outputs, columns, fill_of_rows(weight, outputs, columns, kept))
    }

    /// As [`PackedMatrix::rows_in`] of a weight with other values, in the room that is there if it is as large.
    ///
    /// # Panics
    /// As [`PackedMatrix::rows`].
    pub fn refill_rows(&mut self, weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) {
        let outputs = kept.map_or(rows, <[u32]>::len);
        let room = match &mut self.panels {
            Storage::F32(panels) if (self.outputs, self.depth) == (outputs, columns) => panels.as_mut_slice(),
            _ => return *self = Self::rows_in(self.precision(), weight, rows, columns, kept),
        };
        assert_eq!(weight.len(), rows * columns, "PackedMatrix::rows: weight of {rows} rows and {columns} columns");
        kept_count("PackedMatrix::rows", kept, rows);
        fill_panels(room, outputs, columns, fill_of_rows(weight, outputs, columns, kept));
    }

    /// Packs the (kept) columns of `weight` as outputs, its rows as depth: for `dx = dy W`.
    ///
    /// # Panics
    /// If the weight is not `rows × columns` or a kept column is not below `columns`.
    pub fn columns(weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) -> Self {
        Self::columns_in(Precision::F32, weight, rows, columns, kept)
    }

    /// As [`PackedMatrix::columns`], held in `precision`.
    ///
    /// # Panics
    /// As [`PackedMatrix::columns`].
    pub fn columns_in(precision: Precision, weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) -> Self {
        assert_eq!(weight.len(), rows * columns, "PackedMatrix::columns: weight of {rows} rows and {columns} columns");
        let outputs = kept_count("PackedMatrix::columns", kept, columns);
        if precision == Precision::F32 {
            let mut panels = Weights::zeros(outputs.div_ceil(PANEL) * rows * PANEL, Place::of(kept));
            pack_columns(weight, columns, rows, outputs, kept, panels.as_mut_slice());
            return Self { outputs, depth: rows, panels: Storage::F32(panels) };
        }
        Self::filled(precision, Place::of(kept), outputs, rows, |panel, run, out| {
            let first = panel * PANEL;
            copy_columns(weight, columns, run, first, PANEL.min(outputs - first), kept, out);
        })
    }

    /// As [`PackedMatrix::columns_in`] of a weight with other values, in the room that is there if it is as large.
    ///
    /// # Panics
    /// As [`PackedMatrix::columns`].
    pub fn refill_columns(&mut self, weight: &[f32], rows: usize, columns: usize, kept: Option<&[u32]>) {
        let outputs = kept.map_or(columns, <[u32]>::len);
        let room = match &mut self.panels {
            Storage::F32(panels) if (self.outputs, self.depth) == (outputs, rows) => panels.as_mut_slice(),
            _ => return *self = Self::columns_in(self.precision(), weight, rows, columns, kept),
        };
        assert_eq!(weight.len(), rows * columns, "PackedMatrix::columns: weight of {rows} rows and {columns} columns");
        kept_count("PackedMatrix::columns", kept, columns);
        pack_columns(weight, columns, rows, outputs, kept, room);
    }

    /// The (kept) outputs of this weight, packed anew in the same precision: the very values.
    ///
    /// # Panics
    /// If a kept output is not below [`PackedMatrix::outputs`].
    pub fn repack(&self, kept_outputs: Option<&[u32]>) -> Self {
        let outputs = kept_count("PackedMatrix::repack", kept_outputs, self.outputs);
        let panels = self.panels();
        Self::filled(self.precision(), Place::of(kept_outputs), outputs, self.depth, |panel, run, out| {
            let lanes = PANEL.min(outputs - panel * PANEL);
            let places: [usize; PANEL] = std::array::from_fn(|lane| {
                let output = panel * PANEL + lane.min(lanes - 1);
                kept_outputs.map_or(output, |kept| kept[output] as usize)
            });
            for (out, k) in out.as_chunks_mut::<PANEL>().0.iter_mut().zip(run) {
                for (out, place) in out.iter_mut().zip(places) {
                    *out = panels.at(self.depth, place / PANEL, k, place % PANEL);
                }
            }
        })
    }

    /// The transposed weight in the same precision: the (kept) depths of this one as outputs, its outputs as depth.
    ///
    /// # Panics
    /// If a kept depth is not below [`PackedMatrix::depth`].
    pub fn transposed(&self, kept_depths: Option<&[u32]>) -> Self {
        let outputs = kept_count("PackedMatrix::transposed", kept_depths, self.depth);
        let panels = self.panels();
        Self::filled(self.precision(), Place::of(kept_depths), outputs, self.outputs, |panel, run, out| {
            let lanes = PANEL.min(outputs - panel * PANEL);
            for lane in 0..PANEL {
                let output = panel * PANEL + lane.min(lanes - 1);
                let k = kept_depths.map_or(output, |kept| kept[output] as usize);
                for (out, n) in out[lane..].iter_mut().step_by(PANEL).zip(run.clone()) {
                    *out = panels.at(self.depth, n / PANEL, k, n % PANEL);
                }
            }
        })
    }

    /// Writes the weights of one output, one a depth.
    ///
    /// # Panics
    /// If `output` is not below [`PackedMatrix::outputs`] or `row` has another length than [`PackedMatrix::depth`].
    pub fn unpack_row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs, "PackedMatrix::unpack_row: output {output} of {}", self.outputs);
        assert_eq!(row.len(), self.depth, "PackedMatrix::unpack_row: a row of the depth");
        let panels = self.panels();
        for (k, value) in row.iter_mut().enumerate() {
            *value = panels.at(self.depth, output / PANEL, k, output % PANEL);
        }
    }

    /// Sums of the squares of each output's weights and of each depth's.
    pub fn square_sums(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut outputs, mut depths) = (vec![0.0; self.outputs], vec![0.0; self.depth]);
        let mut row = vec![0.0; self.depth];
        for (output, sum) in outputs.iter_mut().enumerate() {
            self.unpack_row(output, &mut row);
            for (&weight, depth) in row.iter().zip(&mut depths) {
                let square = f64::from(weight) * f64::from(weight);
                *sum += square;
                *depth += square;
            }
        }
        (outputs, depths)
    }

    /// Adds the weights of one output to `row`, one a depth.
    ///
    /// # Panics
    /// As [`PackedMatrix::unpack_row`].
    pub fn add_row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs, "PackedMatrix::add_row: output {output} of {}", self.outputs);
        assert_eq!(row.len(), self.depth, "PackedMatrix::add_row: a row of the depth");
        let panels = self.panels();
        for (k, value) in row.iter_mut().enumerate() {
            *value += panels.at(self.depth, output / PANEL, k, output % PANEL);
        }
    }

    /// Packs what `fill(panel, depths, out)` writes: rows of 32 lanes, one a depth, the depths a run from a multiple of
    /// [`RUN`] on.
    fn filled(
        precision: Precision,
        place: Place,
        outputs: usize,
        depth: usize,
        fill: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) -> Self {
        let panels = outputs.div_ceil(PANEL);
        let parallel = outputs * depth > parallel::TASK_ELEMENTS;
        let panels = match precision {
            Precision::F32 => {
                let mut data = Weights::zeros(panels * depth * PANEL, place);
                fill_panels(data.as_mut_slice(), outputs, depth, fill);
                Storage::F32(data)
            }
            Precision::Bf16 => {
                let (isa, length) = (cpu::isa(), panel_words(depth));
                let mut data = Weights::<u32>::zeros(panels * length, place);
                let fill_group = |group: usize, out: &mut [u32]| {
                    let mut rows = Aligned::<f32>::zeros(RUN * PANEL);
                    for run in runs(depth) {
                        for (index, out) in out.chunks_exact_mut(length).enumerate() {
                            let rows = &mut rows.as_mut_slice()[..run.len() * PANEL];
                            fill(group * PANELS + index, run.clone(), rows);
                            narrow_run(isa, rows, &mut out[run.start / 2 * PANEL..]);
                        }
                    }
                };
                let out = &mut data.as_mut_slice()[..panels * length];
                let group = (PANELS * length).max(1);
                if parallel && rayon::current_num_threads() > 1 {
                    out.par_chunks_mut(group).enumerate().for_each(|(group, out)| fill_group(group, out));
                } else {
                    out.chunks_mut(group).enumerate().for_each(|(group, out)| fill_group(group, out));
                }
                Storage::Bf16(data)
            }
        };
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

    /// What the weight is held in.
    pub fn precision(&self) -> Precision {
        match self.panels {
            Storage::F32(_) => Precision::F32,
            Storage::Bf16(_) => Precision::Bf16,
        }
    }

    /// Memory of the panels.
    pub fn size_bytes(&self) -> usize {
        match &self.panels {
            Storage::F32(panels) => size_of_val(panels.as_slice()),
            Storage::Bf16(panels) => size_of_val(panels.as_slice()),
        }
    }

    fn panels(&self) -> Panels<'_> {
        match &self.panels {
            Storage::F32(panels) => Panels::F32(panels.as_slice()),
            Storage::Bf16(panels) => Panels::Bf16(panels.as_slice()),
        }
    }

    pub(crate) fn operand<'a>(&'a self, index: Option<&'a [u32]>) -> Right<'a> {
        Right { panels: self.panels(), stored_depth: self.depth, index }
    }
}

fn runs(depth: usize) -> impl Iterator<Item = Range<usize>> {
    (0..depth).step_by(RUN).map(move |first| first..depth.min(first + RUN))
}

/// Fills panels of `f32` with what `fill(panel, depths, out)` writes.
fn fill_panels(data: &mut [f32], outputs: usize, depth: usize, fill: impl Fn(usize, Range<usize>, &mut [f32]) + Sync) {
    let parallel = outputs * depth > parallel::TASK_ELEMENTS;
    let shared = Shared::new(data);
    parallel::tasks(outputs.div_ceil(PANEL), parallel, |panel| {
        // SAFETY: every task has a panel of its own.
        let out = unsafe { shared.slice(panel * depth * PANEL, depth * PANEL) };
        runs(depth).for_each(|run| fill(panel, run.clone(), &mut out[run.start * PANEL..run.end * PANEL]));
    });
}

/// Writes a run of depths of the (kept) rows of a weight that has `columns`.
fn fill_of_rows<'a>(
    weight: &'a [f32],
    outputs: usize,
    columns: usize,
    kept: Option<&'a [u32]>,
) -> impl Fn(usize, Range<usize>, &mut [f32]) + Sync + 'a {
    let isa = cpu::isa();
    move |panel, run, out| {
        let last = outputs - panel * PANEL - 1;
        for start in (0..PANEL).step_by(GROUP) {
            // Lanes beyond the outputs repeat the last one; nobody reads their results.
            let group: [&[f32]; GROUP] = std::array::from_fn(|i| {
                let output = panel * PANEL + (start + i).min(last);
                let row = kept.map_or(output, |kept| kept[output] as usize);
                &weight[row * columns..][run.clone()]
            });
            transpose_group(isa, &group, &mut out[start..], PANEL);
        }
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
