//! `finegates sparsify`: gates trained on plain text against the loss of the next token. A run as any other, on a corpus.

use clap::Args;
use finegates_train::PartialRecipe;

use super::train::{self, TrainArguments};
use crate::arguments::Common;

const EXAMPLES: &str = "\
Examples:
  finegates sparsify --model HuggingFaceTB/SmolLM2-135M --corpus texts/ --validation wiki.test.txt \\
      --budget params=0.9,0.8,0.7 --tokens 2000000 --output runs/small
  finegates sparsify --resume runs/small
  finegates perplexity runs/small/compact/params-0.8 wiki.test.txt
  finegates generate runs/small/compact/params-0.8 \"The capital of France is\"

The corpus is streamed: text files, JSON lines or Parquet (field or column \"text\", or --text NAME),
in any number and size. Documents are joined with the tokenizer's end of text between them and cut
into sequences. A run that is stopped goes on in mid-corpus to the same bits.

The folder holds what that of finegates train holds; models are judged by their perplexity on the
validation text. An epoch, in intervals such as --evaluate-every, is the whole run here.";

/// Train gates on plain text, without a task, and remove the least important part of a language model
#[derive(Args, Debug)]
pub struct SparsifyArguments {
    #[command(flatten)]
    run: TrainArguments,
}

/// The text below the options.
pub fn examples() -> &'static str {
    EXAMPLES
}

/// Runs the command.
pub fn run(arguments: &SparsifyArguments, common: &Common) -> anyhow::Result<()> {
    let of_file = arguments.run.recipe.as_deref().map(PartialRecipe::read).transpose()?.unwrap_or_default();
    let corpus = arguments.run.settings.corpus.is_some() || of_file.corpus.is_some();
    if arguments.run.resume.is_none() && !corpus {
        anyhow::bail!("--corpus: not given; name a text file, or a folder of them, to learn the next token from");
    }
    train::run(&arguments.run, common)
}
