//! The blocked product that weights and their gradients go through. It splits rows and panels into tasks, the depth into
//! blocks, and writes each result once, after its last depth block. A few rows take the way of [`stream`] instead, and bf16
//! weights that of [`pairs`] where there is a unit for them.

use std::cell::Cell;
use std::ops::Range;

use super::aligned::Aligned;
use super::operand::{Ahead, Left, Panels, Right};
use super::packed::PANEL;
use super::pairs;
#[cfg(target_arch = "x86_64")]
use super::picks::Picks;
use super::split::{RowParts, part};
use super::stream::{self, Stream};
use super::tile::{self, DEPTH_BLOCK, ROW_STRIDE, Tile, split_rows};
use crate::activation::{self, Activation};
use crate::cpu::{Bf16Unit, Isa, kernel};
use crate::parallel::{self, Shared};

/// Most rows of a task, in units: with a depth block they fill a part of the second-level cache.
const ROW_BLOCK: usize = 8;
/// Rows that tasks are a multiple of: those of a tile of AVX-512, and not far from two of the others' tiles of 6.
const ROW_UNIT: usize = 14;
/// Most panels of a task: their unfinished results stay in the second-level cache.
const PANEL_BLOCK: usize = 32;
/// Multiply-adds below which another task does not pay.
const TASK_MULTIPLY_ADDS: usize = 1 << 19;
/// Bytes of a weight below which another task of a few rows does not pay, and below which no second thread does.
const TASK_BYTES: usize = 1 << 18;
const PARALLEL_BYTES: usize = 1 << 20;

/// Where results go: `out[row(t) * stride + column(n)]`.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) out: Shared<'a>,
    pub(crate) stride: usize,
    pub(crate) rows: Option<&'a [u32]>,
    pub(crate) columns: Option<&'a [u32]>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) scale: Option<&'a [f32]>,
    pub(crate) activation: Activation,
    pub(crate) add: bool,
}

/// `target = left · right`.
pub(crate) struct Product<'a> {
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    pub(crate) outputs: usize,
    pub(crate) left: Left<'a>,
    pub(crate) right: Right<'a>,
    pub(crate) target: Target<'a>,
}

#[derive(Default)]
struct Scratch {
    left: Aligned,
    wide: Aligned,
    result: Aligned,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
    static LEFT: Cell<Aligned> = Cell::default();
}

