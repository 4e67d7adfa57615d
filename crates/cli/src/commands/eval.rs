//! `finegates eval`: the metrics of any model on labelled data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use finegates_data::{
    Dataset, GlueTask, Label, Labels, ReadOptions, Split, ValidationSet, read_for_model, validation_files,
};
use finegates_infer::{Artifact, Engine, Text};
use finegates_kernels::loss;
use finegates_train::evaluation::Yardstick;
use finegates_train::metrics::{Metric, classes_of};
use finegates_train::{PartialRecipe, Recipe};
use serde::Serialize;

use super::model::{ModelArguments, TextColumns};
use super::predict::at;
use crate::arguments::Common;
use crate::figures::{duration, integer, names, percent, rate};
use crate::output::note;
use crate::progress::Progress;
use crate::table::Table;

const EXAMPLES: &str = "\
Examples:
  finegates eval runs/sst2                                  a run, on the validation data it was trained with
  finegates eval models/sst2 --task sst2 --data GLUE/SST-2/dev.tsv
  finegates eval models/mine --data dev.csv --text body --label topic
  finegates eval models/mine --data first.csv --data second.csv --json

A folder given with --data is looked through for its validation files, as in training. What a
label means is settled as in training too: by the task, or by the class names in the files, and
then by name among the model's labels, in whatever order and case; numbers without any name are
those of the model's classes. Metrics are those of the task, or accuracy and macro F1, or the two
correlations for numbers. 'majority' is the share of the most frequent label: what a model that
always answers the same would reach.";

/// How many texts are answered between two looks at the progress bar.
const TEXTS_TOGETHER: usize = 512;

/// Judge a model on labelled data
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct EvalArguments {
    /// A model with a task head: a run, a compact model, a fine-tuned checkpoint
    model: String,
    /// Labelled data: a file, or a folder with validation files; repeat for several sets [default: the run's own]
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Task of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli [default: the run's own]
    #[arg(long, value_name = "TASK")]
    task: Option<GlueTask>,
    #[command(flatten)]
    columns: TextColumns,
    /// The column with the label [default: found by its name, e.g. label, class, gold_label]
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// Leave broken rows out and count them, instead of stopping
    #[arg(long)]
    skip_bad_rows: bool,
    #[command(flatten)]
    model_options: ModelArguments,
}

/// What came of it; the fields of the JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub kind: String,
    pub task: Option<GlueTask>,
    pub maximum_length: usize,
    pub splits: Vec<SplitReport>,
}

/// One data set's numbers.
#[derive(Clone, Debug, Serialize)]
pub struct SplitReport {
    pub name: String,
    pub files: Vec<PathBuf>,
    pub examples: usize,
    pub skipped_rows: usize,
    pub truncated: usize,
    pub loss: f64,
    /// The metrics; null where one is undefined.
    pub metrics: BTreeMap<&'static str, Option<f64>>,
    /// Share of the most frequent label; none for numbers.
    pub majority: Option<f64>,
    pub seconds: f64,
    #[serde(skip)]
    order: Vec<&'static str>,
}

/// Runs the command.
pub fn run(arguments: &EvalArguments, common: &Common) -> anyhow::Result<()> {
    let options = arguments.model_options.options(false, common);
    let artifact = Artifact::find(&arguments.model, &options.which, options.base.as_deref(), &options.fetch)?;
    let recipe = run_recipe(&artifact)?;
    if arguments.data.is_empty() && recipe.is_none() {
        bail!("--data: not given; {} is no run, so name the labelled data to judge it on", artifact.folder.display());
    }
    let engine = Engine::from_artifact(artifact, &options)?;
    let task = arguments.task.or(recipe.as_ref().and_then(|recipe| recipe.task));
    if let Some(task) = task {
        task.check_kind(&labels_of(&engine))?;
    }
    let splits = match (&arguments.data[..], &recipe) {
        ([], Some(recipe)) if arguments.own_data() => own_validation(&engine, recipe)?,
        ([], _) => bail!("--data: not given; --task and columns say how to read data, not where they are"),
        (paths, _) => named_data(&engine, paths, task, arguments, recipe.as_ref())?,
    };
    let report = evaluate(&arguments.model, &engine, task, splits)?;
    common.output().result(&text(&report), &report)
}

