//! Blocks of tokens from a corpus, in order or shuffled, over one epoch or many; resumable to the same blocks.
//!
//! A state holds no block and no shuffled order: it is a place in the corpus a little before, and how much to pass over from
//! there. That keeps it small, for the price of tokenizing a piece, or a shuffled run, a second time.

use serde::{Deserialize, Serialize};

use super::{Packer, Packing};
use crate::corpus::{Corpus, CorpusReader, Cursor, Piece, check_number};
use crate::dataset::split_mix;
use crate::error::Error;

/// Everything a run needs to go on with the block it would have taken next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlocksState {
    /// How the documents are packed.
    pub packing: Packing,
    /// A place in the corpus.
    pub cursor: Cursor,
    /// The tokens before that place that are in no block yet.
    pub carry: Vec<u32>,
    /// How many blocks behind that place come before the run that is being handed out.
    pub passed: u64,
    /// The number of that run; runs are of one block where nothing is shuffled.
    pub run: u64,
    /// How many blocks of the run have been handed out.
    pub taken: u64,
}

/// Reads a corpus as blocks of tokens.
///
/// # Example
/// ```
/// # let folder = tempfile::tempdir()?;
/// # std::fs::write(folder.path().join("a.jsonl"), "{\"text\": \"one\"}\n{\"text\": \"two\"}\n")?;
/// use finegates_data::{Blocks, Corpus, CorpusOptions, Error, Packing, Piece};
///
/// let corpus = Corpus::open(&CorpusOptions::new(vec![folder.path().to_owned()]))?;
/// let packing = Packing { tokens_per_sequence: 3, end_of_text: 0, shuffle: None, epochs: Some(1) };
/// let letters = |piece: &Piece| Ok::<_, Error>(piece.text.bytes().map(u32::from).collect());
/// let mut blocks = Blocks::new(corpus, packing)?;
/// assert_eq!(blocks.read(letters)?.unwrap(), [b'o', b'n', b'e'].map(u32::from));
/// assert_eq!(blocks.read(letters)?.unwrap(), [0, b't', b'w'].map(u32::from));
/// assert!(blocks.read(letters)?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Blocks {
    corpus: Corpus,
    packing: Packing,
    reader: CorpusReader,
    packer: Packer,
    /// The place before the piece that was packed last, the carry there, and how many blocks have been made since.
    anchor: (Cursor, Vec<u32>),
    made: u64,
    /// The state at the beginning of the run, and the run's blocks that are still to come, the next one last.
    state: BlocksState,
    waiting: Vec<Vec<u32>>,
}

impl Blocks {
    /// Begins at the beginning.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if a setting is out of its range.
    pub fn new(corpus: Corpus, packing: Packing) -> Result<Blocks, Error> {
        packing.check()?;
        let reader = corpus.read();
        let (cursor, carry) = (reader.cursor(), Vec::new());
        let state = BlocksState { packing: packing.clone(), cursor, carry, passed: 0, run: 0, taken: 0 };
        Blocks::at(corpus, packing, reader, state)
    }

    /// Goes on from a saved state: what follows is what would have followed then, with the same corpus and `encode`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the corpus was packed in another way, [`Error::BrokenPlace`] if there is no such state, and those of [`Corpus::read_from`] and [`Blocks::read`].
    pub fn resume<E: From<Error>>(
        corpus: Corpus,
        packing: Packing,
        state: &BlocksState,
        mut encode: impl FnMut(&Piece) -> Result<Vec<u32>, E>,
    ) -> Result<Blocks, E> {
        packing.check()?;
        // The epochs too: a last run that was shorter for the corpus's end is shuffled otherwise when more follows.
        if state.packing != packing {
            let (name, expected) = ("packing", "the run's own sequence length, end of text, shuffling and epochs");
            return Err(Error::OutOfRange { name, expected, found: format!("{packing:?}") }.into());
        }
        let broken =
            |field, expected: String, found: u64| Error::BrokenPlace { field, expected, found: found.to_string() };
        for (field, number) in [("passed", state.passed), ("run", state.run), ("taken", state.taken)] {
            check_number(field, number)?;
        }
        let reader = corpus.read_from(&state.cursor)?;
        let at = BlocksState { packing: packing.clone(), passed: 0, taken: 0, ..state.clone() };
        let mut blocks = Blocks::at(corpus, packing, reader, at)?;
        for passed in 0..state.passed {
            // All of them are made of one piece.
            if blocks.next(&mut encode)?.is_none() || blocks.made != passed + 1 {
                return Err(broken("passed", format!("at most {passed} blocks"), state.passed).into());
            }
        }
        blocks.state.passed = state.passed;
        if state.taken > 0 {
            blocks.begin_run(&mut encode)?;
            let left = blocks.waiting.len() as u64;
            if state.taken > left {
                return Err(broken("taken", format!("at most {left} blocks"), state.taken).into());
            }
            // It is at most the length.
            blocks.waiting.truncate((left - state.taken) as usize);
            blocks.state.taken = state.taken;
        }
        Ok(blocks)
    }

