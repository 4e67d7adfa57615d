//! Why projections do not fit together.

use super::SIZE_LIMIT;

/// Why projections do not fit together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WiringError {
    /// Two projections of one layer share a space but not its size.
    #[error("{path}: expected {expected} {side} to meet {partner}, found {found}; were both gated in the same model?")]
    SizesDiffer {
        /// The projection that does not fit.
        path: String,
        /// `rows` or `columns`.
        side: &'static str,
        /// The one it has to meet.
        partner: String,
        /// The partner's size.
        expected: usize,
        /// Its own size.
        found: usize,
    },
    /// One module is named twice.
    #[error("{path}: named twice; remove one of the two")]
    Duplicate {
        /// The module.
        path: String,
    },
    /// More rows and columns than any encoder has.
    #[error(
        "num_hidden_layers: expected at most {} rows and columns with gates in all layers, found {found}; check it, hidden_size and intermediate_size",
        SIZE_LIMIT
    )]
    TooLarge {
        /// `layers · (F + 2 D)`.
        found: usize,
    },
    /// The width does not divide into heads.
    #[error(
        "{path}: {width} dimensions do not divide into heads of {head_dim}; check num_attention_heads and hidden_size in config.json"
    )]
    Heads {
        /// The projection or configuration field.
        path: String,
        /// Its width.
        width: usize,
        /// The head dimension asked for.
        head_dim: usize,
    },
}
