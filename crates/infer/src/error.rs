//! Everything that can go wrong between a name of a model and its answers.

use std::path::PathBuf;

/// An error of finding, loading or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model could not be had or is not what it claims.
    #[error(transparent)]
    Checkpoint(#[from] finegates_checkpoint::Error),
    /// The model could not be built or run.
    #[error(transparent)]
    Model(#[from] finegates_model::Error),
    /// A folder that holds no model.
    #[error(
        "{}: not a model: expected config.json (a checkpoint or compact model), adapter_config.json (an adapter) or \
         recipe.toml (a run), found {found}", path.display()
    )]
    NotAModel {
        /// The folder.
        path: PathBuf,
        /// What is in it, in words.
        found: String,
    },
    /// A model of the next token is asked for an answer.
    #[error("{}: is a language model and has no answers; use finegates generate or finegates perplexity", path.display())]
    LanguageModel {
        /// Its folder.
        path: PathBuf,
    },
    /// A run that has not saved anything that can be used yet.
    #[error(
        "{}: the run has no saved model yet ({wanted} missing); finish it with: finegates train --resume {}",
        path.display(), path.display()
    )]
    NothingSaved {
        /// The run folder.
        path: PathBuf,
        /// What was looked for.
        wanted: String,
    },
    /// A stop is asked for of something that has none.
    #[error("{}: is no run (it is a {kind}), so it keeps no model called {name}", path.display())]
    NoRun {
        /// The folder.
        path: PathBuf,
        /// What was asked for.
        name: String,
        /// What it is.
        kind: crate::artifact::Kind,
    },
    /// A run keeps no model of this name.
    #[error("{}: no model called {name} is kept; there are {}", path.display(), known.join(", "))]
    NoStop {
        /// The run folder.
        path: PathBuf,
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A recipe that cannot be read.
    #[error("{}: {problem}", path.display())]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// An adapter that does not say what it was trained on.
    #[error(
        "{}: base_model_name_or_path: expected the model it was trained on, found nothing; name it with --base", path.display()
    )]
    NoBase {
        /// The adapter's config.
        path: PathBuf,
    },
    /// The base of an adapter cannot be found.
    #[error("{}: its base model cannot be used; name another place for it with --base\n  {source}", path.display())]
    Base {
        /// The adapter or run.
        path: PathBuf,
        /// Why.
        source: Box<Error>,
    },
    /// An adapter that does not fit its base.
    #[error("{}{source}", folder.join("").display())]
    Adapter {
        /// The adapter's folder.
        folder: PathBuf,
        /// The tensor that does not fit, with the name of the file.
        source: Box<finegates_model::Error>,
    },
    /// A model without a task head, whose answers would be noise.
    #[error(
        "{}: no task head: {} missing, so its answers would be random; train it first (finegates train --model {} …)",
        path.display(), missing.join(", "), path.display()
    )]
    NoHead {
        /// The checkpoint.
        path: PathBuf,
        /// The tensors that are not there.
        missing: Vec<String>,
    },
    /// An engine that was loaded for token ids only.
    #[error("{}: loaded without a tokenizer, so it cannot read texts", path.display())]
    NoTokenizer {
        /// The model.
        path: PathBuf,
    },
    /// A length limit out of range.
    #[error("maximum length: expected 3 to {most} tokens, found {found}")]
    MaximumLength {
        /// The most the model takes.
        most: usize,
        /// What was asked for.
        found: usize,
    },
    /// The model gave an answer that is not a number.
    #[error("{}: the model's output for text {text} is not finite; did its training diverge?", path.display())]
    NotFinite {
        /// The model.
        path: PathBuf,
        /// Index of the first such text.
        text: usize,
    },
    /// A text that could not be read by the tokenizer.
    #[error("text {text}: {source}")]
    Text {
        /// Index of the text among those given together.
        text: usize,
        /// Why.
        source: Box<Error>,
    },
    /// A setting of text generation out of range.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A prompt that the model cannot continue.
    #[error("prompt {request}: {reason}")]
    Prompt {
        /// Index of the prompt among those given together.
        request: usize,
        /// Why, and what to do.
        reason: String,
    },
    /// A row of logits from which no token can be chosen.
    #[error("prompt {request}: the model's logits for new token {position} are {found}; did its training diverge?")]
    Logits {
        /// Index of the prompt among those given together.
        request: usize,
        /// How many new tokens came before.
        position: usize,
        /// What they are, in words.
        found: &'static str,
    },
    /// A chat template that cannot be used, or that refuses the messages.
    #[error("{}: chat template: {reason}", path.display())]
    Chat {
        /// The template's file.
        path: PathBuf,
        /// Why, with the line of the template where there is one.
        reason: String,
    },
}
