//! What a model says about one text.

use std::sync::Arc;

use finegates_kernels::loss;

/// The answer to one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The class or the number.
    pub outcome: Outcome,
    /// How many tokens were read.
    pub tokens: usize,
    /// Whether the text was longer than that and was cut.
    pub truncated: bool,
}

/// A class with the scores of all classes, or a number.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Of a classifier.
    Class {
        /// Index of the likeliest class.
        index: usize,
        /// Its name, as in the model's `id2label`.
        label: Arc<str>,
        /// The probability of each class (softmax of the logits), in the order of the labels.
        scores: Vec<f32>,
    },
    /// Of a regression.
    Value(f32),
}

impl Answer {
    /// The label of a classifier.
    pub fn label(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Class { label, .. } => Some(label),
            Outcome::Value(_) => None,
        }
    }

    /// The probability of the label, or the number of a regression.
    pub fn score(&self) -> f32 {
        match &self.outcome {
            Outcome::Class { index, scores, .. } => scores[*index],
            Outcome::Value(value) => *value,
        }
    }
}

impl Outcome {
    /// From one row of logits `[C]`; one logit alone is a number. The first of equal logits wins.
    pub(crate) fn from_logits(logits: &[f32], labels: &[Arc<str>]) -> Outcome {
        if let [value] = logits {
            return Outcome::Value(*value);
        }
        let mut scores = vec![0.0; logits.len()];
        loss::softmax(logits, logits.len(), &mut scores);
        let index = (1..logits.len()).fold(0, |best, index| if logits[index] > logits[best] { index } else { best });
        Outcome::Class { index, label: Arc::clone(&labels[index]), scores }
    }
}
