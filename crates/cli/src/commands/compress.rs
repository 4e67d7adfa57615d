//! `finegates compress`: a run or adapter becomes a smaller model that gives the same answers.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use finegates_checkpoint::read::{TOKENIZER_LIMIT_BYTES, read_text};
use finegates_checkpoint::{Checkpoint, Tokenizer};
use finegates_compress::removal::Totals;
use finegates_compress::{Report, Request, Source, synthetic_probe};
use finegates_data::{Format, TextRows};
use finegates_infer::{Artifact, Kind, Which};
use finegates_model::{Batch, Task, load};
use finegates_train::Recipe;
use finegates_train::material::Data;
use serde::Serialize;

use super::model::{Pair, TextColumns};
use crate::arguments::Common;
use crate::figures::{bytes, count, integer, ratio, share};
use crate::memory;
use crate::output::{CheckFailed, note};
use crate::table::{Table, facts};

const EXAMPLES: &str = "\
Examples:
  finegates compress runs/sst2 --output models/sst2
  finegates compress runs/sst2 --output models/sst2 --checkpoint last --overwrite
  finegates compress path/to/peft-adapter --output models/mrpc --base path/to/roberta-base

Nothing is approximated: gate values are folded into the weights, what they closed is left out,
and so is what nothing reads any more because of that. Before the result is put in place it is
read back, and both models answer a probe; if their logits differ by more than 1e-4 of their
scale, nothing is written and the exit status is 1.";

/// How many texts two models are compared on where nobody says.
const PROBE_SIZE: u16 = 64;

/// Remove what a run's gates closed and write the smaller model
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompressArguments {
    /// A run, or an adapter in PEFT's layout
    run: String,
    /// The folder to write
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// Replace what the output folder holds
    #[arg(long)]
    overwrite: bool,
    /// Which of the run's saved models to compress: best, last, or a stop of its budget, as params-0.6
    #[arg(long, value_name = "WHICH", default_value = "best")]
    checkpoint: Which,
    /// The base model, in place of the one the run names (when that one has moved)
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Texts to compare both models on [default: the run's own validation data; arbitrary tokens if it is gone]
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
    /// How the probe is laid out [default: as its name tells]
    #[arg(long, value_name = "FORMAT", requires = "probe")]
    probe_format: Option<Format>,
    /// Compare on at most N texts
    #[arg(long, value_name = "N", default_value_t = PROBE_SIZE, value_parser = clap::value_parser!(u16).range(1..))]
    probe_size: u16,
    #[command(flatten)]
    columns: TextColumns,
}

/// The report with the place it is about.
#[derive(Serialize)]
struct Outcome<'a> {
    output: &'a Path,
    peak_memory_bytes: Option<u64>,
    #[serde(flatten)]
    report: &'a Report,
}

/// Runs the command.
pub fn run(arguments: &CompressArguments, common: &Common) -> anyhow::Result<()> {
    let job = Job {
        run: &arguments.run,
        output: &arguments.output,
        overwrite: arguments.overwrite,
        checkpoint: arguments.checkpoint.clone(),
        base: arguments.base.as_deref(),
    };
    let report = compress(&job, common, |artifact, base, tokenizer| probe(arguments, artifact, base, tokenizer))?;
    let peak_memory_bytes = memory::peak_bytes();
    let mut text = text(&arguments.output, &report);
    text.extend(peak_memory_bytes.map(|peak| format!("\npeak memory {}", bytes(peak))));
    common.output().result(&text, &Outcome { output: &arguments.output, peak_memory_bytes, report: &report })
}

/// What to compress, and where to.
pub struct Job<'a> {
    pub run: &'a str,
    pub output: &'a Path,
    pub overwrite: bool,
    pub checkpoint: Which,
    pub base: Option<&'a str>,
}

