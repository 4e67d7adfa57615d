//! Files of every kind the crate reads, good ones and hostile ones, and what is said about each.

mod adapter;
mod checkpoint;
mod compact;
mod config;
mod decoder_config;
mod gguf;
mod hub;
mod limits;
mod package;
mod support;
mod tensors;
mod tokenizer;
mod train;
mod write;