impl EvalArguments {
    /// Whether nothing was said about data.
    fn own_data(&self) -> bool {
        let TextColumns { text, text_pair } = &self.columns;
        self.task.is_none() && text.is_none() && text_pair.is_none() && self.label.is_none()
    }
}

/// The recipe of a run.
pub fn run_recipe(artifact: &Artifact) -> anyhow::Result<Option<Recipe>> {
    let path = artifact.folder.join("recipe.toml");
    Ok(if path.is_file() { Some(PartialRecipe::read(&path)?.resolve()?) } else { None })
}

/// The validation sets a run was trained with, labels numbered as the model has them.
pub fn own_validation(engine: &Engine, recipe: &Recipe) -> anyhow::Result<Vec<Split>> {
    let names: Vec<String> = engine.labels().map(str::to_owned).collect();
    let mut dataset = Dataset::load(&recipe.dataset_options())
        .context("the run's own data cannot be read; name other data with --data")?;
    dataset.match_order(&names);
    let lower = |names: &[String]| names.iter().map(|name| name.to_lowercase()).collect::<Vec<_>>();
    if !engine.regression() && dataset.labels.names().map(lower) != Some(lower(&names)) {
        let found = dataset.labels.names().unwrap_or_default().join(", ");
        bail!("the run's own data have other labels than its model: expected {}, found {found}", names.join(", "));
    }
    Ok(dataset.validation)
}

fn named_data(
    engine: &Engine,
    paths: &[PathBuf],
    task: Option<GlueTask>,
    arguments: &EvalArguments,
    recipe: Option<&Recipe>,
) -> anyhow::Result<Vec<Split>> {
    let labels = labels_of(engine);
    let mut columns = arguments.columns.choice(arguments.label.as_deref());
    if let Some(recipe) = recipe {
        columns.text = columns.text.or_else(|| recipe.text.clone());
        columns.pair = columns.pair.or_else(|| recipe.text_pair.clone());
        columns.label = columns.label.or_else(|| recipe.label.clone());
    }
    let options = ReadOptions { columns, task, skip_bad_rows: arguments.skip_bad_rows };
    let mut splits = Vec::new();
    for path in paths {
        for (name, files) in sets_of(path, task)? {
            let read = read_for_model(&name, &files, &options, &labels)?;
            if read.by_number {
                let numbered: Vec<String> =
                    engine.labels().enumerate().map(|(class, name)| format!("{class} is {name}")).collect();
                note(&format!("note: {name}: labels are numbers without names; {}", names(&numbered)));
            }
            splits.push(read.split);
        }
    }
    Ok(splits)
}

/// What the model predicts.
fn labels_of(engine: &Engine) -> Labels {
    if engine.regression() { Labels::Regression } else { Labels::named(engine.labels()) }
}

/// A file is a set of its own; a folder is looked through for its validation files.
fn sets_of(path: &Path, task: Option<GlueTask>) -> anyhow::Result<Vec<ValidationSet>> {
    if !path.is_dir() {
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        return Ok(vec![(name, vec![path.to_owned()])]);
    }
    Ok(validation_files(path, task)?)
}

/// Judges a model on sets of examples.
pub fn evaluate(model: &str, engine: &Engine, task: Option<GlueTask>, splits: Vec<Split>) -> anyhow::Result<Report> {
    let metrics = Metric::of(task, &labels_of(engine));
    let labels: Vec<String> = engine.labels().map(str::to_owned).collect();
    let positive = task.map_or(1, |task| task.positive_class(&labels));
    let total: usize = splits.iter().map(|split| split.examples.len()).sum();
    let progress = Progress::bar("evaluating", total as u64);
    let mut reports = Vec::new();
    for split in splits {
        reports.push(judge(engine, Yardstick { metrics, positive }, split, &progress)?);
    }
    progress.finish();
    let longest = engine.maximum_length();
    for split in reports.iter().filter(|split| split.truncated > 0) {
        let (cut, all) = (split.truncated, split.examples);
        note(&format!("note: {}: {cut} of {all} texts were longer than {longest} tokens and were cut", split.name));
    }
    for split in reports.iter().filter(|split| split.skipped_rows > 0) {
        note(&format!("note: {}: {} broken rows left out", split.name, split.skipped_rows));
    }
    let kind = engine.artifact().kind.to_string();
    Ok(Report { model: model.to_owned(), kind, task, maximum_length: longest, splits: reports })
}

