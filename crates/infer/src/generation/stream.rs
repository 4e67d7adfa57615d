//! Text while it is made: token ids in, pieces of text out. A piece never ends inside a character, and no later token
//! changes what was handed out; the pieces together are what [`Tokenizer::decode`] makes of all ids.

use finegates_checkpoint::{Piece, Tokenizer};

use crate::error::Error;

/// Decodes the ids of one text as they come.
#[derive(Clone, Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special_tokens: bool,
    /// Whether no token has added anything yet.
    first: bool,
    /// What is still taken off the beginning.
    stripped: Option<(char, usize)>,
    held: Held,
}

/// What may look another way after the next token.
#[derive(Clone, Debug)]
enum Held {
    Nothing,
    /// The beginning of a character.
    Character(Vec<u8>),
    /// Bytes that a vocabulary fell back on; a later one may break all of them.
    Run(Vec<u8>),
    /// All ids, for a tokenizer whose decoder needs them together.
    Whole(Vec<u32>),
}

impl<'t> TextStream<'t> {
    /// For ids that are a text of their own: some tokenizers take the space off its beginning.
    pub fn new(tokenizer: &'t Tokenizer, skip_special_tokens: bool) -> TextStream<'t> {
        let stripped = tokenizer.stripped();
        TextStream { tokenizer, skip_special_tokens, first: true, stripped, held: Held::Nothing }
    }

    /// For ids that go on after a prompt: a space between the two is part of the text.
    pub fn continuing(tokenizer: &'t Tokenizer, skip_special_tokens: bool) -> TextStream<'t> {
        TextStream { first: false, stripped: None, ..TextStream::new(tokenizer, skip_special_tokens) }
    }

    /// The text that the next id settles; may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        let mut text = String::new();
        match self.tokenizer.piece(id, self.first, self.skip_special_tokens)? {
            None => {
                match &mut self.held {
                    Held::Whole(ids) => ids.push(id),
                    held => *held = Held::Whole(vec![id]),
                }
                return Ok(text);
            }
            Some(Piece::Nothing) => return Ok(text),
            Some(Piece::Text(piece)) => {
                self.release(&mut text);
                text.push_str(&piece);
            }
            Some(Piece::Bytes(bytes)) => {
                let mut all = match std::mem::replace(&mut self.held, Held::Nothing) {
                    Held::Character(bytes) => bytes,
                    _ => Vec::new(),
                };
                all.extend(bytes);
                let rest = settle(&all, &mut text);
                if !rest.is_empty() {
                    self.held = Held::Character(rest.to_vec());
                }
            }
            Some(Piece::Byte(byte)) => match &mut self.held {
                Held::Run(bytes) => bytes.push(byte),
                held => *held = Held::Run(vec![byte]),
            },
        }
        self.first = false;
        Ok(self.strip(text))
    }

    /// The text that was held back until now; no id follows.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(mut self) -> Result<String, Error> {
        if let Held::Whole(ids) = &self.held {
            return Ok(self.tokenizer.decode(ids, self.skip_special_tokens)?);
        }
        let mut text = String::new();
        self.release(&mut text);
        Ok(self.strip(text))
    }

    /// What is held back, as it reads when nothing of its kind follows.
    fn release(&mut self, text: &mut String) {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing | Held::Whole(_) => {}
            // One character that never came to its end.
            Held::Character(_) => text.push(char::REPLACEMENT_CHARACTER),
            Held::Run(bytes) => match std::str::from_utf8(&bytes) {
                Ok(run) => text.push_str(run),
                Err(_) => text.extend(bytes.iter().map(|_| char::REPLACEMENT_CHARACTER)),
            },
        }
    }

    fn strip(&mut self, mut text: String) -> String {
        while let Some((letter, count)) = self.stripped {
            if text.is_empty() {
                break;
            }
            if count > 0 && text.starts_with(letter) {
                text.remove(0);
                self.stripped = Some((letter, count - 1));
            } else {
                self.stripped = None;
            }
        }
        text
    }
}

/// Appends the bytes as text, broken parts as U+FFFD; what may be the beginning of a character is returned.
fn settle<'b>(bytes: &'b [u8], text: &mut String) -> &'b [u8] {
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                return &[];
            }
            Err(error) => {
                let (valid, broken) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                match error.error_len() {
                    None => return broken,
                    Some(length) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        rest = &broken[length..];
                    }
                }
            }
        }
    }
}
