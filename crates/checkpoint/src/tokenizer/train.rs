//! A tokenizer of its own for a corpus: byte-level byte-pair encoding as in GPT-2 and Llama 3, trained by the `tokenizers`
//! library and written so that it and transformers read it. The same texts give the same files for any number of threads.
//! Where the texts come from is the caller's business; they are counted as they come and never held together.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::Tokenizer as Library;
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
    SplitDelimiterBehavior,
};

use super::{failed, guarded};
use crate::Error;
use crate::error::shorten;
use crate::write::write_atomic;

/// The most text that is counted: the library's counts have 31 bits, and the same pair may be counted twice.
pub const MOST_TRAINING_BYTES: u64 = 1 << 30;

/// The most entries of a vocabulary.
const MOST_ENTRIES: usize = 1 << 20;

/// How much text is split and counted at once.
const BATCH_BYTES: usize = 4 << 20;

/// Every byte is a token.
const BYTES: usize = 256;

/// Llama 3's own pattern (the one of its `tokenizer.json`): contractions in any case, at most three digits together, line
/// ends with the punctuation before them.
pub(crate) const LLAMA_3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pattern that splits a text into the parts within which bytes are merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Splitting {
    /// GPT-2's: a number is one part.
    #[default]
    Gpt2,
    /// Llama 3's: three digits at most, line ends together, English endings in capitals too.
    Llama3,
}

/// What tokenizer to train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerTraining {
    /// How many entries it is to have, special tokens and the 256 bytes among them. A small corpus gives less.
    pub vocabulary: usize,
    /// How a text is split.
    pub splitting: Splitting,
    /// The token that ends a text and stands where one is to begin; its id is 0.
    pub end_of_text: String,
    /// Further special tokens, with the ids from 1 on.
    pub special_tokens: Vec<String>,
    /// How often two neighbours must occur for them to be merged.
    pub minimum_count: u64,
    /// What `tokenizer_config.json` says of the longest text, in tokens.
    pub max_length: Option<usize>,
}

impl TokenizerTraining {
    /// GPT-2's kind of tokenizer with so many entries, `<|endoftext|>` and no merge of what occurs only once.
    pub fn new(vocabulary: usize) -> TokenizerTraining {
        TokenizerTraining {
            vocabulary,
            splitting: Splitting::Gpt2,
            end_of_text: "<|endoftext|>".to_owned(),
            special_tokens: Vec::new(),
            minimum_count: 2,
            max_length: None,
        }
    }

    /// Trains on texts, which are best pieces of some 64 KiB cut at words. Special tokens that are written in them are left
    /// out. Behind [`MOST_TRAINING_BYTES`] no more is counted.
    ///
    /// # Errors
    /// When a setting is out of its range, there is no text, or the library cannot split one; and the first error among `texts`.
    pub fn train<E: From<Error>>(
        &self,
        texts: impl IntoIterator<Item = Result<String, E>>,
    ) -> Result<TrainedTokenizer, E> {
        self.train_within(texts, MOST_TRAINING_BYTES)
    }

    fn train_within<E: From<Error>>(
        &self,
        texts: impl IntoIterator<Item = Result<String, E>>,
        limit_bytes: u64,
    ) -> Result<TrainedTokenizer, E> {
        self.check()?;
        let splitter = self.splitter()?;
        let mut texts = texts.into_iter();
        let mut counts: HashMap<String, u64> = HashMap::new();
        let (mut read_bytes, mut complete) = (0, false);
        while read_bytes < limit_bytes && !complete {
            let (mut batch, mut batch_bytes) = (Vec::new(), 0);
            while batch_bytes < BATCH_BYTES {
                match texts.next().transpose()? {
                    Some(text) => {
                        batch_bytes += text.len();
                        batch.push(text);
                    }
                    None => {
                        complete = true;
                        break;
                    }
                }
            }
            read_bytes += batch_bytes as u64;
            for (word, count) in self.count(&splitter, &batch)? {
                *counts.entry(word).or_default() += count;
            }
        }
        // The texts may end exactly at the limit.
        complete = complete || texts.all(|text| text.is_ok_and(|text| text.is_empty()));
        if counts.is_empty() {
            return Err(wrong("corpus", "some text", "none").into());
        }
        let library = guarded(Path::new(JSON), || self.fit(counts, splitter))?;
        let json = library.to_string(true).map_err(broken)?;
        let vocabulary = library.get_vocab_size(true);
        Ok(TrainedTokenizer { json, config_json: self.config_json(), vocabulary, read_bytes, complete })
    }

    fn check(&self) -> Result<(), Error> {
        let least = BYTES + 1 + self.special_tokens.len();
        if !(least..=MOST_ENTRIES).contains(&self.vocabulary) {
            let expected = format!("from {least} (256 bytes and the special tokens) to {MOST_ENTRIES}");
            return Err(wrong("vocabulary", &expected, &self.vocabulary.to_string()));
        }
        let names = self.names();
        for (index, name) in names.iter().enumerate() {
            // A byte's own letter would be special wherever it occurs.
            if name.chars().count() < 2 || name.len() > 128 || names[..index].contains(name) {
                return Err(wrong("special_tokens", "different names of 2 letters to 128 bytes", name));
            }
        }
        Ok(())
    }