#[allow(clippy::cast_precision_loss)]
fn judge(engine: &Engine, yardstick: Yardstick<'_>, split: Split, progress: &Progress) -> anyhow::Result<SplitReport> {
    let Yardstick { metrics, positive } = yardstick;
    let started = std::time::Instant::now();
    let (mut logits, mut truncated) = (Vec::new(), 0);
    for (chunk, examples) in split.examples.chunks(TEXTS_TOGETHER).enumerate() {
        let place = |text: usize| format!("{}: example {}", split.name, chunk * TEXTS_TOGETHER + text + 1);
        let texts: Vec<Text<'_>> =
            examples.iter().map(|example| Text { text: &example.text, pair: example.pair.as_deref() }).collect();
        let encoded = engine.encode(&texts).map_err(|error| at(error, place))?;
        truncated += encoded.iter().filter(|one| one.truncated).count();
        logits.extend(engine.logits_of(&encoded).map_err(|error| at(error, place))?);
        progress.advance(examples.len() as u64);
    }
    let seconds = started.elapsed().as_secs_f64();
    let mut classes = Vec::new();
    let mut values = Vec::new();
    for example in &split.examples {
        match example.label {
            Label::Class(class) => classes.push(class),
            Label::Value(value) => values.push(value),
        }
    }
    let predicted = if engine.regression() { Vec::new() } else { classes_of(&logits, engine.classes()) };
    let value = |metric: &Metric| match engine.regression() {
        true => metric.of_values(&logits, &values),
        false => metric.of_classes(&predicted, &classes, positive),
    };
    let named = metrics.iter().map(|metric| (metric.name(), value(metric).filter(|value| !value.is_nan())));
    let majority = (0..engine.classes()).map(|class| classes.iter().filter(|&&label| label as usize == class).count());
    Ok(SplitReport {
        name: split.name,
        files: split.files,
        examples: split.examples.len(),
        skipped_rows: split.skipped_rows,
        truncated,
        loss: match engine.regression() {
            true => loss::mean_squared_error(&logits, &values, None, 1.0),
            false => loss::cross_entropy(&logits, &classes, engine.classes(), None, 1.0),
        },
        metrics: named.collect(),
        majority: (!classes.is_empty()).then(|| majority.max().unwrap_or(0) as f64 / classes.len() as f64),
        seconds,
        order: metrics.iter().map(|metric| metric.name()).collect(),
    })
}

#[allow(clippy::cast_precision_loss)]
fn text(report: &Report) -> String {
    let names = report.splits.first().map(|split| split.order.clone()).unwrap_or_default();
    let mut headings = vec!["data".to_owned(), "examples".to_owned(), "loss".to_owned()];
    headings.extend(names.iter().map(|name| name.replace('_', " ")));
    let classes = report.splits.iter().any(|split| split.majority.is_some());
    headings.extend(classes.then(|| "majority".to_owned()));
    headings.extend(["time".to_owned(), "texts/s".to_owned()]);
    let mut table = Table::new(headings);
    for split in &report.splits {
        let mut row = vec![split.name.clone(), integer(split.examples as u64), format!("{:.4}", split.loss)];
        let metric = |name: &&str| match split.metrics.get(name).copied().flatten() {
            Some(value) => format!("{value:.4}"),
            None => "undefined".to_owned(),
        };
        row.extend(names.iter().map(metric));
        row.extend(split.majority.map(percent));
        row.push(duration(std::time::Duration::from_secs_f64(split.seconds)));
        row.push(rate(split.examples as f64 / split.seconds.max(1e-9)));
        table.row(row);
    }
    table.to_string()
}
