//! Products of bf16 by units that multiply pairs: the left operand is rounded to bf16 while it is gathered and scaled, two
//! depths to a word; the bf16 panels are taken as they lie; sums are `f32`. One driver; a thin file a unit.
//!
//! A result depends on the depth alone, never on how rows or panels were split: a sum goes through the depth step by step, and where
//! a block ends it is only put down and taken up again. Results differ from those of the `f32` tiles by the rounding of the left operand
//! (`docs/decisions/0005-bf16-products.md`), and between units by the order of the sum.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(any(test, all(target_arch = "x86_64", target_os = "linux")))]
mod emulation;
mod operand;
#[cfg(test)]
mod tests;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod trap;

use std::cell::Cell;
use std::ops::Range;

use super::aligned::Aligned;
use super::driver::Product;
use super::packed::PANEL;
use super::split::{RowParts, part};
use crate::cpu::{Bf16Unit, Isa};
use crate::parallel;
use operand::{GROUP_ROWS, Weight};
use rayon::prelude::*;

/// Depths of a step: what one tile holds in a row of 64 bytes.
const STEP: usize = 32;
/// Words of a step in a row of the left operand: one cache line.
const STEP_WORDS: usize = STEP / 2;
/// Words of a step of a panel.
const PANEL_STEP: usize = STEP_WORDS * PANEL;
/// Rows of a tile. Left blocks and results have room for a multiple of it.
const TILE_ROWS: usize = 16;

/// Most steps that a panel's block has: 32 KiB stay in the first-level cache while rows pass by.
const BLOCK_STEPS: usize = 16;
/// Most steps for which the left block is filled at a time: with the rows of a task on AMX 1 MiB, half a second-level cache. A block
/// that tasks share is of the whole depth.
const FILL_STEPS: usize = 64;
/// Most rows of a task, in units.
const ROW_BLOCK: usize = 8;

/// Most panels of a task whose depth takes several fillings: their unfinished results stay in the second-level cache.
const PANEL_BLOCK: usize = 24;
/// Elements of a left operand from which on several threads round it before tasks share it.
const PARALLEL_ROUNDING: usize = 1 << 14;
/// Results of a product beyond which they are fetched before they are written: as many as half a second-level cache holds.
const FAR: usize = 1 << 18;

/// Rows that a unit computes at once.
fn row_unit(unit: Bf16Unit) -> usize {
    match unit {
        #[cfg(target_arch = "x86_64")]
        Bf16Unit::Avx512Bf16 => avx512::ROWS,
        _ => 2 * TILE_ROWS,
    }
}

/// Multiply-adds below which another task does not pay: a hand-over takes as long.
fn task_multiply_adds(unit: Bf16Unit) -> usize {
    match unit {
        #[cfg(target_arch = "x86_64")]
        Bf16Unit::Avx512Bf16 => 1 << 20,
        _ => 1 << 22,
    }
}

/// One call of the innermost product: rows times a block of one panel.
struct Block<'a> {
    /// Rows of words, `a_stride` apart; a whole number of tiles, those beyond `rows` hold anything.
    a: &'a [u32],
    a_stride: usize,
    rows: usize,
    /// Whole steps of a panel, each 16 rows of 32 words.
    b: &'a [u32],
    /// A last step, filled up with zeros.
    tail: Option<&'a [u32]>,
    /// What the next call's `b` will be: it is fetched into the second-level cache on the way. Need not be valid.
    next: *const u32,
    /// Told of rows before they are computed.
    before: &'a dyn Fn(Range<usize>),
    /// Given rows, from the first one named, when they are computed: while they are in the first-level cache.
    after: &'a dyn Fn(usize, &mut [f32]),
    /// `[rows, 32]`, with room for whole tiles; rows beyond `rows` get anything.
    c: &'a mut [f32],
    /// Whether the sums go on from what `c` holds.
    resume: bool,
}

impl Block<'_> {
    /// Steps of the block, with the tail.
    fn steps(&self) -> usize {
        self.b.len() / PANEL_STEP + usize::from(self.tail.is_some())
    }

    /// # Panics
    /// If a shape does not fit.
    fn check(&self) {
        let rows = self.rows.next_multiple_of(TILE_ROWS);
        assert!(self.b.len().is_multiple_of(PANEL_STEP), "whole steps of a panel");
        assert!(self.tail.is_none_or(|tail| tail.len() == PANEL_STEP), "a whole last step");
        assert!(self.steps() > 0 && self.a_stride >= STEP_WORDS * self.steps(), "steps of a block");
        assert!(
            rows == 0 || (rows - 1) * self.a_stride + STEP_WORDS * self.steps() <= self.a.len(),
            "rows of the left"
        );
        assert!(rows * PANEL <= self.c.len(), "rows of the result");
    }
}

