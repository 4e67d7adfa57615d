//! The settings of runs that learn the next token of a corpus, and which others have no meaning there.

use finegates_data::{CorpusOptions, Packing, Shuffle};
use finegates_model::{Method, Task};

use crate::recipe::{PartialRecipe, Recipe, RecipeError};

/// How perplexity is measured where nobody says: windows of so many tokens.
const PERPLEXITY_WINDOW: usize = 1024;

/// Settings that only a run on labelled examples has.
pub const OF_EXAMPLES: [&str; 14] = [
    "task",
    "data",
    "train",
    "validation_fraction",
    "text_pair",
    "label",
    "regression",
    "skip_bad_rows",
    "max_train_rows",
    "max_validation_rows",
    "max_length",
    "epochs",
    "length_bucketing",
    "evaluation_batch_size",
];

macro_rules! first_given {
    ($recipe:expr, $($name:ident)+) => { [$($recipe.$name.is_some().then_some(stringify!($name))),+].into_iter().flatten().next() };
}

impl PartialRecipe {
    /// What a recipe of a corpus that says nothing of examples holds about them.
    fn silent() -> Result<toml::Table, RecipeError> {
        PartialRecipe { corpus: Some(Vec::new()), ..PartialRecipe::default() }.with_defaults().table()
    }

    /// Settles the settings of a corpus; a run without one has none of them.
    pub(super) fn settle_corpus(&mut self) -> Result<(), RecipeError> {
        if self.corpus.is_none() {
            if self.data.is_none() && self.train.is_none() {
                let flag = "--data FOLDER or --train FILE; for a language model, --corpus PATH";
                return Err(RecipeError::Missing { name: "data", flag });
            }
            let given = first_given!(self, documents tokens tokens_per_sequence shuffle_window perplexity_window perplexity_stride distillation distillation_temperature);
            let reason = "only a run on a corpus has it, and this one is on labelled examples";
            return given.map_or(Ok(()), |name| Err(RecipeError::OtherData { name, reason }));
        }
        // A recipe that was written down names some of these whatever it is of, with what they are by default.
        let (given, silent) = (self.table()?, PartialRecipe::silent()?);
        let meant = |name: &&&str| given.get(**name).is_some_and(|value| silent.get(**name) != Some(value));
        if let Some(name) = OF_EXAMPLES.iter().find(meant) {
            let reason = "only a run on labelled examples has it, and this one is on a corpus";
            return Err(RecipeError::OtherData { name, reason });
        }
        if let Some(method) = self.method.filter(|method| **method == Method::BitFit) {
            let (expected, found) =
                ("gates or full or gated-full: a language model has no head of its own to train", method.to_string());
            return Err(RecipeError::OutOfRange { name: "method", expected, found });
        }
        self.documents.get_or_insert_default();
        if self.max_steps.is_some() && self.tokens.is_some() {
            let reason = "max_steps says how long the run is as well";
            return Err(RecipeError::OtherData { name: "tokens", reason });
        }
        if self.max_steps.is_none() {
            self.tokens.get_or_insert(1_000_000);
        }
        self.tokens_per_sequence.get_or_insert(256);
        self.shuffle_window.get_or_insert(1024);
        let share = *self.distillation.get_or_insert(0.0);
        if share > 0.0 && self.method.is_some_and(|method| *method != Method::Gates) {
            let reason = "the dense model is the one whose weights stay as they are, with method gates";
            return Err(RecipeError::OtherData { name: "distillation", reason });
        }
        if share == 0.0 && self.distillation_temperature.is_some_and(|temperature| temperature != 1.0) {
            let reason = "nothing is followed without a share of --distillation";
            return Err(RecipeError::OtherData { name: "distillation_temperature", reason });
        }
        self.distillation_temperature.get_or_insert(1.0);
        Ok(())
    }
}

impl Recipe {
    /// What the head is to predict.
    pub fn head_task(&self) -> Task {
        if self.corpus.is_some() { Task::Language } else { Task::Classify }
    }

    /// Where the corpus is; none for runs on examples.
    pub fn corpus_options(&self) -> Option<CorpusOptions> {
        let mut options = CorpusOptions::new(self.corpus.clone()?);
        options.documents = self.documents.map_or_else(Default::default, |documents| documents.0);
        if let Some(field) = &self.text {
            options.field.clone_from(field);
        }
        Some(options)
    }

    /// How much the dense model counts as a teacher, and the temperature; none where it does not.
    pub(crate) fn distillation(&self) -> Option<(f32, f32)> {
        let share = self.distillation.filter(|&share| share > 0.0)?;
        Some((share as f32, self.distillation_temperature.unwrap_or(1.0) as f32))
    }

    /// How documents become sequences.
    pub(crate) fn packing(&self, end_of_text: u32) -> Packing {
        let window = self.shuffle_window.unwrap_or(1);
        let shuffle = (window > 1).then_some(Shuffle { seed: self.seed, window });
        let tokens_per_sequence = self.tokens_per_sequence.unwrap_or(1);
        Packing { tokens_per_sequence, end_of_text, shuffle, epochs: None }
    }

    /// Sequences of a corpus that the run trains on.
    pub(crate) fn corpus_sequences(&self) -> usize {
        let a_step = self.batch_size * self.gradient_accumulation;
        let tokens_a_step = (a_step * self.tokens_per_sequence.unwrap_or(1)) as u64;
        let steps = self.max_steps.unwrap_or(self.tokens.unwrap_or(0).div_ceil(tokens_a_step.max(1)));
        (steps.max(1) as usize).saturating_mul(a_step)
    }

    /// Window and stride of perplexity for a model that takes so many tokens.
    ///
    /// # Errors
    /// [`RecipeError::Protocol`] for a window that is longer, or a stride beyond the window.
    pub(crate) fn perplexity_protocol(&self, longest: usize) -> Result<(usize, usize), RecipeError> {
        let window = self.perplexity_window.unwrap_or(PERPLEXITY_WINDOW.min(longest));
        let stride = self.perplexity_stride.unwrap_or((window / 2).max(1));
        let refused = |name, most, found| Err(RecipeError::Protocol { name, most, found });
        match () {
            () if window > longest => refused("perplexity_window", longest, window),
            () if stride > window => refused("perplexity_stride", window, stride),
            () => Ok((window, stride)),
        }
    }
}
