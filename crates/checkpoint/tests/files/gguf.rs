//! GGUF files: small ones made here and imported, hostile ones refused, tokenizers against their goldens.

mod hostile;
mod model;
mod tokenizer;
pub mod writer;

use finegates_checkpoint::gguf::{ImportOptions, Imported, import};
use finegates_checkpoint::{Config, Error, FloatType, TensorFile, Tokenizer};
use std::path::{Path, PathBuf};
use writer::{File, Value, text};

use crate::support::folder;

pub const HIDDEN: usize = 8;
pub const HEADS: usize = 2;
pub const INNER: usize = 6;

/// Values that tell rows and columns apart.
pub fn numbers(count: usize, from: f32) -> Vec<f32> {
    (0..count).map(|at| from + at as f32).collect()
}

/// A model of one layer, two heads that share keys and values, and a tokenizer of four tokens.
pub fn tiny(architecture: &str) -> File {
    let mut file = File::default();
    let key = |name: &str| format!("{architecture}.{name}");
    file.set("general.architecture", text(architecture))
        .set(&key("embedding_length"), Value::U32(HIDDEN as u32))
        .set(&key("block_count"), Value::U32(1))
        .set(&key("context_length"), Value::U32(64))
        .set(&key("feed_forward_length"), Value::U32(INNER as u32))
        .set(&key("attention.head_count"), Value::U32(HEADS as u32))
        .set(&key("attention.head_count_kv"), Value::U32(1))
        .set(&key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5))
        .set(&key("rope.freq_base"), Value::F32(500_000.0))
        .set("tokenizer.ggml.model", text("gpt2"))
        .set("tokenizer.ggml.pre", text("gpt-2"))
        .set("tokenizer.ggml.tokens", Value::Texts(["a", "b", "ab", "<end>"].map(String::from).to_vec()))
        .set("tokenizer.ggml.token_type", Value::I32s(vec![1, 1, 1, 3]))
        .set("tokenizer.ggml.merges", Value::Texts(vec!["a b".to_owned()]))
        .set("tokenizer.ggml.eos_token_id", Value::U32(3));
    let half = HIDDEN / HEADS;
    let qwen = architecture == "qwen2";
    for (name, rows, columns) in [
        ("token_embd", 4, HIDDEN),
        ("blk.0.attn_q", HIDDEN, HIDDEN),
        ("blk.0.attn_k", half, HIDDEN),
        ("blk.0.attn_v", half, HIDDEN),
        ("blk.0.attn_output", HIDDEN, HIDDEN),
        ("blk.0.ffn_gate", INNER, HIDDEN),
        ("blk.0.ffn_up", INNER, HIDDEN),
        ("blk.0.ffn_down", HIDDEN, INNER),
    ] {
        file.tensor(&format!("{name}.weight"), &[rows, columns], &numbers(rows * columns, 100.0));
        if qwen && ["blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"].contains(&name) {
            file.tensor(&format!("{name}.bias"), &[rows], &numbers(rows, 0.5));
        }
    }
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        file.tensor(&format!("{name}.weight"), &[HIDDEN], &numbers(HIDDEN, 1.0));
    }
    file
}

/// Imports a file and gives the folder that holds `model`.
pub fn imported_as(file: &File, float: FloatType) -> Result<(tempfile::TempDir, Imported), Error> {
    let place = folder();
    let source: PathBuf = place.path().join("m.gguf");
    file.write(&source);
    let options = ImportOptions { float, progress: None };
    let imported = import(&source, &place.path().join("model"), false, &options)?;
    opens(&place.path().join("model"));
    Ok((place, imported))
}

/// What was imported is read again: config, tokenizer and the headers of the tensors.
#[track_caller]
pub fn opens(model: &Path) {
    let config = Config::read(model).expect("the config is read");
    Tokenizer::open(model, &config).expect("the tokenizer is opened");
    let tensors = TensorFile::open(model).expect("the tensors are opened");
    assert!(tensors.names().count() > 0);
}

pub fn imported(file: &File) -> Result<(tempfile::TempDir, Imported), Error> {
    imported_as(file, FloatType::F32)
}

/// What an import of the file is refused with.
#[track_caller]
pub fn refused(file: &File) -> String {
    let place = folder();
    let source = place.path().join("m.gguf");
    file.write(&source);
    let error = import(&source, &place.path().join("model"), false, &ImportOptions::default()).expect_err("refused");
    let left: Vec<_> =
        std::fs::read_dir(place.path()).expect("list").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["m.gguf"], "nothing is left behind");
    error.to_string()
}
