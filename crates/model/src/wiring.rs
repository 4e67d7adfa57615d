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
mod rules;
pub mod units;

pub use error::WiringError;
pub use units::Units;

/// Most rows and columns that may die, `layers · (F + (H + key/value heads) · E)`: each makes a rule or two. Llama 3 of
/// 70 B has 80 · 37,888, three quarters of it.
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

/// Sizes of a stack of layers, as far as wiring needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackShape {
    /// Number of layers.
    pub layers: usize,
    /// `D`, the width of the residual stream.
    pub hidden: usize,
    /// `H`, query heads a layer.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub key_value_heads: usize,
    /// `E`, dimensions of a head.
    pub head_dim: usize,
    /// `F`, the width of the feed-forward interior.
    pub feed_forward: usize,
    /// Whether the activation maps 0 to 0, without which a closed up-row says nothing about its down-column.
    pub zero_to_zero: bool,
    /// Whether dimensions `i` and `i + E/2` of queries and keys turn together.
    pub rotary: bool,
    /// Whether the feed-forward block is a SwiGLU, with a projection that gates.
    pub swiglu: bool,
    /// Which projections add a bias.
    pub biases: Biases,
}

/// Which projections of a layer add a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub query_key_value: bool,
    /// The output of attention.
    pub attention_output: bool,
    /// The feed-forward block.
    pub feed_forward: bool,
}

impl StackShape {
    /// An encoder's: every head has keys and values of its own, every projection a bias, and the activation maps 0 to 0.
    pub fn encoder(layers: usize, hidden: usize, heads: usize, feed_forward: usize) -> StackShape {
        StackShape {
            layers,
            hidden,
            heads,
            key_value_heads: heads,
            head_dim: hidden / heads.max(1),
            feed_forward,
            zero_to_zero: true,
            rotary: false,
            swiglu: false,
            biases: Biases { query_key_value: true, attention_output: true, feed_forward: true },
        }
    }

    /// The sizes that a config names.
    pub(crate) fn of(config: &Config) -> StackShape {
        let encoder = StackShape::encoder(config.layers, config.hidden, config.heads, config.feed_forward);
        let zero_to_zero = maps_zero_to_zero(config.activation);
        let Some(decoder) = &config.decoder else { return StackShape { zero_to_zero, ..encoder } };
        StackShape {
            key_value_heads: decoder.key_value_heads,
            head_dim: decoder.head_dim,
            zero_to_zero,
            rotary: true,
            swiglu: true,
            biases: Biases {
                query_key_value: decoder.query_key_value_bias,
                attention_output: decoder.attention_output_bias,
                feed_forward: decoder.feed_forward_bias,
            },
            ..encoder
        }
    }

    /// Rows and columns of a projection by its role.
    fn size(&self, role: Role) -> (usize, usize) {
        let (queries, values) = (self.heads * self.head_dim, self.key_value_heads * self.head_dim);
        match role {
            Role::Query => (queries, self.hidden),
            Role::Key | Role::Value => (values, self.hidden),
            Role::AttentionOutput => (self.hidden, queries),
            Role::Gate | Role::Up => (self.feed_forward, self.hidden),
            Role::Down => (self.hidden, self.feed_forward),
            Role::Unknown => (0, 0),
        }
    }

    fn bias(&self, role: Role) -> bool {
        match role {
            Role::Query | Role::Key | Role::Value => self.biases.query_key_value,
            Role::AttentionOutput => self.biases.attention_output,
            Role::Gate | Role::Up | Role::Down | Role::Unknown => self.biases.feed_forward,
        }
    }

    fn heads(&self) -> rules::Heads {
        rules::Heads { dim: self.head_dim, rotary: self.rotary }
    }

