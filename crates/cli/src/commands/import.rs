//! `finegates import`: a GGUF file becomes a model folder.

use std::path::{Path, PathBuf};

use clap::Args;
use finegates_checkpoint::FloatType;
use finegates_checkpoint::gguf::{self, ImportOptions, Imported};
use serde::Serialize;
use serde_json::{Value, json};

use crate::arguments::Common;
use crate::figures::{bytes, integer};
use crate::progress::Progress;
use crate::table::facts;

const EXAMPLES: &str = "\
Examples:
  finegates import SmolLM2-135M-Instruct.Q8_0.gguf --output models/smollm2
  finegates import Llama-3.2-1B.Q6_K.gguf --output models/llama --dtype bf16

The folder is one of Hugging Face's: config.json, model.safetensors, tokenizer.json. Weights are
dequantised. f32 keeps their values exactly and takes 4 bytes each (4.9 GB for Llama-3.2-1B);
f16 and bf16 take 2 and round. Read are Llama, Mistral and Qwen2 models in F32, F16, BF16, Q8_0,
Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K, and mixtures of them such as Q4_K_M.";

/// Turn a GGUF file, as llama.cpp runs them, into a model folder
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ImportArguments {
    /// The GGUF file
    file: PathBuf,
    /// The folder to write
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// The number type of the weights written: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value_t = FloatType::F32)]
    dtype: FloatType,
    /// Replace an earlier import in the output folder
    #[arg(long)]
    overwrite: bool,
}

/// What was imported, with the places.
#[derive(Serialize)]
struct Outcome<'a> {
    file: &'a Path,
    output: &'a Path,
    dtype: String,
    model_type: &'a str,
    tensors: usize,
    parameters: u64,
    size_bytes: u64,
    tied_embeddings: bool,
    tokenizer: &'a str,
    quantisations: Value,
}

/// Runs the command.
pub fn run(arguments: &ImportArguments, common: &Common) -> anyhow::Result<()> {
    let progress = Progress::bar("tensors", 0);
    let tell = |written: usize, all: usize| progress.set_of(written as u64, all as u64);
    let options = ImportOptions { float: arguments.dtype, progress: Some(&tell) };
    let imported = gguf::import(&arguments.file, &arguments.output, arguments.overwrite, &options);
    progress.finish();
    let imported = imported?;
    let outcome = Outcome {
        file: &arguments.file,
        output: &arguments.output,
        dtype: arguments.dtype.to_string(),
        model_type: &imported.model_type,
        tensors: imported.tensors,
        parameters: imported.parameters,
        size_bytes: imported.size_bytes,
        tied_embeddings: imported.tied,
        tokenizer: &imported.tokenizer,
        quantisations: json!(imported.quantisations),
    };
    common.output().result(&text(arguments, &imported), &outcome)
}

fn text(arguments: &ImportArguments, imported: &Imported) -> String {
    let formats: Vec<String> = imported.quantisations.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let embeddings = if imported.tied { "tied" } else { "separate" };
    facts([
        ("model", imported.model_type.clone()),
        ("parameters", format!("{} in {} tensors", integer(imported.parameters), imported.tensors)),
        ("from", formats.join(", ")),
        ("to", format!("{}, {}", arguments.dtype, bytes(imported.size_bytes))),
        ("embeddings", embeddings.to_owned()),
        ("tokenizer", imported.tokenizer.clone()),
        ("written", arguments.output.display().to_string()),
    ])
}
