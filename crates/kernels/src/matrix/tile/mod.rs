//! The innermost product: a block of rows times one panel of 32 outputs. One file an instruction set; this one holds
//! what they share and asserts the shapes.
//!
//! Every result is a sum of chains of multiply-adds, one for each [`DEPTH_BLOCK`] depths, in ascending order: a single chain over tens of
//! thousands of depths (a vocabulary) would lose digits. It is the same whatever the tile it falls in: neither how work was
//! split nor the other rows of the batch show. Weights of bf16 are widened before they are multiplied; products of bf16 are in
//! [`super::pairs`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::operand::{Ahead, Block};
use super::packed::PANEL;
use crate::cpu::Isa;

/// Most depth rows of one block: a panel's block of 32 KiB stays in the first-level cache while rows pass by.
pub(crate) const DEPTH_BLOCK: usize = 256;

/// Distance between the rows of a packed left block. The extra line spreads the rows over the sets of the cache, and takes what a gather
/// writes too much.
pub(crate) const ROW_STRIDE: usize = DEPTH_BLOCK + 16;

/// One call of the innermost product.
pub(crate) struct Tile<'a> {
    /// Left block, rows [`ROW_STRIDE`] apart.
    pub(crate) a: &'a [f32],
    pub(crate) rows: usize,
    /// The block of a panel.
    pub(crate) b: Block<'a>,
    /// What the next call's `b` will be, or be made of: as much of it as a line a depth is fetched into the cache on the way.
    pub(crate) next: Ahead,
    pub(crate) k: usize,
    /// Outputs of the panel in use; those beyond may get anything.
    pub(crate) outputs: usize,
    /// `[rows, 32]`.
    pub(crate) c: &'a mut [f32],
    /// Whether the chains are added to what `c` holds.
    pub(crate) resume: bool,
}

/// Rows after which results are best finished, while they are in the first-level cache.
pub(crate) fn rows_at_once(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::MOST_ROWS,
        // Half a panel is used again and again before the other half.
        _ => usize::MAX,
    }
}

/// Whether a block of bf16 is best taken as it is for so many rows. It costs a few operations in every tile; to widen it costs more,
/// but once: even at 64 rows (`docs/experiments/2026-11-24-speed.md`).
pub(crate) fn takes_words(isa: Isa, rows: usize) -> bool {
    isa == Isa::Avx512 && rows <= 64
}

/// `c = a b` or `c += a b`.
///
/// # Panics
/// If a shape does not fit.
pub(crate) fn multiply(isa: Isa, tile: &mut Tile<'_>) {
    let Tile { rows, k, .. } = *tile;
    assert!(k <= DEPTH_BLOCK, "a block of the depth");
    assert!(rows == 0 || (rows - 1) * ROW_STRIDE + k <= tile.a.len(), "rows of the left block");
    let (depth_rows, rows_of_b) = match tile.b {
        Block::Rows(b) => (k, b.len() / PANEL),
        Block::Indexed(b, index) => {
            assert_eq!(index.len(), k, "one row of the panel a depth");
            (index.iter().max().map_or(0, |&row| row as usize + 1), b.len() / PANEL)
        }
        Block::Words(words) => {
            assert!(takes_words(isa, rows), "{isa} takes no words");
            (k.div_ceil(2), words.len() / PANEL)
        }
    };
    assert!(depth_rows <= rows_of_b, "depth rows of the panel");
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

/// Depths in a turn of the innermost loop.
#[cfg(target_arch = "x86_64")]
const STEP: usize = 4;

/// How the rows of `b` lie: as [`Block`] says.
#[cfg(target_arch = "x86_64")]
const PLAIN: u8 = 0;
#[cfg(target_arch = "x86_64")]
const INDEXED: u8 = 1;
#[cfg(target_arch = "x86_64")]
const WORDS: u8 = 2;

/// One tile for the vector versions, as pointers: `M` rows of `k` elements at `a` (`ROW_STRIDE` apart), the block of the panel at `b`,
/// `M` rows at `c` (`PANEL` apart).
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Job {
    a: *const f32,
    b: *const f32,
    index: *const u32,
    /// Fetched on the way, from here on, so many elements further at each depth but the last few; may be invalid.
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
    /// If `KIND` is [`INDEXED`], `index` holds more than `k` elements.
    #[inline(always)]
    unsafe fn offset<const KIND: u8>(&self, k: usize) -> usize {
        match KIND {
            // SAFETY: the caller's promise.
            INDEXED => unsafe { *self.index.add(k) as usize * PANEL },
            WORDS => k / 2 * PANEL,
            _ => k * PANEL,
        }
    }
}

/// Does `$work` for every depth `$k` of a job in order and fetches on the way. A closure would keep the sums out of the registers.
#[cfg(target_arch = "x86_64")]
macro_rules! each_depth {
    ($job:expr, |$k:ident, $odd:ident| $work:block) => {
        let whole = $job.k / STEP * STEP;
        let mut ahead = $job.ahead;
        let mut first = 0;
        while first < whole {
            for step in 0..STEP {
                let ($k, $odd) = (first + step, step % 2 == 1);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                ahead = ahead.wrapping_add($job.ahead_step);
                $work
            }
            first += STEP;
        }
        while first < $job.k {
            let ($k, $odd) = (first, first % 2 == 1);
            $work
            first += 1;
        }
    };
}
#[cfg(target_arch = "x86_64")]
use each_depth;

/// Deals what is fetched ahead to the tiles of a call.
#[cfg(target_arch = "x86_64")]
pub(in crate::matrix) struct AheadOfTiles {
    start: *const f32,
    /// Elements between the fetches of two depths.
    pub(in crate::matrix) step: usize,
    k: usize,
}

#[cfg(target_arch = "x86_64")]
impl AheadOfTiles {
    /// `b` is fetched again where there is nothing else: it costs nothing, unlike to look up an address that is none.
    pub(in crate::matrix) fn new(next: Ahead, b: *const f32, tiles: usize, k: usize) -> Self {
        let start = if next.elements == 0 { b } else { next.start };
        Self { start, step: next.elements.div_ceil((tiles * k).max(1)), k }
    }

    /// Where the next tile begins to fetch.
    pub(in crate::matrix) fn next(&mut self) -> *const f32 {
        let start = self.start;
        self.start = start.wrapping_add(self.step * self.k);
        start
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
