//! What a run tells while it goes on: events for whoever watches, and the records that `metrics.jsonl` and `summary.json` hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use finegates_model::GateState;
use serde::{Deserialize, Deserializer, Serialize};

use crate::budget::Measure;
use crate::optimizer::LearningRates;

/// Something worth showing.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A remark in words: what was initialised, cut, skipped or cleared up.
    Note(&'a str),
    /// Everything is loaded; steps follow.
    Started(&'a Start),
    /// A step is made.
    Step(&'a StepRecord),
    /// Part of an evaluation is done.
    Evaluating {
        /// The split's name.
        split: &'a str,
        /// Examples done.
        done: usize,
        /// Examples in all.
        total: usize,
    },
    /// The model of a budget's stop is kept.
    Kept {
        /// The stop.
        stop: &'a StopRecord,
        /// What its numbers are counted in.
        measure: Measure,
        /// Its folder.
        folder: &'a Path,
    },
    /// An evaluation is done.
    Evaluated(&'a EvaluationRecord),
    /// The run can be resumed from this step, whatever happens.
    Saved {
        /// Steps made.
        step: u64,
        /// The folder of the state.
        folder: &'a Path,
    },
    /// The run ended, for whatever reason.
    Ended(&'a Summary),
}

/// Someone who watches.
pub trait Observer {
    /// Is told what happened.
    fn event(&mut self, event: &Event<'_>);
}

impl<F: FnMut(&Event<'_>)> Observer for F {
    fn event(&mut self, event: &Event<'_>) {
        self(event);
    }
}

/// Watches and says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}

/// What a run starts with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Start {
    /// The run folder.
    pub folder: PathBuf,
    /// Steps made already; above 0 when resumed.
    pub step: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// Steps an epoch.
    pub steps_an_epoch: u64,
    /// Training examples, or sequences of a corpus.
    pub train_examples: usize,
    /// Name and examples, or tokens, of each validation set.
    pub validation_examples: Vec<(String, usize)>,
    /// Tokens of a sequence, of a run on a corpus.
    pub tokens_per_sequence: Option<usize>,
    /// Names of the classes; empty for regression.
    pub labels: Vec<String>,
    /// The metric that tells the best evaluation.
    pub best_metric: String,
    /// Numbers that train: gates, biases, head or everything.
    pub trainable_parameters: usize,
    /// Parameters of the gated layers' weights.
    pub gated_parameters: u64,
}

/// A line of `metrics.jsonl` for a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// `step`.
    pub kind: &'static str,
    /// Steps made, this one included.
    pub step: u64,
    /// How far the run has come, in epochs.
    pub epoch: f64,
    /// Task loss and penalty together.
    pub loss: f64,
    /// Mean task loss of the step's sequences.
    pub task_loss: f64,
    /// The sparsity penalty, weight included; 0 while it does not count.
    pub penalty: f64,
    /// The gradient's length before clipping.
    pub gradient_norm: f64,
    /// The learning rates of the step.
    pub learning_rates: LearningRates,
    /// Share of the gated layers' parameters that closed gates remove, after the step.
    pub removed: f64,
    /// Sequences of the step.
    pub sequences: usize,
    /// Tokens of the step.
    pub tokens: usize,
    /// How long it took.
    pub seconds: f64,
    /// Sequences over seconds.
    pub sequences_per_second: f64,
}

/// A line of `metrics.jsonl` for an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// `evaluation`.
    #[serde(skip_deserializing, default = "evaluation")]
    pub kind: &'static str,
    /// Steps made before it.
    pub step: u64,
    /// How far the run has come, in epochs.
    pub epoch: f64,
    /// Mean loss over the first validation set, without the penalty.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// All metrics; with several validation sets each name begins with its set's, as in `matched_accuracy`. A metric that is
    /// undefined is null in JSON.
    #[serde(deserialize_with = "numbers_or_null")]
    pub metrics: BTreeMap<String, f64>,
    /// The value of the deciding metric.
    #[serde(deserialize_with = "number_or_null")]
    pub score: f64,
    /// Whether it is the best so far.
    pub best: bool,
    /// How the gates stand; none for methods without.
    pub gates: Option<GateShares>,
    /// How long it took.
    pub seconds: f64,
}

fn evaluation() -> &'static str {
    "evaluation"
}

/// JSON has null for what is no number.
fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn numbers_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let numbers = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

/// How the gates of a model stand at evaluation, as shares of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GateShares {
    /// Gates of value 1 or above.
    pub open: f64,
    /// Gates below 1 that are not 0.
    pub fractional: f64,
    /// Gates of value 0.
    pub closed: f64,
    /// Of the gated layers' parameters, those in closed rows or columns.
    pub removed: f64,
}

