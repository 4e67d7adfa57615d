//! The innermost product: a block of rows times one panel of 32 outputs. One file an instruction set; this one holds what
//! they share and asserts the shapes.
//!
//! Every result is one chain of multiply-adds in ascending depth, whatever the tile it falls in. So results depend neither
//! on how work was split nor on which other rows are in the batch.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

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
    /// `[k, 32]`.
    pub(crate) b: &'a [f32],
    /// What the next call's `b` will be, as far as that is known: it is fetched into the cache on the way.
    pub(crate) next: &'a [f32],
    pub(crate) k: usize,
    /// Outputs of the panel in use; those beyond may get anything.
    pub(crate) outputs: usize,
    /// `[rows, 32]`.
    pub(crate) c: &'a mut [f32],
    /// Whether the chain goes on from what `c` holds.
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
    assert!(k * PANEL <= tile.b.len(), "depth rows of the panel");
    assert!(rows * PANEL <= tile.c.len(), "rows of the result");
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

/// Splits `rows` into tiles of at most `most` rows, as equal as can be, and shows each as (first row, rows).
#[inline(always)]
fn split_rows(rows: usize, most: usize, mut work: impl FnMut(usize, usize)) {
    let tiles = rows.div_ceil(most);
    let mut first = 0;
    for tile in 0..tiles {
        let count = rows / tiles + usize::from(tile < rows % tiles);
        work(first, count);
        first += count;
    }
}
