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
    #[error("{path}: {source}", path = path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An adapter without any gate.
    #[error(
        "expected tensors that end in .finegates_rows and .finegates_columns, found none; \
         is it an adapter of another method?"
    )]
    NoGates,
    /// A module with gates on one side only, whose other size is then unknown without the base model.
    #[error("{path}: has row gates but no column gates; is the adapter complete?")]
    GateMissing {
        /// Module path.
        path: String,
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
    /// A compression report that is not one.
    #[error("{path}: {reason}", path = path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint to compress is a compact one.
    #[error(
        "{folder}: already compact; to remove more, train on the checkpoint it was made from and compress that run",
        folder = folder.display()
    )]
    AlreadyCompact {
        /// Its folder.
        folder: PathBuf,
    },
    /// A fully fine-tuned model: no gates, and already a checkpoint of its own.
    #[error(
        "{folder}: trained with method full, so there are no gates and nothing to remove; \
         it is a complete checkpoint already, use it as it is or train with method gates",
        folder = folder.display()
    )]
    NothingGated {
        /// Its folder.
        folder: PathBuf,
    },
    /// A destination that cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// A destination that holds something already.
    #[error("{}: is not empty; name a new folder, or ask to overwrite it", path.display())]
    DestinationTaken {
        /// The folder.
        path: PathBuf,
    },
    /// Labels that do not fit the head.
    #[error("id2label: expected {expected} labels, one a class of the head, found {found}")]
    Labels {
        /// Classes of the head.
        expected: usize,
        /// Labels given.
        found: usize,
    },
    /// A head that neither the adapter nor the base has.
    #[error("no task head: neither the adapter nor its base has {}; train it first", names.join(", "))]
    NoHead {
        /// Its tensors.
        names: Vec<String>,
    },
    /// The written checkpoint lacks tensors that the model needs.
    #[error("the compact checkpoint lacks {}; this is a bug of finegates, nothing was written", names.join(", "))]
    Incomplete {
        /// What would have had to be initialised.
        names: Vec<String>,
    },
    /// A probe without sequences.
    #[error("the probe holds no sequence, so nothing could be verified; give it some text")]
    EmptyProbe,
    /// Logits of different number.
    #[error(
        "the gated model gives {expected} logits and the compact one {found}; this is a bug of finegates, nothing was written"
    )]
    LogitCount {
        /// Of the gated model.
        expected: usize,
        /// Of the compact model.
        found: usize,
    },
    /// A logit that is not a number, or infinite.
    #[error("the {model} model's logits are not finite on the probe; nothing was written, did the training diverge?")]
    LogitsNotFinite {
        /// `gated` or `compact`.
        model: &'static str,
    },
    /// Logits that differ by more than rounding.
    #[error(
        "the compact model's logits differ from the gated one's by {difference:.3e}, more than {} of their scale {scale:.3e}; \
         nothing was written, please report this",
        crate::verify::TOLERANCE
    )]
    LogitsDiffer {
        /// Greatest difference.
        difference: f64,
        /// Greatest magnitude of a gated logit.
        scale: f64,
    },
}
