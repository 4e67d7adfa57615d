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
pub mod chat_template;
pub mod checkpoint;
pub mod compact;
pub mod config;
pub mod generation;
pub mod gguf;
pub mod tensors;
pub mod tokenizer;

pub mod source;

pub use adapter::{Adapter, AdapterConfig};
pub use chat_template::ChatTemplates;
pub use checkpoint::Checkpoint;
pub use compact::{CompactInfo, CompactProjection};
pub use config::{ActivationName, Config, Family, Problem};
pub use error::Error;
pub use generation::GenerationConfig;
pub use quiet::quietly;
pub use tensors::{FloatType, Tensor, TensorData, TensorFile, TensorToWrite, write_tensors};
pub use tokenizer::train::{Splitting, TokenizerTraining, TrainedTokenizer};
pub use tokenizer::{Encoding, Piece, Tokenizer};