/// `c = a b` or `c += a b`.
///
/// # Panics
/// If a shape does not fit.
fn multiply(unit: Bf16Unit, block: &mut Block<'_>) {
    block.check();
    match unit {
        // SAFETY: the unit is there, or there would be no such `Bf16Unit`; the caller holds `Ready`; shapes were checked.
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Bf16Unit::Amx => unsafe { amx::multiply(block) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Bf16Unit::Avx512Bf16 => unsafe { avx512::multiply(block) },
        #[cfg(test)]
        Bf16Unit::Emulated => emulation::multiply(block),
        #[allow(unreachable_patterns)]
        _ => unreachable!("{unit} is not of this architecture"),
    }
}

/// The state that a unit needs on this thread, for as long as it lives.
struct Ready(Bf16Unit);

impl Ready {
    fn new(unit: Bf16Unit) -> Self {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if unit == Bf16Unit::Amx {
            // SAFETY: the unit is there, or there would be no such `Bf16Unit`.
            unsafe { amx::configure() };
        }
        Self(unit)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.0 == Bf16Unit::Amx {
            // SAFETY: the unit is there, or there would be no such `Bf16Unit`.
            unsafe { amx::release() };
        }
    }
}

/// Multiply-adds of one repeat of [`multiply_tiles`]: four products of 16 by 16 sums over 32 depths.
pub(crate) const TILES_MULTIPLY_ADDS: usize = 4 * TILE_ROWS * 16 * STEP;

/// Products of tiles that never leave the tile registers, `repeats` times four, to see how many can be made; for a unit without
/// such registers nothing.
pub(crate) fn multiply_tiles(unit: Bf16Unit, repeats: usize) {
    let ready = Ready::new(unit);
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Bf16Unit::Amx {
        // SAFETY: the unit is there, or there would be no such `Bf16Unit`, and configured.
        unsafe { amx::repeat(repeats) };
    }
    let _ = repeats;
    drop(ready);
}

#[derive(Default)]
struct Scratch {
    left: Aligned<u32>,
    weight: Aligned<u32>,
    result: Aligned,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
    static LEFT: Cell<Aligned<u32>> = Cell::default();
}

/// Rows of the left operand as words, `stride` apart, with room for whole tiles.
#[derive(Clone, Copy)]
struct Rounded<'a> {
    words: &'a [u32],
    stride: usize,
}

/// Words from one row to the next for so many steps: an odd number of lines spreads the rows over the sets of the cache.
fn stride(steps: usize) -> usize {
    STEP_WORDS * (steps | 1)
}

/// Computes a product whose right operand are the bf16 panels `words` in rayon's current pool.
///
/// # Safety
/// As [`Product::run`].
pub(super) unsafe fn run(product: &Product<'_>, words: &[u32], isa: Isa, unit: Bf16Unit) {
    let work = product.rows * product.outputs * product.depth;
    let threads = rayon::current_num_threads();
    let wanted = if threads == 1 { 1 } else { (work / task_multiply_adds(unit)).clamp(1, 4 * threads) };
    let panels = product.outputs.div_ceil(PANEL);
    let most_panels = if product.depth.div_ceil(STEP) > FILL_STEPS { PANEL_BLOCK } else { panels.max(1) };
    // Rows are split first: they are then rounded once. Panels make up for what is missing.
    let row_parts = RowParts::new(product.rows, row_unit(unit), ROW_BLOCK, wanted.min(threads));
    let panel_blocks = row_parts.panel_blocks(panels, most_panels, wanted);
    let mut left = LEFT.take();
    let whole = row_parts.share_left(product.depth, panel_blocks).then(|| {
        let stride = stride(product.depth.div_ceil(STEP));
        let words = left.room(product.rows.next_multiple_of(TILE_ROWS) * stride);
        let round = |first, words: &mut [u32]| {
            operand::round_rows(&product.left, isa, unit, first, 0..product.depth, words, stride);
        };
        let all = &mut words[..product.rows * stride];
        if threads == 1 || product.rows * product.depth < PARALLEL_ROUNDING {
            round(0, all);
        } else {
            let groups = all.par_chunks_mut(GROUP_ROWS * stride).enumerate();
            groups.for_each(|(group, words)| round(group * GROUP_ROWS, words));
        }
        Rounded { words, stride }
    });
    parallel::tasks(row_parts.count() * panel_blocks, wanted > 1, |task| {
        let (rows, panel_block) = (row_parts.rows(task / panel_blocks), task % panel_blocks);
        let weight = Weight { words, stored_depth: product.right.stored_depth, index: product.right.index };
        // SAFETY: tasks write different rows or different panels; the rest is the caller's promise.
        unsafe { block(product, weight, isa, unit, rows, part(panels, panel_blocks, panel_block), whole) };
    });
    LEFT.set(left);
}

