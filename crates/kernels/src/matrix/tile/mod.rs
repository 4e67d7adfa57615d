//! The innermost product: a block of rows times one panel of 32 outputs. One file an instruction set; this one holds
//! what they share and asserts the shapes.
//!
//! Every result is a sum of chains of multiply-adds, one for each [`DEPTH_BLOCK`] depths, in ascending order: a single chain over tens of
//! thousands of depths (a vocabulary) would lose digits. It is the same whatever the tile it falls in: neither how work was
//! split nor the other rows of the batch show. None multiplies bf16: those that do are in [`super::pairs`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::operand::Ahead;
use super::packed::PANEL;
use crate::cpu::Isa;

/// Most depth rows of one block: a panel's block of 32 KiB stays in the first-level cache while rows pass by.
pub(crate) const DEPTH_BLOCK: usize = 256;

/// Distance between the rows of a packed left block. The extra line spreads the rows over the sets of the cache.
pub(crate) const ROW_STRIDE: usize = DEPTH_BLOCK + 16;

/// One call of the innermost product.
pub(crate) struct Tile<'a> {
    /// Left block, rows [`ROW_STRIDE`] apart.
    pub(crate) a: &'a [f32],
    pub(crate) rows: usize,
    /// Rows of 32 outputs, the block of a panel.
    pub(crate) b: &'a [f32],
    /// Row of `b` for each depth; `None` = depth `k` is row `k`.
    pub(crate) index: Option<&'a [u32]>,
    /// What the next call's `b` will be, or be made of: it is fetched into the cache on the way.
    pub(crate) next: Ahead,
    pub(crate) k: usize,
    /// Outputs of the panel in use; those beyond may get anything.
    pub(crate) outputs: usize,
    /// `[rows, 32]`.
    pub(crate) c: &'a mut [f32],
    /// Whether the chains are added to what `c` holds.
    pub(crate) resume: bool,
}

/// `c = a b` or `c += a b`.
///
/// # Panics
/// If a shape does not fit.
pub(crate) fn multiply(isa: Isa, tile: &mut Tile<'_>) {
    let Tile { rows, k, .. } = *tile;
    assert!(k <= DEPTH_BLOCK, "a block of the depth");
    assert!(rows == 0 || (rows - 1) * ROW_STRIDE + k <= tile.a.len(), "rows of the left block");
    let depth_rows = match tile.index {
        Some(index) => {
            assert_eq!(index.len(), k, "one row of the panel a depth");
            index.iter().max().map_or(0, |&row| row as usize + 1)
        }
        None => k,
    };
    assert!(depth_rows <= tile.b.len() / PANEL, "depth rows of the panel");
    assert!(rows * PANEL <= tile.c.len(), "rows of the result");
    assert!(tile.outputs <= PANEL, "outputs of a panel");
    match isa {
        // SAFETY: the instruction set is there, or there would be no such `Isa`; shapes are asserted above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::multiply(tile) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::multiply(tile) },
        _ => portable::multiply(tile),
    }
}

/// One tile for the vector versions, as pointers: `M` rows of `k` elements at `a` (`ROW_STRIDE` apart), `k` rows at `b`
/// (`PANEL` apart, or as `index` says), `M` rows at `c` (`PANEL` apart).
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Job {
    a: *const f32,
    b: *const f32,
    index: *const u32,
    /// One line a depth is fetched from here, `ahead_step` apart, with an index `PANEL` apart as `b`; may be invalid.
    ahead: *const f32,
    ahead_step: usize,
    k: usize,
    c: *mut f32,
    resume: bool,
}

#[cfg(target_arch = "x86_64")]
impl Job {
    /// Offset of the row of `b` for depth `k`.
    ///
    /// # Safety
    /// If `INDEXED`, `index` holds more than `k` elements.
    #[inline(always)]
    unsafe fn offset<const INDEXED: bool>(&self, k: usize) -> usize {
        // SAFETY: the caller's promise.
        if INDEXED { unsafe { *self.index.add(k) as usize * PANEL } } else { k * PANEL }
    }

    /// Fetches the line for depth `k`, whose row of `b` is at `offset`.
    #[inline(always)]
    fn fetch<const INDEXED: bool>(&self, k: usize, offset: usize) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let offset = if INDEXED { offset } else { k * self.ahead_step };
        // SAFETY: a prefetch may go anywhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(self.ahead.wrapping_add(offset).cast()) };
    }
}

/// Splits `rows` into tiles of at most `most` rows, as equal as can be, and shows each as (first row, rows).
#[inline(always)]
pub(in crate::matrix) fn split_rows(rows: usize, most: usize, mut work: impl FnMut(usize, usize)) {
    let tiles = rows.div_ceil(most);
    let mut first = 0;
    for tile in 0..tiles {
        let count = rows / tiles + usize::from(tile < rows % tiles);
        work(first, count);
        first += count;
    }
}
