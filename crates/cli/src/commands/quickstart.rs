//! `finegates quickstart`: the whole path once, on a real model and real data, with what came out and what to try next.

mod fetch;
mod settings;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use finegates_compress::synthetic_probe;
use finegates_data::{Labels, ReadOptions, Split, read_split};
use finegates_infer::{Artifact, Engine, Options, Which};
use finegates_train::{Ending, Mode, PartialRecipe};
use serde::Serialize;

use super::bench::{self, Measured};
use super::model::Pair;
use super::{compress, eval, train};
use crate::arguments::{Common, program};
use crate::figures::{bytes, count, counted, duration, integer, rate, share};
use crate::output::{Interrupted, Output};
use crate::table::Table;

const ABOUT: &str = "\
What it does: fetches MiniLM and the SMS Spam Collection (83 and 32 MB, once), trains a dense
model to compare with and a gated one, removes what the gates closed, judges and times both, and
prints every command to do the same by hand. A few minutes on two cores.

Examples:
  finegates quickstart
  finegates quickstart --output /tmp/first --threads 2";

/// Train, compress, judge and time a real model on real data, in a few minutes
#[derive(Args, Debug)]
#[command(after_help = ABOUT)]
pub struct QuickstartArguments {
    /// The folder to put everything into
    #[arg(long, short, value_name = "FOLDER", default_value = "quickstart")]
    output: PathBuf,
    /// Start anew, removing what an earlier quickstart left in the folder
    #[arg(long)]
    overwrite: bool,
}

/// What the quickstart writes into its folder.
const PARTS: [&str; 4] = ["data", "dense", "gates", "compact"];

/// The file that tells a quickstart's folder, and what it says to people.
const MARK: (&str, &str) = (
    "quickstart.txt",
    "Made by `finegates quickstart`, which owns data, dense, gates and compact here: --overwrite removes them.\n",
);

/// What came of it; the fields of the JSON object.
#[derive(Serialize)]
struct Outcome {
    folder: PathBuf,
    model: &'static str,
    train_examples: usize,
    validation_examples: usize,
    dense: train::Outcome,
    gates: train::Outcome,
    compression: finegates_compress::Report,
    dense_evaluation: eval::SplitReport,
    compact_evaluation: eval::SplitReport,
    timing: Vec<Measured>,
    seconds_fetching: f64,
    seconds_in_all: f64,
}

/// Runs the command.
pub fn run(arguments: &QuickstartArguments, common: &Common) -> anyhow::Result<()> {
    let started = Instant::now();
    let (folder, output) = (&arguments.output, common.output());
    make_room(folder, arguments.overwrite)?;

    heading(output, 1, "Fetch a model and data")?;
    let sources = fetch::Sources::new(common);
    let model = sources.model()?;
    let data = fetch::data(&folder.join("data"), &sources)?;
    let seconds_fetching = started.elapsed().as_secs_f64();
    output.line(&format!(
        "model  {model}\ndata   SMS Spam Collection: {} messages to train on, {} to validate on",
        integer(data.train_rows as u64),
        integer(data.validation_rows as u64)
    ))?;

    let runs = Runs { model, data: &data, folder, common };
    heading(output, 2, "Train a dense model to compare with (biases and head)")?;
    let dense = runs.train("dense", settings::dense())?;
    heading(output, 3, "Train gates (with biases and head)")?;
    let gates = runs.train("gates", settings::gates())?;

    heading(output, 4, "Remove what the gates closed")?;
    let compact = folder.join("compact");
    let texts = read_validation(&data)?;
    let compression = compress_gates(&folder.join("gates"), &compact, &texts, common)?;
    output.line(&compress::text(&compact, &compression))?;

    heading(output, 5, "Judge and time both")?;
    let (dense_engine, compact_engine) = (load(&folder.join("dense"), common)?, load(&compact, common)?);
    let judge = |engine: &Engine| -> anyhow::Result<eval::SplitReport> {
        let report = eval::evaluate("", engine, None, vec![texts.clone()])?;
        report.splits.into_iter().next().context("nothing was judged")
    };
    let (dense_evaluation, compact_evaluation) = (judge(&dense_engine)?, judge(&compact_engine)?);
    let timing = time(dense_engine, compact_engine, &texts)?;

    let outcome = Outcome {
        folder: folder.clone(),
        model,
        train_examples: data.train_rows,
        validation_examples: data.validation_rows,
        dense,
        gates,
        compression,
        dense_evaluation,
        compact_evaluation,
        timing,
        seconds_fetching,
        seconds_in_all: started.elapsed().as_secs_f64(),
    };
    output.result(&closing_text(&outcome), &outcome)
}

/// Refuses a folder with something in it; with `overwrite` removes what an earlier quickstart left there, told by its mark.
fn make_room(folder: &Path, overwrite: bool) -> anyhow::Result<()> {
    let mark = folder.join(MARK.0);
    let empty = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    match (empty, mark.is_file()) {
        (true, _) => {}
        (false, true) if overwrite => {
            for part in PARTS.map(|part| folder.join(part)).iter().filter(|part| part.is_dir()) {
                std::fs::remove_dir_all(part).with_context(|| part.display().to_string())?;
            }
        }
        (false, true) => {
            bail!("{}: not empty; name another folder with --output, or start anew with --overwrite", folder.display())
        }
        (false, false) => {
            bail!("{}: not empty, and not made by a quickstart; name another folder with --output", folder.display())
        }
    }
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    std::fs::write(&mark, MARK.1).with_context(|| mark.display().to_string())
}

fn heading(output: Output, number: usize, text: &str) -> anyhow::Result<()> {
    output.line(&format!("{}{number}/5  {text}\n", if number > 1 { "\n" } else { "" }))
}

