//! Token ids back to text: whole, or taken apart token by token for text that is shown while it is made.
//!
//! The library decodes a list of tokens as one; what single tokens add follows from the steps of its decoder, for those
//! decoders whose steps look at one token at a time. Any other decoder is not taken apart ([`Tokenizer::piece`]).

use std::sync::OnceLock;

use tokenizers::Decoder;
use tokenizers::decoders::DecoderWrapper;

use super::{Tokenizer, failed, guarded};
use crate::Error;

/// What a token adds to the text before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Nothing: a special token that is skipped, or an id without a token.
    Nothing,
    /// Text.
    Text(String),
    /// Bytes of a byte-level vocabulary. All bytes in a row are read as UTF-8, and every broken part as U+FFFD.
    Bytes(Vec<u8>),
    /// One byte of a vocabulary of texts that falls back on bytes. The bytes in a row are UTF-8 as a whole, or else each of
    /// them is U+FFFD.
    Byte(u8),
}

/// How a decoder is taken apart.
#[derive(Debug)]
pub(super) enum Decoding {
    /// Bytes under the letters of the byte level.
    Bytes,
    /// Texts.
    Texts(Texts),
    /// No decoder: tokens with spaces between them.
    Spaced,
    /// A decoder that needs all tokens at once.
    Whole,
}

/// Steps that change one token at a time, and what follows them.
#[derive(Debug)]
pub(super) struct Texts {
    /// Of these steps, only the first token of a text gets another treatment than the others.
    steps: Vec<DecoderWrapper>,
    /// Whether tokens such as `<0x0A>` are bytes.
    bytes: bool,
    /// A character that is taken off the beginning of the text, at most so many times.
    stripped: Option<(char, usize)>,
}

impl Decoding {
    pub fn of(decoder: Option<&DecoderWrapper>) -> Decoding {
        let Some(decoder) = decoder else { return Decoding::Spaced };
        let mut steps = Vec::new();
        flatten(decoder, &mut steps);
        if let [DecoderWrapper::ByteLevel(_)] = steps.as_slice() {
            return Decoding::Bytes;
        }
        let by_token = |step: &&&DecoderWrapper| {
            use DecoderWrapper::{Metaspace, Replace, WordPiece};
            matches!(step, Replace(_) | Metaspace(_) | WordPiece(_))
        };
        let count = steps.iter().take_while(by_token).count();
        let mut texts =
            Texts { steps: steps[..count].iter().map(|&step| step.clone()).collect(), bytes: false, stripped: None };
        let mut rest = &steps[count..];
        if let [DecoderWrapper::ByteFallback(_), after @ ..] = rest {
            (texts.bytes, rest) = (true, after);
        }
        if let [DecoderWrapper::Fuse(_), after @ ..] = rest {
            rest = after;
            if let [DecoderWrapper::Strip(strip)] = rest
                && strip.stop == 0
            {
                (texts.stripped, rest) = (Some((strip.content, strip.start)), &[]);
            }
        }
        if rest.is_empty() { Decoding::Texts(texts) } else { Decoding::Whole }
    }
}

/// Steps within steps, in a row. Depth is bounded by the JSON reader's.
fn flatten<'d>(decoder: &'d DecoderWrapper, steps: &mut Vec<&'d DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().for_each(|decoder| flatten(decoder, steps));
        }
        step => steps.push(step),
    }
}

impl Tokenizer {
    /// The text of token ids, as transformers decodes them without tidying up spaces; ids without a token add nothing.
    ///
    /// # Errors
    /// When the tokenizer's file describes a decoder that fails on them.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, Error> {
        let adds = |&&id: &&u32| self.token(id).is_some_and(|token| !skip_special_tokens || !self.is_special(&token));
        if !ids.iter().any(|id| adds(&id)) {
            // Some decoders cannot take an empty list.
            return Ok(String::new());
        }
        guarded(&self.path, || self.library.decode(ids, skip_special_tokens).map_err(|error| failed(&self.path, error)))
    }

    /// What a token adds to a text that is decoded as [`Tokenizer::decode`] does; `first` says whether no other token has
    /// added anything yet. `None` when the decoder needs all tokens at once.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn piece(&self, id: u32, first: bool, skip_special_tokens: bool) -> Result<Option<Piece>, Error> {
        if matches!(self.decoding, Decoding::Whole) {
            return Ok(None);
        }
        let token = self.token(id).filter(|token| !skip_special_tokens || !self.is_special(token));
        let Some(token) = token else { return Ok(Some(Piece::Nothing)) };
        Ok(Some(match &self.decoding {
            Decoding::Whole => return Ok(None),
            Decoding::Bytes => Piece::Bytes(bytes_of(&token)),
            Decoding::Spaced => Piece::Text(if first { token } else { format!(" {token}") }),
            Decoding::Texts(texts) => {
                let text =
                    guarded(&self.path, || texts.steps_on(token, first).map_err(|error| failed(&self.path, error)))?;
                match byte_of(&text).filter(|_| texts.bytes) {
                    Some(byte) => Piece::Byte(byte),
                    None => Piece::Text(text),
                }
            }
        }))
    }

    /// The character that decoding takes off the beginning of a text, and how many of it at most. The pieces of
    /// [`Tokenizer::piece`] still have it.
    pub fn stripped(&self) -> Option<(char, usize)> {
        match &self.decoding {
            Decoding::Texts(texts) => texts.stripped,
            _ => None,
        }
    }

    /// The text of a token in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.library.id_to_token(id)
    }

    /// Whether a token's text is that of a special token.
    pub fn is_special(&self, token: &str) -> bool {
        self.library.get_added_vocabulary().is_special_token(token)
    }

    /// The ids of all special tokens, in order.
    pub fn special_ids(&self) -> Vec<u32> {
        let added = self.library.get_added_vocabulary().get_added_tokens_decoder();
        let mut ids: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }
}

impl Texts {
    /// A token after the steps; the library sees it at the beginning of a text, or after another token.
    fn steps_on(&self, token: String, first: bool) -> tokenizers::Result<String> {
        let mut tokens = if first { vec![token] } else { vec![String::new(), token] };
        for step in &self.steps {
            tokens = step.decode_chain(tokens)?;
        }
        Ok(tokens.pop().unwrap_or_default())
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (token.len() == 6).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The bytes that a token of a byte-level vocabulary stands for; of one with other letters, an added token, its own.
fn bytes_of(token: &str) -> Vec<u8> {
    static BYTES: OnceLock<[Option<u8>; 0x144]> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        // GPT-2's alphabet: printable bytes are their own letters, the others the letters from U+0100 on.
        let mut bytes = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=u8::MAX {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let letter = if printable { usize::from(byte) } else { next };
            next += usize::from(!printable);
            bytes[letter] = Some(byte);
        }
        bytes
    });
    let byte = |letter: char| bytes.get(letter as usize).copied().flatten();
    token.chars().map(byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}
