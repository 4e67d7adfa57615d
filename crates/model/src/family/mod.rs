//! What distinguishes the families: names of tensors, numbering of positions, the head. Plain data, one file a family.
//! The names of gateable projections are the wiring's.

mod bert;
mod distilbert;
mod mpnet;
mod roberta;
#[cfg(test)]
mod tests;

use finegates_checkpoint::config::{Config, Family};
use finegates_kernels::matrix::Activation;

use crate::embedding::Positions;

/// Where a family keeps its tensors and how its parts differ.
#[derive(Debug, Clone)]
pub struct Description {
    /// Prefix of the encoder's tensors in the sequence classification class, e.g. `bert`.
    pub prefix: &'static str,
    /// Modules under the prefix: word, position and segment embeddings, and their norm.
    pub word: &'static str,
    /// Position table.
    pub position: &'static str,
    /// Segment table, in families that have segments.
    pub segment: Option<&'static str>,
    /// Norm after the embeddings.
    pub embedding_norm: &'static str,
    /// Relative position bias of all layers (MPNet).
    pub relative_bias: Option<&'static str>,
    /// Whether the output of attention is dropped out before it is added to the residual stream.
    pub attention_output_dropout: bool,
    /// Norm after attention, under the layer.
    pub attention_norm: &'static str,
    /// Norm after feed-forward, under the layer.
    pub output_norm: &'static str,
    /// The list of layers under the prefix.
    pub layers: &'static str,
    /// Numbering of positions.
    pub positions: Positions,
    /// The head.
    pub head: HeadDescription,
}

/// The head of a family.
#[derive(Debug, Clone)]
pub struct HeadDescription {
    /// Full name of the dense module.
    pub dense: &'static str,
    /// Full name of the output module.
    pub output: &'static str,
    /// Activation between the two.
    pub activation: Activation,
    /// Whether the dropout also acts before the dense module.
    pub dropout_before: bool,
}

impl Description {
    /// The description of a checkpoint's family.
    pub fn of(config: &Config) -> Self {
        match config.family {
            Family::Bert => bert::describe(),
            Family::Roberta | Family::XlmRoberta => roberta::describe(config),
            Family::DistilBert => distilbert::describe(),
            Family::MpNet => mpnet::describe(),
        }
    }
}
