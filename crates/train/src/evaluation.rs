//! A model judged on labelled splits: metrics and loss of each, batched by length so that no batch waits for one long sequence.

use finegates_model::{Batch, Model};

use crate::encoded::{Encoded, Targets};
use crate::error::Error;
use crate::learner::task_loss;
use crate::metrics::{Metric, classes_of};

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
        };
        Some((metric, value?))
    });
    let loss = task_loss(&logits, outputs, &split.targets, None);
    Ok(Some(SplitScores { name: split.name.clone(), loss, metrics: scores.collect() }))
}
