//! Everything that can go wrong between a checkpoint and a running model.

use finegates_checkpoint as checkpoint;

/// An error of loading or running a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint's files could not be read or are not what they claim.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The configuration's sizes do not fit together.
    #[error("config.json: {0}")]
    Wiring(#[from] crate::wiring::WiringError),
    /// A token id lies outside the embedding table.
    #[error(
        "token id {token} in sequence {sequence} is outside the vocabulary of {vocabulary}; was the text encoded with another model's tokenizer?"
    )]
    Token {
        /// The offending id.
        token: u32,
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Rows of the embedding table.
        vocabulary: usize,
    },
    /// A segment (token type) id lies outside its table.
    #[error("segment id {segment} in sequence {sequence} is outside the table of {segments}")]
    Segment {
        /// The offending id.
        segment: u32,
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Rows of the segment table.
        segments: usize,
    },
    /// A sequence is empty or longer than the position table.
    #[error("sequence {sequence} has {length} tokens, the model takes 1 to {limit}")]
    Length {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Its length.
        length: usize,
        /// The most the position table allows.
        limit: usize,
    },
    /// A tensor of an adapter does not fit the model.
    #[error(
        "adapter_model.safetensors: {name}: expected {expected} values, found {found}; was it trained on another model?"
    )]
    AdapterShape {
        /// Tensor name.
        name: String,
        /// Values the model has room for.
        expected: usize,
        /// Values the adapter holds.
        found: usize,
    },
    /// An adapter names a module that the model lacks.
    #[error(
        "adapter_model.safetensors: {name}: the model has no such module (its gated modules look like {example}); was it trained on another model?"
    )]
    AdapterName {
        /// Tensor name.
        name: String,
        /// A name that would have fitted.
        example: String,
    },
    /// Two tensors of a compact checkpoint contradict each other.
    #[error("model.safetensors: {0}")]
    Compact(String),
    /// Something was asked for that this kind of model cannot do.
    #[error("{0}")]
    Unsupported(String),
}
