//! `finegates train`: a run from flags and recipe, shown while it goes on and summed up at the end.

mod stops;

use std::path::{Path, PathBuf};

use clap::Args;
use finegates_compress::removal::{Removal, Totals};
use finegates_infer::{Artifact, Which};
use finegates_train::budget::Measure;
use finegates_train::observer::{Best, EvaluationRecord, GateShares, Start};
use finegates_train::recipe::OF_EXAMPLES;
use finegates_train::{Ending, Event, Mode, PartialRecipe, RunOptions, Summary};
use serde::Serialize;

use crate::arguments::{Common, program};
use crate::curve::Curve;
use crate::figures::{bytes, counted, duration, integer, names, percent, rate, share};
use crate::interrupt;
use crate::memory;
use crate::output::{Interrupted, Output};
use crate::table::facts;
use crate::training::TrainingProgress;

const EXAMPLES: &str = "\
Examples:
  finegates train --model roberta-base --task sst2 --data GLUE/SST-2 --output runs/sst2
  finegates train --model roberta-base --train train.csv --validation dev.csv --output runs/mine
  finegates train --model roberta-base --train all.jsonl --validation-fraction 0.1 \\
      --text body --label topic --output runs/topics
  finegates train --recipe runs/mine/recipe.toml --budget params=0.8,0.6,0.4,0.25 --output runs/curve
  finegates train --recipe runs/mine/recipe.toml --budget latency=3ms@1x32 --output runs/fast
  finegates train --resume runs/mine

Data: CSV, TSV (tabs, no quotes, as GLUE's), JSON lines or Parquet, with a header. Columns are
found by their usual names or named with --text, --text-pair and --label. Labels may be words or
numbers. GLUE's folders are read as they are.

The run folder holds recipe.toml (every setting, to pass back with --recipe), metrics.jsonl (a
line a step and a line an evaluation), best/ and adapter/ (gates, biases and head in PEFT's
layout, with the tokenizer) and state/ (to resume from). With a budget it also holds stops/ (an
adapter for each amount), compact/ (a compact model for each, made at the end), curve.json and
curve.svg. With --method full it holds model/ in
place of adapter/, and best/ is a whole checkpoint; with gated-full both are, with gates beside.

Ctrl-C saves and stops; --resume goes on to the same bits as a run that was never stopped. A
second Ctrl-C aborts at once.";

/// Train gates, biases and a task head on a frozen checkpoint
#[derive(Args, Debug)]
pub struct TrainArguments {
    /// The run folder to make
    #[arg(long, short, value_name = "RUN", required_unless_present = "resume", help_heading = "Run")]
    output: Option<PathBuf>,
    /// Go on with a run that was stopped; its own recipe holds
    #[arg(long, value_name = "RUN", conflicts_with_all = ["output", "overwrite", "recipe"], help_heading = "Run")]
    pub resume: Option<PathBuf>,
    /// Start anew in a run folder, removing what an earlier run left there
    #[arg(long, help_heading = "Run")]
    overwrite: bool,
    /// Take settings from a recipe file; flags win over it
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub recipe: Option<PathBuf>,
    #[command(flatten)]
    pub settings: PartialRecipe,
}

/// The text below the options.
pub fn examples() -> &'static str {
    EXAMPLES
}

/// Leaves the settings of a corpus out of the help.
pub fn hide_corpus(argument: clap::Arg) -> clap::Arg {
    let hidden = argument.get_help_heading() == Some("Corpus");
    argument.hide(hidden)
}

/// Leaves the settings of labelled examples out of the help.
pub fn hide_examples(argument: clap::Arg) -> clap::Arg {
    let hidden = OF_EXAMPLES.contains(&argument.get_id().as_str());
    argument.hide(hidden)
}

/// What came of a run, with what its best and last model remove; the fields of the JSON object.
#[derive(Serialize)]
pub struct Outcome {
    #[serde(flatten)]
    pub summary: Summary,
    /// What compressing the best model would remove.
    pub best_removal: Option<Totals>,
    /// What compressing the last model would remove.
    pub last_removal: Option<Totals>,
    /// The stops of the budget with their compact models.
    pub curve: Option<Curve>,
    /// The most memory that this process took, where the system says.
    pub peak_memory_bytes: Option<u64>,
    /// Whether it learned the next token of a corpus.
    #[serde(skip)]
    pub of_corpus: bool,
}

