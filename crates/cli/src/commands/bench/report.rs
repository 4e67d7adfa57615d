//! What came of timing: medians and quartiles, and how near they come to what the machine can do.

use std::time::Duration;

use finegates_kernels::matrix::Precision;
use finegates_kernels::peaks::{self, Threads};
use serde::Serialize;

use super::runner::{Runner, Turn, Work};
use crate::figures::{bytes, duration, integer, percent, rate};
use crate::table::{Table, facts};

/// The largest block that memory is measured with: more than caches hold.
const BLOCK_LIMIT_BYTES: usize = 1 << 30;

/// What came of it; the fields of the JSON object.
#[derive(Serialize)]
pub struct Report {
    pub cpu: String,
    pub instruction_set: String,
    pub threads: usize,
    pub peaks: Peaks,
    pub input: String,
    pub rounds: usize,
    pub warm_up: u32,
    pub with_tokenizer: bool,
    pub peak_memory_bytes: Option<u64>,
    pub models: Vec<Measured>,
}

/// What the machine can do at most.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// Of f32.
    #[serde(flatten)]
    pub f32: Arithmetic,
    /// Of bf16, where a unit multiplies bf16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bf16: Option<Arithmetic>,
    /// Reading a block of memory larger than the caches; of the machine alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// Multiply-adds a second, two operations each, on one thread and on all.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Arithmetic {
    pub gflops_one_thread: f64,
    pub gflops: f64,
}

/// How fast memory is read.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    pub block_bytes: usize,
    pub gb_per_second_one_thread: f64,
    pub gb_per_second: f64,
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
    /// Median of the time that all threads computed.
    pub cpu_ms: Option<f64>,
    pub sequences_per_second: f64,
    pub tokens_per_second: f64,
    /// Multiply-adds of reading the input.
    pub multiply_adds: u64,
    /// Two operations for each of them, over the median of reading the input.
    pub gflops: f64,
    /// What the machine's units can do on as many threads: those that multiply bf16 where the model is held in it and there are
    /// any, and otherwise those of f32.
    pub peak_gflops: f64,
    pub share_of_peak: f64,
    /// The first model's median over this one's: above 1 is faster than the first.
    pub speed_to_first: f64,
    pub times_ms: Vec<f64>,
    /// Of a language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
}

/// Reading prompts, and going on token by token.
#[derive(Clone, Debug, Serialize)]
pub struct Language {
    pub prefill_ms: f64,
    pub prefill_tokens_per_second: f64,
    /// The first model's median over this one's.
    pub prefill_speed_to_first: f64,
    /// Steps of one token a sequence.
    pub steps: usize,
    /// The fields of decoding; none without a step.
    #[serde(flatten)]
    pub decoding: Option<Decoding>,
}

/// Tokens after the prompts.
#[derive(Clone, Debug, Serialize)]
pub struct Decoding {
    pub step_ms: f64,
    pub decode_tokens_per_second: f64,
    /// The first model's median step over this one's.
    pub decode_speed_to_first: f64,
    /// Bytes of weights that a step reads.
    pub step_bytes: u64,
    pub gb_per_second: f64,
    /// At which this machine reads a block of as many bytes (at most a gibibyte) over and over.
    pub measured_gb_per_second: f64,
    pub share_of_bandwidth: f64,
}

impl Peaks {
    /// Measures the arithmetic, and memory if asked to.
    pub fn measure(with_memory: bool) -> Peaks {
        let memory = || Memory {
            block_bytes: BLOCK_LIMIT_BYTES,
            gb_per_second_one_thread: peaks::read_bandwidth(BLOCK_LIMIT_BYTES, Threads::One) / 1e9,
            gb_per_second: peaks::read_bandwidth(BLOCK_LIMIT_BYTES, Threads::All) / 1e9,
        };
        let arithmetic = |flops: fn(Threads) -> Option<f64>| {
            let (one, all) = flops(Threads::One).zip(flops(Threads::All))?;
            Some(Arithmetic { gflops_one_thread: one / 1e9, gflops: all / 1e9 })
        };
        Peaks {
            f32: arithmetic(|threads| Some(peaks::multiply_add_flops(threads))).expect("there are units for f32"),
            bf16: arithmetic(peaks::bf16_multiply_add_flops),
            memory: with_memory.then(memory),
        }
    }

