//! Wiring: which projections a model has, which space each one's rows and columns live in, and which of them die
//! together. Plain data: liveness, training and reports read it, and none of them knows a family.
//!
//! A rule says "if every one of these slots is closed, those are dead too"; liveness (METHOD.md §6) is the least
//! fixpoint of all rules. This file states the rules and does not apply them.

use std::collections::BTreeMap;

use finegates_checkpoint::Checkpoint;
use finegates_checkpoint::config::{ActivationName, Config, Family};

mod error;
mod names;
pub mod units;

pub use error::WiringError;
pub use units::Units;

/// Most rows and columns that may die, `layers · (F + 2 D)`: each makes a rule or two. The largest encoder of a
/// supported family, XLM-RoBERTa XXL, has 48 · 24,576, a quarter of it.
const SIZE_LIMIT: usize = 1 << 22;

/// The space in which the rows (outputs) or columns (inputs) of a projection live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// The residual stream: read by every norm, so its dimensions never die.
    Residual,
    /// The interior of a feed-forward block.
    FeedForward {
        /// The layer it belongs to, from 0.
        layer: usize,
    },
    /// The query and key dimensions of all heads of a layer, head after head.
    QueryKey {
        /// The layer it belongs to, from 0.
        layer: usize,
    },
    /// The value dimensions of all heads of a layer, head after head: what the attention output reads.
    Value {
        /// The layer it belongs to, from 0.
        layer: usize,
    },
    /// Nothing is known about it, so nothing dies in it but by its own gates.
    Unknown,
}

/// What a projection does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Queries from the residual stream.
    Query,
    /// Keys from the residual stream.
    Key,
    /// Values from the residual stream.
    Value,
    /// From the heads' values back to the residual stream.
    AttentionOutput,
    /// The gating branch of a SwiGLU feed-forward block.
    Gate,
    /// From the residual stream into the feed-forward interior.
    Up,
    /// From the feed-forward interior back to the residual stream.
    Down,
    /// A linear layer whose place is not known (an adapter may gate any module).
    Unknown,
}

/// One linear layer: its place, its shape, and where its rows and columns live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectionWiring {
    /// The module path as in the checkpoint, e.g. `bert.encoder.layer.0.attention.self.query`.
    pub path: String,
    /// The layer it belongs to, from 0. Modules outside every layer share the number after the last one.
    pub layer: usize,
    /// What it does in its layer.
    pub role: Role,
    /// Outputs of the original weight.
    pub rows: usize,
    /// Inputs of the original weight.
    pub columns: usize,
    /// The space of the rows.
    pub row_space: Space,
    /// The space of the columns.
    pub column_space: Space,
    /// Whether it adds a bias. With one, rows without any live column still say something.
    pub bias: bool,
}

/// Rows (outputs) or columns (inputs) of a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Outputs.
    Row,
    /// Inputs.
    Column,
}

/// A run of rows or of columns of one projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slots {
    /// Index into [`Wiring::projections`].
    pub projection: usize,
    /// Rows or columns.
    pub side: Side,
    /// The first one.
    pub start: usize,
    /// How many.
    pub len: usize,
}

impl Slots {
    /// `len` rows of a projection from `start` on.
    pub fn rows(projection: usize, start: usize, len: usize) -> Slots {
        Slots { projection, side: Side::Row, start, len }
    }

    /// `len` columns of a projection from `start` on.
    pub fn columns(projection: usize, start: usize, len: usize) -> Slots {
        Slots { projection, side: Side::Column, start, len }
    }
}

/// If every slot of `when` is closed or dead, every slot of `then` is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The premise. An empty premise always holds.
    pub when: Vec<Slots>,
    /// The conclusion.
    pub then: Vec<Slots>,
}

/// All projections of a model in their fixed order, and all rules among them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Wiring {
    /// Every projection, in the order in which the model holds them.
    pub projections: Vec<ProjectionWiring>,
    /// What dies with what.
    pub rules: Vec<Rule>,
}

