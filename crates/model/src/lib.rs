//! Transformer encoders and decoders whose linear layers carry gates: forward, explicit backward, and the data that describes them.
//!
//! This crate composes operations of `finegates-kernels` and holds no arithmetic of its own beyond vectors of one
//! gate's length. It knows nothing of optimisers, data sets, files' layouts or removal.
//!
//! Shape letters used everywhere: `T` tokens in the batch (the sum of true lengths), `S` sequences, `D` hidden,
//! `F` feed-forward, `H` heads, `E` head dimension, `V` vocabulary, `C` classes. Weights are `[out, in]`, row-major;
//! rows are outputs and columns inputs. Activations are ragged, `[T, D]`, with sequence offsets: no padding exists.

pub mod batch;
pub mod error;
pub mod parameter;

pub mod gate;
mod packed;
pub mod penalty;
pub mod projection;

pub mod attention;
pub mod embedding;
pub mod feed_forward;
pub mod head;
pub mod heads;
pub mod language;
pub mod layer;
pub mod norm;
pub mod rotary;
pub mod stack;
pub mod text;

pub mod family;
pub mod wiring;

pub mod adapter;
pub mod cache;
pub mod cost;
pub mod initialise;
pub mod layerwise;
pub mod load;
pub mod model;
pub mod sample;

pub use batch::Batch;
pub use cache::Cache;
pub use error::Error;
pub use gate::{GateNoise, GateSettings, GateState};
pub use layerwise::{Layerwise, run_layerwise};
pub use load::{LoadOptions, LoadReport, Method, Purpose, Task};
pub use model::Model;
pub use parameter::{Awake, Group, ParameterMut};
pub use penalty::Penalty;
pub use projection::Projection;
pub use wiring::Wiring;
