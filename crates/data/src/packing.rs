//! Documents as tokens, joined and cut into sequences of one length: nothing is lost, nothing repeated, and a saved place
//! leads to the same sequences. How a text becomes tokens is the caller's business.

mod blocks;

use serde::{Deserialize, Serialize};

use crate::error::Error;
pub use blocks::{Blocks, BlocksState};

/// The most tokens of a sequence.
const MOST_TOKENS: usize = 1 << 24;

/// The most sequences that are shuffled among each other.
const MOST_SHUFFLED: usize = 1 << 20;

/// How documents become sequences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packing {
    /// How many tokens each sequence has.
    pub tokens_per_sequence: usize,
    /// The token put behind each document.
    pub end_of_text: u32,
    /// How the sequences are shuffled; otherwise they come in the corpus's order.
    pub shuffle: Option<Shuffle>,
    /// How often the corpus is read; without a number, for ever.
    pub epochs: Option<u64>,
}

/// Shuffles sequences among their neighbours: each run of `window` sequences comes in a random order. It costs the memory of
/// so many sequences, and a resumed run tokenizes up to so many again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shuffle {
    /// What the order follows from, together with the run's number.
    pub seed: u64,
    /// How many sequences are shuffled among each other.
    pub window: usize,
}

impl Packing {
    fn check(&self) -> Result<(), Error> {
        let range = |name, value: usize, most, expected| match (1..=most).contains(&value) {
            true => Ok(()),
            false => Err(Error::OutOfRange { name, expected, found: value.to_string() }),
        };
        range("tokens_per_sequence", self.tokens_per_sequence, MOST_TOKENS, "a number from 1 to 16,777,216")?;
        if self.epochs == Some(0) {
            return Err(Error::OutOfRange { name: "epochs", expected: "at least 1", found: "0".to_owned() });
        }
        let window = self.shuffle.map_or(1, |shuffle| shuffle.window);
        range("shuffle.window", window, MOST_SHUFFLED, "a number from 1 to 1,048,576")
    }
}

/// Joins documents and cuts them into blocks.
#[derive(Clone, Debug)]
pub struct Packer {
    tokens_per_sequence: usize,
    end_of_text: u32,
    /// The tokens from `start` on are in no block yet.
    tokens: Vec<u32>,
    start: usize,
}

impl Packer {
    /// Starts with `carry`: nothing, or what [`Packer::carry`] gave.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if a sequence would have no tokens or too many, [`Error::BrokenPlace`] if the carry fills one.
    pub fn new(tokens_per_sequence: usize, end_of_text: u32, carry: Vec<u32>) -> Result<Packer, Error> {
        Packing { tokens_per_sequence, end_of_text, shuffle: None, epochs: None }.check()?;
        if carry.len() >= tokens_per_sequence {
            let (expected, found) = (format!("less than {tokens_per_sequence} tokens"), carry.len().to_string());
            return Err(Error::BrokenPlace { field: "carry", expected, found });
        }
        Ok(Packer { tokens_per_sequence, end_of_text, tokens: carry, start: 0 })
    }

    /// Adds the tokens of a document or of a part of it.
    pub fn push(&mut self, tokens: &[u32], ends_document: bool) {
        if self.start > 0 {
            self.tokens.drain(..self.start);
            self.start = 0;
        }
        self.tokens.extend_from_slice(tokens);
        if ends_document {
            self.tokens.push(self.end_of_text);
        }
    }

    /// Takes the next block, if there are tokens enough for one.
    pub fn take_block(&mut self) -> Option<Vec<u32>> {
        let block = self.carry().get(..self.tokens_per_sequence)?.to_vec();
        self.start += block.len();
        Some(block)
    }

    /// The tokens that are in no block yet: once [`Packer::take_block`] gives none, less than one block.
    pub fn carry(&self) -> &[u32] {
        &self.tokens[self.start..]
    }
}
