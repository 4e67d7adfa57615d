//! `finegates bench`: several models on the same input in alternation, so that what disturbs one disturbs all; and what the
//! machine can do at most.

mod report;
mod runner;

use std::io::{BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use finegates_data::{Format, TextRows};
use finegates_infer::{Artifact, Options};
use finegates_model::Task;
use serde::Serialize;

pub use report::{Measured, Peaks, measured};
pub use runner::{Runner, encode};

use self::report::{Report, milliseconds};
use self::runner::{Shape, Turn, Work};
use super::model::{ModelArguments, Pair, TextColumns};
use crate::arguments::Common;
use crate::figures::integer;
use crate::memory;
use crate::output::{note, stdout_error};
use crate::progress::Progress;
use crate::table::facts;

const EXAMPLES: &str = "\
Examples:
  finegates bench base-model models/sst2                       64 sequences of 64 tokens
  finegates bench base-model models/sst2 --data dev.tsv        real texts, at most 512 of them
  finegates bench models/a models/b --batch 1 --length 32      one text at a time
  finegates bench SMOL runs/small/compact/params-0.8           language models: a prompt, then tokens
  finegates bench                                              the machine alone

The models take turns within every round. Times are of the forward pass alone; --with-tokenizer
adds reading the texts. A model without a task head is timed with a random one. Where all models
are language models, or with --generate, prompts of random tokens are read (prefill), and then
tokens one at a time (decode), for which all weights are read once a step.

GFLOP/s count the multiply-adds of projections, attention and head, two operations each. The peak is
that of a loop of multiply-adds in registers on as many threads: of bf16 for models held in it
where the CPU multiplies bf16 (an input of at most 14 tokens still goes through f32), otherwise of
f32. Bandwidth is that of reading a block as large as the weights over and over. Both are measured
here and now.

With --on-request a line says that the models are ready; every line on standard input then starts a
round, which is answered by a line with an object of its times, and the end of the input by the
summary. So another program can take turns with this one.";

/// Tokens that are read and made where nothing else is said.
const TEXTS: Shape = Shape { sequences: 64, length: 64 };
const PROMPTS: Shape = Shape { sequences: 1, length: 128 };
const STEPS: u32 = 32;

/// Rounds that count, and rounds before them, where nothing else is said.
const ROUNDS: u32 = 20;
const WARM_UP: u32 = 3;

/// Time models in alternation on the same input, or the machine alone
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BenchArguments {
    /// Models of any kind; ratios are to the first
    #[arg(value_name = "MODEL")]
    models: Vec<String>,
    /// Time on the texts of a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batch", "length", "generate"])]
    data: Option<PathBuf>,
    /// How the file is laid out [default: as its name tells]
    #[arg(long, value_name = "FORMAT", requires = "data")]
    format: Option<Format>,
    #[command(flatten)]
    columns: TextColumns,
    /// Read at most N texts of the file
    #[arg(long, value_name = "N", default_value_t = 512, requires = "data", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Time on N sequences of random tokens in one batch [default: 64; 1 of a language model]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: Option<u32>,
    /// Tokens of each of these sequences [default: 64; 128 of a language model]
    #[arg(long, value_name = "L", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    length: Option<u32>,
    /// Time language models: N tokens for each sequence after it was read [default: 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=100_000))]
    generate: Option<u32>,
    /// Rounds that count; each model runs once a round
    #[arg(long, value_name = "N", default_value_t = ROUNDS, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Rounds before, which do not count
    #[arg(long, value_name = "N", default_value_t = WARM_UP, value_parser = clap::value_parser!(u32).range(..=100_000))]
    warm_up: u32,
    /// Include turning texts into tokens
    #[arg(long, requires = "data")]
    with_tokenizer: bool,
    /// Run a round for every line on standard input, and answer it with a line
    #[arg(long, conflicts_with_all = ["rounds", "warm_up"])]
    on_request: bool,
    #[command(flatten)]
    model_options: ModelArguments,
}

/// What can be said of the machine alone.
#[derive(Serialize)]
struct Machine {
    cpu: String,
    instruction_set: String,
    threads: usize,
    peaks: Peaks,
}

/// The answer to a line: what every model took.
#[derive(Serialize)]
struct Round<'a> {
    models: Vec<RoundOf<'a>>,
}

#[derive(Serialize)]
struct RoundOf<'a> {
    model: &'a str,
    ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_ms: Option<f64>,
}

