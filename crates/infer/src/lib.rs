//! The engine an application embeds: one call loads a base checkpoint, a training run or a compact model, another
//! answers texts.
//!
//! [`generation`] holds what turns a decoder's logits into text.
//!
//! No training code is reachable from here, and nothing about files of data: texts come in, answers go out.
//!
//! ```no_run
//! use finegates_infer::{Engine, Options, Text};
//!
//! let engine = Engine::load("compact/sst2", &Options::default())?;
//! let texts = [Text::single("a gripping film"), Text::single("two hours I want back")];
//! for answer in engine.predict(&texts)? {
//!     println!("{} {:.3}", answer.label().unwrap_or("-"), answer.score());
//! }
//! # Ok::<(), finegates_infer::Error>(())
//! ```

pub mod answer;
pub mod artifact;
pub mod batches;
pub mod engine;
pub mod error;
pub mod generation;

pub use answer::{Answer, Outcome};
pub use artifact::{Artifact, Kind, Loading, Which};
pub use engine::{Encoded, Engine, Options, Text, open_tokenizer};
pub use error::Error;
