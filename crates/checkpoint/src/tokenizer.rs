//! The model's own tokenizer: from `tokenizer.json`, or built from the vocabulary files of its family; text in, token
//! ids out, truncated as transformers truncates and never padded.

mod build;
mod decode;
mod limits;
mod pieces;
mod settings;
pub mod train;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tokenizers::tokenizer::{PostProcessor, Tokenizer as Library};
use tokenizers::{PostProcessorWrapper, TruncationDirection};

use crate::Error;
use crate::config::{Config, Family};
use crate::error::shorten;
use crate::quiet::quietly;
use decode::Decoding;
pub use decode::Piece;
use pieces::{Pieces, Reach};
use settings::Settings;

/// The files a tokenizer may consist of, with those that say how a chat is written and how text is generated.
pub const FILES: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "generation_config.json",
];

/// A text or pair as token ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Segment ids, as many; all zero when the model does not tell segments apart.
    pub segments: Vec<u32>,
    /// Whether something was cut off.
    pub truncated: bool,
}

/// A model's tokenizer. It can be shared between threads.
pub struct Tokenizer {
    path: PathBuf,
    folder: PathBuf,
    /// Without truncation, padding and special tokens. Its own truncation stops reading a text early, and so decides
    /// otherwise than transformers which of two long texts is the longer one.
    library: Library,
    /// The most by which it lengthens a text before the text is split.
    growth: f64,
    /// Adds the special tokens.
    surround: Option<PostProcessorWrapper>,
    direction: TruncationDirection,
    decoding: Decoding,
    vocabulary: usize,
    segments: usize,
    padding_id: u32,
}

impl Tokenizer {
    /// Opens the tokenizer of the model in `folder`.
    ///
    /// # Errors
    /// When there are no tokenizer files that can be read (with what to do about it), or they are broken.
    pub fn open(folder: &Path, config: &Config) -> Result<Tokenizer, Error> {
        let settings = Settings::read(folder)?;
        let build::Built { path, mut library, growth } = build::open(folder, config, &settings)?;
        library.with_padding(None);
        let direction =
            settings.truncation_side.or(library.get_truncation().map(|saved| saved.direction)).unwrap_or_default();
        library.with_truncation(None).map_err(|error| failed(&path, error))?;
        let surround = library.get_post_processor().cloned();
        library.with_post_processor(None::<PostProcessorWrapper>);
        // Transformers passes segments to the model only if the tokenizer's class names them among its outputs.
        let told_apart = settings.uses_segments.unwrap_or(config.family == Family::Bert);
        let segments = if told_apart { config.segments } else { 1 };
        let decoding = Decoding::of(library.get_decoder());
        Ok(Tokenizer {
            path,
            folder: folder.to_path_buf(),
            library,
            growth,
            surround,
            direction,
            decoding,
            vocabulary: config.vocabulary,
            segments,
            padding_id: config.padding_id,
        })
    }

    /// Encodes a text, or a pair of them, into at most `max_length` tokens. What is too long is cut as transformers'
    /// `longest_first` does. A long text is read as far as that takes, and at most a megabyte of it, or 64 bytes for each
    /// of the `max_length` tokens; of two texts longer than that, the one with more bytes counts as the longer.
    ///
    /// # Errors
    /// When `max_length` has no room for the special tokens, or the tokenizer yields an id the model has no row for.
    pub fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoding, Error> {
        let room = self.room(max_length, pair.is_some())?;
        self.encode_around(self.surround.as_ref(), (text, pair), max_length, room)
    }

    /// Encodes a text as it stands, without special tokens around it: one that a chat template made brings its own.
    /// Otherwise as [`Tokenizer::encode`].
    ///
    /// # Errors
    /// When the tokenizer yields an id the model has no row for.
    pub fn encode_bare(&self, text: &str, max_length: usize) -> Result<Encoding, Error> {
        self.encode_around(None, (text, None), max_length, max_length)
    }