/// Compresses a run or adapter; `probe` gives the sequences to compare on.
pub fn compress(
    job: &Job<'_>,
    common: &Common,
    probe: impl FnOnce(&Artifact, &Checkpoint, Option<&Tokenizer>) -> anyhow::Result<Vec<Batch>>,
) -> anyhow::Result<Report> {
    let artifact = Artifact::find(job.run, &job.checkpoint, job.base, &common.fetch())?;
    let Some(method) = artifact.method()? else {
        let kind = if artifact.kind == Kind::Compact { "is compact already" } else { "is a checkpoint without gates" };
        bail!("{}: {kind}; expected a run (finegates train) or an adapter with gates", artifact.folder.display());
    };
    let base = artifact.open_checkpoint(&common.fetch())?;
    let (task, adapter) = (artifact.task(&base)?.unwrap_or_default(), artifact.read_adapter()?);
    let classes = artifact.classes(&base, adapter.as_ref(), task);
    if let Some(classes) = classes.filter(|_| task == Task::Classify) {
        artifact.check_labels(classes)?;
    }
    let tokenizer = tokenizer(&artifact, &base)?;
    let probe = probe(&artifact, &base, tokenizer.as_ref())?;
    let (tokenizer_files, _changed) = tokenizer_files(tokenizer.as_ref(), artifact.trained_length)?;
    let request = Request {
        base: &base,
        adapter: adapter.as_ref(),
        task,
        classes,
        method,
        labels: &artifact.labels(&base)?,
        tokenizer_files: &tokenizer_files,
        probe: &probe,
        source: Source {
            base: artifact.base_name().unwrap_or_default(),
            adapter: artifact.adapter.as_ref().map(|_| job.run.to_owned()),
            method: method.to_string(),
        },
        destination: job.output,
        overwrite: job.overwrite,
    };
    finegates_compress::compress(&request).map_err(|error| match error {
        failed @ (finegates_compress::Error::LogitsDiffer { .. }
        | finegates_compress::Error::LogitsNotFinite { .. }) => CheckFailed(failed.to_string()).into(),
        finegates_compress::Error::NoHead { .. } => anyhow::anyhow!("{}: {error}", artifact.folder.display()),
        finegates_compress::Error::DestinationTaken { path } => {
            anyhow::anyhow!("{}: is not empty; name a new folder with --output, or add --overwrite", path.display())
        }
        other => other.into(),
    })
}

