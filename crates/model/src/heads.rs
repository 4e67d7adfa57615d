//! Where the heads of an attention block lie in the rows and columns of its projections, whole or with what removal
//! left: grouped heads share keys and values, rotary pairs stay together, and each head has a size of its own.

use finegates_kernels::attention::Head;
use finegates_kernels::rotary::RotaryHead;

/// How heads are made up before any removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// `H`, query heads.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub key_value_heads: usize,
    /// `E`, dimensions of a head.
    pub dim: usize,
    /// Whether dimensions `i` and `i + E/2` of queries and keys turn together.
    pub rotary: bool,
}

/// Original indices of what is left of a block's projections, each ascending.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// Rows of the query projection.
    pub query: &'a [u32],
    /// Rows of the key projection.
    pub key: &'a [u32],
    /// Rows of the value projection.
    pub value: &'a [u32],
    /// Columns of the output projection.
    pub output: &'a [u32],
}

/// A head's first column and the original pairs that are left of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Turning {
    start: usize,
    pairs: Vec<u32>,
}

/// The live heads of a block.
#[derive(Debug, Clone, Default)]
pub struct Heads {
    /// Where each live head lies.
    pub heads: Vec<Head>,
    query_turning: Vec<Turning>,
    key_turning: Vec<Turning>,
}

/// The names of two projections that keep different dimensions of the space between them.
pub type Mismatch = (&'static str, &'static str);

/// Where kept rows or columns lie in a space, and how wide it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// One place for each.
    pub places: Vec<u32>,
    /// The width of the space.
    pub width: usize,
}

/// Heads with the places of what is left of their projections.
#[derive(Debug, Clone, Default)]
pub struct LaidOut {
    /// The heads.
    pub heads: Heads,
    /// Places of the query projection's rows.
    pub query: Places,
    /// Places of the key projection's rows.
    pub key: Places,
    /// Places of the output projection's columns.
    pub output: Places,
}

impl Heads {
    /// The query heads that turn.
    pub fn query_turns(&self) -> Vec<RotaryHead<'_>> {
        self.query_turning.iter().map(|turning| RotaryHead { start: turning.start, pairs: &turning.pairs }).collect()
    }

    /// The key heads that turn.
    pub fn key_turns(&self) -> Vec<RotaryHead<'_>> {
        self.key_turning.iter().map(|turning| RotaryHead { start: turning.start, pairs: &turning.pairs }).collect()
    }
}

impl HeadShape {
    /// All heads of a block of which nothing is removed.
    pub fn whole(&self) -> Heads {
        let all = |heads: usize| -> Vec<u32> { (0..heads * self.dim).map(|index| index as u32).collect() };
        let (many, few) = (all(self.heads), all(self.key_value_heads));
        let left = Left { query: &many, key: &few, value: &few, output: &many };
        self.lay_out(&left).map(|laid_out| laid_out.heads).unwrap_or_default()
    }

    /// Lays out what is left: in each group of heads the units (rotary pairs, or single dimensions) of which any key row
    /// is left, first halves before second halves, and the dimensions of which the value row is left.
    ///
    /// A head without any output column is gone. A row that is closed while its partner lives has a place and no row.
    ///
    /// # Errors
    /// What is left of two projections does not fit together: which two, and how.
    pub fn lay_out(&self, left: &Left<'_>) -> Result<LaidOut, Mismatch> {
        let sharing = self.heads / self.key_value_heads.max(1);
        let mut laid_out = LaidOut::default();
        let mut values = 0;
        for group in 0..self.key_value_heads {
            let keys = self.of_head(left.key, group);
            let units = self.units(keys);
            let dimensions: Vec<u32> = self.of_head(left.value, group).iter().map(|&row| self.dimension(row)).collect();
            let width = units.len() * self.parts();
            let key_start = laid_out.key.width;
            self.place(keys, &units, key_start, &mut laid_out.key).ok_or(("key", "key"))?;
            if self.rotary {
                laid_out.heads.key_turning.push(Turning { start: key_start, pairs: units.clone() });
            }
            laid_out.key.width += width;
            let (mut queried, mut read) = (vec![false; units.len()], vec![false; dimensions.len()]);
            for head in group * sharing..(group + 1) * sharing {
                let (queries, columns) = (self.of_head(left.query, head), self.of_head(left.output, head));
                if columns.is_empty() {
                    match queries.is_empty() {
                        true => continue,
                        false => return Err(("query", "output")),
                    }
                }
                let (query_start, output_start) = (laid_out.query.width, laid_out.output.width);
                self.place(queries, &units, query_start, &mut laid_out.query).ok_or(("query", "key"))?;
                for unit in self.units(queries) {
                    queried[units.binary_search(&unit).map_err(|_| ("query", "key"))?] = true;
                }
                for &column in columns {
                    let rank =
                        dimensions.binary_search(&self.dimension(column)).map_err(|_| ("value", "attention output"))?;
                    read[rank] = true;
                    laid_out.output.places.push((output_start + rank) as u32);
                }
                laid_out.heads.heads.push(Head {
                    query: (query_start, width),
                    key: (key_start, width),
                    value: (values, dimensions.len()),
                    output: (output_start, dimensions.len()),
                    bias: head,
                });
                if self.rotary {
                    laid_out.heads.query_turning.push(Turning { start: query_start, pairs: units.clone() });
                }
                laid_out.query.width += width;
                laid_out.output.width += dimensions.len();
            }
            values += dimensions.len();
            if !queried.iter().all(|&queried| queried) {
                return Err(("query", "key"));
            }
            if !read.iter().all(|&read| read) {
                return Err(("value", "attention output"));
            }
        }
        Ok(laid_out)
    }