    fn encode_around(
        &self,
        surround: Option<&PostProcessorWrapper>,
        (text, pair): (&str, Option<&str>),
        max_length: usize,
        room: usize,
    ) -> Result<Encoding, Error> {
        let reach = Reach::new(max_length, self.growth);
        let pieces = Pieces { library: &self.library, surround, direction: self.direction, reach };
        let encoded =
            guarded(&self.path, || pieces.encode(text, pair, room).map_err(|error| failed(&self.path, error)))?;
        self.checked(encoded)
    }

    /// Encodes many texts or pairs on rayon's threads; the order is kept.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], for the first text that fails.
    pub fn encode_batch<T: AsRef<str> + Sync>(
        &self,
        texts: &[(T, Option<T>)],
        max_length: usize,
    ) -> Result<Vec<Encoding>, Error> {
        let encode =
            |(text, pair): &(T, Option<T>)| self.encode(text.as_ref(), pair.as_ref().map(AsRef::as_ref), max_length);
        texts.par_iter().map(encode).collect()
    }

    /// The folder it was opened in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The tokenizer's files in its folder, for copying them beside a model made from this one.
    pub fn files(&self) -> Vec<PathBuf> {
        FILES.iter().map(|name| self.folder.join(name)).filter(|path| path.is_file()).collect()
    }

    /// The id of the padding token, as in the model's config. Nothing here pads.
    pub fn padding_id(&self) -> u32 {
        self.padding_id
    }

    /// How many special tokens surround a text or a pair.
    pub fn special_tokens(&self, pair: bool) -> usize {
        self.surround.as_ref().map_or(0, |surround| surround.added_tokens(pair))
    }

    /// The id of a token's text, if it is in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// How many rows a token table must have: one more than the largest id.
    pub fn entries(&self) -> usize {
        self.library.get_vocab(true).into_values().max().map_or(0, |last| last as usize + 1)
    }

    /// The tokens of `max_length` that are left for texts.
    fn room(&self, max_length: usize, pair: bool) -> Result<usize, Error> {
        let special = self.special_tokens(pair);
        if max_length < special || max_length == 0 {
            let what = if pair { "a pair" } else { "a text" };
            let reason =
                format!("expected a maximal length of at least {} for {what}, found {max_length}", special.max(1));
            return Err(failed(&self.path, reason));
        }
        Ok(max_length - special)
    }

    /// What the library made of a text, as long as the model can take it.
    fn checked(&self, (encoded, truncated): (tokenizers::Encoding, bool)) -> Result<Encoding, Error> {
        let ids = encoded.get_ids().to_vec();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            let token = self.library.id_to_token(id).unwrap_or_default();
            let reason = format!(
                "the token {} has id {id}, the model's vocab_size is {}; do they belong together?",
                shorten(&token),
                self.vocabulary
            );
            return Err(failed(&self.path, reason));
        }
        let segments = if self.segments > 1 { encoded.get_type_ids().to_vec() } else { vec![0; ids.len()] };
        if let Some(segment) = segments.iter().find(|&&segment| segment as usize >= self.segments.max(1)) {
            let reason = format!("it yields segment {segment}, the model's type_vocab_size is {}", self.segments);
            return Err(failed(&self.path, reason));
        }
        Ok(Encoding { ids, segments, truncated })
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocabulary", &self.vocabulary)
            .finish_non_exhaustive()
    }
}

/// Holds the text of a `tokenizer.json` that is to be written to all that [`Tokenizer::open`] asks of one. `path` is where it
/// comes from, for messages.
pub(crate) fn check_json(path: &Path, text: &str, config: &Config) -> Result<(), Error> {
    build::from_json(path, text, config).map(drop)
}

fn failed(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::Tokenizer { path: path.to_path_buf(), reason: shorten(&reason.to_string()) }
}

/// Runs the library on a file that may be hostile: it has places that panic on files it did not write itself.
fn guarded<T>(path: &Path, action: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    quietly(action).unwrap_or_else(|_| Err(failed(path, "the tokenizers library cannot work with it; is it broken?")))
}
