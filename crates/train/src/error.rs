//! Why a run cannot start or go on.

use std::path::PathBuf;

use crate::recipe::RecipeError;

/// An error of training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recipe cannot be used.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] finegates_data::Error),
    /// The checkpoint, its tokenizer or an adapter cannot be read or written.
    #[error(transparent)]
    Checkpoint(Box<finegates_checkpoint::Error>),
    /// The model cannot be loaded or run.
    #[error(transparent)]
    Model(Box<finegates_model::Error>),
    /// A file or folder of the run cannot be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The run folder has something in it.
    #[error("{}: not empty; go on with --resume, start anew with --overwrite, or name another folder", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The model to start from lies in the run folder that is to be overwritten.
    #[error("{}: overwriting would remove the model that the run is to start from, {}; name another folder", path.display(), model.display())]
    OverwritesModel {
        /// The run folder.
        path: PathBuf,
        /// The model's folder.
        model: PathBuf,
    },
    /// There is no run to go on with.
    #[error("{}: no run to resume, recipe.toml is not there; start one without --resume", path.display())]
    NothingToResume {
        /// The folder.
        path: PathBuf,
    },
    /// Another process trains in the folder.
    #[error("{}: another process is training in this folder", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A resumed run was given other settings.
    #[error("{}: a run resumes with its own recipe, but these settings differ: {}; leave them out, or start another run", path.display(), differences.join("; "))]
    RecipeChanged {
        /// The run folder.
        path: PathBuf,
        /// The settings with both values.
        differences: Vec<String>,
    },
    /// What a resumed run starts from is not what it was.
    #[error("{}: the {what} changed since the run began (fingerprint was {expected}, is {found}); put the old back, or start another run", path.display())]
    InputChanged {
        /// The run folder.
        path: PathBuf,
        /// `data` or `base model`.
        what: &'static str,
        /// The fingerprint the run began with.
        expected: String,
        /// The fingerprint now.
        found: String,
    },
    /// A latency is asked for that no pass of the model can have.
    #[error("budget: expected a pass of at most {longest} tokens, found {tokens}; name a shorter one after the @")]
    Latency {
        /// Tokens asked for.
        tokens: usize,
        /// The longest sequence the model takes.
        longest: usize,
    },
    /// A run is too short for the stops of its budget.
    #[error(
        "budget: {stops} stops need more than {steps} steps, of which {adapt_ratio} is for adapting; train longer, ask for fewer stops, or lower --adapt-ratio"
    )]
    FewSteps {
        /// Stops asked for.
        stops: usize,
        /// Steps of the run.
        steps: u64,
        /// The share of them that closes nothing.
        adapt_ratio: f64,
    },
    /// The times that a resumed run counts its budget by are gone.
    #[error("{}: expected the times that this run counts its budget by, found {found}; put the file back, or start the run anew with --overwrite", path.display())]
    LatencyTable {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// A budget cannot be met by any closing.
    #[error(
        "budget: {budget} cannot be met: with every unit closed {least:.4}{unit} of {whole:.4}{unit} are left; ask for more than that"
    )]
    OutOfReach {
        /// The budget.
        budget: String,
        /// What is left with everything closed, in the unit of the budget.
        least: f64,
        /// What the whole model takes.
        whole: f64,
        /// What both are counted in, after a space; empty for shares.
        unit: &'static str,
    },
    /// The saved state cannot be used.
    #[error("{}: {problem}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A loss or a gradient became infinite or not a number.
    #[error(
        "step {step}: the {what} is {value}; {left}going on would end here again: start another run with lower learning rates, clip_norm 1, or another seed"
    )]
    NotFinite {
        /// The step that was being made, from 1.
        step: u64,
        /// `loss`, `penalty`, `gradient` or `updated parameter`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What the run folder holds now.
        left: StateLeft,
    },
    /// The model that pretraining is to start from cannot be made.
    #[error("{}: {problem}", path.display())]
    Initial {
        /// The config, or its name.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// No training example.
    #[error("no training examples are left; is max_train_rows too small?")]
    NoExamples,
    /// A language model has nothing to be judged by.
    #[error("validation: no text to measure perplexity on; name a file with --validation FILE")]
    NoValidationText,
    /// A text has nothing to predict.
    #[error("validation: {name}: expected at least two tokens to measure perplexity on, found {tokens}")]
    ShortValidationText {
        /// The text's name.
        name: String,
        /// Its tokens.
        tokens: usize,
    },
    /// Nothing says where one document ends and the next begins.
    #[error(
        "eos_token_id: the model's config.json names no token that ends a text, and its tokenizer has none by name; add it there"
    )]
    NoEndOfText,
    /// Sequences are longer than the model takes.
    #[error("tokens_per_sequence: expected at most {longest}, which is what the model takes, found {found}")]
    SequenceTooLong {
        /// Tokens of a sequence.
        found: usize,
        /// Tokens that the model takes.
        longest: usize,
    },
    /// The metric that is to decide is not one of this data set's.
    #[error("best_metric: expected one of {}, found {found}", known.join(", "))]
    UnknownMetric {
        /// The metric asked for.
        found: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// The threads could not be started.
    #[error("threads: {0}")]
    Threads(String),
}

/// What a run that broke down has left in its folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateLeft {
    /// What was there.
    #[default]
    Untouched,
    /// The state before the step that failed.
    Saved,
    /// What was there: the state before the step could not be saved, for this reason.
    Unsaved(String),
}

impl std::fmt::Display for StateLeft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StateLeft::Untouched => f.write_str("no state was saved after it, and "),
            StateLeft::Saved => f.write_str("the state before this step was saved, but "),
            StateLeft::Unsaved(why) => write!(f, "the state before this step could not be saved ({why}), and "),
        }
    }
}

impl Error {
    /// Wraps an error of the system.
    pub(crate) fn io(path: &std::path::Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, action, source }
    }
}

impl From<finegates_checkpoint::Error> for Error {
    fn from(error: finegates_checkpoint::Error) -> Error {
        Error::Checkpoint(Box::new(error))
    }
}

impl From<finegates_model::Error> for Error {
    fn from(error: finegates_model::Error) -> Error {
        Error::Model(Box::new(error))
    }
}
