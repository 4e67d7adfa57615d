//! Everything that can go wrong between gates and a compact folder.

use std::path::PathBuf;

use finegates_model::wiring::WiringError;

/// An error of accounting or compression.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written, or is not what it claims.
    #[error(transparent)]
    Checkpoint(#[from] finegates_checkpoint::Error),
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] finegates_model::Error),
    /// The projections do not fit together.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// A folder could not be made, moved or removed.
    #[error("{path}: {source}")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An adapter without any gate.
    #[error(
        "adapter_model.safetensors: expected tensors that end in .finegates_rows and .finegates_columns, found none; \
         is it an adapter of another method?"
    )]
    NoGates,
    /// A module with gates on one side only, whose other size is then unknown without the base model.
    #[error("adapter_model.safetensors: {name}: missing; the other side of the module is there, is the file complete?")]
    GateMissing {
        /// The tensor that should be there.
        name: String,
    },
    /// A θ that is not a vector.
    #[error("adapter_model.safetensors: {name}: expected a vector, found shape {shape:?}")]
    GateShape {
        /// Tensor name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A θ that is not finite.
    #[error("adapter_model.safetensors: {name}: value {index} is not finite; did the training diverge?")]
    GateNotFinite {
        /// Tensor name.
        name: String,
        /// Position of the first such value.
        index: usize,
    },
    /// Gates for a projection that the model lacks.
    #[error("{path}: has gates but the model has no such projection; was the adapter trained on another model?")]
    UnknownGate {
        /// Module path.
        path: String,
    },
    /// Gates given twice for one projection.
    #[error("{path}: gates given twice")]
    GateTwice {
        /// Module path.
        path: String,
    },
    /// Gates of another length than the projection's rows or columns.
    #[error("{path}: expected {expected} gates on {side}, found {found}; was the adapter trained on another model?")]
    GateLength {
        /// Module path.
        path: String,
        /// `rows` or `columns`.
        side: &'static str,
        /// Rows or columns of the projection.
        expected: usize,
        /// Gates given.
        found: usize,
    },
}