/// The line before the first round.
#[derive(Serialize)]
struct Ready<'a> {
    ready: Vec<&'a str>,
}

/// Runs the command.
pub fn run(arguments: &BenchArguments, common: &Common) -> anyhow::Result<()> {
    if arguments.models.is_empty() {
        return machine(arguments, common);
    }
    if arguments.data.is_none() && (arguments.columns.text.is_some() || arguments.columns.text_pair.is_some()) {
        bail!("--text and --text-pair say how to read a file; name it with --data");
    }
    let texts = arguments.data.as_ref().map(|_| read_texts(arguments)).transpose()?;
    let mut runners = load(arguments, common)?;
    if let Some(texts) = &texts {
        same_length(&mut runners, texts)?;
    }
    let texts = texts.as_deref().filter(|_| arguments.with_tokenizer);
    let peaks = Peaks::measure(false);
    let turns = match arguments.on_request {
        true => on_request(&runners, texts)?,
        false => alternate(&runners, texts, arguments.warm_up, arguments.rounds)?,
    };
    if turns.iter().any(Vec::is_empty) {
        // Nobody asked for a round.
        return Ok(());
    }
    let peaks = peaks.or(Peaks::measure(false));
    let report = Report {
        cpu: finegates_kernels::cpu::name(),
        instruction_set: finegates_kernels::cpu::instruction_set(),
        threads: rayon::current_num_threads(),
        peaks,
        input: input(arguments, &runners),
        rounds: turns[0].len(),
        warm_up: if arguments.on_request { 0 } else { arguments.warm_up },
        with_tokenizer: arguments.with_tokenizer,
        peak_memory_bytes: memory::peak_bytes(),
        models: measured(&runners, &turns, &peaks),
    };
    common.output().result(&report::text(&report), &report)
}

/// What the machine can do, without any model.
fn machine(arguments: &BenchArguments, common: &Common) -> anyhow::Result<()> {
    let shape = (arguments.batch, arguments.length, arguments.rounds, arguments.warm_up);
    let columns = arguments.columns.text.is_some() || arguments.columns.text_pair.is_some();
    let asked = arguments.data.is_some() || arguments.on_request || arguments.generate.is_some();
    if asked || columns || shape != (None, None, ROUNDS, WARM_UP) {
        bail!("no model to time; name one, or leave the options out to measure the machine alone");
    }
    let machine = Machine {
        cpu: finegates_kernels::cpu::name(),
        instruction_set: finegates_kernels::cpu::instruction_set(),
        threads: rayon::current_num_threads(),
        peaks: Peaks::measure(true),
    };
    let mut lines = vec![
        ("CPU", machine.cpu.clone()),
        ("instructions", machine.instruction_set.clone()),
        ("threads", machine.threads.to_string()),
    ];
    lines.extend(machine.peaks.lines());
    common.output().result(&facts(lines), &machine)
}

/// Loads the models: as language models if all of them are, or that is asked for.
fn load(arguments: &BenchArguments, common: &Common) -> anyhow::Result<Vec<Runner>> {
    let options = arguments.model_options.options(true, common);
    let mut found = Vec::new();
    let mut language = arguments.data.is_none();
    for name in &arguments.models {
        let artifact = Artifact::find(name, &options.which, options.base.as_deref(), &options.fetch)?;
        language &= arguments.generate.is_some()
            || artifact.task(&artifact.open_checkpoint(&options.fetch)?)? == Some(Task::Language);
        found.push((name, artifact));
    }
    let default = if language { PROMPTS } else { TEXTS };
    let shape = Shape {
        sequences: arguments.batch.map_or(default.sequences, |batch| batch as usize),
        length: arguments.length.map_or(default.length, |length| length as usize),
    };
    let steps = arguments.generate.unwrap_or(STEPS) as usize;
    let load = |(name, artifact): (&String, Artifact)| match language {
        true => Runner::language(name, &artifact, &options, shape, steps),
        false => classifier(name, artifact, &options, arguments.data.is_none().then_some(shape)),
    };
    found.into_iter().map(load).collect()
}

fn classifier(name: &str, artifact: Artifact, options: &Options<'_>, shape: Option<Shape>) -> anyhow::Result<Runner> {
    let runner = match Runner::classifier(name, artifact, options, shape) {
        Ok(runner) => runner,
        Err(error) if matches!(error.downcast_ref(), Some(finegates_infer::Error::LanguageModel { .. })) => {
            bail!(
                "{name}: is a language model; it is timed on random tokens (without --data) and not beside classifiers"
            )
        }
        Err(error) => return Err(error),
    };
    if let Work::Texts { engine, .. } = &runner.work
        && !engine.untrained().is_empty()
    {
        note(&format!("note: {name} has no task head; it is timed with a random one"));
    }
    Ok(runner)
}

