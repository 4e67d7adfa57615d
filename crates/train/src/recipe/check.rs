//! The ranges of the settings.

use finegates_kernels::matrix::Precision;

use crate::budget::Measure;
use crate::metrics::Metric;
use crate::recipe::{Recipe, RecipeError};
use crate::schedule::Interval;

impl Recipe {
    /// Refuses values out of their ranges.
    pub(super) fn check(&self) -> Result<(), RecipeError> {
        let share = |name, value: f64| within(name, value, "a share from 0 to 1", (0.0..=1.0).contains(&value));
        let positive = |name, value: f64| within(name, value, "a number above 0", value > 0.0);
        let not_negative = |name, value: f64| within(name, value, "0 or a number above it", value >= 0.0);
        // What is computed with in 32 bits is checked in 32 bits.
        let single =
            |name, value: f64| within(name, value, "a number that 32 bits can hold", (value as f32).is_finite());
        let at_least_one = |name, value: usize| match value {
            0 => Err(RecipeError::OutOfRange { name, expected: "at least 1", found: "0".to_owned() }),
            _ => Ok(()),
        };
        if let Some(fraction) = self.validation_fraction {
            within("validation_fraction", fraction, "a share between 0 and 1", fraction > 0.0 && fraction < 1.0)?;
        }
        for (name, rows) in [("max_train_rows", self.max_train_rows), ("max_validation_rows", self.max_validation_rows)]
        {
            at_least_one(name, rows.unwrap_or(1))?;
        }
        at_least_one("max_length", self.max_length)?;
        at_least_one("batch_size", self.batch_size)?;
        at_least_one("evaluation_batch_size", self.evaluation_batch_size)?;
        at_least_one("gradient_accumulation", self.gradient_accumulation)?;
        at_least_one("threads", self.threads.unwrap_or(1))?;
        at_least_one("shuffle_window", self.shuffle_window.unwrap_or(1))?;
        at_least_one("perplexity_stride", self.perplexity_stride.unwrap_or(1))?;
        for (name, tokens) in
            [("tokens_per_sequence", self.tokens_per_sequence), ("perplexity_window", self.perplexity_window)]
        {
            if let Some(found) = tokens.filter(|&tokens| tokens < 2) {
                // The first token of a sequence is predicted by nothing.
                return Err(RecipeError::OutOfRange { name, expected: "at least 2", found: found.to_string() });
            }
        }
        if self.tokens == Some(0) {
            return Err(RecipeError::OutOfRange { name: "tokens", expected: "at least 1", found: "0".to_owned() });
        }
        // What a run does not have is in range.
        let or = |value: Option<f64>, without: f64| value.unwrap_or(without);
        share("target_sparsity", or(self.target_sparsity, 0.0))?;
        let adapt = or(self.adapt_ratio, 0.0);
        within("adapt_ratio", adapt, "a share from 0 to below 1", (0.0..1.0).contains(&adapt))?;
        share("settle_ratio", or(self.settle_ratio, 0.0))?;
        share("distillation", or(self.distillation, 0.0))?;
        share("warmup_ratio", self.warmup_ratio)?;
        share("learning_rate_floor", self.learning_rate_floor)?;
        share("best_min_removed", self.best_min_removed)?;
        for (name, value) in [
            ("kurtosis_temperature", or(self.kurtosis_temperature, 1.0)),
            ("distillation_temperature", or(self.distillation_temperature, 1.0)),
            ("epsilon", self.epsilon),
        ] {
            single(name, value)?;
            // Below this, what is divided by it is infinite.
            within(name, value, "at least 1.2e-38", value as f32 >= f32::MIN_POSITIVE)?;
        }
        positive("epochs", self.epochs)?;
        for (name, value) in [
            ("sparsity_weight", or(self.sparsity_weight, 0.0)),
            ("sparsity_start_epoch", or(self.sparsity_start_epoch, 0.0)),
            ("gate_init_std", or(self.gate_init_std, 0.0)),
            ("gate_noise_std", or(self.gate_noise_std, 0.0)),
            ("gate_learning_rate", self.gate_learning_rate),
            ("bias_learning_rate", self.bias_learning_rate),
            ("head_learning_rate", self.head_learning_rate),
            ("weight_learning_rate", self.weight_learning_rate),
            ("weight_decay", self.weight_decay),
            ("clip_norm", self.clip_norm),
        ] {
            not_negative(name, value)?;
            single(name, value)?;
        }
        let (mean, std) = (or(self.gate_init_mean, 0.0), or(self.gate_init_std, 0.0));
        single("gate_init_mean", mean)?;
        // Draws are within nine standard deviations of the mean.
        single("gate_init_std", mean.abs() + 9.0 * std)?;
        single("gate_noise_std", 9.0 * or(self.gate_noise_std, 0.0))?;
        // The running mean is kept in 32 bits, in which a number just below 1 is 1.
        let decay = or(self.importance_decay, 0.0);
        within("importance_decay", decay, "at most 0.9999999", decay <= 0.9999999)?;
        for (name, value) in
            [("beta1", self.beta1), ("beta2", self.beta2), ("importance_decay", or(self.importance_decay, 0.0))]
        {
            within(name, value, "0 or a number above it and below 1", (0.0..1.0).contains(&value))?;
        }
        if self.max_steps == Some(0) {
            return Err(RecipeError::OutOfRange { name: "max_steps", expected: "at least 1", found: "0".to_owned() });
        }
        for (name, interval) in [("evaluate_every", *self.evaluate_every), ("checkpoint_every", *self.checkpoint_every)]
        {
            if matches!(interval, Interval::Steps(0)) {
                let expected = "an interval above 0";
                return Err(RecipeError::OutOfRange { name, expected, found: "0 steps".to_owned() });
            }
        }
        if *self.precision == Precision::Bf16 {
            let unfit = [
                (
                    self.method.trains_everything(),
                    "f32: with methods full and gated-full all weights train, and those are f32",
                ),
                (
                    self.budget.as_ref().is_some_and(|budget| matches!(budget.measure, Measure::Latency { .. })),
                    "f32: times for a latency budget are measured in f32 alone",
                ),
            ];
            if let Some((_, expected)) = unfit.into_iter().find(|(unfit, _)| *unfit) {
                return Err(RecipeError::OutOfRange { name: "precision", expected, found: "bf16".to_owned() });
            }
        }
        self.check_metric()?;
        // Every setting can be written down, or the run could not be resumed.
        self.table().map(drop)
    }

    fn check_metric(&self) -> Result<(), RecipeError> {
        let of_values = [Metric::Pearson, Metric::Spearman];
        let of_classes = [Metric::Accuracy, Metric::F1, Metric::MacroF1, Metric::Matthews];
        let fits = |metrics: &[Metric]| metrics.iter().any(|metric| metric.name() == self.best_metric);
        let (expected, known) = match self.regression {
            _ if self.corpus.is_some() => ("perplexity or loss", fits(&[Metric::Perplexity])),
            true => ("pearson, spearman or loss", fits(&of_values)),
            false => ("accuracy, f1, macro_f1, matthews or loss", fits(&of_classes)),
        };
        if known || self.best_metric == "loss" {
            return Ok(());
        }
        Err(RecipeError::OutOfRange { name: "best_metric", expected, found: self.best_metric.clone() })
    }
}

fn within(name: &'static str, value: f64, expected: &'static str, fits: bool) -> Result<(), RecipeError> {
    if fits && value.is_finite() {
        return Ok(());
    }
    Err(RecipeError::OutOfRange { name, expected, found: value.to_string() })
}
