//! Liveness: which rows and columns still say something once others are closed (METHOD.md §6).
//!
//! The least fixpoint of a wiring's rules, by forward chaining with one counter a rule: time and memory are linear in
//! the size of the rules. What the rules are is the wiring's business, not this file's.

use finegates_model::wiring::{Side, Slots, Wiring};

/// For each row and each column of one projection, whether it is open (or, after liveness, live).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OpenSets {
    /// One flag a row (output).
    pub rows: Vec<bool>,
    /// One flag a column (input).
    pub columns: Vec<bool>,
}

impl OpenSets {
    /// Everything open.
    pub fn all(rows: usize, columns: usize) -> OpenSets {
        OpenSets { rows: vec![true; rows], columns: vec![true; columns] }
    }

    /// How many rows are open.
    pub fn open_rows(&self) -> usize {
        self.rows.iter().filter(|&&open| open).count()
    }

    /// How many columns are open.
    pub fn open_columns(&self) -> usize {
        self.columns.iter().filter(|&&open| open).count()
    }

    /// Weights between an open row and an open column.
    pub fn open_parameters(&self) -> u64 {
        self.open_rows() as u64 * self.open_columns() as u64
    }

    /// Indices of the open rows, ascending.
    pub fn row_indices(&self) -> Vec<u32> {
        indices(&self.rows)
    }

    /// Indices of the open columns, ascending.
    pub fn column_indices(&self) -> Vec<u32> {
        indices(&self.columns)
    }
}

fn indices(flags: &[bool]) -> Vec<u32> {
    flags.iter().enumerate().filter(|&(_, &open)| open).map(|(index, _)| index as u32).collect()
}

/// The rows and columns that stay alive when those not in `open` are closed: the fixpoint of the wiring's rules.
///
/// # Shapes
/// `open` has one entry a projection of the wiring, in its order, with the projection's rows and columns.
///
/// # Panics
/// If `open` or a rule does not fit the wiring.
pub fn liveness(wiring: &Wiring, open: &[OpenSets]) -> Vec<OpenSets> {
    let numbering = Numbering::new(wiring, open);
    let mut dead = vec![false; numbering.slots];
    let mut queue: Vec<usize> = Vec::new();
    for (projection, sets) in open.iter().enumerate() {
        for (side, flags) in [(Side::Row, &sets.rows), (Side::Column, &sets.columns)] {
            let first = numbering.first(projection, side);
            queue.extend((0..flags.len()).filter(|&at| !flags[at]).map(|at| first + at));
        }
    }
    for &slot in &queue {
        dead[slot] = true;
    }

    let watchers = Watchers::new(wiring, &numbering);
    let mut missing: Vec<usize> = wiring.rules.iter().map(|rule| rule.when.iter().map(|run| run.len).sum()).collect();
    let mut fired: Vec<usize> = (0..missing.len()).filter(|&rule| missing[rule] == 0).collect();
    loop {
        while let Some(rule) = fired.pop() {
            for run in &wiring.rules[rule].then {
                for slot in numbering.range(run) {
                    if !std::mem::replace(&mut dead[slot], true) {
                        queue.push(slot);
                    }
                }
            }
        }
        let Some(slot) = queue.pop() else { break };
        for &rule in watchers.of(slot) {
            missing[rule] -= 1;
            if missing[rule] == 0 {
                fired.push(rule);
            }
        }
    }

    let live = |projection, side, len| {
        let first = numbering.first(projection, side);
        dead[first..first + len].iter().map(|dead| !dead).collect()
    };
    let sides = open.iter().enumerate();
    sides
        .map(|(projection, sets)| OpenSets {
            rows: live(projection, Side::Row, sets.rows.len()),
            columns: live(projection, Side::Column, sets.columns.len()),
        })
        .collect()
}

/// Every row and column of every projection under one running number.
struct Numbering {
    /// First row and first column of each projection, then the end.
    firsts: Vec<usize>,
    slots: usize,
}

impl Numbering {
    fn new(wiring: &Wiring, open: &[OpenSets]) -> Numbering {
        assert_eq!(open.len(), wiring.projections.len(), "one set a projection");
        let mut firsts = Vec::with_capacity(2 * open.len() + 1);
        let mut slots = 0;
        for (projection, sets) in wiring.projections.iter().zip(open) {
            assert_eq!(sets.rows.len(), projection.rows, "{}: one flag a row", projection.path);
            assert_eq!(sets.columns.len(), projection.columns, "{}: one flag a column", projection.path);
            firsts.extend([slots, slots + projection.rows]);
            slots += projection.rows + projection.columns;
        }
        firsts.push(slots);
        Numbering { firsts, slots }
    }

    fn index(projection: usize, side: Side) -> usize {
        2 * projection + usize::from(side == Side::Column)
    }

    fn first(&self, projection: usize, side: Side) -> usize {
        self.firsts[Self::index(projection, side)]
    }

    fn range(&self, run: &Slots) -> std::ops::Range<usize> {
        let index = Self::index(run.projection, run.side);
        let start = self.firsts[index] + run.start;
        let end = start + run.len;
        assert!(end <= self.firsts[index + 1], "a rule names slots its projection lacks: {run:?}");
        start..end
    }
}

/// For each slot, the rules that wait for it; a rule that names a slot twice waits for it twice.
struct Watchers {
    /// Where each slot's rules begin, `[slots + 1]`.
    offsets: Vec<usize>,
    rules: Vec<usize>,
}

impl Watchers {
    fn new(wiring: &Wiring, numbering: &Numbering) -> Watchers {
        let mut offsets = vec![0; numbering.slots + 1];
        let waits = || {
            let rules = wiring.rules.iter().enumerate();
            rules.flat_map(|(rule, content)| {
                content.when.iter().flat_map(|run| numbering.range(run)).map(move |slot| (rule, slot))
            })
        };
        for (_, slot) in waits() {
            offsets[slot + 1] += 1;
        }
        for slot in 0..numbering.slots {
            offsets[slot + 1] += offsets[slot];
        }
        let mut next = offsets.clone();
        let mut rules = vec![0; offsets[numbering.slots]];
        for (rule, slot) in waits() {
            rules[next[slot]] = rule;
            next[slot] += 1;
        }
        Watchers { offsets, rules }
    }

    fn of(&self, slot: usize) -> &[usize] {
        &self.rules[self.offsets[slot]..self.offsets[slot + 1]]
    }
}
