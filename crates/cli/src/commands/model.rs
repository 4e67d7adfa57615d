//! Which model a command works on, and how to read columns: the arguments that several commands share.

use anyhow::bail;
use clap::Args;
use finegates_checkpoint::{Checkpoint, Tokenizer};
use finegates_data::ColumnChoice;
use finegates_infer::{Artifact, Engine, Loading, Options, Which};
use finegates_kernels::matrix::Precision;
use finegates_model::{Model, Task};

use crate::arguments::Common;

/// A text with its second text.
pub type Pair = (String, Option<String>);

/// Which model a name stands for, and what its weights are held in.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Model")]
pub struct Chosen {
    /// Which of a run's saved models to use: best, last, or a stop of its budget, as params-0.6
    #[arg(long, value_name = "WHICH", default_value = "best")]
    pub checkpoint: Which,
    /// The base model of a run or adapter, in place of the one it names (when that one has moved)
    #[arg(long, value_name = "MODEL")]
    pub base: Option<String>,
    /// What weights are held in: f32, or bf16, which takes half the memory; sums are f32
    #[arg(long, value_name = "PRECISION", default_value = "f32")]
    pub precision: Precision,
}

/// A decoder with its tokenizer, to predict the next token.
pub struct LanguageModel {
    pub checkpoint: Checkpoint,
    pub model: Model,
    pub tokenizer: Tokenizer,
}

impl Chosen {
    /// Loads a language model.
    pub fn language_model(&self, name: &str, common: &Common) -> anyhow::Result<LanguageModel> {
        let artifact = Artifact::find(name, &self.checkpoint, self.base.as_deref(), &common.fetch())?;
        let checkpoint = artifact.open_checkpoint(&common.fetch())?;
        let classifies = artifact.task(&checkpoint)? == Some(Task::Classify);
        if classifies && checkpoint.config.family.is_decoder() {
            bail!("{name}: is a classifier and predicts no next token; finegates predict answers with it");
        }
        let loading = Loading { task: Task::Language, precision: self.precision };
        let (model, _) = artifact.load_model(&checkpoint, &loading)?;
        let tokenizer = finegates_infer::open_tokenizer(&artifact, &checkpoint)?;
        Ok(LanguageModel { checkpoint, model, tokenizer })
    }
}

/// How a model is found and loaded.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Model")]
pub struct ModelArguments {
    #[command(flatten)]
    pub chosen: Chosen,
    /// Cut texts to N tokens, special ones included [default: as the run was trained; otherwise the model's limit]
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// Run texts together up to N tokens: more fills wide CPUs better, fewer takes less memory
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_tokens: Option<u32>,
}

impl ModelArguments {
    /// Loads a model for texts.
    pub fn load(&self, name: &str, allow_untrained_head: bool, common: &Common) -> anyhow::Result<Engine> {
        Ok(Engine::load(name, &self.options(allow_untrained_head, common))?)
    }

    /// The engine's options.
    pub fn options(&self, allow_untrained_head: bool, common: &Common) -> Options<'static> {
        Options {
            which: self.chosen.checkpoint.clone(),
            base: self.chosen.base.clone(),
            precision: self.chosen.precision,
            maximum_length: self.max_length,
            allow_untrained_head,
            batch_tokens: self.batch_tokens.map(|tokens| tokens as usize),
            fetch: common.fetch(),
        }
    }
}

/// Which columns of a file hold what.
#[derive(Args, Debug, Clone, Default)]
pub struct TextColumns {
    /// The column with the text [default: found by its name, e.g. text, sentence, sentence1, premise]
    #[arg(long, value_name = "COLUMN")]
    pub text: Option<String>,
    /// The column with the second text of a pair [default: found by its name, e.g. sentence2, hypothesis]
    #[arg(long, value_name = "COLUMN")]
    pub text_pair: Option<String>,
}

impl TextColumns {
    /// As the reader takes it.
    pub fn choice(&self, label: Option<&str>) -> ColumnChoice {
        ColumnChoice { text: self.text.clone(), pair: self.text_pair.clone(), label: label.map(str::to_owned) }
    }
}
