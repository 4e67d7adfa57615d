//! The metrics of GLUE and of data sets in general, as scikit-learn and SciPy define them, degenerate cases included:
//! where scikit-learn says 0 this says 0, where SciPy says NaN this says NaN.

use finegates_data::{GlueTask, Labels};

/// A number that says how good predictions are; higher is better for all of them but perplexity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Share of right answers.
    Accuracy,
    /// Harmonic mean of precision and recall of class 1.
    F1,
    /// Mean over the classes of their F1.
    MacroF1,
    /// Matthews correlation, of any number of classes.
    Matthews,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation, ties sharing their mean rank.
    Spearman,
    /// `e` to the mean of `−log p` of a text's tokens; lower is better.
    Perplexity,
}

impl Metric {
    /// The name in `metrics.jsonl` and recipes.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::F1 => "f1",
            Metric::MacroF1 => "macro_f1",
            Metric::Matthews => "matthews",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
            Metric::Perplexity => "perplexity",
        }
    }

    /// What a task is judged by, the first of them deciding; for a data set that is no task of GLUE, accuracy and macro F1, or
    /// the two correlations.
    pub fn of(task: Option<GlueTask>, labels: &Labels) -> &'static [Metric] {
        match (task, labels) {
            (_, Labels::Regression) => &[Metric::Pearson, Metric::Spearman],
            (Some(GlueTask::Cola), _) => &[Metric::Matthews, Metric::Accuracy],
            (Some(GlueTask::Mrpc | GlueTask::Qqp), _) => &[Metric::Accuracy, Metric::F1],
            (Some(_), _) => &[Metric::Accuracy],
            (None, _) => &[Metric::Accuracy, Metric::MacroF1],
        }
    }

    /// The metric of predicted classes, F1 being that of the class `positive`; none if it is one of numbers.
    pub fn of_classes(self, predictions: &[u32], labels: &[u32], positive: u32) -> Option<f64> {
        match self {
            Metric::Accuracy => Some(accuracy(predictions, labels)),
            Metric::F1 => Some(f1(predictions, labels, positive)),
            Metric::MacroF1 => Some(macro_f1(predictions, labels)),
            Metric::Matthews => Some(matthews(predictions, labels)),
            Metric::Pearson | Metric::Spearman | Metric::Perplexity => None,
        }
    }

    /// The metric of predicted numbers; none if it is one of classes.
    pub fn of_values(self, predictions: &[f32], targets: &[f32]) -> Option<f64> {
        let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
        match self {
            Metric::Pearson => Some(pearson(&wide(predictions), &wide(targets))),
            Metric::Spearman => Some(spearman(&wide(predictions), &wide(targets))),
            _ => None,
        }
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The class with the highest score in each row of `logits` `[S, C]`; the first of equals.
///
/// # Panics
/// If `classes` is 0.
pub fn classes_of(logits: &[f32], classes: usize) -> Vec<u32> {
    let best = |row: &[f32]| (1..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best });
    logits.chunks_exact(classes).map(|row| u32::try_from(best(row)).unwrap_or(u32::MAX)).collect()
}

/// Share of predictions that equal their labels; NaN for none.
///
/// # Panics
/// If the lengths differ, as for all metrics here.
pub fn accuracy(predictions: &[u32], labels: &[u32]) -> f64 {
    assert_eq!(predictions.len(), labels.len(), "accuracy: one label a prediction");
    let right = predictions.iter().zip(labels).filter(|(prediction, label)| prediction == label).count();
    right as f64 / labels.len() as f64
}

/// `2 tp / (2 tp + fp + fn)` of one class; 0 if it neither occurs nor is predicted.
pub fn f1(predictions: &[u32], labels: &[u32], class: u32) -> f64 {
    assert_eq!(predictions.len(), labels.len(), "f1: one label a prediction");
    let count = |values: &[u32]| values.iter().filter(|&&value| value == class).count();
    let both = predictions.iter().zip(labels).filter(|&(&p, &l)| p == class && l == class).count();
    let either = count(predictions) + count(labels);
    if either == 0 { 0.0 } else { 2.0 * both as f64 / either as f64 }
}