    /// The special tokens in the order of their ids.
    fn names(&self) -> Vec<&str> {
        std::iter::once(&self.end_of_text).chain(&self.special_tokens).map(String::as_str).collect()
    }

    fn splitter(&self) -> Result<PreTokenizerWrapper, Error> {
        match self.splitting {
            Splitting::Gpt2 => Ok(ByteLevel::new(false, true, true).into()),
            Splitting::Llama3 => {
                let pattern = SplitPattern::Regex(LLAMA_3_PATTERN.to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(broken)?;
                Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
            }
        }
    }

    /// How often each part occurs. Sums of integers: threads and their order do not show.
    fn count(&self, splitter: &PreTokenizerWrapper, texts: &[String]) -> Result<HashMap<String, u64>, Error> {
        let names = self.names();
        let one = |text: &String| {
            let mut counts = HashMap::new();
            for text in without(text, &names) {
                let mut parts = PreTokenizedString::from(text);
                splitter.pre_tokenize(&mut parts).map_err(broken)?;
                for (part, _, _) in parts.get_splits(OffsetReferential::Normalized, OffsetType::None) {
                    match counts.get_mut(part) {
                        Some(count) => *count += 1,
                        None => drop(counts.insert(part.to_owned(), 1)),
                    }
                }
            }
            Ok(counts)
        };
        texts.par_iter().map(one).try_reduce(HashMap::new, |one, other| {
            let (mut large, small) = if one.len() < other.len() { (other, one) } else { (one, other) };
            for (word, count) in small {
                *large.entry(word).or_default() += count;
            }
            Ok(large)
        })
    }

    /// Learns the merges and puts the tokenizer together.
    fn fit(&self, counts: HashMap<String, u64>, splitter: PreTokenizerWrapper) -> Result<Library, Error> {
        let special: Vec<AddedToken> = self.names().into_iter().map(|name| AddedToken::from(name, true)).collect();
        let trainer = BpeTrainer::builder()
            .vocab_size(self.vocabulary)
            .min_frequency(self.minimum_count)
            .special_tokens(special.clone())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build();
        let mut model = BPE::default();
        let counts = counts.into_iter().map(|(word, count)| (word.into(), count)).collect();
        trainer.do_train(&counts, &mut model).map_err(broken)?;
        let mut library = Library::new(model);
        library.with_pre_tokenizer(Some(splitter));
        library.with_decoder(Some(ByteLevel::default()));
        library.with_post_processor(Some(ByteLevel::new(true, false, true)));
        library.add_special_tokens(special).map_err(broken)?;
        Ok(library)
    }

    /// `tokenizer_config.json`. The class is the one that takes everything from `tokenizer.json`.
    fn config_json(&self) -> String {
        let mut config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.end_of_text,
            "eos_token": self.end_of_text,
            "unk_token": self.end_of_text,
            "clean_up_tokenization_spaces": false,
        });
        if let Some(length) = self.max_length {
            config["model_max_length"] = length.into();
        }
        format!("{config:#}\n")
    }
}

/// A trained tokenizer as its two files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedTokenizer {
    /// `tokenizer.json`.
    pub json: String,
    /// `tokenizer_config.json`.
    pub config_json: String,
    /// How many entries it has; the model's `vocab_size` must be as large.
    pub vocabulary: usize,
    /// How much text it was trained on.
    pub read_bytes: u64,
    /// Whether that was all of it, or the limit was reached.
    pub complete: bool,
}

impl TrainedTokenizer {
    /// Writes the files into a folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        write_atomic(&folder.join(JSON), self.json.as_bytes())?;
        write_atomic(&folder.join("tokenizer_config.json"), self.config_json.as_bytes())
    }
}

/// The file that is made here, in messages before there is one.
const JSON: &str = "tokenizer.json";

/// The parts of a text between special tokens, of which at any place the first named counts.
fn without<'t>(text: &'t str, names: &[&str]) -> Vec<&'t str> {
    let mut parts = vec![text];
    for name in names {
        parts = parts.into_iter().flat_map(|part| part.split(name)).collect();
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn wrong(field: &str, expected: &str, found: &str) -> Error {
    Error::field(Path::new("the tokenizer to train"), field, expected, shorten(found))
}

fn broken(error: tokenizers::Error) -> Error {
    failed(Path::new(JSON), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_end_exactly_at_the_limit_are_complete() {
        let whole = "ab \n".repeat(BATCH_BYTES / 4);
        let trained = |texts: &[&str]| {
            let texts = texts.iter().map(|text| Ok::<_, Error>((*text).to_owned()));
            let trained = TokenizerTraining::new(258).train_within(texts, BATCH_BYTES as u64).expect("trained");
            (trained.read_bytes, trained.complete)
        };
        assert_eq!(trained(&[&whole]), (BATCH_BYTES as u64, true));
        assert_eq!(trained(&[&whole, ""]), (BATCH_BYTES as u64, true));
        assert_eq!(trained(&[&whole, "", "a"]), (BATCH_BYTES as u64, false));
    }
}
