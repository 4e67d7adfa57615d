//! A model judged on labelled splits: metrics and loss of each, batched by length so that no batch waits for one long sequence.

use std::collections::BTreeMap;

use finegates_data::Labels;
use finegates_model::{Batch, Model};

use crate::encoded::{Encoded, Targets};
use crate::error::Error;
use crate::learner::task_loss;
use crate::metrics::{Metric, classes_of};
use crate::recipe::Recipe;

/// What came of judging a model on one split.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitScores {
    /// The split's name.
    pub name: String,
    /// Mean loss.
    pub loss: f64,
    /// The metrics, the deciding one first.
    pub metrics: Vec<(Metric, f64)>,
}

/// What a model is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Yardstick<'a> {
    /// The metrics.
    pub metrics: &'a [Metric],
    /// The class that F1 is of.
    pub positive: u32,
}

/// Judges a model whose gates stand at their evaluation values. `progress` is told the examples done and in all, and ends the
/// judging, with nothing to show, by returning false.
///
/// # Errors
/// A sequence the model cannot take.
pub fn evaluate(
    model: &Model,
    split: &Encoded,
    yardstick: Yardstick<'_>,
    batch_size: usize,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<SplitScores>, Error> {
    let outputs = model.classes();
    let order = split.by_length();
    let mut logits = vec![0.0; split.len() * outputs];
    let mut batch = Batch::default();
    let mut done = 0;
    for indices in order.chunks(batch_size) {
        if !progress(done, split.len()) {
            return Ok(None);
        }
        split.batch(indices, &mut batch);
        for (&index, row) in indices.iter().zip(model.forward(&batch)?.chunks_exact(outputs)) {
            logits[index as usize * outputs..][..outputs].copy_from_slice(row);
        }
        done += indices.len();
    }
    progress(done, split.len());
    let scores = yardstick.metrics.iter().filter_map(|&metric| {
        let value = match &split.targets {
            Targets::Classes(labels) => metric.of_classes(&classes_of(&logits, outputs), labels, yardstick.positive),
            Targets::Values(values) => metric.of_values(&logits, values),
            Targets::Tokens(_) => None,
        };
        Some((metric, value?))
    });
    let loss = task_loss(&logits, outputs, &split.targets, None);
    Ok(Some(SplitScores { name: split.name.clone(), loss, metrics: scores.collect() }))
}

/// The metrics to compute: the task's, and the one that decides.
pub(crate) fn metrics(recipe: &Recipe, labels: &Labels) -> Result<Vec<Metric>, Error> {
    let mut metrics = Metric::of(recipe.task, labels).to_vec();
    let mut known = metrics.clone();
    if let Some(names) = labels.names() {
        known.extend([Metric::Accuracy, Metric::MacroF1, Metric::Matthews]);
        known.extend((names.len() == 2).then_some(Metric::F1));
    }
    let wanted = &recipe.best_metric;
    match known.iter().find(|metric| metric.name() == wanted) {
        Some(metric) if metrics.contains(metric) => {}
        Some(&metric) => metrics.push(metric),
        None if wanted == "loss" => {}
        None => {
            let mut known: Vec<String> = known.iter().map(|metric| metric.name().to_owned()).collect();
            known.push("loss".to_owned());
            known.sort_unstable();
            known.dedup();
            return Err(Error::UnknownMetric { found: wanted.clone(), known });
        }
    }
    Ok(metrics)
}

/// The first validation set's value of the metric that decides.
pub(crate) fn deciding_score(scores: &[SplitScores], best_metric: &str) -> f64 {
    let Some(first) = scores.first() else { return f64::NAN };
    if best_metric == "loss" {
        return first.loss;
    }
    first.metrics.iter().find(|(metric, _)| metric.name() == best_metric).map_or(f64::NAN, |(_, value)| *value)
}

/// All metrics by name, with the name of their set before it if there are several.
pub(crate) fn flat_metrics(scores: &[SplitScores]) -> BTreeMap<String, f64> {
    let mut flat = BTreeMap::new();
    for split in scores {
        let prefix = if scores.len() > 1 { format!("{}_", split.name) } else { String::new() };
        flat.insert(format!("{prefix}loss"), split.loss);
        flat.extend(split.metrics.iter().map(|(metric, value)| (format!("{prefix}{metric}"), *value)));
    }
    flat
}
