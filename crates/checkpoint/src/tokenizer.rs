//! The model's own tokenizer: from `tokenizer.json`, or built from the vocabulary files of its family; text in, token
//! ids out, truncated as transformers truncates and never padded.

mod build;
mod settings;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rayon::prelude::*;
use tokenizers::tokenizer::{EncodeInput, PostProcessor, Tokenizer as Library};
use tokenizers::{TruncationDirection, TruncationParams, TruncationStrategy};

use crate::Error;
use crate::config::{Config, Family};
use crate::error::shorten;
use settings::Settings;

/// The files a tokenizer may consist of.
const FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
];

/// The lengths for which a truncating copy of the tokenizer is kept.
const CACHED_LENGTHS: usize = 8;

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
    library: Library,
    /// Copies of `library` by the length they truncate to, for it holds the length itself.
    truncating: RwLock<HashMap<usize, Arc<Library>>>,
    direction: TruncationDirection,
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
        let (path, built) = build::open(folder, config.family, &settings)?;
        let mut library = built;
        library.with_padding(None);
        let direction =
            settings.truncation_side.or(library.get_truncation().map(|saved| saved.direction)).unwrap_or_default();
        library.with_truncation(None).map_err(|error| failed(&path, error))?;
        // Transformers passes segments to the model only if the tokenizer's class names them among its outputs.
        let told_apart = settings.uses_segments.unwrap_or(config.family == Family::Bert);
        let segments = if told_apart { config.segments } else { 1 };
        Ok(Tokenizer {
            path,
            folder: folder.to_path_buf(),
            library,
            truncating: RwLock::default(),
            direction,
            vocabulary: config.vocabulary,
            segments,
            padding_id: config.padding_id,
        })
    }

    /// Encodes a text, or a pair of them, into at most `max_length` tokens. What is too long is cut as transformers'
    /// `longest_first` does.
    ///
    /// # Errors
    /// When `max_length` has no room for the special tokens, or the tokenizer yields an id the model has no row for.
    pub fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoding, Error> {
        let library = self.truncating_to(max_length, pair.is_some())?;
        self.encode_with(&library, text, pair)
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
        let pairs = texts.iter().any(|(_, pair)| pair.is_some());
        let library = self.truncating_to(max_length, pairs)?;
        texts
            .par_iter()
            .map(|(text, pair)| self.encode_with(&library, text.as_ref(), pair.as_ref().map(AsRef::as_ref)))
            .collect()
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
        self.library.get_post_processor().map_or(0, |processor| processor.added_tokens(pair))
    }

    /// The id of a token's text, if it is in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// The copy of the tokenizer that truncates to `max_length`.
    fn truncating_to(&self, max_length: usize, pair: bool) -> Result<Arc<Library>, Error> {
        let special = self.special_tokens(pair);
        if max_length < special || max_length == 0 {
            let what = if pair { "a pair" } else { "a text" };
            let reason =
                format!("expected a maximal length of at least {} for {what}, found {max_length}", special.max(1));
            return Err(Error::Tokenizer { path: self.path.clone(), reason });
        }
        if let Some(found) = self.truncating.read().unwrap_or_else(PoisonError::into_inner).get(&max_length) {
            return Ok(found.clone());
        }
        let mut copy = self.library.clone();
        let params = TruncationParams {
            max_length,
            direction: self.direction,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        copy.with_truncation(Some(params)).map_err(|error| failed(&self.path, error))?;
        let copy = Arc::new(copy);
        let mut kept = self.truncating.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= CACHED_LENGTHS {
            kept.clear();
        }
        kept.insert(max_length, copy.clone());
        Ok(copy)
    }

    fn encode_with(&self, library: &Library, text: &str, pair: Option<&str>) -> Result<Encoding, Error> {
        let input: EncodeInput = match pair {
            Some(pair) => (text, pair).into(),
            None => text.into(),
        };
        let encoded =
            guarded(&self.path, || library.encode_fast(input, true).map_err(|error| failed(&self.path, error)))?;
        let ids = encoded.get_ids().to_vec();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            let token = self.library.id_to_token(id).unwrap_or_default();
            let reason = format!(
                "the token {} has id {id}, the model's vocab_size is {}; do they belong together?",
                shorten(&token),
                self.vocabulary
            );
            return Err(Error::Tokenizer { path: self.path.clone(), reason });
        }
        let segments = if self.segments > 1 { encoded.get_type_ids().to_vec() } else { vec![0; ids.len()] };
        if let Some(segment) = segments.iter().find(|&&segment| segment as usize >= self.segments.max(1)) {
            let reason = format!("it yields segment {segment}, the model's type_vocab_size is {}", self.segments);
            return Err(Error::Tokenizer { path: self.path.clone(), reason });
        }
        Ok(Encoding { ids, segments, truncated: !encoded.get_overflowing().is_empty() })
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

fn failed(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::Tokenizer { path: path.to_path_buf(), reason: shorten(&reason.to_string()) }
}

/// Runs the library on a file that may be hostile: it has places that panic on files it did not write itself.
fn guarded<T>(path: &Path, action: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(action))
        .unwrap_or_else(|_| Err(failed(path, "the tokenizers library cannot work with it; is it broken?")))
}
