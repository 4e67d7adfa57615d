//! `finegates bench`: several models on the same input in alternation, so that what disturbs one disturbs all.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use finegates_data::{Format, TextRows};
use finegates_infer::{Artifact, Encoded, Engine, Text};
use finegates_kernels::random;
use serde::Serialize;

use super::model::{ModelArguments, Pair, TextColumns};
use crate::arguments::Common;
use crate::figures::{bytes, duration, integer, rate};
use crate::memory;
use crate::output::note;
use crate::progress::Progress;
use crate::table::{Table, facts};

const EXAMPLES: &str = "\
Examples:
  finegates bench base-model models/sst2                       64 sequences of 64 tokens
  finegates bench base-model models/sst2 --data dev.tsv        real texts, at most 512 of them
  finegates bench models/a models/b --batch 1 --length 32      one text at a time
  finegates bench models/a models/b --threads 1 --rounds 50

The models take turns within every round. Times are of the forward pass alone; --with-tokenizer
adds reading the texts. A model without a task head is timed with a random one.";

/// Time models in alternation on the same input
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BenchArguments {
    /// Models of any kind; ratios are to the first
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// Time on the texts of a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batch", "length"])]
    data: Option<PathBuf>,
    /// How the file is laid out [default: as its name tells]
    #[arg(long, value_name = "FORMAT", requires = "data")]
    format: Option<Format>,
    #[command(flatten)]
    columns: TextColumns,
    /// Read at most N texts of the file
    #[arg(long, value_name = "N", default_value_t = 512, requires = "data", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Time on N sequences of random tokens in one batch
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Tokens of each of these sequences
    #[arg(long, value_name = "L", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    length: u32,
    /// Rounds that count; each model runs once a round
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Rounds before, which do not count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=100_000))]
    warm_up: u32,
    /// Include turning texts into tokens
    #[arg(long, requires = "data")]
    with_tokenizer: bool,
    #[command(flatten)]
    model_options: ModelArguments,
}

/// What came of it; the fields of the JSON object.
#[derive(Serialize)]
struct Report {
    cpu: String,
    instruction_set: String,
    threads: usize,
    input: String,
    rounds: u32,
    warm_up: u32,
    with_tokenizer: bool,
    peak_memory_bytes: Option<u64>,
    models: Vec<Measured>,
}

/// One model's times.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub model: String,
    pub kind: String,
    pub sequences: usize,
    pub tokens: usize,
    pub median_ms: f64,
    pub lower_quartile_ms: f64,
    pub upper_quartile_ms: f64,
    pub sequences_per_second: f64,
    pub tokens_per_second: f64,
    /// The first model's median over this one's: above 1 is faster than the first.
    pub speed_to_first: f64,
    pub times_ms: Vec<f64>,
}

/// A model with its input, ready to run.
pub struct Runner {
    pub name: String,
    pub engine: Engine,
    pub encoded: Vec<Encoded>,
}

/// Runs the command.
pub fn run(arguments: &BenchArguments, common: &Common) -> anyhow::Result<()> {
    if arguments.data.is_none() && (arguments.columns.text.is_some() || arguments.columns.text_pair.is_some()) {
        bail!("--text and --text-pair say how to read a file; name it with --data");
    }
    let texts = arguments.data.as_ref().map(|_| read_texts(arguments)).transpose()?;
    let mut runners = Vec::new();
    for name in &arguments.models {
        runners.push(Runner::new(name, arguments, common)?);
    }
    if let Some(texts) = &texts {
        same_length(&mut runners, texts)?;
    }
    let texts = texts.as_deref().filter(|_| arguments.with_tokenizer);
    let models = alternate(&runners, texts, arguments.warm_up, arguments.rounds)?;
    let report = report(arguments, models);
    common.output().result(&text(&report), &report)
}

