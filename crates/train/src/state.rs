//! What a run resumes from: one file, `state/state.safetensors`, replaced as a whole, so that a kill at any moment leaves the old state
//! or the new one. It holds every trained value with its moments, bit for bit, and where the run stands.

use std::collections::BTreeMap;
use std::path::Path;

use finegates_checkpoint::{TensorFile, TensorToWrite, write_tensors};
use finegates_data::BlocksState;
use serde::{Deserialize, Serialize};

use crate::closing::Closing;
use crate::error::Error;
use crate::folder::RunFolder;
use crate::learner::Learner;
use crate::observer::{Best, EvaluationRecord, StopRecord};
use crate::optimizer::Moments;
use crate::phases::Stop;
use crate::plan::Plan;

/// The name of the file in the run's `state` folder.
pub const STATE_FILE: &str = "state.safetensors";
const FORMAT_VERSION: u32 = 3;
const OLDEST_VERSION: u32 = 2;
const METADATA_KEY: &str = "finegates_state";
/// The tensor of the running means of importance, in runs that close by a budget.
const IMPORTANCE: &str = "closing/importance";

/// Where a run stands. Everything random follows from the recipe's seed and the step, so no generator's state is in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The format of the file.
    pub format_version: u32,
    /// Steps made.
    pub step: u64,
    /// Whether the evaluation due after that step is still to be made.
    pub evaluation_pending: bool,
    /// Whether evaluations stopped getting better and the run is over.
    pub early_stopped: bool,
    /// Evaluations since the best one.
    pub evaluations_since_best: usize,
    /// The best evaluation.
    pub best: Option<Best>,
    /// The last evaluation; none before the first.
    pub last: Option<EvaluationRecord>,
    /// What was kept at the stops of the budget so far.
    #[serde(default)]
    pub stops: Vec<StopRecord>,
    /// Where a run on a corpus stands in it.
    #[serde(default)]
    pub corpus: Option<BlocksState>,
    /// The length of `metrics.jsonl`.
    pub journal_bytes: u64,
    /// Training sequences seen.
    pub sequences: u64,
    /// Time spent on steps.
    pub step_seconds: f64,
    /// Time spent on steps and evaluations.
    pub seconds: f64,
    /// Fingerprint of the data.
    pub data: String,
    /// Fingerprint of the base model.
    pub base_model: String,
}

/// Saves a state, atomically.
///
/// # Errors
/// A folder that cannot be written.
pub fn save(path: &Path, standing: &Standing, learner: &mut Learner, closing: Option<&Closing>) -> Result<(), Error> {
    let standing = Standing { format_version: FORMAT_VERSION, ..standing.clone() };
    let text = serde_json::to_string(&standing).map_err(|error| broken(path, error.to_string()))?;
    let mut values: Vec<(String, Vec<f32>)> = Vec::new();
    learner
        .model
        .parameters(&mut |parameter| values.push((format!("value/{}", parameter.name), parameter.value.to_vec())));
    let moments = learner.optimizer.moments.iter().flat_map(|(name, Moments { first, second })| {
        [(format!("first/{name}"), first.as_slice()), (format!("second/{name}"), second.as_slice())]
    });
    let importance = closing.map(|closing| (IMPORTANCE.to_owned(), closing.importance()));
    let all = values.iter().map(|(name, value)| (name.clone(), value.as_slice())).chain(moments).chain(importance);
    let tensors: Vec<_> = all.map(|(name, data)| TensorToWrite::f32(name, vec![data.len()], data)).collect();
    Ok(write_tensors(path, &tensors, &BTreeMap::from([(METADATA_KEY.to_owned(), text)]))?)
}

/// Reads where a run stands.
///
/// # Errors
/// [`Error::State`] for a file that is broken or of a newer program.
pub fn read(path: &Path) -> Result<(Standing, TensorFile), Error> {
    let file = TensorFile::open_file(path)?;
    let text = file.metadata().get(METADATA_KEY).ok_or_else(|| broken(path, "it is no state of a run".to_owned()))?;
    let standing: Standing = serde_json::from_str(text).map_err(|error| broken(path, error.to_string()))?;
    if standing.format_version > FORMAT_VERSION {
        let found = standing.format_version;
        let problem = format!(
            "format version {found}, this program reads up to {FORMAT_VERSION}; resume with the program that wrote it"
        );
        return Err(broken(path, problem));
    }
    standing.check().map_err(|problem| broken(path, problem))?;
    Ok((standing, file))
}

