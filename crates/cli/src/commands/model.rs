//! Which model a command works on, and how to read columns: the arguments that several commands share.

use clap::Args;
use finegates_data::ColumnChoice;
use finegates_infer::{Engine, Options, Which};

use crate::arguments::Common;

/// A text with its second text.
pub type Pair = (String, Option<String>);

/// How a model is found and loaded.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Model")]
pub struct ModelArguments {
    /// Which of a run's saved models to use: best, last, or a stop of its budget, as params-0.6
    #[arg(long, value_name = "WHICH", default_value = "best")]
    pub checkpoint: Which,
    /// The base model of a run or adapter, in place of the one it names (when that one has moved)
    #[arg(long, value_name = "MODEL")]
    pub base: Option<String>,
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
            which: self.checkpoint.clone(),
            base: self.base.clone(),
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