impl Product<'_> {
    /// Computes the product in rayon's current pool.
    ///
    /// # Safety
    /// The places of the target are inside its buffer, for the time of the call nothing else reads or writes them, and no
    /// two results share one.
    pub(crate) unsafe fn run(&self, isa: Isa, bf16_unit: Option<Bf16Unit>) {
        if self.right.index.is_none() && (1..=stream::most_rows(isa)).contains(&self.rows) {
            // SAFETY: the caller's promise.
            return unsafe { self.few_rows(isa) };
        }
        if let (Some(unit), Panels::Bf16(words)) = (bf16_unit, self.right.panels)
            && self.rows > stream::most_rows(isa)
        {
            // SAFETY: the caller's promise.
            return unsafe { pairs::run(self, words, isa, unit) };
        }
        let work = self.rows * self.outputs * self.depth;
        let threads = rayon::current_num_threads();
        let wanted = if threads == 1 { 1 } else { (work / TASK_MULTIPLY_ADDS).clamp(1, 4 * threads) };
        let panels = self.outputs.div_ceil(PANEL);
        // Rows are split first: their packing is then done once. Panels make up for what is missing.
        let row_parts = RowParts::new(self.rows, ROW_UNIT, ROW_BLOCK, wanted.min(threads));
        let panel_blocks = row_parts.panel_blocks(panels, PANEL_BLOCK, wanted);
        let mut scratch = LEFT.take();
        let share = row_parts.share_left(self.depth, panel_blocks);
        let whole = share.then(|| self.whole_left(isa, &mut scratch));
        parallel::tasks(row_parts.count() * panel_blocks, wanted > 1, |task| {
            let (rows, panel_block) = (row_parts.rows(task / panel_blocks), task % panel_blocks);
            // SAFETY: tasks write different rows or different panels; the rest is the caller's promise.
            unsafe { self.block(isa, rows, part(panels, panel_blocks, panel_block), whole) };
        });
        LEFT.set(scratch);
    }

    /// All rows of the left operand: a block of [`ROW_STRIDE`] elements a row for every block of the depth.
    fn whole_left<'b>(&self, isa: Isa, room: &'b mut Aligned) -> &'b [f32] {
        let (rows, depth) = (self.rows, self.depth);
        let left = room.room(depth.div_ceil(DEPTH_BLOCK) * rows * ROW_STRIDE);
        for (start, block) in (0..depth).step_by(DEPTH_BLOCK).zip(left.chunks_mut(rows * ROW_STRIDE)) {
            self.left.fill(isa, 0..rows, start..depth.min(start + DEPTH_BLOCK), block);
        }
        left
    }

    /// A few rows: all of them at once against every panel, which passes through the registers once.
    ///
    /// # Safety
    /// As [`Product::run`].
    unsafe fn few_rows(&self, isa: Isa) {
        let (rows, depth) = (self.rows, self.depth);
        let panels = self.outputs.div_ceil(PANEL);
        let mut scratch = LEFT.take();
        let left = self.whole_left(isa, &mut scratch);
        let threads = rayon::current_num_threads();
        let bytes = 4 * panels * self.right.panels.panel_length(depth);
        let parallel = threads > 1 && bytes >= PARALLEL_BYTES;
        // As many for every thread, where there are panels enough.
        let tasks = if parallel { (bytes / TASK_BYTES / threads).clamp(1, 4) * threads } else { 1 }.min(panels);
        parallel::tasks(tasks, parallel, |task| {
            let mut results = [0.0; stream::RESULTS];
            let own = part(panels, tasks, task);
            for first in own.clone().step_by(stream::PANELS) {
                let count = stream::PANELS.min(own.end - first);
                let c = &mut results[..count * rows * PANEL];
                stream::multiply(isa, &mut Stream { a: left, rows, panels: self.right.panels, depth, first, count, c });
                for (panel, c) in (first..).zip(c.chunks_exact_mut(rows * PANEL)) {
                    let outputs = PANEL.min(self.outputs - panel * PANEL);
                    // SAFETY: tasks write different panels; the rest is the caller's promise.
                    unsafe { self.target.panel(isa, panel, outputs).write(0, c) };
                }
            }
        });
        LEFT.set(scratch);
    }

    /// `whole` is what [`Product::whole_left`] made, if it did; `rows` are then all.
    ///
    /// # Safety
    /// As [`Product::run`], for the rows and panels given.
    unsafe fn block(&self, isa: Isa, rows: Range<usize>, panels: Range<usize>, whole: Option<&[f32]>) {
        let mut scratch = SCRATCH.take();
        let depth_blocks = self.depth.div_ceil(DEPTH_BLOCK).max(1);
        let first_row = rows.start;
        let block_length = rows.len() * ROW_STRIDE;
        let left = scratch.left.room(if whole.is_some() { 0 } else { block_length });
        let result_length = rows.len() * PANEL;
        // With one depth block every panel is finished at once and can use the same place.
        let kept_panels = if depth_blocks == 1 { 1 } else { panels.len() };
        let wide = match self.right.panels {
            Panels::F32(_) => &mut [],
            Panels::Bf16(_) => scratch.wide.room(DEPTH_BLOCK * PANEL),
        };
        let results = scratch.result.room(result_length * kept_panels);
        for depth_block in 0..depth_blocks {
            // Cut where [`stream`] cuts, so that a row has the same bits either way.
            let depth = depth_block * DEPTH_BLOCK..self.depth.min((depth_block + 1) * DEPTH_BLOCK);
            let left = match whole {
                Some(whole) => &whole[depth_block * block_length..][..block_length],
                None => {
                    self.left.fill(isa, rows.clone(), depth.clone(), left);
                    &*left
                }
            };
            for panel in panels.clone() {
                let outputs = PANEL.min(self.outputs - panel * PANEL);
                let place = if depth_blocks == 1 { 0 } else { panel - panels.start };
                let c = &mut results[place * result_length..][..result_length];
                let b = self.right.block(isa, rows.len(), panel, depth.clone(), wide);
                let more = panel + 1 < panels.end;
                let next = if more { self.right.ahead(panel + 1, depth.clone()) } else { Ahead::NOTHING };
                let (k, resume) = (depth.len(), depth_block > 0);
                let finished = (depth_block + 1 == depth_blocks).then(|| self.target.panel(isa, panel, outputs));
                let at_once = if finished.is_some() { tile::rows_at_once(isa) } else { usize::MAX };
                split_rows(rows.len(), at_once, |first, count| {
                    let next = next.part(rows.len(), first, count);
                    let a = &left[first * ROW_STRIDE..];
                    let c = &mut c[first * PANEL..][..count * PANEL];
                    if let Some(finished) = finished.as_ref().filter(|_| at_once < usize::MAX) {
                        // SAFETY: the caller's promise.
                        unsafe { finished.fetch(first_row + first..first_row + first + count) };
                    }
                    tile::multiply(isa, &mut Tile { a, rows: count, b, next, k, outputs, c, resume });
                    if let Some(finished) = &finished {
                        // SAFETY: the caller's promise.
                        unsafe { finished.write(first_row + first, c) };
                    }
                });
            }
        }
        SCRATCH.set(scratch);
    }
}