/// Sizes of an encoder stack, as far as wiring needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderShape {
    /// Number of layers.
    pub layers: usize,
    /// `D`, the width of the residual stream.
    pub hidden: usize,
    /// `H`, heads a layer; divides `D`.
    pub heads: usize,
    /// `F`, the width of the feed-forward interior.
    pub feed_forward: usize,
    /// Whether the activation maps 0 to 0, without which a closed up-row says nothing about its down-column.
    pub zero_to_zero: bool,
}

impl EncoderShape {
    /// The sizes that a config names.
    pub(crate) fn of(config: &Config) -> EncoderShape {
        EncoderShape {
            layers: config.layers,
            hidden: config.hidden,
            heads: config.heads,
            feed_forward: config.feed_forward,
            zero_to_zero: maps_zero_to_zero(config.activation),
        }
    }

    /// The six projections of a layer in the wiring's order: role, module path, rows and columns.
    pub(crate) fn projections(
        &self,
        family: Family,
        layer: usize,
    ) -> impl Iterator<Item = (Role, String, usize, usize)> + use<'_> {
        names::modules(family).iter().map(move |(role, module)| {
            let (rows, columns) = match role {
                Role::Up => (self.feed_forward, self.hidden),
                Role::Down => (self.hidden, self.feed_forward),
                _ => (self.hidden, self.hidden),
            };
            (*role, format!("{}.{layer}.{module}", names::stack(family)), rows, columns)
        })
    }
}

