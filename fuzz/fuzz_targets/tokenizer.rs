//! Tokenizer files of every kind, and a text for them. The `tokenizers` library panics on some files, which the crate
//! turns into errors without a word to the panic hook, so that libFuzzer stops only at panics that are our own.

#![no_main]

use std::sync::LazyLock;

use finegates_checkpoint::{Config, Tokenizer};
use finegates_fuzz::{Scratch, parts};
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

const FILES: [&str; 6] =
    ["tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];

fuzz_target!(|data: &[u8]| {
    let scratch = &*SCRATCH;
    let Some((&kinds, data)) = data.split_first() else { return };
    for name in FILES {
        scratch.remove(name);
    }
    let mut pieces = parts(data);
    for (number, name) in FILES.iter().enumerate() {
        if kinds & (1 << number) != 0 {
            scratch.write(name, pieces.next().unwrap_or_default());
        }
    }
    let text = String::from_utf8_lossy(pieces.next().unwrap_or(b"The gates open, \xe2\x80\x9creally\xe2\x80\x9d."))
        .into_owned();
    for family in ["bert", "roberta", "mpnet"] {
        let config = Config::from_json(&format!(r#"{{"model_type": "{family}"}}"#)).expect("a config");
        let Ok(tokenizer) = Tokenizer::open(scratch.path(), &config) else { continue };
        for (pair, length) in [(None, 16), (Some("a pair"), 9), (Some(text.as_str()), 512)] {
            if let Ok(encoding) = tokenizer.encode(&text, pair, length) {
                assert!(encoding.ids.iter().all(|&id| (id as usize) < config.vocabulary), "an id beyond the table");
                assert_eq!(encoding.ids.len(), encoding.segments.len(), "segments of another length");
                assert!(encoding.ids.len() <= length, "longer than asked for");
            }
        }
    }
});
