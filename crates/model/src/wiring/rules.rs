//! What dies together inside a layer (METHOD.md §6), as rules: inner units, value dimensions with the columns that read
//! them, query and key dimensions or rotary pairs, heads, whole projections.

use super::{Block, ProjectionWiring, Rule, Side, Slots, Wiring, WiringError};

/// How the dimensions of queries, keys and values make up heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// `E`, dimensions of a head.
    pub(super) dim: usize,
    /// Whether dimensions `i` and `i + E/2` of queries and keys turn together.
    pub(super) rotary: bool,
}

impl Wiring {
    /// The rules inside one layer. Partners that are missing (not gated, base unknown) close nothing. Without `heads`
    /// all dimensions are one head's.
    pub(super) fn add_block_rules(
        &mut self,
        block: &Block,
        heads: Option<Heads>,
        zero_to_zero: bool,
    ) -> Result<(), WiringError> {
        self.add_feed_forward_rules(block, zero_to_zero)?;
        if let (Some(value), Some(output)) = (block.value, block.output) {
            let dim = heads.map(|heads| heads.dim);
            let (groups, sharing, dim) = self.groups((output, Side::Column), (value, Side::Row), dim)?;
            for (group, dimension) in each(groups, dim) {
                let value = vec![Slots::rows(value, group * dim + dimension, 1)];
                let column = |head| Slots::columns(output, (group * sharing + head) * dim + dimension, 1);
                let outputs: Vec<Slots> = (0..sharing).map(column).collect();
                self.rules.push(Rule { when: value.clone(), then: outputs.clone() });
                self.rules.push(Rule { when: outputs, then: value });
            }
        }
        if let (Some(query), Some(key)) = (block.query, block.key) {
            let dim = heads.map(|heads| heads.dim);
            let (groups, sharing, dim) = self.groups((query, Side::Row), (key, Side::Row), dim)?;
            // A rotary pair is dead when both of its rows are closed; without rotation every dimension is by itself.
            let half = if heads.is_some_and(|heads| heads.rotary) { dim / 2 } else { 0 };
            let parts = if half > 0 { vec![0, half] } else { vec![0] };
            for (group, dimension) in each(groups, dim / parts.len()) {
                let rows = |projection, head: usize| {
                    let run = |&part: &usize| Slots::rows(projection, head * dim + part + dimension, 1);
                    parts.iter().map(run).collect::<Vec<Slots>>()
                };
                let keys = rows(key, group);
                let queries: Vec<Slots> = (0..sharing).flat_map(|head| rows(query, group * sharing + head)).collect();
                self.rules.push(Rule { when: queries.clone(), then: keys.clone() });
                self.rules.push(Rule { when: keys, then: queries });
            }
        }
        self.add_head_rules(block, heads.map(|heads| heads.dim))
    }

    /// An inner unit is dead if its gate-row, up-row or down-column is closed. A closed gate-row, or an up-row that
    /// nothing gates, needs act(0) = 0 for that.
    pub(super) fn add_feed_forward_rules(&mut self, block: &Block, zero_to_zero: bool) -> Result<(), WiringError> {
        let places = [(block.gate, Side::Row), (block.up, Side::Row), (block.down, Side::Column)];
        let known: Vec<(usize, Side)> = places.iter().filter_map(|&(index, side)| Some((index?, side))).collect();
        let Some((&first, others)) = known.split_first() else { return Ok(()) };
        for &other in others {
            self.meet(first, other)?;
        }
        let silences = |&(index, side): &(usize, Side)| {
            zero_to_zero || side == Side::Column || block.gate.is_some_and(|gate| gate != index)
        };
        for unit in 0..self.size(first) {
            let slot = |&(projection, side): &(usize, Side)| Slots { projection, side, start: unit, len: 1 };
            for premise in known.iter().filter(|place| silences(place)) {
                let then: Vec<Slots> = known.iter().filter(|place| *place != premise).map(slot).collect();
                if !then.is_empty() {
                    self.rules.push(Rule { when: vec![slot(premise)], then });
                }
            }
        }
        Ok(())
    }