/// Times the models in turns, and sums up.
pub fn alternate(
    runners: &[Runner],
    texts: Option<&[Pair]>,
    warm_up: u32,
    rounds: u32,
) -> anyhow::Result<Vec<Measured>> {
    let progress = Progress::bar("timing", u64::from(warm_up + rounds));
    let mut times = vec![Vec::new(); runners.len()];
    for round in 0..warm_up + rounds {
        for turn in 0..runners.len() {
            // Each round begins with another model, so that none always follows the same one.
            let index = (turn + round as usize) % runners.len();
            let elapsed = runners[index].time(texts)?;
            if round >= warm_up {
                times[index].push(elapsed.as_secs_f64() * 1e3);
            }
        }
        progress.advance(1);
    }
    progress.finish();
    Ok(measured(runners, times))
}

/// Reads the texts for every model, cut to the length that all of them take: a model that cuts more would look faster.
fn same_length(runners: &mut [Runner], texts: &[Pair]) -> anyhow::Result<()> {
    let Some(shortest) = runners.iter().map(|runner| runner.engine.maximum_length()).min() else { return Ok(()) };
    for runner in runners.iter_mut() {
        runner.engine.limit_length(shortest);
        runner.encoded = encode(&runner.engine, texts)?;
    }
    let cut = runners[0].encoded.iter().filter(|one| one.truncated).count();
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

impl Runner {
    /// Loads a model, with its input if that is random tokens.
    fn new(name: &str, arguments: &BenchArguments, common: &Common) -> anyhow::Result<Runner> {
        let options = arguments.model_options.options(true, common);
        let artifact = Artifact::find(name, &options.which, options.base.as_deref(), &options.fetch)?;
        let (engine, encoded) = match arguments.data {
            Some(_) => (Engine::from_artifact(artifact, &options)?, Vec::new()),
            None => {
                let batch_tokens = options.batch_tokens.or(Some(usize::MAX));
                let options = finegates_infer::Options { batch_tokens, ..options };
                let engine = Engine::without_tokenizer(artifact, &options)?;
                let (sequences, length) = (arguments.batch as usize, arguments.length as usize);
                let encoded = random_tokens(&engine, sequences, length).with_context(|| name.to_owned())?;
                (engine, encoded)
            }
        };
        if !engine.untrained().is_empty() {
            note(&format!("note: {name} has no task head; it is timed with a random one"));
        }
        Ok(Runner { name: name.to_owned(), engine, encoded })
    }

    fn tokens(&self) -> usize {
        self.encoded.iter().map(|one| one.ids.len()).sum()
    }

    fn time(&self, texts: Option<&[Pair]>) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let fresh = texts.map(|texts| encode(&self.engine, texts)).transpose()?;
        let logits = self.engine.logits_of(fresh.as_ref().unwrap_or(&self.encoded))?;
        let elapsed = start.elapsed();
        std::hint::black_box(logits);
        Ok(elapsed)
    }
}

/// Texts as an engine reads them.
pub fn encode(engine: &Engine, texts: &[Pair]) -> anyhow::Result<Vec<Encoded>> {
    let texts: Vec<Text<'_>> = texts.iter().map(|(text, pair)| Text { text, pair: pair.as_deref() }).collect();
    Ok(engine.encode(&texts)?)
}

/// Sequences of arbitrary token ids, the same for every model of one vocabulary.
fn random_tokens(engine: &Engine, sequences: usize, length: usize) -> anyhow::Result<Vec<Encoded>> {
    let longest = engine.maximum_length();
    if length > longest {
        bail!("--length: expected 1 to {longest} tokens, which is what this model takes, found {length}");
    }
    let config = engine.model().config();
    let (vocabulary, padding) = (config.vocabulary as u64, config.padding_id);
    let token = |sequence: usize, at: usize| {
        let id = u32::try_from(random::mix(sequence as u64, at as u64) % vocabulary).unwrap_or(0);
        if id == padding { (id + 1) % u32::try_from(vocabulary).unwrap_or(u32::MAX) } else { id }
    };
    let sequence = |sequence| Encoded {
        ids: (0..length).map(|at| token(sequence, at)).collect(),
        segments: vec![0; length],
        truncated: false,
    };
    Ok((0..sequences).map(sequence).collect())
}

