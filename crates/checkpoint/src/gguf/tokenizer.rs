//! The tokenizer in the metadata of a GGUF file, as the `tokenizer.json` and `tokenizer_config.json` that the model was
//! published with: byte-level BPE with its merges, or SentencePiece's BPE with scores.

mod bytes;
mod sentencepiece;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::config::{Form, Specials};
use super::metadata::Metadata;
use crate::Error;
use crate::error::shorten;

/// `tokenizer.ggml.token_type`.
mod token_type {
    pub const NORMAL: i64 = 1;
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const BYTE: i64 = 6;
}

/// Most bytes of one token that is found in a text before anything else is done with it, and of all of them: the library
/// builds an automaton of them that is many times as large.
const ADDED_TOKEN_LIMIT_BYTES: usize = 1 << 10;
const ADDED_TOKENS_LIMIT_BYTES: usize = 1 << 20;

/// Most merges; a vocabulary of 32,000 has twice as many with SentencePiece, one of a quarter of a million as many without.
const MERGES_LIMIT: usize = 1 << 20;

/// The tokenizer's files.
#[derive(Debug)]
pub(super) struct Files {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `tokenizer_config.json`.
    pub settings: Value,
    /// In a few words, for people.
    pub description: String,
}

/// Builds the tokenizer's files.
pub(super) fn rebuild(metadata: &Metadata, form: &Form, specials: &Specials) -> Result<Files, Error> {
    let vocabulary = Vocabulary::read(metadata, form, specials)?;
    let model = metadata.text("tokenizer.ggml.model")?;
    let parts = match model {
        Some("gpt2") => bytes::parts(metadata, form, &vocabulary)?,
        Some("llama") => sentencepiece::parts(metadata, &vocabulary, specials)?,
        other => {
            let expected = "gpt2 (byte-level BPE) or llama (SentencePiece BPE)";
            return Err(metadata.wrong("tokenizer.ggml.model", expected, other.map_or("none".to_owned(), shorten)));
        }
    };
    let surround = surround(metadata, &vocabulary, specials, &parts)?;
    let mut tokenizer = Map::new();
    // Moved, for `json!` would copy them: vocabularies are large.
    for (name, part) in [
        ("version", json!("1.0")),
        ("truncation", Value::Null),
        ("padding", Value::Null),
        ("added_tokens", Value::Array(vocabulary.added(metadata)?)),
        ("normalizer", parts.normalizer),
        ("pre_tokenizer", parts.splitter),
        ("post_processor", surround),
        ("decoder", parts.decoder),
        ("model", parts.model),
    ] {
        tokenizer.insert(name.to_owned(), part);
    }
    let tokenizer = Value::Object(tokenizer);
    let settings = settings(metadata, form, &vocabulary, specials)?;
    Ok(Files { tokenizer, settings, description: parts.description })
}

/// What the two kinds of tokenizer differ in.
struct Parts {
    normalizer: Value,
    splitter: Value,
    decoder: Value,
    model: Value,
    /// Whether a text begins with the token for it where the file does not say.
    adds_begin: bool,
    description: String,
}

/// What BPE does beside its merges.
#[derive(Default)]
struct Merging<'a> {
    /// The token for what no other spells.
    unknown: Option<&'a str>,
    fuses_unknown: bool,
    falls_back_to_bytes: bool,
    /// Whether a word that is a token is one, whatever the merges say.
    ignores_merges: bool,
}

impl Merging<'_> {
    /// `model` of `tokenizer.json`.
    fn model(&self, vocabulary: &Vocabulary, merges: Vec<Value>) -> Value {
        let mut model = json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": self.unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": self.fuses_unknown,
            "byte_fallback": self.falls_back_to_bytes,
            "ignore_merges": self.ignores_merges,
        });
        model["vocab"] = Value::Object(vocabulary.object());
        model["merges"] = Value::Array(merges);
        model
    }
}