    /// A head with no live value dimension needs no queries, and keys that no head needs are needed by nobody. The
    /// value rows speak for the head where it has them for itself, else the output columns.
    fn add_head_rules(&mut self, block: &Block, head_dim: Option<usize>) -> Result<(), WiringError> {
        let value = block.value.map(|value| (value, Side::Row));
        let output = block.output.map(|output| (output, Side::Column));
        let query = block.query.map(|query| (query, Side::Row));
        let key = block.key.map(|key| (key, Side::Row));
        // Sizes of the query heads' side and of the shared heads' side, whichever are known.
        let (Some(many), Some(few)) = (query.or(output).or(value), key.or(value).or(output)) else { return Ok(()) };
        let (groups, sharing, dim) = self.groups(many, few, head_dim)?;
        for (known, expected) in [(query, many), (output, many), (key, few), (value, few)] {
            if let Some(known) = known {
                self.meet(known, expected)?;
            }
        }
        let run = |(projection, side): (usize, Side), head: usize, heads: usize| Slots {
            projection,
            side,
            start: head * dim,
            len: heads * dim,
        };
        for group in 0..groups {
            let first = group * sharing;
            let whole = value.map(|value| run(value, group, 1)).or(output.map(|output| run(output, first, sharing)));
            let Some(whole) = whole else { continue };
            let keys = key.map(|key| run(key, group, 1));
            if sharing == 1 {
                let then: Vec<Slots> = query.map(|query| run(query, group, 1)).into_iter().chain(keys).collect();
                if !then.is_empty() {
                    self.rules.push(Rule { when: vec![whole], then });
                }
                continue;
            }
            self.rules.extend(keys.map(|keys| Rule { when: vec![whole], then: vec![keys] }));
            for head in first..first + sharing {
                let when = output.map_or(whole, |output| run(output, head, 1));
                self.rules.extend(query.map(|query| Rule { when: vec![when], then: vec![run(query, head, 1)] }));
            }
        }
        Ok(())
    }

    /// How many groups of heads there are, how many heads share a group's keys and values, and the dimensions of a
    /// head, from the sizes of the sides where every head has its own and where they share.
    fn groups(
        &self,
        many: (usize, Side),
        few: (usize, Side),
        head_dim: Option<usize>,
    ) -> Result<(usize, usize, usize), WiringError> {
        let (width, shared) = (self.size(many), self.size(few));
        let Some(dim) = head_dim else {
            return Ok((1, 1, self.meet(few, many)?));
        };
        for (side, width) in [(many, width), (few, shared)] {
            if dim == 0 || !width.is_multiple_of(dim) {
                let path = self.projections[side.0].path.clone();
                return Err(WiringError::Heads { path, width, head_dim: dim });
            }
        }
        if shared == 0 || !width.is_multiple_of(shared) {
            self.meet(many, few)?;
            return Ok((0, 1, dim));
        }
        Ok((shared / dim, width / shared, dim))
    }

    /// A projection without a live row reads nothing. One without a live column still adds its bias, so its rows die
    /// only where there is none.
    pub(super) fn add_whole_projection_rules(&mut self) {
        for (index, projection) in self.projections.iter().enumerate() {
            let silenced = silenced_by_columns(index, projection);
            self.rules.push(Rule { when: silenced.then.clone(), then: silenced.when.clone() });
            if !projection.bias {
                self.rules.push(silenced);
            }
        }
    }

    fn size(&self, (projection, side): (usize, Side)) -> usize {
        match side {
            Side::Row => self.projections[projection].rows,
            Side::Column => self.projections[projection].columns,
        }
    }

    /// The common size of two sides that live in one space.
    fn meet(&self, one: (usize, Side), other: (usize, Side)) -> Result<usize, WiringError> {
        let (found, expected) = (self.size(one), self.size(other));
        if found == expected {
            return Ok(found);
        }
        Err(WiringError::SizesDiffer {
            path: self.projections[one.0].path.clone(),
            side: match one.1 {
                Side::Row => "rows",
                Side::Column => "columns",
            },
            partner: self.projections[other.0].path.clone(),
            expected,
            found,
        })
    }
}

/// Without a live column a projection that has no bias says nothing.
pub(super) fn silenced_by_columns(index: usize, projection: &ProjectionWiring) -> Rule {
    let (rows, columns) = (Slots::rows(index, 0, projection.rows), Slots::columns(index, 0, projection.columns));
    Rule { when: vec![columns], then: vec![rows] }
}

/// Every pair of numbers below two limits.
fn each(groups: usize, dimensions: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..groups).flat_map(move |group| (0..dimensions).map(move |dimension| (group, dimension)))
}
