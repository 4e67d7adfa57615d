//! Which keys a query sees, by panel and by strip of rows: what lies outside is not multiplied.

use std::ops::Range;

use super::Mask;
use crate::matrix::packed::PANEL;

/// Rows of a causal product over keys whose depth is cut to what one of them sees: one tile of the widest vectors.
const STRIP: usize = 14;

/// The keys of one sequence as its queries see them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    pub(super) keys: usize,
    /// `None` without a mask.
    window: Option<usize>,
}

impl Sight {
    pub(super) fn new(mask: Mask, keys: usize) -> Self {
        let window = match mask {
            Mask::Full => None,
            Mask::Causal { window } => Some(window.unwrap_or(usize::MAX)),
        };
        Self { keys, window }
    }

    /// Whether every query sees every key.
    #[inline(always)]
    pub(super) fn full(&self) -> bool {
        self.window.is_none()
    }

    /// The keys that a query sees.
    #[inline(always)]
    pub(super) fn keys_of(&self, query: usize) -> Range<usize> {
        match self.window {
            None => 0..self.keys,
            Some(window) => (query + 1).saturating_sub(window)..query + 1,
        }
    }

    /// The queries that see a key of a panel.
    pub(super) fn queries_of(&self, panel: usize) -> Range<usize> {
        match self.window {
            None => 0..self.keys,
            Some(window) => {
                let last = self.keys.min((panel + 1) * PANEL) - 1;
                panel * PANEL..self.keys.min(last.saturating_add(window))
            }
        }
    }
}

/// The panels with keys of a range.
#[inline(always)]
pub(super) fn panels(keys: &Range<usize>) -> Range<usize> {
    keys.start / PANEL..keys.end.div_ceil(PANEL)
}

/// The lanes of a panel that are keys of a range, if not all are.
#[inline(always)]
pub(super) fn partial(keys: &Range<usize>, panel: usize) -> Option<(usize, usize)> {
    let (start, end) = (panel * PANEL, (panel + 1) * PANEL);
    (start < keys.start || end > keys.end).then(|| (keys.start.saturating_sub(start), keys.end.min(end) - start))
}

/// A block of queries, `rows` of them from `first` on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) sight: Sight,
}

impl Rows {
    /// The keys that row `i` sees.
    #[inline(always)]
    pub(super) fn keys_of(&self, i: usize) -> Range<usize> {
        self.sight.keys_of(self.first + i)
    }

    /// The keys that some of the rows see.
    #[inline(always)]
    pub(super) fn keys_of_all(&self, rows: &Range<usize>) -> Range<usize> {
        self.keys_of(rows.start).start..self.keys_of(rows.end - 1).end
    }

    /// The rows that see a key of a panel.
    pub(super) fn rows_of(&self, panel: usize) -> Range<usize> {
        let queries = self.sight.queries_of(panel);
        let place = |query: usize| query.saturating_sub(self.first).min(self.rows);
        place(queries.start)..place(queries.end).max(place(queries.start))
    }

    /// The rows in the strips whose products over keys are made at once.
    pub(super) fn strips(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, height) = (self.rows, if self.sight.full() { self.rows.max(1) } else { STRIP });
        (0..rows).step_by(height).map(move |start| start..rows.min(start + height))
    }

    /// The panels that the strip of row `i` reads, though the row sees none of their keys: before those it sees and after.
    #[inline(always)]
    pub(super) fn unseen(&self, i: usize) -> [Range<usize>; 2] {
        if self.sight.full() {
            return [0..0, 0..0];
        }
        let start = i / STRIP * STRIP;
        let (seen, read) =
            (panels(&self.keys_of(i)), panels(&self.keys_of_all(&(start..self.rows.min(start + STRIP)))));
        [read.start..seen.start, seen.end..read.end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(length: usize, mask: Mask) -> impl Iterator<Item = Rows> {
        let sight = Sight::new(mask, length);
        (0..length).step_by(100).map(move |first| Rows { first, rows: 100.min(length - first), sight })
    }

    #[test]
    fn panels_rows_and_strips_hold_what_is_seen_and_no_more_than_their_edges() {
        for length in [1, 31, 32, 33, 250] {
            let masks = [1, 2, 31, 32, 33, 100, 1_000].map(|window| Mask::Causal { window: Some(window) });
            for mask in masks.into_iter().chain([Mask::Full, Mask::Causal { window: None }]) {
                for block in blocks(length, mask) {
                    let sees = |i: usize, key: usize| match mask {
                        Mask::Full => true,
                        Mask::Causal { window } => {
                            key <= block.first + i && block.first + i - key < window.unwrap_or(usize::MAX)
                        }
                    };
                    for i in 0..block.rows {
                        let keys: Vec<usize> = (0..length).filter(|&key| sees(i, key)).collect();
                        assert_eq!(block.keys_of(i).collect::<Vec<_>>(), keys);
                        let strip = block.strips().find(|strip| strip.contains(&i)).expect("every row is in a strip");
                        let seen = panels(&block.keys_of(i));
                        let [before, after] = block.unseen(i);
                        let read = panels(&block.keys_of_all(&strip));
                        assert!(before.chain(seen).chain(after).eq(read), "{mask:?} {length}: row {i}");
                    }
                    for panel in 0..length.div_ceil(PANEL) {
                        let keys = panel * PANEL..length.min((panel + 1) * PANEL);
                        let rows = (0..block.rows).filter(|&i| keys.clone().any(|key| sees(i, key)));
                        assert!(block.rows_of(panel).eq(rows), "{mask:?} {length}: panel {panel}");
                        for i in block.rows_of(panel) {
                            let (low, high) = partial(&block.keys_of(i), panel).unwrap_or((0, PANEL));
                            let lanes = (0..PANEL).filter(|lane| keys.contains(&(panel * PANEL + lane)));
                            assert!((low..high).eq(lanes.filter(|lane| sees(i, panel * PANEL + lane))));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_causal_mask_halves_the_products() {
        let length = 512;
        let count = |mask| {
            let (mut scores, mut depths) = (0, 0);
            for block in blocks(length, mask) {
                scores += (0..length / PANEL).map(|panel| block.rows_of(panel).len() * PANEL).sum::<usize>();
                depths += block.strips().map(|rows| rows.len() * block.keys_of_all(&rows).len()).sum::<usize>();
            }
            (scores as f64 / (length * length) as f64, depths as f64 / (length * length) as f64)
        };
        assert_eq!(count(Mask::Full), (1.0, 1.0));
        let (scores, depths) = count(Mask::Causal { window: None });
        assert!(scores < 0.54 && depths < 0.52, "{scores} {depths}");
        let (scores, depths) = count(Mask::Causal { window: Some(64) });
        assert!(scores < 0.20 && depths < 0.16, "{scores} {depths}");
    }
}