    /// The projections of a layer, of the family's names, in the wiring's order.
    pub(crate) fn projections(&self, family: Family, layer: usize) -> impl Iterator<Item = ProjectionWiring> + use<'_> {
        names::modules(family).iter().map(move |&(role, module)| {
            let path = format!("{}.{layer}.{module}", names::stack(family));
            let ((rows, columns), bias) = (self.size(role), self.bias(role));
            let (row_space, column_space) = spaces(role, layer);
            ProjectionWiring { path, layer, role, rows, columns, row_space, column_space, bias }
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

    /// The projections of a model by its config, without what dies with what: for names and sizes alone, of which
    /// there are few whatever the sizes are.
    pub fn without_rules(config: &Config) -> Wiring {
        let shape = StackShape::of(config);
        let layers = 0..shape.layers;
        let projections = layers.flat_map(|layer| shape.projections(config.family, layer).collect::<Vec<_>>());
        Wiring { projections: projections.collect(), rules: Vec::new() }
    }

    /// The wiring of a checkpoint, module paths with the family's prefix.
    ///
    /// # Errors
    /// As [`Wiring::stack`].
    pub fn from_config(config: &Config) -> Result<Wiring, WiringError> {
        Wiring::stack(config.family, &StackShape::of(config))
    }

    /// The wiring of a stack of the given family and sizes: the projections of a layer in the order query, key, value,
    /// attention output, gate (where there is one), up, down.
    ///
    /// # Errors
    /// [`WiringError::Heads`] if an encoder's `hidden` is not a multiple of `heads`; [`WiringError::TooLarge`].
    pub fn stack(family: Family, shape: &StackShape) -> Result<Wiring, WiringError> {
        let divides = shape.hidden == shape.heads.saturating_mul(shape.head_dim);
        if shape.heads == 0 || !divides && !shape.rotary {
            return Err(WiringError::Heads {
                path: "hidden_size".to_owned(),
                width: shape.hidden,
                head_dim: shape.head_dim,
            });
        }
        let dimensions = shape.heads.saturating_add(shape.key_value_heads).saturating_mul(shape.head_dim);
        let found = shape.layers.saturating_mul(shape.feed_forward.saturating_add(dimensions));
        if found > SIZE_LIMIT {
            return Err(WiringError::TooLarge { found });
        }
        let mut wiring = Wiring::default();
        for layer in 0..shape.layers {
            let mut block = Block::default();
            for projection in shape.projections(family, layer) {
                block.place(projection.role, wiring.projections.len());
                wiring.projections.push(projection);
            }
            wiring.add_block_rules(&block, Some(shape.heads()), shape.zero_to_zero)?;
        }
        wiring.add_whole_projection_rules();
        Ok(wiring)
    }

    /// The wiring of the modules an adapter gates, `(path, rows, columns)` each, without the base model. Roles are
    /// read from the names of any supported family, with or without its prefix; a module that fits none keeps
    /// [`Role::Unknown`] and dies only by its own gates. Projections keep the order given.
    ///
    /// Without `head_dim` all heads of an encoder's layer count as one, and of a decoder's attention nothing dies with
    /// anything, which never removes too much. Activations are taken to map 0 to 0, as in all supported families, and
    /// every projection to have a bias.
    ///
    /// # Errors
    /// Modules named twice, modules of a layer whose sizes do not meet, and widths that are no multiple of `head_dim`.
    pub fn from_paths(modules: &[(&str, usize, usize)], head_dim: Option<usize>) -> Result<Wiring, WiringError> {
        let mut wiring = Wiring::default();
        let mut blocks: BTreeMap<&str, (Block, bool)> = BTreeMap::new();
        let mut seen = std::collections::BTreeSet::new();
        let outside = modules.iter().filter_map(|(path, ..)| names::layer_number(path)).max();
        let outside = outside.map_or(0, |last| last.saturating_add(1));
        for &(path, rows, columns) in modules {
            if !seen.insert(path) {
                return Err(WiringError::Duplicate { path: path.to_owned() });
            }
            match names::recognise(path) {
                Some((stem, layer, role, rotary)) => {
                    let index = wiring.push(path.to_owned(), layer, role, rows, columns);
                    let (block, turns) = blocks.entry(stem).or_default();
                    block.place(role, index);
                    *turns |= rotary;
                }
                None => {
                    let layer = names::layer_number(path).unwrap_or(outside);
                    wiring.push(path.to_owned(), layer, Role::Unknown, rows, columns);
                }
            }
        }
        for (block, rotary) in blocks.values() {
            let heads = head_dim.map(|dim| rules::Heads { dim, rotary: *rotary });
            match heads {
                None if *rotary => wiring.add_feed_forward_rules(block, true)?,
                heads => wiring.add_block_rules(block, heads, true)?,
            }
        }
        wiring.add_whole_projection_rules();
        Ok(wiring)
    }

    /// Gives projections a bias: rows without any live column then still say something.
    pub(crate) fn give_biases(&mut self, indices: &[usize]) {
        for &index in indices {
            self.projections[index].bias = true;
        }
        if indices.is_empty() {
            return;
        }
        let silenced = |rule: &Rule| {
            let [Slots { projection, side: Side::Column, .. }] = rule.when[..] else { return false };
            indices.contains(&projection)
                && *rule == rules::silenced_by_columns(projection, &self.projections[projection])
        };
        let mut rules = std::mem::take(&mut self.rules);
        rules.retain(|rule| !silenced(rule));
        self.rules = rules;
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
}

/// The projections of one layer by role, as far as they are known.
#[derive(Default)]
struct Block {
    query: Option<usize>,
    key: Option<usize>,
    value: Option<usize>,
    output: Option<usize>,
    gate: Option<usize>,
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
            Role::Gate => &mut self.gate,
            Role::Up => &mut self.up,
            Role::Down => &mut self.down,
            Role::Unknown => return,
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