/// The tokens and what they are.
struct Vocabulary<'a> {
    tokens: &'a [String],
    /// As many, or none where the file does not say: all are normal.
    types: &'a [i64],
    /// Of a text that occurs twice, the first id.
    ids: HashMap<&'a str, u32>,
    /// The tokens with a meaning, whatever their type is said to be.
    marked: Vec<u32>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata, form: &Form, specials: &Specials) -> Result<Vocabulary<'a>, Error> {
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata.texts(key)?.unwrap_or_default();
        if tokens.is_empty() || tokens.len() > form.vocabulary {
            let expected = format!("from 1 to {} tokens, a row of token_embd.weight each", form.vocabulary);
            return Err(metadata.wrong(key, expected, tokens.len().to_string()));
        }
        let types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        if !types.is_empty() && types.len() != tokens.len() {
            let expected = format!("as many as there are tokens, {}", tokens.len());
            return Err(metadata.wrong("tokenizer.ggml.token_type", expected, types.len().to_string()));
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            ids.entry(token.as_str()).or_insert(id as u32);
        }
        let marked = [specials.begin, specials.end, specials.end_of_turn, specials.end_of_message];
        let marked: Vec<u32> = marked.into_iter().flatten().collect();
        let all = marked.iter().copied().chain(specials.unknown).chain(specials.padding);
        if let Some(id) = all.into_iter().find(|&id| id as usize >= tokens.len()) {
            let expected = format!("ids of special tokens below {}, the number of tokens", tokens.len());
            return Err(metadata.wrong("tokenizer.ggml", expected, id.to_string()));
        }
        Ok(Vocabulary { tokens, types, ids, marked })
    }

    fn type_of(&self, id: usize) -> i64 {
        self.types.get(id).copied().unwrap_or(token_type::NORMAL)
    }

    /// The text of a token, if its id is the one that the text stands for.
    fn text(&self, id: u32) -> Option<&'a str> {
        let text = self.tokens.get(id as usize)?.as_str();
        (self.ids.get(text) == Some(&id)).then_some(text)
    }

    /// The tokens that are found in a text before anything else is done with it.
    fn added(&self, metadata: &Metadata) -> Result<Vec<Value>, Error> {
        let mut added = Vec::new();
        let mut size_bytes = 0;
        for id in 0..self.tokens.len() {
            let kind = self.type_of(id);
            let special =
                matches!(kind, token_type::UNKNOWN | token_type::CONTROL) || self.marked.contains(&(id as u32));
            let Some(text) = self.text(id as u32).filter(|text| !text.is_empty()) else { continue };
            if special || kind == token_type::USER_DEFINED {
                size_bytes += text.len();
                if text.len() > ADDED_TOKEN_LIMIT_BYTES || size_bytes > ADDED_TOKENS_LIMIT_BYTES {
                    let expected = format!(
                        "control and user-defined tokens of at most {ADDED_TOKEN_LIMIT_BYTES} bytes, {ADDED_TOKENS_LIMIT_BYTES} in all"
                    );
                    let found = format!("{} bytes, {size_bytes} so far", text.len());
                    return Err(metadata.wrong(&format!("tokenizer.ggml.tokens[{id}]"), expected, found));
                }
                added.push(json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special,
                }));
            }
        }
        Ok(added)
    }

    /// `vocab` of a model in `tokenizer.json`.
    fn object(&self) -> Map<String, Value> {
        let mut object = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if self.ids.get(token.as_str()) == Some(&(id as u32)) {
                object.insert(token.clone(), json!(id));
            }
        }
        object
    }
}

/// What is put around a text: the token that begins one, the token that ends one, or nothing.
fn surround(metadata: &Metadata, vocabulary: &Vocabulary, specials: &Specials, parts: &Parts) -> Result<Value, Error> {
    let begins = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(parts.adds_begin);
    let ends = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let token = |wanted: bool, id: Option<u32>, name: &str| -> Result<Option<(&str, u32)>, Error> {
        if !wanted {
            return Ok(None);
        }
        let found = id.and_then(|id| Some((vocabulary.text(id)?, id)));
        let key = format!("tokenizer.ggml.{name}_token_id");
        found.map(Some).ok_or_else(|| metadata.wrong(&key, "the id of a token, for texts take one", "none such"))
    };
    let (begin, end) = (token(begins, specials.begin, "bos")?, token(ends, specials.end, "eos")?);
    if begin.is_none() && end.is_none() {
        return Ok(Value::Null);
    }
    let template = |sequences: &[&str]| -> Vec<Value> {
        let mut steps = Vec::new();
        for (type_id, sequence) in sequences.iter().enumerate() {
            let special = |text: &str| json!({"SpecialToken": {"id": text, "type_id": type_id}});
            steps.extend(begin.map(|(text, _)| special(text)));
            steps.push(json!({"Sequence": {"id": sequence, "type_id": type_id}}));
            steps.extend(end.map(|(text, _)| special(text)));
        }
        steps
    };
    let mut tokens = Map::new();
    for (text, id) in [begin, end].into_iter().flatten() {
        tokens.insert(text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    Ok(json!({
        "type": "TemplateProcessing",
        "single": template(&["A"]),
        "pair": template(&["A", "B"]),
        "special_tokens": tokens,
    }))
}

/// `tokenizer_config.json`. It does not repeat what surrounds a text, so that `tokenizer.json` alone decides.
fn settings(metadata: &Metadata, form: &Form, vocabulary: &Vocabulary, specials: &Specials) -> Result<Value, Error> {
    let mut settings = Map::new();
    for (name, id) in [
        ("bos_token", specials.begin),
        ("eos_token", specials.end),
        ("unk_token", specials.unknown),
        ("pad_token", specials.padding),
    ] {
        if let Some(text) = id.and_then(|id| vocabulary.text(id)) {
            settings.insert(name.to_owned(), json!(text));
        }
    }
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        settings.insert("chat_template".to_owned(), json!(template));
    }
    settings.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    settings.insert("model_input_names".to_owned(), json!(["input_ids", "attention_mask"]));
    settings.insert("model_max_length".to_owned(), json!(form.context));
    settings.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    Ok(Value::Object(settings))
}