    /// The higher of two measurements of the arithmetic, before and after the rounds: what else runs makes one lower.
    #[must_use]
    pub fn or(self, other: Peaks) -> Peaks {
        let higher = |one: Arithmetic, other: Arithmetic| Arithmetic {
            gflops_one_thread: one.gflops_one_thread.max(other.gflops_one_thread),
            gflops: one.gflops.max(other.gflops),
        };
        let bf16 = self.bf16.zip(other.bf16).map(|(one, other)| higher(one, other));
        Peaks { f32: higher(self.f32, other.f32), bf16, ..self }
    }

    /// As lines for people.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let peak = |of: Arithmetic| {
            format!("{} GFLOP/s measured, {} on one thread", rate(of.gflops), rate(of.gflops_one_thread))
        };
        let mut lines = vec![("f32 peak", peak(self.f32))];
        lines.extend(self.bf16.map(|bf16| ("bf16 peak", peak(bf16))));
        if let Some(memory) = &self.memory {
            let (one, all) = (rate(memory.gb_per_second_one_thread), rate(memory.gb_per_second));
            let block = bytes(memory.block_bytes as u64);
            lines.push(("memory", format!("{all} GB/s read measured, {one} on one thread, in blocks of {block}")));
        }
        lines
    }
}

/// Medians and ratios, from one list of turns a model.
///
/// # Panics
/// If a model had no turn.
pub fn measured(runners: &[Runner], turns: &[Vec<Turn>], peaks: &Peaks) -> Vec<Measured> {
    let mut models: Vec<Measured> = Vec::new();
    for (runner, turns) in runners.iter().zip(turns) {
        let first = models.first().cloned();
        models.push(one(runner, turns, peaks, first.as_ref()));
    }
    models
}

#[allow(clippy::cast_precision_loss)]
fn one(runner: &Runner, turns: &[Turn], peaks: &Peaks, first: Option<&Measured>) -> Measured {
    let times_ms: Vec<f64> = turns.iter().map(|turn| milliseconds(turn.elapsed)).collect();
    let sorted = sorted(times_ms.clone());
    let median_ms = quantile(&sorted, 0.5);
    let cpu: Option<Vec<f64>> = turns.iter().map(|turn| turn.cpu.map(milliseconds)).collect();
    let (sequences, tokens) = (runner.sequences(), runner.tokens());
    let language = language(runner, turns, first);
    let made = language.as_ref().map_or(0, |language| language.steps * sequences);
    let multiply_adds = runner.model().multiply_adds(&runner.lengths());
    let reading_ms = language.as_ref().map_or(median_ms, |language| language.prefill_ms);
    let gflops = 2.0 * multiply_adds as f64 / reading_ms / 1e6;
    let peak_gflops = match (runner.model().precision(), peaks.bf16) {
        (Precision::Bf16, Some(bf16)) => bf16.gflops,
        _ => peaks.f32.gflops,
    };
    Measured {
        model: runner.name.clone(),
        kind: runner.kind.clone(),
        sequences,
        tokens,
        median_ms,
        lower_quartile_ms: quantile(&sorted, 0.25),
        upper_quartile_ms: quantile(&sorted, 0.75),
        cpu_ms: cpu.map(median),
        sequences_per_second: sequences as f64 / median_ms * 1e3,
        tokens_per_second: (tokens + made) as f64 / median_ms * 1e3,
        multiply_adds,
        gflops,
        peak_gflops,
        share_of_peak: gflops / peak_gflops,
        speed_to_first: first.map_or(median_ms, |first| first.median_ms) / median_ms,
        times_ms,
        language,
    }
}