impl Wiring {
    /// The wiring of a checkpoint whose weights have the sizes its config names. In a compact one nothing is left to
    /// die, so there are no rules.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape, and what [`Wiring::from_config`] refuses.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Wiring, crate::Error> {
        crate::load::shapes::check(checkpoint)?;
        let config = &checkpoint.config;
        if config.compact.is_none() {
            return Ok(Wiring::from_config(config)?);
        }
        Ok(Wiring::without_rules(config))
    }

    /// The projections of an encoder by its config, without what dies with what: for names and sizes alone, of which
    /// there are few whatever the sizes are.
    pub fn without_rules(config: &Config) -> Wiring {
        let (shape, mut wiring) = (EncoderShape::of(config), Wiring::default());
        for layer in 0..shape.layers {
            for (role, path, rows, columns) in shape.projections(config.family, layer) {
                wiring.push(path, layer, role, rows, columns);
            }
        }
        wiring
    }

    /// The wiring of an encoder checkpoint, module paths with the family's prefix.
    ///
    /// # Errors
    /// As [`Wiring::encoder`].
    pub fn from_config(config: &Config) -> Result<Wiring, WiringError> {
        Wiring::encoder(config.family, &EncoderShape::of(config))
    }

    /// The wiring of an encoder of the given family and sizes: six projections a layer, in the order query, key,
    /// value, attention output, up, down.
    ///
    /// # Errors
    /// [`WiringError::Heads`] if `hidden` is not a multiple of `heads`; [`WiringError::TooLarge`].
    pub fn encoder(family: Family, shape: &EncoderShape) -> Result<Wiring, WiringError> {
        if shape.heads == 0 || !shape.hidden.is_multiple_of(shape.heads) {
            return Err(WiringError::Heads {
                path: "hidden_size".to_owned(),
                width: shape.hidden,
                head_dim: shape.hidden / shape.heads.max(1),
            });
        }
        let found = shape.layers.saturating_mul(shape.feed_forward.saturating_add(2 * shape.hidden));
        if found > SIZE_LIMIT {
            return Err(WiringError::TooLarge { found });
        }
        let mut wiring = Wiring::default();
        for layer in 0..shape.layers {
            let mut block = Block::default();
            for (role, path, rows, columns) in shape.projections(family, layer) {
                block.place(role, wiring.push(path, layer, role, rows, columns));
            }
            wiring.add_block_rules(&block, Some(shape.hidden / shape.heads), shape.zero_to_zero)?;
        }
        wiring.add_whole_projection_rules();
        Ok(wiring)
    }

    /// The wiring of the modules an adapter gates, `(path, rows, columns)` each, without the base model. Roles are
    /// read from the names of any supported family, with or without its prefix; a module that fits none keeps
    /// [`Role::Unknown`] and dies only by its own gates. Projections keep the order given.
    ///
    /// Without `head_dim` all heads of a layer count as one, which never removes too much. Activations are taken to
    /// map 0 to 0 and every projection to have a bias, as in all supported families.
    ///
    /// # Errors
    /// Modules named twice, modules of a layer whose sizes do not meet, and widths that are no multiple of `head_dim`.
    pub fn from_paths(modules: &[(&str, usize, usize)], head_dim: Option<usize>) -> Result<Wiring, WiringError> {
        let mut wiring = Wiring::default();
        let mut blocks: BTreeMap<&str, Block> = BTreeMap::new();
        let mut seen = std::collections::BTreeSet::new();
        let outside = modules.iter().filter_map(|(path, ..)| names::layer_number(path)).max();
        let outside = outside.map_or(0, |last| last.saturating_add(1));
        for &(path, rows, columns) in modules {
            if !seen.insert(path) {
                return Err(WiringError::Duplicate { path: path.to_owned() });
            }
            match names::recognise(path) {
                Some((stem, layer, role)) => {
                    let index = wiring.push(path.to_owned(), layer, role, rows, columns);
                    blocks.entry(stem).or_default().place(role, index);
                }
                None => {
                    let layer = names::layer_number(path).unwrap_or(outside);
                    wiring.push(path.to_owned(), layer, Role::Unknown, rows, columns);
                }
            }
        }
        for block in blocks.values() {
            wiring.add_block_rules(block, head_dim, true)?;
        }
        wiring.add_whole_projection_rules();
        Ok(wiring)
    }

    /// The index of the projection with this module path.
    pub fn position(&self, path: &str) -> Option<usize> {
        self.projections.iter().position(|projection| projection.path == path)
    }

    /// Adds a projection with the spaces of its role and returns its index.
    fn push(&mut self, path: String, layer: usize, role: Role, rows: usize, columns: usize) -> usize {
        let (row_space, column_space) = spaces(role, layer);
        let bias = true;
        self.projections.push(ProjectionWiring { path, layer, role, rows, columns, row_space, column_space, bias });
        self.projections.len() - 1
    }

    /// The rules inside one layer. Partners that are missing (not gated, base unknown) close nothing.
    fn add_block_rules(
        &mut self,
        block: &Block,
        head_dim: Option<usize>,
        zero_to_zero: bool,
    ) -> Result<(), WiringError> {
        // An inner unit is dead if its up-row or its down-column is closed. The first direction needs act(0) = 0.
        if let (Some(up), Some(down)) = (block.up, block.down) {
            let units = self.meet((up, Side::Row), (down, Side::Column))?;
            for unit in 0..units {
                if zero_to_zero {
                    self.imply(Slots::rows(up, unit, 1), Slots::columns(down, unit, 1));
                }
                self.imply(Slots::columns(down, unit, 1), Slots::rows(up, unit, 1));
            }
        }
        if let (Some(value), Some(output)) = (block.value, block.output) {
            let dimensions = self.meet((value, Side::Row), (output, Side::Column))?;
            for dimension in 0..dimensions {
                self.imply(Slots::rows(value, dimension, 1), Slots::columns(output, dimension, 1));
                self.imply(Slots::columns(output, dimension, 1), Slots::rows(value, dimension, 1));
            }
        }
        if let (Some(query), Some(key)) = (block.query, block.key) {
            let dimensions = self.meet((query, Side::Row), (key, Side::Row))?;
            for dimension in 0..dimensions {
                self.imply(Slots::rows(query, dimension, 1), Slots::rows(key, dimension, 1));
                self.imply(Slots::rows(key, dimension, 1), Slots::rows(query, dimension, 1));
            }
        }
        self.add_head_rules(block, head_dim)
    }

    /// A head with no live value dimension needs no queries and no keys. The value rows speak for the head; where
    /// they are not wired, the output columns do.
    fn add_head_rules(&mut self, block: &Block, head_dim: Option<usize>) -> Result<(), WiringError> {
        let Some(speaker) = block.value.map(|value| (value, Side::Row)).or(block.output.map(|o| (o, Side::Column)))
        else {
            return Ok(());
        };
        let listeners: Vec<usize> = block.query.into_iter().chain(block.key).collect();
        for &listener in &listeners {
            self.meet((listener, Side::Row), speaker)?;
        }
        let width = self.size(speaker);
        let head_dim = head_dim.unwrap_or(width);
        if width == 0 {
            return Ok(());
        }
        if head_dim == 0 || !width.is_multiple_of(head_dim) {
            let path = self.projections[speaker.0].path.clone();
            return Err(WiringError::Heads { path, width, head_dim });
        }
        for start in (0..width).step_by(head_dim) {
            if listeners.is_empty() {
                break;
            }
            let when = vec![Slots { projection: speaker.0, side: speaker.1, start, len: head_dim }];
            let then = listeners.iter().map(|&listener| Slots::rows(listener, start, head_dim)).collect();
            self.rules.push(Rule { when, then });
        }
        Ok(())
    }

    /// A projection without a live row reads nothing. One without a live column still adds its bias, so its rows die
    /// only where there is none.
    fn add_whole_projection_rules(&mut self) {
        for (index, projection) in self.projections.iter().enumerate() {
            let rows = Slots::rows(index, 0, projection.rows);
            let columns = Slots::columns(index, 0, projection.columns);
            self.rules.push(Rule { when: vec![rows], then: vec![columns] });
            if !projection.bias {
                self.rules.push(Rule { when: vec![columns], then: vec![rows] });
            }
        }
    }

    fn imply(&mut self, when: Slots, then: Slots) {
        self.rules.push(Rule { when: vec![when], then: vec![then] });
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

/// The projections of one layer by role, as far as they are known.
#[derive(Default)]
struct Block {
    query: Option<usize>,
    key: Option<usize>,
    value: Option<usize>,
    output: Option<usize>,
    up: Option<usize>,
    down: Option<usize>,
}

impl Block {
    fn place(&mut self, role: Role, index: usize) {
        let place = match role {
            Role::Query => &mut self.query,
            Role::Key => &mut self.key,
            Role::Value => &mut self.value,
            Role::AttentionOutput => &mut self.output,
            Role::Up => &mut self.up,
            Role::Down => &mut self.down,
            Role::Gate | Role::Unknown => return,
        };
        *place = Some(index);
    }
}

/// The spaces of the rows and of the columns of a projection by its role.
fn spaces(role: Role, layer: usize) -> (Space, Space) {
    match role {
        Role::Query | Role::Key => (Space::QueryKey { layer }, Space::Residual),
        Role::Value => (Space::Value { layer }, Space::Residual),
        Role::AttentionOutput => (Space::Residual, Space::Value { layer }),
        Role::Gate | Role::Up => (Space::FeedForward { layer }, Space::Residual),
        Role::Down => (Space::Residual, Space::FeedForward { layer }),
        Role::Unknown => (Space::Unknown, Space::Unknown),
    }
}

/// Whether an activation maps 0 to 0; without that a closed unit would still speak.
fn maps_zero_to_zero(activation: ActivationName) -> bool {
    match activation {
        ActivationName::Gelu
        | ActivationName::GeluNew
        | ActivationName::Relu
        | ActivationName::Silu
        | ActivationName::Tanh => true,
    }
}

#[cfg(test)]
#[path = "wiring_tests.rs"]
mod tests;