/// `whole`: all rows and depths of the left operand, if they were rounded before.
///
/// # Safety
/// As [`Product::run`], for the rows and panels given.
unsafe fn block(
    product: &Product<'_>,
    weight: Weight<'_>,
    isa: Isa,
    unit: Bf16Unit,
    rows: Range<usize>,
    panels: Range<usize>,
    whole: Option<Rounded<'_>>,
) {
    let mut scratch = SCRATCH.take();
    let steps = product.depth.div_ceil(STEP);
    let fills = if whole.is_some() { 1 } else { steps.div_ceil(FILL_STEPS).max(1) };
    let stride = whole.map_or(stride(steps.div_ceil(fills)), |whole| whole.stride);
    let room = rows.len().next_multiple_of(TILE_ROWS);
    let left = scratch.left.room(if whole.is_some() { 0 } else { room * stride });
    let regrouped = scratch.weight.room(BLOCK_STEPS * PANEL_STEP);
    // With one filling every panel is finished at once and can use the same place.
    let results = scratch.result.room(room * PANEL * if fills == 1 { 1 } else { panels.len() });
    let far = product.target.columns.is_none() && product.rows * product.outputs > FAR;
    let ready = Ready::new(unit);
    for fill in 0..fills {
        let filled = part(steps, fills, fill);
        let depth = filled.start * STEP..product.depth.min(filled.end * STEP);
        if whole.is_none() {
            let words = &mut left[..rows.len() * stride];
            operand::round_rows(&product.left, isa, unit, rows.start, depth, words, stride);
        }
        let left = whole.map_or(&*left, |whole| &whole.words[rows.start * stride..]);
        for panel in panels.clone() {
            let place = if fills == 1 { 0 } else { panel - panels.start };
            let c = &mut results[place * room * PANEL..][..room * PANEL];
            let outputs = PANEL.min(product.outputs - panel * PANEL);
            let finished = product.target.panel(isa, panel, outputs);
            let blocks = filled.len().div_ceil(BLOCK_STEPS);
            for block in 0..blocks {
                let own = part(filled.len(), blocks, block);
                let first = filled.start + own.start;
                let depth = first * STEP..product.depth.min((filled.start + own.end) * STEP);
                let (b, tail) = weight.block(isa, panel, depth.clone(), regrouped);
                let next = match block + 1 == blocks {
                    true if panel + 1 < panels.end => weight.start(panel + 1, filled.start * STEP),
                    _ => weight.start(panel, depth.end),
                };
                let last = fill + 1 == fills && block + 1 == blocks;
                let before = |own: Range<usize>| {
                    if far && last {
                        let rows = rows.start + own.start..rows.start + own.end;
                        // SAFETY: the caller's promise.
                        unsafe { finished.fetch(rows) };
                    }
                };
                let after = |first: usize, c: &mut [f32]| {
                    if last {
                        // SAFETY: the caller's promise.
                        unsafe { finished.write(rows.start + first, c) };
                    }
                };
                let (a, resume, before, after) = (&left[own.start * STEP_WORDS..], first > 0, &before, &after);
                let rows = rows.len();
                multiply(unit, &mut Block { a, a_stride: stride, rows, b, tail, next, before, after, c, resume });
            }
            if steps == 0 {
                let c = &mut c[..rows.len() * PANEL];
                c.fill(0.0);
                // SAFETY: the caller's promise.
                unsafe { finished.write(rows.start, c) };
            }
        }
    }
    drop(ready);
    SCRATCH.set(scratch);
}