#[allow(clippy::cast_precision_loss)]
fn language(runner: &Runner, turns: &[Turn], first: Option<&Measured>) -> Option<Language> {
    let Work::Language { model, steps, .. } = &runner.work else { return None };
    let before = first.and_then(|first| first.language.as_ref());
    let parts: Vec<(Duration, Duration)> = turns.iter().filter_map(|turn| turn.parts).collect();
    let prefill_ms = median(parts.iter().map(|parts| milliseconds(parts.0)).collect());
    let decoding = (*steps > 0).then(|| {
        let step_ms = median(parts.iter().map(|parts| milliseconds(parts.1)).collect()) / *steps as f64;
        let before = before.and_then(|before| before.decoding.as_ref());
        let step_bytes = model.step_bytes();
        let block = usize::try_from(step_bytes).unwrap_or(usize::MAX).clamp(1, BLOCK_LIMIT_BYTES);
        let measured = peaks::read_bandwidth(block, Threads::All) / 1e9;
        let reached = step_bytes as f64 / step_ms / 1e6;
        Decoding {
            step_ms,
            decode_tokens_per_second: runner.sequences() as f64 / step_ms * 1e3,
            decode_speed_to_first: before.map_or(step_ms, |before| before.step_ms) / step_ms,
            step_bytes,
            gb_per_second: reached,
            measured_gb_per_second: measured,
            share_of_bandwidth: reached / measured,
        }
    });
    Some(Language {
        prefill_ms,
        prefill_tokens_per_second: runner.tokens() as f64 / prefill_ms * 1e3,
        prefill_speed_to_first: before.map_or(prefill_ms, |before| before.prefill_ms) / prefill_ms,
        steps: *steps,
        decoding,
    })
}

/// A duration in milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: Vec<f64>) -> f64 {
    quantile(&sorted(values), 0.5)
}

/// A quantile of sorted values, interpolated between neighbours.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

/// The report for people.
pub fn text(report: &Report) -> String {
    let what = match report.models.first().and_then(|model| model.language.as_ref()) {
        Some(language) => format!("reading the prompts, then {} tokens for each", language.steps),
        None if report.with_tokenizer => "tokenizer and forward pass".to_owned(),
        None => "forward pass".to_owned(),
    };
    let mut lines = vec![
        ("CPU", report.cpu.clone()),
        ("instructions", report.instruction_set.clone()),
        ("threads", report.threads.to_string()),
    ];
    lines.extend(report.peaks.lines());
    lines.push(("input", report.input.clone()));
    lines.extend(report.peak_memory_bytes.map(|peak| ("peak memory", bytes(peak))));
    lines.push(("timed", format!("{what}, {} rounds after {} to warm up", report.rounds, report.warm_up)));
    let table = if report.models.iter().any(|model| model.language.is_some()) { of_language } else { of_texts };
    format!("{}\n{}", facts(lines), table(&report.models))
}

fn of_texts(models: &[Measured]) -> Table {
    let mut table = Table::new([
        "model",
        "tokens",
        "median",
        "middle half",
        "CPU time",
        "sequences/s",
        "tokens/s",
        "GFLOP/s",
        "of peak",
        "speed",
    ]);
    for model in models {
        table.row([
            model.model.clone(),
            integer(model.tokens as u64),
            time(model.median_ms),
            format!("{} – {}", time(model.lower_quartile_ms), time(model.upper_quartile_ms)),
            model.cpu_ms.map_or("-".to_owned(), time),
            rate(model.sequences_per_second),
            rate(model.tokens_per_second),
            rate(model.gflops),
            percent(model.share_of_peak),
            speed(model.speed_to_first),
        ]);
    }
    table
}

fn of_language(models: &[Measured]) -> Table {
    let mut table = Table::new([
        "model",
        "prefill",
        "GFLOP/s",
        "of peak",
        "speed",
        "decode",
        "a step",
        "reads",
        "of memory",
        "speed",
        "CPU time",
    ]);
    for model in models {
        let Some(language) = &model.language else { continue };
        let decoding = |show: fn(&Decoding) -> String| language.decoding.as_ref().map_or("-".to_owned(), show);
        table.row([
            model.model.clone(),
            format!("{} tokens/s", rate(language.prefill_tokens_per_second)),
            rate(model.gflops),
            percent(model.share_of_peak),
            speed(language.prefill_speed_to_first),
            decoding(|decoding| format!("{} tokens/s", rate(decoding.decode_tokens_per_second))),
            decoding(|decoding| bytes(decoding.step_bytes)),
            decoding(|decoding| format!("{} GB/s", rate(decoding.gb_per_second))),
            decoding(|decoding| percent(decoding.share_of_bandwidth)),
            decoding(|decoding| speed(decoding.decode_speed_to_first)),
            model.cpu_ms.map_or("-".to_owned(), time),
        ]);
    }
    table
}

fn speed(ratio: f64) -> String {
    format!("{ratio:.2}×")
}

fn time(ms: f64) -> String {
    duration(Duration::from_secs_f64(ms / 1e3))
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
