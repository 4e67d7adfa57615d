//! Byte-level BPE: the vocabulary, the merges, and the rule that cuts a text into words, which `tokenizer.ggml.pre` names.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{MERGES_LIMIT, Merging, Parts, Vocabulary};
use crate::Error;
use crate::error::shorten;
use crate::gguf::config::Form;
use crate::gguf::metadata::Metadata;
use crate::tokenizer::train::LLAMA_3_PATTERN;

/// GPT-2's words.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Qwen2's: Llama 3's with every digit alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: words also end where capitals begin.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a name in `tokenizer.ggml.pre` means, as in llama.cpp's `llama-vocab.cpp` and the tokenizers that it stands for.
struct Rule {
    /// The steps that cut a text, the last of which makes letters of bytes.
    splitter: Value,
    /// Whether texts are brought into Unicode's composed form first.
    composes: bool,
    /// Whether a word that is a token is one, whatever the merges say.
    ignores_merges: bool,
    adds_begin: bool,
}

const NAMES: &str = "gpt-2, default, smollm, starcoder, refact, command-r, codeshell, llama-bpe, smaug-bpe, qwen2, deepseek-r1-qwen, tekken";

fn rule(name: &str) -> Option<Rule> {
    let plain = |splitter| Rule { splitter, composes: false, ignores_merges: false, adds_begin: false };
    Some(match name {
        "gpt-2" => plain(letters(true)),
        "default" => plain(sequence(vec![
            split(r"[\p{P}\$\+<=>\^~\|]+"),
            split(GPT2),
            split(r"\p{N}+"),
            split("[0-9][0-9][0-9]"),
            letters(false),
        ])),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            plain(sequence(vec![json!({"type": "Digits", "individual_digits": true}), letters(true)]))
        }
        "llama-bpe" | "llama-v3" | "llama3" => Rule {
            ignores_merges: true,
            adds_begin: true,
            ..plain(sequence(vec![split(LLAMA_3_PATTERN), letters(false)]))
        },
        "smaug-bpe" => plain(sequence(vec![split(LLAMA_3_PATTERN), letters(false)])),
        "qwen2" => Rule { composes: true, ..plain(sequence(vec![split(QWEN2), letters(false)])) },
        "deepseek-r1-qwen" => plain(sequence(vec![split(QWEN2), letters(false)])),
        "tekken" => {
            Rule { ignores_merges: true, adds_begin: true, ..plain(sequence(vec![split(TEKKEN), letters(false)])) }
        }
        _ => return None,
    })
}

fn sequence(steps: Vec<Value>) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn letters(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// The parts of `tokenizer.json` that are peculiar to byte-level BPE.
pub(super) fn parts(metadata: &Metadata, form: &Form, vocabulary: &Vocabulary) -> Result<Parts, Error> {
    let key = "tokenizer.ggml.pre";
    let name = match metadata.text(key)? {
        Some(name) => name,
        // Files older than the key: Qwen2 has always had this one; for Llama it could be any.
        None if form.architecture.name() == "qwen2" => "qwen2",
        None => {
            let expected =
                format!("the rule for words (one of {NAMES}); convert the model again with a present llama.cpp");
            return Err(metadata.wrong(key, expected, "no such key"));
        }
    };
    let rule = rule(name).ok_or_else(|| metadata.wrong(key, format!("one of {NAMES}"), shorten(name)))?;
    let merges = merges(metadata, vocabulary)?;
    let normalizer = if rule.composes { json!({"type": "NFC"}) } else { Value::Null };
    Ok(Parts {
        normalizer,
        splitter: rule.splitter,
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        adds_begin: rule.adds_begin,
        description: format!("byte-level BPE ({name}), {} tokens, {} merges", vocabulary.tokens.len(), merges.len()),
        model: Merging { ignores_merges: rule.ignores_merges, ..Merging::default() }.model(vocabulary, merges),
    })
}

/// The merges as pairs, each of two tokens that make a third.
fn merges(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Vec<Value>, Error> {
    let key = "tokenizer.ggml.merges";
    let Some(lines) = metadata.texts(key)? else {
        return Err(metadata.wrong(key, "the merges of a byte-level BPE", "no such key"));
    };
    if lines.len() > MERGES_LIMIT {
        return Err(metadata.wrong(key, format!("at most {MERGES_LIMIT} merges"), lines.len().to_string()));
    }
    let mut merges = Vec::with_capacity(lines.len());
    let mut seen = HashSet::with_capacity(lines.len());
    for (number, line) in lines.iter().enumerate() {
        let pair = line.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let known = |(left, right): &(&str, &str)| {
            let whole = format!("{left}{right}");
            [left, right, whole.as_str()].iter().all(|part| vocabulary.ids.contains_key(*part))
        };
        match pair.filter(known) {
            Some(pair) if seen.insert(pair) => merges.push(Value::from(vec![pair.0, pair.1])),
            Some(_) => {
                let expected = "a merge that is not there before";
                return Err(metadata.wrong(&format!("{key}[{number}]"), expected, shorten(line)));
            }
            None => {
                let expected = "two tokens with a space between that make a third token";
                return Err(metadata.wrong(&format!("{key}[{number}]"), expected, shorten(line)));
            }
        }
    }
    Ok(merges)
}
