//! Tokenizers that would make much of little, and texts that are much too long.

use std::fs;
use std::time::{Duration, Instant};

use finegates_checkpoint::{Config, Tokenizer};
use serde_json::{Value, json};

use crate::support::{fixtures, folder, write};

/// What is said about a small tokenizer.json with these changes; nothing if it is fine.
fn said(changes: Value) -> Option<String> {
    let folder = folder();
    let mut tokenizer = json!({"model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}});
    for (key, value) in changes.as_object().expect("an object") {
        tokenizer[key] = value.clone();
    }
    write(&folder.path().join("tokenizer.json"), tokenizer.to_string());
    let config = Config::from_json(r#"{"model_type": "bert"}"#).expect("a config");
    let error = match Tokenizer::open(folder.path(), &config) {
        Ok(tokenizer) => tokenizer.encode("a", None, 16).err(),
        Err(error) => Some(error),
    };
    error.map(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

#[test]
fn steps_that_make_gigabytes_of_a_letter_are_refused() {
    let letters = |count: usize| replace(json!({"String": "a"}), &"a".repeat(count));
    let chain = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
    assert_eq!(
        said(json!({"normalizer": chain(vec![letters(1000); 4])})).as_deref(),
        Some(
            "tokenizer.json: normalizer.normalizers[0]: expected steps that lengthen a text at most 512 times, found up to 1000 times with this step"
        )
    );
    for (step, count) in [
        (letters(100), 2),
        (replace(json!({"Regex": ""}), &"a".repeat(100)), 2),
        (replace(json!({"Regex": "(?=a)"}), "aaa"), 5),
        (json!({"type": "Prepend", "prepend": "a".repeat(40)}), 2),
        (json!({"prepend": "a".repeat(40)}), 2),
        (json!({"type": "ByteLevel"}), 10),
        (json!({"type": "Lowercase"}), 65),
    ] {
        let error = said(json!({"normalizer": chain(vec![step.clone(); count])})).expect("a refusal");
        let place = format!("tokenizer.json: normalizer.normalizers[{}]: expected ", count - 1);
        assert!(error.starts_with(&place), "{step} {error}");
    }
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
    let error =
        said(json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": vec![bytes; 5]}})).expect("a refusal");
    assert!(error.starts_with("tokenizer.json: pre_tokenizer.pretokenizers[4]: expected steps"), "{error}");
    // Before the library normalises them.
    let token = |content: String| {
        json!({"id": 2, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true,
            "special": false})
    };
    let error = said(json!({"added_tokens": [token("a".repeat(2000))]})).expect("a refusal");
    assert_eq!(error, "tokenizer.json: added_tokens: expected tokens of at most 1024 bytes, found 2000 of them");
    let many: Vec<Value> = (0..600).map(|number| token(format!("{number}{}", "a".repeat(1000)))).collect();
    let error = said(json!({"added_tokens": many, "normalizer": letters(512)})).expect("a refusal");
    assert!(error.starts_with("tokenizer.json: added_tokens: expected tokens that are short"), "{error}");
}

#[test]
fn a_table_that_lies_about_its_length_is_refused() {
    let table = |text: &str| json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}});
    assert_eq!(
        said(table("/////wEAAABhYgBjAA==")).as_deref(),
        Some(
            "tokenizer.json: normalizer.precompiled_charsmap: expected a table of its own length in base64, found another"
        )
    );
    // One unit, then a text of three thousand letters.
    let long = said(table(&format!("BAAAAAEAAABh{}", "YWFh".repeat(1000)))).expect("a refusal");
    assert!(long.starts_with("tokenizer.json: normalizer: expected steps"), "{long}");
}

#[test]
fn templates_that_make_much_of_a_text_are_refused() {
    let special = json!({"SpecialToken": {"id": "[CLS]", "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let template = |single: Vec<Value>, ids: usize, token: &str| {
        json!({"post_processor": {"type": "TemplateProcessing", "single": single, "pair": [text("A"), text("B")],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": vec![1; ids], "tokens": vec![token; ids]}}}})
    };
    let piece = |count: usize| std::iter::once(text("A")).chain(vec![special.clone(); count]).collect::<Vec<_>>();
    assert_eq!(said(template(piece(2), 1, "[CLS]")), None);
    assert_eq!(
        said(template(piece(100_000), 1, "[CLS]")).as_deref(),
        Some("tokenizer.json: post_processor.single: expected at most 2048 items, found 100001")
    );
    for (changes, expected) in [
        (template(piece(600), 1, "c"), "at most 512 special tokens around a text, found more"),
        (template(piece(2), 300, "c"), "at most 512 special tokens around a text, found more"),
        (template(vec![text("A"); 2], 1, "[CLS]"), "each text once, found A twice"),
        (template(piece(1), 2, &"c".repeat(600)), "special tokens of at most 1024 bytes, found [CLS]"),
    ] {
        assert_eq!(said(changes), Some(format!("tokenizer.json: post_processor.single: expected {expected}")));
    }
    let inner = template(piece(200), 1, "[CLS]")["post_processor"].clone();
    let error = said(json!({"post_processor": {"type": "Sequence", "processors": vec![inner; 3]}})).expect("a refusal");
    assert!(error.starts_with("tokenizer.json: post_processor.processors[2].single: expected at most 512"), "{error}");
}

#[test]
fn what_real_tokenizers_do_is_not_refused() {
    // An index of 257 units that finds nothing, and a text of 30 letters; the longest of SentencePiece's own has 33 bytes.
    let table = format!("BAQA{}{}AAAA", "AAAA".repeat(343), "YWFh".repeat(10));
    for steps in [
        // XLM-RoBERTa
        vec![
            json!({"type": "Precompiled", "precompiled_charsmap": table}),
            replace(json!({"Regex": " {2,}"}), "\u{2581}"),
        ],
        // ALBERT
        vec![
            replace(json!({"String": "``"}), "\""),
            replace(json!({"String": "''"}), "\""),
            json!({"type": "NFKD"}),
            json!({"type": "StripAccents"}),
            json!({"type": "Lowercase"}),
            json!({"type": "Precompiled", "precompiled_charsmap": table}),
        ],
        vec![json!({"type": "Prepend", "prepend": "\u{2581}"}), replace(json!({"String": " "}), "\u{2581}")],
        vec![replace(json!({"Regex": "\\s+"}), " "); 40],
        // Letters replaced by words that hold none of the letters.
        [("&", " and "), ("%", " percent "), ("$", " dollar "), ("@", " at ")]
            .map(|(letter, word)| replace(json!({"String": letter}), word))
            .to_vec(),
    ] {
        let metaspace =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
        let changes = json!({"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": metaspace});
        assert_eq!(said(changes), None);
    }
}

#[test]
fn a_long_text_is_read_only_as_far_as_truncation_leaves_it() {
    let begin = Instant::now();
    for kind in ["bert-plain", "bert-left", "mpnet", "roberta", "unigram"] {
        let source = fixtures().join("tokenizer").join(kind);
        let tokenizer = Tokenizer::open(&source, &Config::read(&source).expect("a config")).expect("a tokenizer");
        // Sixteen megabytes, of which a millionth is kept.
        let words = "the gates open, never mind how. ";
        let long = words.repeat((16 << 20) / words.len());
        let medium = words.repeat(100);
        let found = tokenizer.encode(&long, None, 40).expect("tokens");
        assert!(found.truncated);
        assert_eq!(found, tokenizer.encode(&medium, None, 40).expect("tokens"), "{kind}");
        let found = tokenizer.encode(&long, Some("a path"), 41).expect("tokens");
        assert_eq!(found, tokenizer.encode(&medium, Some("a path"), 41).expect("tokens"), "{kind}");
        let odd = tokenizer.encode(&long, Some(&long), 42).expect("tokens");
        assert_eq!(odd, tokenizer.encode(&medium, Some(&medium), 42).expect("tokens"), "{kind}");
    }
    // Read whole it takes twenty seconds a text.
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

#[test]
fn a_settings_file_beyond_its_limit_is_not_read() {
    let folder = folder();
    let path = folder.path().join("config.json");
    fs::File::create(&path).and_then(|file| file.set_len(17 << 20)).expect("a large file");
    let error = Config::read(folder.path()).expect_err("too large").to_string();
    assert!(
        error.ends_with(
            "config.json: 17825792 bytes, but such a file has at most 16777216; is it another kind of file?"
        )
    );
    write(&path, "12345678");
    assert!(finegates_checkpoint::read::read_text(&path, 8).is_ok());
    assert!(finegates_checkpoint::read::read_text(&path, 7).is_err());
    #[cfg(target_os = "linux")]
    {
        // A device has no size, and no end.
        let error = finegates_checkpoint::read::read_text("/dev/zero".as_ref(), 1000).expect_err("endless").to_string();
        assert!(error.contains("/dev/zero: 1001 bytes"), "{error}");
    }
}