impl Standing {
    /// Refuses what no run can have come to.
    fn check(&self) -> Result<(), String> {
        if self.format_version < OLDEST_VERSION {
            let found = self.format_version;
            return Err(format!(
                "format version {found}, of an earlier build that told base models apart otherwise; start the run anew with --overwrite"
            ));
        }
        // A million years; more would be no duration.
        let possible = |seconds: f64| (0.0..3.2e13).contains(&seconds);
        for (name, seconds) in [("step_seconds", self.step_seconds), ("seconds", self.seconds)] {
            if !possible(seconds) {
                return Err(format!("{name}: expected 0 or a number above it, found {seconds}"));
            }
        }
        let evaluations = self.best.iter().map(|best| (best.step, best.epoch));
        for (step, epoch) in evaluations.chain(self.last.iter().map(|last| (last.step, last.epoch))) {
            if step > self.step || !(epoch.is_finite() && epoch >= 0.0) {
                return Err(format!("an evaluation after {step} steps, at epoch {epoch}, in a run of {}", self.step));
            }
        }
        for stop in &self.stops {
            let share = |value: f64| (0.0..=1.0 + 1e-9).contains(&value);
            let finite = stop.cost.is_finite() && stop.cost >= 0.0 && stop.epoch.is_finite() && stop.epoch >= 0.0;
            if !share(stop.left) || !share(stop.asked) || !share(stop.removed) || !finite || stop.step > self.step {
                return Err(format!("stops: {}: numbers that no run can have come to", stop.name));
            }
        }
        Ok(())
    }
}

/// Puts the values and moments of a state into a model and its optimizer.
///
/// # Errors
/// [`Error::State`] or a checkpoint's error if the model's parameters are not those of the state.
pub fn restore(
    path: &Path,
    standing: &Standing,
    file: &TensorFile,
    learner: &mut Learner,
    closing: Option<&mut Closing>,
) -> Result<(), Error> {
    let mut shapes = Vec::new();
    learner.model.parameters(&mut |parameter| shapes.push((parameter.name.to_owned(), parameter.value.len())));
    let mut values = BTreeMap::new();
    let moments = &mut learner.optimizer.moments;
    moments.clear();
    for (name, length) in shapes {
        values.insert(name.clone(), file.read(&format!("value/{name}"), &[length])?);
        if standing.step > 0 {
            let first = file.read(&format!("first/{name}"), &[length])?;
            let second = file.read(&format!("second/{name}"), &[length])?;
            moments.insert(name, Moments { first, second });
        }
    }
    let known = values.len() + 2 * moments.len() + usize::from(closing.is_some());
    let found = file.names().count();
    if found != known {
        let problem = format!("expected {known} tensors, found {found}; was it written for another model or method?");
        return Err(broken(path, problem));
    }
    learner.optimizer.steps = standing.step;
    learner.model.parameters(&mut |parameter| {
        if let Some(value) = values.get(parameter.name) {
            parameter.value.copy_from_slice(value);
        }
    });
    learner.model.parameters_restored();
    if let Some(closing) = closing {
        let importance = file.read(IMPORTANCE, &[closing.importance().len()])?;
        if let Some(found) = importance.iter().find(|value| !(value.is_finite() && **value >= 0.0)) {
            return Err(broken(path, format!("{IMPORTANCE}: expected numbers of at least 0, found {found}")));
        }
        let ended = |stop: &Stop| stop.end < standing.step || stop.end == standing.step && !standing.evaluation_pending;
        let ended = closing.stops().iter().filter(|stop| ended(stop)).count();
        let names = closing.stops().iter().map(|stop| stop.name.as_str());
        let kept: Vec<&str> = standing.stops.iter().map(|stop| stop.name.as_str()).collect();
        // A run that ended early has kept its last stop before its time.
        let kept_early = usize::from(standing.early_stopped && ended < closing.stops().len());
        if kept.len() != ended + kept_early || !kept.iter().copied().eq(names.clone().take(kept.len())) {
            let (expected, found) = (names.take(ended).collect::<Vec<_>>().join(", "), kept.join(", "));
            return Err(broken(path, format!("stops: expected {expected}, found {found}")));
        }
        closing.take_up(&importance, &learner.model);
    }
    Ok(())
}

/// Reads the folder's state into the learner, after making sure that data and base model are those it began with.
pub(crate) fn take_up(
    folder: &RunFolder,
    path: &Path,
    now: &Standing,
    plan: &Plan,
    learner: &mut Learner,
    closing: Option<&mut Closing>,
) -> Result<Standing, Error> {
    let (standing, file) = read(path)?;
    let inputs = [("data", &standing.data, &now.data), ("base model", &standing.base_model, &now.base_model)];
    for (what, expected, found) in inputs {
        if expected != found {
            let (path, expected, found) = (folder.path().to_owned(), expected.clone(), found.clone());
            return Err(Error::InputChanged { path, what, expected, found });
        }
    }
    if standing.step > plan.total_steps {
        let problem = format!("it is after step {} of a run of {} steps", standing.step, plan.total_steps);
        return Err(Error::State { path: path.to_owned(), problem });
    }
    restore(path, &standing, &file, learner, closing)?;
    Ok(standing)
}

fn broken(path: &Path, problem: String) -> Error {
    Error::State { path: path.to_owned(), problem }
}