    fn parts(&self) -> usize {
        if self.rotary { 2 } else { 1 }
    }

    /// Dimensions that one unit stands for the first of.
    fn span(&self) -> usize {
        self.dim / self.parts()
    }

    fn dimension(&self, index: u32) -> u32 {
        (index as usize % self.dim) as u32
    }

    /// The indices of one head among all, ascending.
    fn of_head<'a>(&self, indices: &'a [u32], head: usize) -> &'a [u32] {
        let before = |limit: usize| indices.partition_point(|&index| (index as usize) < limit);
        &indices[before(head * self.dim)..before((head + 1) * self.dim)]
    }

    /// The units of which any of these indices of one head is a part, ascending.
    fn units(&self, indices: &[u32]) -> Vec<u32> {
        let span = self.span() as u32;
        let mut units: Vec<u32> = indices.iter().map(|&index| self.dimension(index) % span).collect();
        units.sort_unstable();
        units.dedup();
        units
    }

    /// Adds the places of one head's indices, the head beginning at `start`; none if a unit is not among `units`.
    fn place(&self, indices: &[u32], units: &[u32], start: usize, places: &mut Places) -> Option<()> {
        let span = self.span();
        for &index in indices {
            let dimension = self.dimension(index) as usize;
            let rank = units.binary_search(&((dimension % span) as u32)).ok()?;
            places.places.push((start + dimension / span * units.len() + rank) as u32);
        }
        Some(())
    }
}

impl Places {
    /// The places and the width, or none where they stand side by side and fill it.
    pub fn unless_side_by_side(self) -> Option<Places> {
        let side_by_side =
            self.places.len() == self.width && self.places.iter().enumerate().all(|(at, &p)| at == p as usize);
        (!side_by_side).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPED: HeadShape = HeadShape { heads: 4, key_value_heads: 2, dim: 4, rotary: true };

    fn all(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    #[test]
    fn whole_heads_stand_side_by_side() {
        let heads = GROUPED.whole();
        assert_eq!(heads.heads.len(), 4);
        assert_eq!((heads.heads[3].query, heads.heads[3].key, heads.heads[3].output), ((12, 4), (4, 4), (12, 4)));
        assert_eq!(heads.heads[1].value, (0, 4));
        assert_eq!(heads.query_turns()[2].pairs, [0, 1]);
        let (many, few) = (all(16), all(8));
        let left = Left { query: &many, key: &few, value: &few, output: &many };
        let laid_out = GROUPED.lay_out(&left).expect("whole");
        assert_eq!(laid_out.query.unless_side_by_side(), None);
        assert_eq!(laid_out.output.unless_side_by_side(), None);
    }

    /// Of the first group pair 1 is left, of which one key row is closed; its second head has no output column. The
    /// second group has lost value dimension 2, and column 1 of its first head alone.
    #[test]
    fn what_is_left_keeps_its_pairs_and_its_groups() {
        let query = [1, 3, 8, 9, 10, 11, 12, 13, 14, 15];
        let key = [1, 4, 5, 6, 7];
        let value = [0, 1, 4, 5, 7];
        let output = [0, 1, 8, 11, 12, 13, 15];
        let left = Left { query: &query, key: &key, value: &value, output: &output };
        let laid_out = GROUPED.lay_out(&left).expect("it fits");
        let heads = &laid_out.heads.heads;
        assert_eq!(heads.iter().map(|head| head.bias).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!((heads[0].query, heads[0].key, heads[0].value, heads[0].output), ((0, 2), (0, 2), (0, 2), (0, 2)));
        assert_eq!((heads[1].query, heads[1].key, heads[1].value, heads[1].output), ((2, 4), (2, 4), (2, 3), (2, 3)));
        assert_eq!((heads[2].query, heads[2].key, heads[2].output), ((6, 4), (2, 4), (5, 3)));
        assert_eq!((laid_out.key.width, laid_out.key.places), (6, vec![0, 2, 3, 4, 5]));
        assert_eq!((laid_out.output.width, laid_out.output.places), (8, vec![0, 1, 2, 4, 5, 6, 7]));
        assert_eq!(laid_out.heads.query_turning[0], Turning { start: 0, pairs: vec![1] });
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let (many, few) = (all(16), all(8));
        let whole = Left { query: &many, key: &few, value: &few, output: &many };
        let refused = |left: Left<'_>| GROUPED.lay_out(&left).expect_err("it does not fit");
        let without: Vec<u32> = few.iter().copied().filter(|&row| row != 1 && row != 3).collect();
        assert_eq!(refused(Left { key: &without, ..whole }), ("query", "key"));
        assert_eq!(refused(Left { value: &without, ..whole }), ("value", "attention output"));
        assert_eq!(refused(Left { output: &many[4..], ..whole }), ("query", "output"));
        assert_eq!(refused(Left { query: &[], ..whole }), ("query", "key"));
    }
}