/// Runs the command.
pub fn run(arguments: &TrainArguments, common: &Common) -> anyhow::Result<()> {
    let (folder, mode) = arguments.place()?;
    let lower = arguments.recipe()?;
    let method = arguments.settings.method.or(lower.method).filter(|method| !method.has_gates());
    if let (Some(method), Some(objective)) = (method, arguments.settings.said_objective()) {
        anyhow::bail!(
            "settings of --objective {objective}: method {method} has no gates to close; leave one of the two out"
        );
    }
    run_settings(arguments.settings.clone().over(lower), &folder, mode, common)
}

impl TrainArguments {
    /// The run folder, and how the run begins.
    pub fn place(&self) -> anyhow::Result<(PathBuf, Mode)> {
        match (&self.resume, &self.output) {
            (Some(run), _) => Ok((run.clone(), Mode::Resume)),
            (None, Some(run)) => Ok((run.clone(), if self.overwrite { Mode::Overwrite } else { Mode::New })),
            (None, None) => anyhow::bail!("--output: not given; name the run folder to make"),
        }
    }

    /// What the recipe file says, where one is given.
    pub fn recipe(&self) -> anyhow::Result<PartialRecipe> {
        Ok(self.recipe.as_deref().map(PartialRecipe::read).transpose()?.unwrap_or_default())
    }
}

/// Runs these settings to the end, and says what came of it.
pub fn run_settings(settings: PartialRecipe, folder: &Path, mode: Mode, common: &Common) -> anyhow::Result<()> {
    let settings = PartialRecipe { threads: common.threads.map(usize::from), ..settings };
    let output = common.output();
    let on_stop = format!(
        "stopping after this step and saving; go on later with: {} train --resume {}",
        program(),
        folder.display()
    );
    let mut outcome = train(settings, folder, mode, common, &on_stop)?;
    let mut compacted = Ok(());
    if outcome.summary.ending != Ending::Interrupted && !outcome.summary.stops.is_empty() {
        match stops::compact_stops(&outcome.summary, common) {
            Ok(curve) => outcome.curve = Some(curve),
            Err(error) => compacted = Err(error),
        }
    }
    outcome.peak_memory_bytes = memory::peak_bytes();
    // What the run came to is said, whatever became of its compact models.
    output.result(&closing_text(&outcome, folder), &outcome)?;
    compacted?;
    if outcome.summary.ending == Ending::Interrupted {
        return Err(Interrupted.into());
    }
    Ok(())
}