/// The tokenizer to take along; a model without one can still be compressed.
fn tokenizer(artifact: &Artifact, base: &Checkpoint) -> anyhow::Result<Option<Tokenizer>> {
    for folder in artifact.tokenizer_folders(base) {
        match Tokenizer::open(&folder, &base.config) {
            Ok(tokenizer) => return Ok(Some(tokenizer)),
            Err(finegates_checkpoint::Error::NoTokenizer { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    note("note: no tokenizer found, so the compact model will have none either and can only be timed on token ids");
    Ok(None)
}

/// The tokenizer's files to copy. The length a run cut its texts to becomes `model_max_length` in
/// `tokenizer_config.json`, so that the compact model reads texts as the run did; the changed file lies in a folder that
/// lives as long as the second value.
fn tokenizer_files(
    tokenizer: Option<&Tokenizer>,
    length: Option<usize>,
) -> anyhow::Result<(Vec<PathBuf>, Option<tempfile::TempDir>)> {
    const NAME: &str = "tokenizer_config.json";
    let mut files = tokenizer.map(Tokenizer::files).unwrap_or_default();
    let Some(length) = length.filter(|_| !files.is_empty()) else { return Ok((files, None)) };
    let is_settings = |path: &PathBuf| path.file_name().is_some_and(|name| name == NAME);
    let mut settings = serde_json::Map::new();
    if let Some(path) = files.iter().find(|path| is_settings(path)) {
        let text = read_text(path, TOKENIZER_LIMIT_BYTES)?;
        settings = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    }
    settings.insert("model_max_length".to_owned(), length.into());
    let folder = tempfile::tempdir().context("a temporary folder cannot be made")?;
    let path = folder.path().join(NAME);
    let text = serde_json::to_string_pretty(&settings)? + "\n";
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    files.retain(|path| !is_settings(path));
    files.push(path);
    Ok((files, Some(folder)))
}

fn probe(
    arguments: &CompressArguments,
    artifact: &Artifact,
    base: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
) -> anyhow::Result<Vec<Batch>> {
    let size = usize::from(arguments.probe_size);
    let texts = match (&arguments.probe, tokenizer) {
        (Some(path), None) => bail!("--probe {}: the model has no tokenizer to read texts with", path.display()),
        (Some(path), Some(_)) => read_probe(path, arguments, size)?,
        (None, Some(_)) => own_validation_texts(artifact, size),
        (None, None) => Vec::new(),
    };
    probe_of(&texts, base, tokenizer)
}

/// The probe where nobody names one: the run's own validation texts, or arbitrary tokens.
pub fn own_probe(artifact: &Artifact, base: &Checkpoint, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Vec<Batch>> {
    let texts = tokenizer.map(|_| own_validation_texts(artifact, usize::from(PROBE_SIZE))).unwrap_or_default();
    probe_of(&texts, base, tokenizer)
}

fn probe_of(texts: &[Pair], base: &Checkpoint, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Vec<Batch>> {
    match tokenizer {
        Some(tokenizer) if !texts.is_empty() => encode(texts, base, tokenizer),
        _ => Ok(synthetic_probe(base)?),
    }
}

fn read_probe(path: &Path, arguments: &CompressArguments, size: usize) -> anyhow::Result<Vec<Pair>> {
    let mut rows = TextRows::open(path, arguments.probe_format, &arguments.columns.choice(None))?;
    let mut texts = Vec::new();
    while texts.len() < size
        && let Some(row) = rows.read()?
    {
        let row = row?;
        texts.push((row.text, row.pair));
    }
    if texts.is_empty() {
        bail!("{}: no texts to compare on", path.display());
    }
    Ok(texts)
}

/// Texts of the run's own validation data, as far as they can still be read.
fn own_validation_texts(artifact: &Artifact, size: usize) -> Vec<Pair> {
    let Ok(Some(recipe)) = super::eval::run_recipe(artifact) else { return Vec::new() };
    if recipe.corpus.is_some() {
        return corpus_texts(&recipe, size);
    }
    let Ok(dataset) = finegates_data::Dataset::load(&recipe.dataset_options()) else {
        note("note: the run's own data are gone, so the models are compared on arbitrary tokens");
        return Vec::new();
    };
    let examples = dataset.validation.into_iter().flat_map(|split| split.examples);
    examples.take(size).map(|example| (example.text, example.pair)).collect()
}

/// The first lines of the text that a run on a corpus was judged by.
fn corpus_texts(recipe: &Recipe, size: usize) -> Vec<Pair> {
    let Ok(Data::Corpus(_, validation)) = Data::load(recipe) else {
        note("note: the run's own texts are gone, so the models are compared on arbitrary tokens");
        return Vec::new();
    };
    let mut texts = Vec::new();
    for (_, corpus) in validation {
        let mut reader = corpus.read();
        while texts.len() < size
            && let Ok(Some(piece)) = reader.read()
        {
            let lines = piece.text.lines().filter(|line| !line.trim().is_empty());
            texts.extend(lines.take(size - texts.len()).map(|line| (line.to_owned(), None)));
        }
    }
    texts
}

/// Texts as batches of sixteen.
pub fn encode(texts: &[Pair], base: &Checkpoint, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Batch>> {
    let pairs: Vec<(&str, Option<&str>)> = texts.iter().map(|(text, pair)| (text.as_str(), pair.as_deref())).collect();
    let encoded = tokenizer.encode_batch(&pairs, load::longest(base)?)?;
    let batches = encoded.chunks(16);
    Ok(batches.map(|batch| Batch::new(batch.iter().map(|one| (&one.ids[..], &one.segments[..])))).collect())
}

/// The report as people read it.
pub fn text(output: &Path, report: &Report) -> String {
    let totals = &report.removal.totals;
    let mut table =
        Table::new(["layer", "parameters", "by gates", "", "with liveness", "", "left", "multiply-adds/token"]);
    let cells = |name: String, totals: &Totals| {
        [
            name,
            integer(totals.gated_parameters),
            integer(totals.removed_by_gates),
            share(totals.removed_by_gates, totals.gated_parameters),
            integer(totals.removed_with_liveness),
            share(totals.removed_with_liveness, totals.gated_parameters),
            integer(totals.gated_parameters - totals.removed_with_liveness),
            integer(totals.multiply_adds_after),
        ]
    };
    for layer in &report.removal.layers {
        table.row(cells(layer.layer.to_string(), &layer.totals));
    }
    table.rule().row(cells("in all".to_owned(), totals));
    let change = |before: u64, after: u64, show: fn(u64) -> String| {
        let times = if after > 0 { format!("  ({:.2}×)", 1.0 / ratio(after, before)) } else { String::new() };
        format!("{} → {}{times}", show(before), show(after))
    };
    let check = &report.verification;
    let mut text = format!("Removed in each layer, of its gated weights:\n\n{table}\n");
    text.push_str(&facts([
        ("multiply-adds a token", change(totals.multiply_adds_before, totals.multiply_adds_after, count)),
        ("parameters, embeddings included", change(report.parameters.before, report.parameters.after, integer)),
        ("size of the weights", change(report.size_bytes.before, report.size_bytes.after, bytes)),
        (
            "checked",
            format!(
                "{} texts, logits differ by at most {:.1e} at a scale of {:.1}",
                check.sequences, check.max_abs_difference, check.scale
            ),
        ),
        ("written to", output.display().to_string()),
    ]));
    for note in &report.notes {
        text.push_str(&format!("\nnote: {note}"));
    }
    text
}