impl<'a> Target<'a> {
    /// What falls to the first `outputs` of a panel.
    pub(super) fn panel(&self, isa: Isa, panel: usize, outputs: usize) -> PanelTarget<'a> {
        let first = panel * PANEL;
        let part = |values: &'a [f32]| &values[first..][..outputs];
        let columns = self.columns.map(|columns| &columns[first..][..outputs]);
        PanelTarget {
            target: Target { bias: self.bias.map(part), scale: self.scale.map(part), columns, ..*self },
            isa,
            first,
            outputs,
            #[cfg(target_arch = "x86_64")]
            picks: columns.filter(|_| isa == Isa::Avx512).and_then(Picks::of),
        }
    }
}

/// The part of a target that the outputs of a panel go to.
pub(super) struct PanelTarget<'a> {
    /// Bias, scale and columns of these outputs alone.
    target: Target<'a>,
    isa: Isa,
    first: usize,
    outputs: usize,
    /// The columns as masks.
    #[cfg(target_arch = "x86_64")]
    picks: Option<Picks<PANEL>>,
}

impl PanelTarget<'_> {
    /// Fetches the places that [`PanelTarget::write`] will write, to be written: rows lie far apart, where nothing else would fetch
    /// them ahead.
    ///
    /// # Safety
    /// As [`Product::run`], for these rows.
    pub(super) unsafe fn fetch(&self, rows: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if self.target.rows.is_none() && self.target.columns.is_none() && self.outputs > 0 {
            for row in rows.clone() {
                let start = row * self.target.stride + self.first;
                for place in (0..self.outputs).step_by(16).chain([self.outputs - 1]) {
                    // SAFETY: the place is inside the buffer by the caller's promise, and nothing is read or written; every CPU
                    // with AVX-512 has the instruction, and elsewhere it does nothing.
                    unsafe {
                        let place = self.target.out.place(start + place);
                        std::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
                    }
                }
            }
        }
        let _ = rows;
    }

    /// Writes the finished results `c` (`[rows, 32]`).
    ///
    /// # Safety
    /// As [`Product::run`], for these rows.
    pub(super) unsafe fn write(&self, first_row: usize, c: &mut [f32]) {
        let &PanelTarget { target: Target { out, stride, rows, columns, bias, scale, activation, add }, isa, .. } =
            self;
        if bias.is_some() || scale.is_some() || activation != Activation::None {
            finish(isa, c, bias, scale, activation);
        }
        for (row, c) in c.as_chunks::<PANEL>().0.iter().enumerate() {
            let place = rows.map_or(first_row + row, |rows| rows[first_row + row] as usize);
            let start = place * stride;
            // SAFETY: these places are inside the buffer and belong to this row and these outputs alone, by the caller's
            // promise; picks are made for `Isa::Avx512` only.
            unsafe {
                #[cfg(target_arch = "x86_64")]
                if let Some(picks) = &self.picks {
                    picks.scatter(c, out.place(start), add);
                    continue;
                }
                match (columns, add) {
                    (Some(columns), false) => {
                        for (&value, &column) in c.iter().zip(columns) {
                            *out.place(start + column as usize) = value;
                        }
                    }
                    (Some(columns), true) => {
                        for (&value, &column) in c.iter().zip(columns) {
                            *out.place(start + column as usize) += value;
                        }
                    }
                    (None, add) => write_run(out.slice(start + self.first, self.outputs), c, add),
                }
            }
        }
    }
}

/// `out = c` or `out += c` for the first elements of `c`; a full panel is copied without a call.
#[inline(always)]
fn write_run(out: &mut [f32], c: &[f32; PANEL], add: bool) {
    match (<&mut [f32; PANEL]>::try_from(&mut *out), add) {
        (Ok(out), false) => *out = *c,
        (Ok(out), true) => out.iter_mut().zip(c).for_each(|(out, &c)| *out += c),
        (Err(_), false) => out.iter_mut().zip(c).for_each(|(out, &c)| *out = c),
        (Err(_), true) => out.iter_mut().zip(c).for_each(|(out, &c)| *out += c),
    }
}

kernel! {
    /// Bias, scale and activation of a block `[rows, 32]`; lanes beyond the outputs get anything.
    fn finish(c: &mut [f32], bias: Option<&[f32]>, scale: Option<&[f32]>, activation: Activation) {
        let mut biases = [0.0; PANEL];
        let mut scales = [1.0; PANEL];
        if let Some(bias) = bias {
            biases[..bias.len()].copy_from_slice(bias);
        }
        if let Some(scale) = scale {
            scales[..scale.len()].copy_from_slice(scale);
        }
        for row in c.as_chunks_mut::<PANEL>().0 {
            // The compiler would take vectors down the rows, gathered, where it sees that a row follows the other.
            let row = std::hint::black_box(row);
            for ((c, &bias), &scale) in row.iter_mut().zip(&biases).zip(&scales) {
                *c = scale * (*c + bias);
            }
        }
        activation::apply::<FMA>(activation, c);
    }
}