/// Trains, with lines on standard output and progress on standard error; `on_stop` is said at the first Ctrl-C.
pub fn train(
    settings: PartialRecipe,
    folder: &Path,
    mode: Mode,
    common: &Common,
    on_stop: &str,
) -> anyhow::Result<Outcome> {
    let mut screen = Screen { output: common.output(), progress: TrainingProgress::new(), of_corpus: false };
    let latency_tables = finegates_checkpoint::source::own_cache("latency", &common.fetch()).ok();
    let options = RunOptions { folder: folder.to_owned(), mode, fetch: common.fetch(), latency_tables };
    let stop = interrupt::flag(on_stop)?;
    let ended = finegates_train::run(settings, &options, &mut |event: &Event<'_>| screen.event(event), stop);
    screen.progress.finish();
    let summary = ended?;
    let removal = |which| removal_of(folder, which).map(|removal| removal.totals);
    Ok(Outcome {
        best_removal: removal(Which::Best),
        last_removal: removal(Which::Last),
        summary,
        curve: None,
        peak_memory_bytes: memory::peak_bytes(),
        of_corpus: screen.of_corpus,
    })
}

/// What compressing a run's model would remove; none where it has no gates.
pub fn removal_of(folder: &Path, which: Which) -> Option<Removal> {
    let artifact = Artifact::find(folder.to_str()?, &which, None, &Default::default()).ok()?;
    let adapter = artifact.read_adapter().ok()??;
    let config = finegates_checkpoint::Config::read(artifact.adapter.as_deref()?).ok()?;
    let head_dimension = config.head_dim();
    Some(finegates_compress::adapter_removal(&adapter, Some(head_dimension)).ok()?.1)
}

/// Shows events: lines as they come, progress in between.
struct Screen {
    output: Output,
    of_corpus: bool,
    progress: TrainingProgress,
}

impl Screen {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Note(text) => self.progress.line(&format!("note: {text}")),
            Event::Started(start) => {
                self.of_corpus = start.tokens_per_sequence.is_some();
                self.print(&starting_text(start));
                self.progress.start(start);
            }
            Event::Step(record) => self.progress.step(record),
            Event::Evaluating { split, done, total } => self.progress.evaluating(split, *done, *total),
            Event::Evaluated(record) => self.print(&evaluation_text(record)),
            Event::Kept { stop, measure, folder } => {
                let milliseconds = match measure {
                    Measure::Latency { .. } => format!(", {:.3} ms", stop.cost),
                    Measure::Parameters | Measure::MultiplyAdds => String::new(),
                };
                self.print(&format!(
                    "kept {}: {} of {measure} left{milliseconds}",
                    folder.display(),
                    percent(stop.left)
                ));
            }
            _ => {}
        }
    }

    /// Prints a line with the progress bar out of the way. That standard output was closed shows at the end.
    fn print(&self, text: &str) {
        self.progress.suspend(|| {
            let _ = self.output.line(text);
        });
    }
}

fn starting_text(start: &Start) -> String {
    let validation: Vec<String> = start
        .validation_examples
        .iter()
        .map(|(name, examples)| match name.as_str() {
            "validation" => integer(*examples as u64),
            _ => format!("{} ({name})", integer(*examples as u64)),
        })
        .collect();
    let labels = match start.tokens_per_sequence {
        Some(_) => "the next token".to_owned(),
        None if start.labels.is_empty() => "a number".to_owned(),
        None => names(&start.labels),
    };
    let examples = integer(start.train_examples as u64);
    let validation = validation.join(" and ");
    let data = match start.tokens_per_sequence {
        Some(length) => ("sequences", format!("{examples} of {length} tokens, {validation} tokens to validate on")),
        None => ("examples", format!("{examples} to train on, {validation} to validate on")),
    };
    let mut lines = vec![
        data,
        ("predicts", labels),
        (
            "trains",
            format!(
                "{} numbers; gated weights {}",
                integer(start.trainable_parameters as u64),
                integer(start.gated_parameters)
            ),
        ),
        ("steps", format!("{}, {} an epoch", integer(start.total_steps), integer(start.steps_an_epoch))),
    ];
    if start.step > 0 {
        lines.push(("resumed", format!("after step {}", integer(start.step))));
    }
    facts(lines).trim_end().to_owned()
}

fn evaluation_text(record: &EvaluationRecord) -> String {
    let mut text = format!("epoch {:<5.4}  step {:<6}  {}", short(record.epoch), record.step, metrics_text(record));
    if let Some(gates) = &record.gates {
        text.push_str(&format!("  removed {}", percent(gates.removed)));
    }
    if record.best {
        text.push_str("  best so far");
    }
    text
}

