//! Small tokenizers of the kinds that decoders have, read from files as any other.
#![allow(dead_code, clippy::unwrap_used)] // Not every test needs all of them.

use std::path::Path;

use finegates_checkpoint::{Config, Tokenizer};
use serde_json::{Value, json};

/// A tokenizer with this vocabulary and decoder; the first two tokens, `<s>` and `</s>`, are special.
pub fn tokenizer(vocabulary: &[String], decoder: &Value) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), vocabulary, decoder);
    let config = json!({"model_type": "bert", "vocab_size": vocabulary.len(), "type_vocab_size": 1});
    Tokenizer::open(folder.path(), &Config::from_json(&config.to_string()).unwrap()).unwrap()
}

fn write(folder: &Path, vocabulary: &[String], decoder: &Value) {
    let ids: serde_json::Map<String, Value> =
        vocabulary.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": vocabulary[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0), special(1)],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": vocabulary[2]},
    });
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
}

fn tokens(texts: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    ["<s>", "</s>"].into_iter().map(String::from).chain(texts.into_iter().map(Into::into)).collect()
}

/// The letters of the byte level, with some longer tokens: parts of characters, broken UTF-8, an added token's own letters.
pub fn byte_level() -> Tokenizer {
    let letter = |byte: u8| {
        let before = (0..byte).filter(|&byte| !printable(byte)).count() as u32;
        char::from_u32(if printable(byte) { u32::from(byte) } else { 0x100 + before }).unwrap()
    };
    let spell = |bytes: &[u8]| bytes.iter().map(|&byte| letter(byte)).collect::<String>();
    let longer = ["Hello", " world", "é", "世", "🦀", " \n", "end", "<|im_end|>"].map(|text| spell(text.as_bytes()));
    let broken = [spell(&[0xf0, 0x9f]), spell(&[0xa6]), spell(&[0x80, b'a']), spell(&[b'a', 0xe4, 0xb8])];
    let bytes = (0..=255u8).map(|byte| spell(&[byte]));
    let foreign = ["two words".to_owned(), "世界".to_owned()];
    let vocabulary = tokens(bytes.chain(longer).chain(broken).chain(foreign));
    tokenizer(
        &vocabulary,
        &json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
    )
}

fn printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// Words of SentencePiece with bytes to fall back on, under a decoder.
fn sentence_pieces(decoder: &Value) -> Tokenizer {
    let words = ["▁Hello", "▁", "▁▁", "▁world", "s", "é", "世", "<0x1>", "<0xZZ>", "a▁b", "##ing", "."];
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    tokenizer(&tokens(words.into_iter().map(String::from).chain(bytes)), decoder)
}

/// Llama 2's decoder.
pub fn llama() -> Tokenizer {
    sentence_pieces(&json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]}))
}

/// Every kind of decoder, with its name.
pub fn all() -> Vec<(&'static str, Tokenizer)> {
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let replace = json!({"type": "Replace", "pattern": {"Regex": "▁+"}, "content": " "});
    vec![
        ("byte level", byte_level()),
        ("llama", llama()),
        ("metaspace", sentence_pieces(&metaspace)),
        (
            "gemma",
            sentence_pieces(&json!({"type": "Sequence", "decoders": [
                replace, {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}, {"type": "Fuse"},
            ]})),
        ),
        (
            "metaspace and bytes",
            sentence_pieces(&json!({"type": "Sequence", "decoders": [
                metaspace, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 3, "stop": 0},
            ]})),
        ),
        ("word pieces", sentence_pieces(&json!({"type": "WordPiece", "prefix": "##", "cleanup": true}))),
        ("none", sentence_pieces(&Value::Null)),
        // Not taken apart.
        ("byte pairs", sentence_pieces(&json!({"type": "BPEDecoder", "suffix": "▁"}))),
        (
            "replaced when joined",
            sentence_pieces(&json!({"type": "Sequence", "decoders": [
                {"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "s▁"}, "content": "!"},
            ]})),
        ),
    ]
}
