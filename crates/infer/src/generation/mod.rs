//! Text from a decoder: prompts in, text out while it is made.
//!
//! [`Generator`] is the loop; it asks a [`NextLogits`] for one row of logits a sequence and step. Around it lie the choice of
//! a token ([`sampling`]), the text of the tokens ([`stream`]), the strings that end it ([`stop`]) and the form of a chat
//! ([`chat`]). [`Decoder`] makes one of a model.

pub mod chat;
pub mod decoder;
pub mod generator;
pub mod sampling;
pub mod stop;
pub mod stream;

mod candidates;

pub use chat::{ChatOptions, ChatTemplate, Message};
pub use decoder::Decoder;
pub use generator::{
    Finish, Generated, Generation, GenerationSettings, Generator, Last, NextLogits, Observer, Request, Start, Timing,
};
pub use sampling::{Sampler, SamplingChanges, SamplingSettings};
pub use stop::{StopMatcher, StopStrings};
pub use stream::TextStream;