/// Medians and ratios of the times in milliseconds, one list a model.
fn measured(runners: &[Runner], times: Vec<Vec<f64>>) -> Vec<Measured> {
    let mut first = None;
    let measure = |(runner, in_order): (&Runner, Vec<f64>)| {
        let mut times = in_order.clone();
        times.sort_by(f64::total_cmp);
        let median = quantile(&times, 0.5);
        let first = *first.get_or_insert(median);
        let (sequences, tokens) = (runner.encoded.len(), runner.tokens());
        #[allow(clippy::cast_precision_loss)]
        let per_second = |count: usize| count as f64 / median * 1e3;
        Measured {
            model: runner.name.clone(),
            kind: runner.engine.artifact().kind.to_string(),
            sequences,
            tokens,
            median_ms: median,
            lower_quartile_ms: quantile(&times, 0.25),
            upper_quartile_ms: quantile(&times, 0.75),
            sequences_per_second: per_second(sequences),
            tokens_per_second: per_second(tokens),
            speed_to_first: first / median,
            times_ms: in_order,
        }
    };
    runners.iter().zip(times).map(measure).collect()
}

fn report(arguments: &BenchArguments, models: Vec<Measured>) -> Report {
    let input = match &arguments.data {
        Some(path) => {
            let sequences = models.first().map_or(0, |model| model.sequences);
            format!("{} texts of {}", integer(sequences as u64), path.display())
        }
        None => format!("{} sequences of {} random tokens", arguments.batch, arguments.length),
    };
    Report {
        cpu: finegates_kernels::cpu::name(),
        instruction_set: finegates_kernels::cpu::instruction_set(),
        threads: rayon::current_num_threads(),
        input,
        rounds: arguments.rounds,
        warm_up: arguments.warm_up,
        with_tokenizer: arguments.with_tokenizer,
        peak_memory_bytes: memory::peak_bytes(),
        models,
    }
}

/// A quantile of sorted values, interpolated between neighbours.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

fn text(report: &Report) -> String {
    let what = if report.with_tokenizer { "tokenizer and forward pass" } else { "forward pass" };
    let lines = [
        ("CPU", report.cpu.clone()),
        ("instructions", report.instruction_set.clone()),
        ("threads", report.threads.to_string()),
        ("input", report.input.clone()),
        ("timed", format!("{what}, {} rounds after {} to warm up", report.rounds, report.warm_up)),
    ];
    // That of all models together.
    let peak = report.peak_memory_bytes.map(|peak| ("peak memory", bytes(peak)));
    let mut text = facts(lines.into_iter().chain(peak));
    text.push('\n');
    let mut table = Table::new(["model", "tokens", "median", "middle half", "sequences/s", "tokens/s", "speed"]);
    let time = |ms: f64| duration(Duration::from_secs_f64(ms / 1e3));
    for model in &report.models {
        table.row([
            model.model.clone(),
            integer(model.tokens as u64),
            time(model.median_ms),
            format!("{} – {}", time(model.lower_quartile_ms), time(model.upper_quartile_ms)),
            rate(model.sequences_per_second),
            rate(model.tokens_per_second),
            format!("{:.2}×", model.speed_to_first),
        ]);
    }
    text.push_str(&table.to_string());
    text
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_interpolate_between_neighbours() {
        assert!((quantile(&[1.0, 2.0, 3.0, 4.0], 0.5) - 2.5).abs() < 1e-12);
        assert!((quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25) - 2.0).abs() < 1e-12);
        assert!((quantile(&[7.0], 0.75) - 7.0).abs() < 1e-12);
    }
}