    fn at(corpus: Corpus, packing: Packing, reader: CorpusReader, state: BlocksState) -> Result<Blocks, Error> {
        let packer = Packer::new(packing.tokens_per_sequence, packing.end_of_text, state.carry.clone())?;
        let anchor = (state.cursor.clone(), state.carry.clone());
        Ok(Blocks { corpus, packing, reader, packer, anchor, made: 0, state, waiting: Vec::new() })
    }

    /// The next block; none at the end of the last epoch, where less than a block may be left over. Pieces of long documents
    /// come to `encode` one by one; it gives a piece's tokens without any that end a text, and may put one that begins a text
    /// before those of a document's first piece. After an error only [`Blocks::state`] is of use.
    ///
    /// # Errors
    /// Those of [`CorpusReader::read`] and of `encode`.
    pub fn read<E: From<Error>>(
        &mut self,
        mut encode: impl FnMut(&Piece) -> Result<Vec<u32>, E>,
    ) -> Result<Option<Vec<u32>>, E> {
        if self.waiting.is_empty() {
            let run = self.state.run + u64::from(self.state.taken > 0);
            let (cursor, carry) = self.anchor.clone();
            let (packing, passed) = (self.packing.clone(), self.made);
            self.state = BlocksState { packing, cursor, carry, passed, run, taken: 0 };
            self.begin_run(&mut encode)?;
        }
        let block = self.waiting.pop();
        self.state.taken += u64::from(block.is_some());
        Ok(block)
    }

    /// What to save before the next block is taken.
    pub fn state(&self) -> BlocksState {
        self.state.clone()
    }

    /// How often the whole corpus was read, as far as blocks have been made of it.
    pub fn epoch(&self) -> u64 {
        self.reader.epoch()
    }

    /// The tokens that are in no block yet; at the end of the last epoch, what no block was made of.
    pub fn carry(&self) -> &[u32] {
        self.packer.carry()
    }

    /// Makes the blocks of the next run and puts them in their order.
    fn begin_run<E: From<Error>>(&mut self, encode: &mut impl FnMut(&Piece) -> Result<Vec<u32>, E>) -> Result<(), E> {
        let wanted = self.packing.shuffle.map_or(1, |shuffle| shuffle.window);
        let mut made = Vec::new();
        while made.len() < wanted
            && let Some(block) = self.next(encode)?
        {
            made.push(block);
        }
        if let Some(shuffle) = self.packing.shuffle {
            let mut number = self.state.run;
            let mut random = shuffle.seed ^ split_mix(&mut number);
            for last in (1..made.len()).rev() {
                let draw = (u128::from(split_mix(&mut random)) * (last as u128 + 1)) >> 64;
                // It is at most `last`.
                made.swap(last, draw as usize);
            }
        }
        made.reverse();
        self.waiting = made;
        Ok(())
    }

    /// The next block in the corpus's order.
    fn next<E: From<Error>>(
        &mut self,
        encode: &mut impl FnMut(&Piece) -> Result<Vec<u32>, E>,
    ) -> Result<Option<Vec<u32>>, E> {
        loop {
            if let Some(block) = self.packer.take_block() {
                self.made += 1;
                return Ok(Some(block));
            }
            let before = (self.reader.cursor(), self.packer.carry().to_vec());
            match self.reader.read()? {
                Some(piece) => {
                    let tokens = encode(&piece)?;
                    self.packer.push(&tokens, piece.ends_document);
                    self.anchor = before;
                    self.made = 0;
                }
                None if self.packing.epochs.is_some_and(|epochs| self.reader.epoch() + 1 >= epochs) => return Ok(None),
                None => self.reader.rewind(),
            }
        }
    }

    /// The corpus that is read.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }
}