/// What the two runs share.
struct Runs<'a> {
    model: &'a str,
    data: &'a fetch::DataFiles,
    folder: &'a Path,
    common: &'a Common,
}

impl Runs<'_> {
    fn train(&self, name: &str, settings: PartialRecipe) -> anyhow::Result<train::Outcome> {
        let settings = PartialRecipe {
            model: Some(self.model.to_owned()),
            train: Some(self.data.train.clone()),
            validation: Some(vec![self.data.validation.clone()]),
            threads: self.common.threads.map(usize::from),
            ..settings
        };
        let on_stop = "stopping; the quickstart starts anew with --overwrite";
        let outcome = train::train(settings, &self.folder.join(name), Mode::New, self.common, on_stop)?;
        if outcome.summary.ending == Ending::Interrupted {
            return Err(Interrupted.into());
        }
        Ok(outcome)
    }
}

fn read_validation(data: &fetch::DataFiles) -> anyhow::Result<Split> {
    let labels = Labels::named(settings::DATA_LABELS);
    Ok(read_split("validation", std::slice::from_ref(&data.validation), &ReadOptions::default(), &labels)?)
}

fn pairs(texts: &Split, limit: usize) -> Vec<Pair> {
    texts.examples.iter().take(limit).map(|example| (example.text.clone(), example.pair.clone())).collect()
}

fn compress_gates(
    run: &Path,
    compact: &Path,
    texts: &Split,
    common: &Common,
) -> anyhow::Result<finegates_compress::Report> {
    let run = run.to_string_lossy();
    let job = compress::Job { run: &run, output: compact, overwrite: false, checkpoint: Which::Best, base: None };
    compress::compress(&job, common, |_, base, tokenizer| match tokenizer {
        Some(tokenizer) => compress::encode(&pairs(texts, 64), base, tokenizer),
        None => Ok(synthetic_probe(base)?),
    })
}

fn load(folder: &Path, common: &Common) -> anyhow::Result<Engine> {
    let options = Options { fetch: common.fetch(), ..Options::default() };
    let artifact = Artifact::find(&folder.to_string_lossy(), &options.which, None, &options.fetch)?;
    Ok(Engine::from_artifact(artifact, &options)?)
}

fn time(dense: Engine, compact: Engine, texts: &Split) -> anyhow::Result<Vec<Measured>> {
    let texts = pairs(texts, settings::BENCH_TEXTS);
    let mut runners = Vec::new();
    for (name, engine) in [("dense", dense), ("compact", compact)] {
        let encoded = bench::encode(&engine, &texts)?;
        runners.push(bench::Runner::of_texts(name, engine, encoded));
    }
    let turns = bench::alternate(&runners, None, 2, settings::BENCH_ROUNDS)?;
    Ok(bench::measured(&runners, &turns, &bench::Peaks::measure(false)))
}

fn closing_text(outcome: &Outcome) -> String {
    let mut table =
        Table::new(["", "accuracy", "macro F1", "weights in layers", "multiply-adds/token", "texts/s", "speed"]);
    let totals = &outcome.compression.removal.totals;
    let left = totals.gated_parameters - totals.removed_with_liveness;
    let lines = [
        (&outcome.dense_evaluation, &outcome.timing[0], totals.gated_parameters, totals.multiply_adds_before),
        (&outcome.compact_evaluation, &outcome.timing[1], left, totals.multiply_adds_after),
    ];
    for (evaluation, timing, parameters, multiply_adds) in lines {
        let metric = |name| match evaluation.metrics.get(name).copied().flatten() {
            Some(value) => format!("{value:.4}"),
            None => "-".to_owned(),
        };
        table.row([
            timing.model.clone(),
            metric("accuracy"),
            metric("macro_f1"),
            integer(parameters),
            count(multiply_adds),
            rate(timing.sequences_per_second),
            format!("{:.2}×", timing.speed_to_first),
        ]);
    }
    let majority = outcome.dense_evaluation.majority.unwrap_or(0.0);
    let (folder, program) = (outcome.folder.display(), program());
    format!(
        "\nWhat came out\n\n{table}\n\
         Always answering '{}' would be right for {majority:.4} of the messages. Both runs are {} long, and each is shown\n\
         as it was after its best epoch on these messages; the gated one, of the epochs that met its budget, {}.\n\
         The compact model has {} of the gated weights removed and is {} on disk, most of it the word table, which\n\
         is not gated. {} in all.\n\n\
         Try it\n\n  \
         echo \"WINNER! Claim your free prize now, text WIN to 80082\" | {program} predict {folder}/compact\n  \
         {program} inspect {folder}/gates\n  \
         {program} bench {folder}/dense {folder}/compact --batch 1 --length 32\n\n\
         The same by hand\n\n  \
         {program} train --recipe {folder}/dense/recipe.toml --output mine/dense\n  \
         {program} train --recipe {folder}/gates/recipe.toml --output mine/gates\n  \
         {program} compress mine/gates --output mine/compact\n  \
         {program} eval mine/compact --data {folder}/data/validation.jsonl\n  \
         {program} bench mine/dense mine/compact --data {folder}/data/validation.jsonl\n\n\
         Next: with the gates' recipe, --budget params=0.8,0.6,0.4,0.25 --epochs 8 leaves a model at each and the curve of\n\
         accuracy over them; --train and --validation take files of your own.\n",
        settings::DATA_LABELS[0],
        counted(outcome.gates.summary.epoch, "epoch"),
        settings::BUDGET,
        share(totals.removed_with_liveness, totals.gated_parameters),
        bytes(outcome.compression.size_bytes.after),
        duration(std::time::Duration::from_secs_f64(outcome.seconds_in_all)),
    )
}
