//! `finegates perplexity`: how well a language model predicts a text, by a protocol that is printed with the result.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use finegates_data::{Corpus, CorpusOptions, Windows};
use finegates_train::material::Encoder;
use serde::Serialize;

use super::model::{Chosen, LanguageModel};
use crate::arguments::Common;
use crate::figures::{duration, integer, rate};
use crate::interrupt;
use crate::output::Interrupted;
use crate::progress::Progress;
use crate::table::facts;

const EXAMPLES: &str = "\
Examples:
  finegates perplexity HuggingFaceTB/SmolLM2-135M wiki.test.txt
  finegates perplexity runs/small/compact/params-0.8 wiki.test.txt --window 2048 --stride 512

The text is read in windows: each but the first scores only the tokens that no window before it
has scored, with the rest of the window as their context (the protocol of Hugging Face's guide to
the perplexity of fixed-length models). Every token but the very first counts once and equally.";

/// Measure how well a language model predicts a text
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PerplexityArguments {
    /// A checkpoint, a run, an adapter or a compact model
    model: String,
    /// Text files, JSON lines or Parquet, or folders of them
    #[arg(required = true, value_name = "TEXT")]
    texts: Vec<PathBuf>,
    /// Tokens of a window [default: 1024, or what the model takes]
    #[arg(long, value_name = "TOKENS")]
    window: Option<usize>,
    /// Tokens from one window to the next [default: half the window]
    #[arg(long, value_name = "TOKENS")]
    stride: Option<usize>,
    /// Read no more of the text than so many tokens
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<usize>,
    /// The field of JSON lines or column of Parquet that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    text: String,
    #[command(flatten)]
    chosen: Chosen,
}

/// The fields of the JSON object.
#[derive(Serialize)]
struct Outcome {
    perplexity: f64,
    /// Mean of `−log p`, in nats.
    loss: f64,
    tokens_scored: usize,
    tokens: usize,
    window: usize,
    stride: usize,
    seconds: f64,
}

/// Runs the command.
pub fn run(arguments: &PerplexityArguments, common: &Common) -> anyhow::Result<()> {
    let options = CorpusOptions { field: arguments.text.clone(), ..CorpusOptions::new(arguments.texts.clone()) };
    let corpus = Corpus::open(&options)?;
    let LanguageModel { checkpoint, model, tokenizer } = arguments.chosen.language_model(&arguments.model, common)?;
    let tokens =
        Encoder::new(tokenizer, &checkpoint.config)?.whole(&corpus, arguments.max_tokens.unwrap_or(usize::MAX))?;
    if tokens.len() < 2 {
        bail!("{}: expected at least two tokens, found {}", arguments.texts[0].display(), tokens.len());
    }
    let longest = model.max_length();
    let window = arguments.window.unwrap_or(1024.min(longest));
    if window > longest {
        bail!("--window: expected at most {longest} tokens, which is what the model takes, found {window}");
    }
    let stride = arguments.stride.unwrap_or((window / 2).max(1));
    let windows = Windows::new(tokens.len(), window, stride).context("--window and --stride")?;
    let windows = windows.map(|window| (window.tokens, window.first_scored));
    let bar = Progress::bar("tokens", tokens.len() as u64);
    let stop = interrupt::flag("stopping")?;
    let started = std::time::Instant::now();
    let mut progress = |done: usize, _: usize| {
        bar.set(done as u64, String::new);
        !stop.load(std::sync::atomic::Ordering::Relaxed)
    };
    let found = model.text_loss(&tokens, windows, &mut progress)?;
    bar.finish();
    let Some(found) = found else { return Err(Interrupted.into()) };
    let elapsed = started.elapsed();
    let outcome = Outcome {
        perplexity: found.mean().exp(),
        loss: found.mean(),
        tokens_scored: found.tokens,
        tokens: tokens.len(),
        window,
        stride,
        seconds: elapsed.as_secs_f64(),
    };
    let speed = rate(found.tokens as f64 / outcome.seconds.max(1e-9));
    let text = facts([
        ("perplexity", format!("{:.4}", outcome.perplexity)),
        ("loss", format!("{:.5} nats a token", outcome.loss)),
        ("scored", format!("{} of {} tokens", integer(found.tokens as u64), integer(tokens.len() as u64))),
        ("protocol", format!("windows of {window} tokens, {stride} from one to the next")),
        ("time", format!("{}, {speed} tokens/s", duration(elapsed))),
    ]);
    common.output().result(&text, &outcome)
}
