//! From a gated model to a smaller one that gives the same logits: liveness, slicing, verification, accounting.
//!
//! Removal is exact (METHOD.md §6): what is dead is left out, what is alive keeps its value with the gates folded in.
//! Nothing is approximated, nothing is trained, and nothing is written that did not reproduce the gated logits.

pub mod compress;
pub mod probe;

pub mod liveness;
pub mod removal;

pub mod adapter;
pub mod report;

mod config;
pub mod fold;
pub mod verify;
mod weights;

pub mod error;

pub use adapter::{adapter_gates, adapter_removal};
pub use compress::{Request, compress};
pub use error::Error;
pub use liveness::{OpenSets, liveness};
pub use probe::synthetic_probe;
pub use removal::Removal;
pub use report::{Change, Report, Source, Verification};