/// Mean F1 over the classes that occur or are predicted.
pub fn macro_f1(predictions: &[u32], labels: &[u32]) -> f64 {
    let classes: std::collections::BTreeSet<u32> = predictions.iter().chain(labels).copied().collect();
    classes.iter().map(|&class| f1(predictions, labels, class)).sum::<f64>() / classes.len() as f64
}

/// Matthews correlation of any number of classes (Gorodkin 2004); 0 where it is undefined.
pub fn matthews(predictions: &[u32], labels: &[u32]) -> f64 {
    assert_eq!(predictions.len(), labels.len(), "matthews: one label a prediction");
    let classes = predictions.iter().chain(labels).max().map_or(0, |&class| class as usize + 1);
    let count = |values: &[u32]| {
        let mut counts = vec![0.0; classes];
        values.iter().for_each(|&value| counts[value as usize] += 1.0);
        counts
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (predicted, true_counts) = (count(predictions), count(labels));
    let n = labels.len() as f64;
    let right = predictions.iter().zip(labels).filter(|(prediction, label)| prediction == label).count() as f64;
    let covariance = right * n - dot(&true_counts, &predicted);
    let product = (n * n - dot(&predicted, &predicted)) * (n * n - dot(&true_counts, &true_counts));
    if product == 0.0 { 0.0 } else { covariance / product.sqrt() }
}

/// Pearson correlation; NaN if either side is constant or there are fewer than two pairs.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len(), "pearson: pairs");
    let constant = |values: &[f64]| values.iter().all(|&value| value == values[0]);
    if x.len() < 2 || constant(x) || constant(y) {
        return f64::NAN;
    }
    let centred = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let differences: Vec<f64> = values.iter().map(|value| value - mean).collect();
        let norm = differences.iter().map(|difference| difference * difference).sum::<f64>().sqrt();
        (differences, norm)
    };
    let ((x, x_norm), (y, y_norm)) = (centred(x), centred(y));
    x.iter().zip(&y).map(|(x, y)| (x / x_norm) * (y / y_norm)).sum::<f64>().clamp(-1.0, 1.0)
}

/// Spearman rank correlation: Pearson's of the ranks.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    pearson(&ranks(x), &ranks(y))
}

/// Ranks from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    if values.iter().any(|value| value.is_nan()) {
        return vec![f64::NAN; values.len()];
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    // -0 and 0 are equal, though `total_cmp` tells them apart.
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = start as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|&index| ranks[index] = mean);
        start += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_scores_wins() {
        assert_eq!(classes_of(&[0.0, 0.0, 0.0, 1.0, 2.0, 1.0], 2), [0, 1, 0]);
    }

    #[test]
    fn macro_f1_is_the_mean_over_the_classes_there_are() {
        // scikit-learn 1.7: f1_score([0, 1, 2, 2, 1, 0], [0, 2, 1, 2, 1, 1], average="macro")
        let value = macro_f1(&[0, 2, 1, 2, 1, 1], &[0, 1, 2, 2, 1, 0]);
        assert!((value - (2.0 / 3.0 + 0.4 + 0.5) / 3.0).abs() < 1e-15, "{value}");
        assert_eq!(macro_f1(&[3, 3], &[3, 3]), 1.0);
    }

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(ranks(&[10.0, -0.0, 10.0, 0.0, 5.0]), [4.5, 1.5, 4.5, 1.5, 3.0]);
    }

    #[test]
    fn numbers_that_are_none_have_no_correlation() {
        assert!(pearson(&[1.0, f64::NAN], &[1.0, 2.0]).is_nan());
        assert!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]).is_nan());
        assert!(pearson(&[1.0], &[1.0]).is_nan());
        assert!(accuracy(&[], &[]).is_nan());
    }

    #[test]
    fn every_task_has_its_metrics() {
        let classes = Labels::named(["no", "yes"]);
        assert_eq!(Metric::of(Some(GlueTask::Cola), &classes)[0], Metric::Matthews);
        assert_eq!(Metric::of(Some(GlueTask::Mrpc), &classes), [Metric::Accuracy, Metric::F1]);
        assert_eq!(Metric::of(Some(GlueTask::Stsb), &Labels::Regression)[0], Metric::Pearson);
        assert_eq!(Metric::of(None, &classes), [Metric::Accuracy, Metric::MacroF1]);
    }
}
