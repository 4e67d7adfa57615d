//! What distinguishes the families: names of tensors, numbering of positions, the head. Plain data, one file a family.
//! The names of gateable projections are the wiring's.

mod bert;
mod distilbert;
mod llama;
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
    /// Prefix of the stack's tensors in the classes with a head, e.g. `bert`.
    pub prefix: &'static str,
    /// Modules under the prefix: word, position and segment embeddings, and their norm.
    pub word: &'static str,
    /// Position table, in families that have one.
    pub position: Option<&'static str>,
    /// Segment table, in families that have segments.
    pub segment: Option<&'static str>,
    /// Norm after the embeddings, in families that have one.
    pub embedding_norm: Option<&'static str>,
    /// Relative position bias of all layers (MPNet).
    pub relative_bias: Option<&'static str>,
    /// Whether the output of attention is dropped out before it is added to the residual stream.
    pub attention_output_dropout: bool,
    /// Attention's norm, under the layer.
    pub attention_norm: &'static str,
    /// The feed-forward block's norm, under the layer.
    pub feed_forward_norm: &'static str,
    /// Norm after the last layer, in families that norm before their blocks.
    pub last_norm: Option<&'static str>,
    /// The list of layers under the prefix.
    pub layers: &'static str,
    /// Numbering of positions.
    pub positions: Positions,
    /// The classifier on the first token; none in decoders, whose heads all have the same form.
    pub head: Option<HeadDescription>,
}

/// The output embedding of a decoder, where it is not the input embedding.
pub const LANGUAGE_HEAD: &str = "lm_head";
/// The classifier of a decoder.
pub const LAST_TOKEN_HEAD: &str = "score";

/// The classifier of an encoder's family.
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
            Family::Llama | Family::Mistral | Family::Qwen2 => llama::describe(),
        }
    }
}