/// Times the models in turns: a list of turns a model.
pub fn alternate(
    runners: &[Runner],
    texts: Option<&[Pair]>,
    warm_up: u32,
    rounds: u32,
) -> anyhow::Result<Vec<Vec<Turn>>> {
    let progress = Progress::bar("timing", u64::from(warm_up + rounds));
    let mut turns = vec![Vec::new(); runners.len()];
    for round in 0..warm_up + rounds {
        for turn in 0..runners.len() {
            // Each round begins with another model, so that none always follows the same one.
            let index = (turn + round as usize) % runners.len();
            let taken = runners[index].time(texts)?;
            if round >= warm_up {
                turns[index].push(taken);
            }
        }
        progress.advance(1);
    }
    progress.finish();
    Ok(turns)
}

/// Runs a round for every line of standard input, and answers it with a line at once.
fn on_request(runners: &[Runner], texts: Option<&[Pair]>) -> anyhow::Result<Vec<Vec<Turn>>> {
    line(&Ready { ready: runners.iter().map(|runner| runner.name.as_str()).collect() })?;
    let mut turns = vec![Vec::new(); runners.len()];
    for request in std::io::stdin().lock().lines() {
        request.context("standard input")?;
        let mut models = Vec::new();
        for (runner, turns) in runners.iter().zip(&mut turns) {
            let turn = runner.time(texts)?;
            models.push(RoundOf {
                model: &runner.name,
                ms: milliseconds(turn.elapsed),
                cpu_ms: turn.cpu.map(milliseconds),
                prefill_ms: turn.parts.map(|parts| milliseconds(parts.0)),
                decode_ms: turn.parts.map(|parts| milliseconds(parts.1)),
            });
            turns.push(turn);
        }
        line(&Round { models })?;
    }
    Ok(turns)
}

/// Writes an object as a line that its reader sees at once.
fn line(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string(value).context("the round cannot be written as JSON")?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(stdout_error)
}

/// Reads the texts for every model, cut to the length that all of them take: a model that cuts more would look faster.
fn same_length(runners: &mut [Runner], texts: &[Pair]) -> anyhow::Result<()> {
    let longest = |runner: &Runner| match &runner.work {
        Work::Texts { engine, .. } => Some(engine.maximum_length()),
        Work::Language { .. } => None,
    };
    let Some(shortest) = runners.iter().filter_map(longest).min() else { return Ok(()) };
    let mut cut = 0;
    for runner in runners.iter_mut() {
        let Work::Texts { engine, encoded } = &mut runner.work else { continue };
        engine.limit_length(shortest);
        *encoded = encode(engine, texts)?;
        cut = encoded.iter().filter(|one| one.truncated).count();
    }
    if cut > 0 {
        note(&format!("note: {cut} of {} texts were cut to {shortest} tokens, for every model", texts.len()));
    }
    if runners.iter().any(|runner| runner.tokens() != runners[0].tokens()) {
        note(
            "note: the models' tokenizers differ, so the same texts are not the same number of tokens for all of them",
        );
    }
    Ok(())
}

fn read_texts(arguments: &BenchArguments) -> anyhow::Result<Vec<Pair>> {
    let Some(path) = &arguments.data else { return Ok(Vec::new()) };
    let mut rows = TextRows::open(path, arguments.format, &arguments.columns.choice(None))?;
    let mut texts = Vec::new();
    while texts.len() < arguments.limit as usize
        && let Some(row) = rows.read()?
    {
        let row = row?;
        texts.push((row.text, row.pair));
    }
    if texts.is_empty() {
        bail!("{}: no texts to time on", path.display());
    }
    Ok(texts)
}

/// What was read, in words.
fn input(arguments: &BenchArguments, runners: &[Runner]) -> String {
    let sequences = integer(runners[0].sequences() as u64);
    match &arguments.data {
        Some(path) => format!("{sequences} texts of {}", path.display()),
        None => {
            let what = if runners[0].sequences() == 1 { "sequence" } else { "sequences" };
            let length = runners[0].lengths().first().copied().unwrap_or(0);
            format!("{sequences} {what} of {} random tokens", integer(length as u64))
        }
    }
}