impl GateShares {
    /// Counts; none if there are no gates.
    pub fn of(gates: &[GateState]) -> Option<GateShares> {
        let (mut open, mut closed, mut all) = (0u64, 0u64, 0u64);
        let (mut kept, mut parameters) = (0u64, 0u64);
        for state in gates {
            for &value in state.rows.iter().chain(&state.columns) {
                all += 1;
                open += u64::from(value >= 1.0);
                closed += u64::from(value == 0.0);
            }
            let live = |values: &[f32]| values.iter().filter(|&&value| value != 0.0).count() as u64;
            kept += live(&state.rows) * live(&state.columns);
            parameters += state.rows.len() as u64 * state.columns.len() as u64;
        }
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        (all > 0).then(|| GateShares {
            open: share(open, all),
            fractional: share(all - open - closed, all),
            closed: share(closed, all),
            removed: share(parameters - kept, parameters),
        })
    }
}

/// The model kept at a stop of a budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StopRecord {
    /// Its name in the run's `stops` folder, as `params-0.6`.
    pub name: String,
    /// The share of the cost that might be left.
    pub asked: f64,
    /// The share of the cost that is left.
    pub left: f64,
    /// What is left: weights, multiply-adds a token, or milliseconds.
    pub cost: f64,
    /// Steps made.
    pub step: u64,
    /// The same in epochs.
    pub epoch: f64,
    /// The value of the deciding metric.
    #[serde(deserialize_with = "number_or_null")]
    pub score: f64,
    /// All metrics, as in an evaluation.
    #[serde(deserialize_with = "numbers_or_null")]
    pub metrics: BTreeMap<String, f64>,
    /// Share of the gated parameters that is removed.
    pub removed: f64,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// All steps are made.
    Finished,
    /// Evaluations stopped getting better.
    EarlyStopped,
    /// It was asked to stop; it can be resumed.
    Interrupted,
}

/// The best evaluation of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps made before it.
    pub step: u64,
    /// The same in epochs.
    pub epoch: f64,
    /// The value of the deciding metric; null where it is undefined.
    pub score: Option<f64>,
    /// Share of the gated parameters that closed gates remove.
    pub removed: f64,
    /// All metrics; an undefined one is null.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// Whether enough was removed for it to count as the best.
    pub eligible: bool,
}

/// What came of a run; also `summary.json` when it is finished.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The run folder.
    pub folder: PathBuf,
    /// Why it ended.
    pub ending: Ending,
    /// Steps made.
    pub step: u64,
    /// Steps it would have made.
    pub total_steps: u64,
    /// Epochs made.
    pub epoch: f64,
    /// The metric that tells the best evaluation.
    pub best_metric: String,
    /// The best evaluation.
    pub best: Option<Best>,
    /// The last evaluation made.
    pub last: Option<EvaluationRecord>,
    /// The budget of the run; none without one.
    pub budget: Option<String>,
    /// What was kept at the stops of the budget; empty without one.
    pub stops: Vec<StopRecord>,
    /// How the gates stand at the end; none for methods without.
    pub gates: Option<GateShares>,
    /// Time spent on steps and evaluations, also before an interruption.
    pub seconds: f64,
    /// Training sequences over the time spent on steps.
    pub sequences_per_second: f64,
}