/// An epoch with two places where they say something.
fn short(epoch: f64) -> String {
    let text = format!("{epoch:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn metrics_text(record: &EvaluationRecord) -> String {
    let several = record.metrics.keys().filter(|name| name.ends_with("loss")).count() > 1;
    let shown = record.metrics.iter().filter(|(name, _)| !several || !name.ends_with("_loss"));
    let (loss, others): (Vec<_>, Vec<_>) = shown.partition(|(name, _)| name.as_str() == "loss");
    let all = loss.into_iter().chain(others);
    all.map(|(name, value)| format!("{} {value:.4}", name.replace('_', " "))).collect::<Vec<_>>().join("  ")
}

/// What is said when a run ends.
fn closing_text(outcome: &Outcome, folder: &Path) -> String {
    let summary = &outcome.summary;
    let ending = match summary.ending {
        Ending::Finished => "finished",
        Ending::EarlyStopped => "stopped early",
        Ending::Interrupted => "interrupted",
    };
    let time = duration(std::time::Duration::from_secs_f64(summary.seconds));
    let speed = rate(summary.sequences_per_second);
    let (epochs, steps) = (counted(short(summary.epoch), "epoch"), counted(integer(summary.step), "step"));
    let mut lines = vec![(ending, format!("{epochs}, {steps} in {time}, {speed} sequences/s"))];
    if let Some(best) = &summary.best {
        lines.push(("best", format!("{} at epoch {}", best_metrics(best), short(best.epoch))));
        if !best.eligible {
            let asked =
                if summary.budget.is_some() { "the budget or --best-min-removed" } else { "--best-min-removed" };
            lines.push(("", format!("although it removed less than {asked} asks for: no evaluation so far did")));
        }
        lines.extend(outcome.best_removal.map(|totals| ("", removed_text(&totals))));
    }
    if let Some(last) = &summary.last {
        lines.push(("last", metrics_text(last)));
        lines.extend(outcome.last_removal.map(|totals| ("", removed_text(&totals))));
        lines.extend(last.gates.map(|gates| ("", gates_text(&gates))));
    }
    if summary.budget.is_none() && outcome.best_removal.is_some_and(|totals| totals.removed_with_liveness == 0) {
        let longer = if outcome.of_corpus { "--tokens" } else { "--epochs" };
        let hint = format!(
            "nothing is removed yet: gates close by and by; more {longer} or a higher --gate-learning-rate close more"
        );
        lines.push(("note", hint));
    }
    if let Some(curve) = &outcome.curve {
        lines.push(("curve", format!("{}, curve.svg", folder.join("curve.json").display())));
        for point in &curve.points {
            lines.push(("", stops::point_text(point, &curve.metric)));
        }
    }
    lines.extend(outcome.peak_memory_bytes.map(|peak| ("peak memory", bytes(peak))));
    let (run, program) = (folder.display(), program());
    lines.push(("run", run.to_string()));
    let compact = outcome.curve.iter().flat_map(|curve| &curve.points).next_back();
    let next: Vec<String> = match (summary.ending, outcome.best_removal) {
        (Ending::Interrupted, _) => vec![format!("{program} train --resume {run}")],
        _ if outcome.of_corpus => {
            let model = compact.map_or_else(|| run.to_string(), |point| point.compact.clone());
            vec![
                format!("{program} perplexity {model} text.txt"),
                format!("{program} generate {model} \"Once upon a time\""),
            ]
        }
        (_, Some(_)) if let Some(point) = compact => {
            vec![
                format!("{program} predict {} texts.txt", point.compact),
                format!("{program} inspect {}", point.compact),
            ]
        }
        (_, Some(_)) => {
            vec![format!("{program} compress {run} --output {run}-compact"), format!("{program} eval {run}")]
        }
        (_, None) => vec![format!("{program} eval {run}"), format!("{program} predict {run} texts.txt")],
    };
    for (number, command) in next.into_iter().enumerate() {
        lines.push((if number == 0 { "next" } else { "" }, command));
    }
    format!("\n{}", facts(lines))
}

fn best_metrics(best: &Best) -> String {
    let shown = best.metrics.iter().filter(|(name, _)| !name.ends_with("loss"));
    let text = |value: &Option<f64>| value.map_or("undefined".to_owned(), |value| format!("{value:.4}"));
    shown.map(|(name, value)| format!("{} {}", name.replace('_', " "), text(value))).collect::<Vec<_>>().join(", ")
}

/// What compressing removes.
pub fn removed_text(totals: &Totals) -> String {
    let of = totals.gated_parameters;
    format!(
        "removes {} of {} gated weights by gates, {} with liveness",
        share(totals.removed_by_gates, of),
        integer(of),
        share(totals.removed_with_liveness, of)
    )
}

fn gates_text(gates: &GateShares) -> String {
    format!(
        "gates {} open, {} fractional, {} closed",
        percent(gates.open),
        percent(gates.fractional),
        percent(gates.closed)
    )
}
