//! Everything read from or written to a model folder: config, tensors, tokenizer, adapters, the compact format,
//! and where such folders come from.
//!
//! Every file is hostile until checked: whatever it says, the answer is a value or an [`Error`] that names the file
//! and the field, never a panic or an allocation larger than the file can justify. No mathematics lives here.

mod error;
mod quiet;
pub mod read;
pub mod write;

pub mod adapter;
pub mod checkpoint;
pub mod compact;
pub mod config;
pub mod tensors;
pub mod tokenizer;

pub mod source;

pub use adapter::{Adapter, AdapterConfig};
pub use checkpoint::Checkpoint;
pub use compact::{CompactInfo, CompactProjection};
pub use config::{ActivationName, Config, Family, Problem};
pub use error::Error;
pub use quiet::quietly;
pub use tensors::{Tensor, TensorData, TensorFile, TensorToWrite, write_tensors};
pub use tokenizer::{Encoding, Tokenizer};
