//! Training of gates, biases and heads, and of whole models for comparison: the recipe, the optimizer, the trainer, the metrics.
//!
//! A run is a folder. Everything about it is decided by its recipe, its data and its checkpoint: the same three give the same bits,
//! with any number of threads, interrupted or not. Nothing is drawn on a terminal here; an [`Observer`] is told.

pub mod budget;
pub mod by_name;
pub mod closing;
pub mod encoded;
pub mod error;
pub mod evaluation;
pub mod folder;
pub mod initial;
pub mod inputs;
pub mod journal;
pub mod latency;
pub mod learner;
pub mod material;
pub mod metrics;
pub mod observer;
pub mod optimizer;
pub mod phases;
pub mod plan;
pub mod recipe;
pub mod schedule;
pub mod start;
pub mod state;
pub mod trainer;

pub use error::Error;
pub use folder::Mode;
pub use initial::{Initial, TokenizerSource};
pub use inputs::Inputs;
pub use observer::{Ending, Event, Observer, Silent, Summary};
pub use recipe::{PartialRecipe, Recipe, RecipeError};
pub use start::{RunOptions, run};
pub use trainer::Trainer;
