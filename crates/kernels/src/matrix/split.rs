//! How the rows and panels of a product are dealt to tasks. No result depends on it.

use std::ops::Range;

/// The `index`-th of `parts` nearly equal parts of `0..total`.
pub(super) fn part(total: usize, parts: usize, index: usize) -> Range<usize> {
    let start = |index: usize| total / parts * index + (total % parts).min(index);
    start(index)..start(index + 1)
}

/// Small parts at the end of [`RowParts`] for one large one.
const SMALL_PARTS: usize = 4;

/// Elements of a left operand up to which tasks share a copy of it, also where it is more than the second-level cache holds: one over a
/// vocabulary would take tens of megabytes.
const MOST_SHARED: usize = 1 << 20;

/// Rows in parts for tasks that are begun in order: large ones first, since each passes over all panels, and small ones at
/// the end, so that no thread waits long for the last. Rows that fit into one large part are not split.
#[derive(Debug)]
pub(super) struct RowParts {
    rows: usize,
    /// Rows of a unit; all parts but the last are of whole units.
    unit: usize,
    /// Units of a large part.
    most: usize,
    large: usize,
    /// Units behind the large parts, in so many nearly equal parts.
    rest: usize,
    small: usize,
}

impl RowParts {
    /// Parts of at most `most` units of `unit` rows for `threads` threads.
    pub(super) fn new(rows: usize, unit: usize, most: usize, threads: usize) -> Self {
        let units = rows.div_ceil(unit);
        let split = threads > 1 && units > most;
        let large = if split { (units / most).saturating_sub(threads) } else { 0 };
        let rest = units - large * most;
        let small = rest.div_ceil(if split { most.div_ceil(SMALL_PARTS) } else { most });
        Self { rows, unit, most, large, rest, small }
    }

    pub(super) fn count(&self) -> usize {
        self.large + self.small
    }

    /// In how many blocks of at most `most` the panels are split for each part of the rows, so that there are `wanted` tasks.
    pub(super) fn panel_blocks(&self, panels: usize, most: usize, wanted: usize) -> usize {
        panels.div_ceil(most).max(wanted.div_ceil(self.count().max(1))).min(panels)
    }

    /// Whether all tasks take the same rows, so that a copy of the left operand serves them all.
    pub(super) fn share_left(&self, depth: usize, panel_blocks: usize) -> bool {
        self.count() == 1 && panel_blocks > 1 && (1..=MOST_SHARED).contains(&(self.rows * depth))
    }

    /// The rows of a part.
    pub(super) fn rows(&self, index: usize) -> Range<usize> {
        let units = match index.checked_sub(self.large) {
            None => index * self.most..(index + 1) * self.most,
            Some(index) => {
                let (behind, own) = (self.large * self.most, part(self.rest, self.small, index));
                behind + own.start..behind + own.end
            }
        };
        units.start * self.unit..self.rows.min(units.end * self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_rows_once_and_the_last_are_small() {
        let most = 8;
        for rows in [0, 1, 14, 112, 113, 500, 1024, 4096, 100_001] {
            for unit in [1, 14, 32] {
                for threads in [1, 2, 3, 16, 300] {
                    let parts = RowParts::new(rows, unit, most, threads);
                    let case = format!("{rows} rows in units of {unit} for {threads} threads: {parts:?}");
                    let lengths: Vec<usize> = (0..parts.count()).map(|index| parts.rows(index).len()).collect();
                    let starts = lengths.iter().scan(0, |next, length| {
                        *next += length;
                        Some(*next - length)
                    });
                    assert!(starts.eq((0..parts.count()).map(|index| parts.rows(index).start)), "{case}");
                    assert_eq!(lengths.iter().sum::<usize>(), rows, "{case}");
                    assert!(lengths.iter().all(|&length| 0 < length && length <= most * unit), "{case}");
                    assert!(lengths.iter().rev().skip(1).all(|length| length % unit == 0), "{case}");
                    if rows <= most * unit {
                        assert!(parts.count() <= 1, "{case}");
                    } else if threads > 1 {
                        let small = &lengths[lengths.len() - threads.min(lengths.len())..];
                        assert!(small.iter().all(|&length| length <= most / SMALL_PARTS * unit), "{case}");
                    }
                }
            }
        }
    }

    #[test]
    fn one_thread_gets_as_few_parts_as_there_can_be() {
        let parts = RowParts::new(1024, 14, 8, 1);
        let lengths: Vec<usize> = (0..parts.count()).map(|index| parts.rows(index).len()).collect();
        assert_eq!(lengths, [vec![112; 4], vec![98; 5], vec![86]].concat());
    }
}
