//! The run folder: what is in it, who may write to it, and how the trained model is put there.
//!
//! `adapter` (or `model`, where everything trains) and `best` are complete in themselves: the tensors with a config that names the
//! labels, and the tokenizer. Only the tensors change during a run, and they are replaced as one file; weights with gates are two
//! files, which the whole folder is replaced for.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use finegates_checkpoint::adapter::{GateForm, TargetModules};
use finegates_checkpoint::read::{SETTINGS_LIMIT_BYTES, read_text};
use finegates_checkpoint::write::{copy_into, replace_folder, write_atomic};
use finegates_checkpoint::{Adapter, AdapterConfig, Config, TensorToWrite, Tokenizer, write_tensors};
use finegates_data::Labels;
use finegates_model::{Method, Model};
use serde_json::{Value, json};

use crate::error::Error;
use crate::recipe::{PartialRecipe, RECIPE_TITLE, Recipe};
use crate::state::STATE_FILE;

/// How a run begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In an empty folder, or one that is made.
    #[default]
    New,
    /// Where it stopped.
    Resume,
    /// Anew, after removing what an earlier run left in the folder.
    Overwrite,
}

/// A run folder that this process alone writes to.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    mode: Mode,
    _lock: File,
}

/// Everything a run writes, by its name in the folder.
const CONTENTS: [&str; 10] = [
    "recipe.toml",
    "metrics.jsonl",
    "summary.json",
    "adapter",
    "model",
    "best",
    "curve.json",
    "curve.svg",
    "latency.json",
    "state",
];

/// The folder of a run for the model that pretraining starts from, and the file in it that says how it was made.
const INITIAL: &str = "initial";
pub(crate) const INITIAL_SIGN: &str = "initial.json";

/// The folder of a run for the compact models of its stops, which others put there.
pub const COMPACT: &str = "compact";

/// Where an adapter's config names the budget that its run had.
pub const BUDGET_KEY: &str = "finegates_budget";

impl RunFolder {
    /// Takes the folder for this process. What an earlier run left there stays until [`RunFolder::begin`].
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::NothingToResume`], [`Error::Locked`], [`Error::Io`].
    pub fn open(path: &Path, mode: Mode) -> Result<RunFolder, Error> {
        let path = std::path::absolute(path).map_err(Error::io(path, "find"))?;
        let recipe_is_there = path.join("recipe.toml").is_file();
        match mode {
            Mode::Resume if !recipe_is_there => return Err(Error::NothingToResume { path }),
            Mode::New if !fresh(&path)? => return Err(Error::NotEmpty { path }),
            _ => {}
        }
        let state = path.join("state");
        std::fs::create_dir_all(&state).map_err(Error::io(&state, "make"))?;
        let lock_path = state.join("lock");
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path, "make"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path }),
            // A file system without locks: nothing can be said about other processes.
            Err(TryLockError::Error(_)) => {}
        }
        Ok(RunFolder { path, mode, _lock: lock })
    }

    /// Makes the folder ready for the first write of a run: removes what an earlier run left, if it is to be overwritten, and writes
    /// down the recipe of a new run.
    ///
    /// # Errors
    /// [`Error::Io`], a recipe that cannot be written.
    pub fn begin(&self, recipe: &Recipe) -> Result<(), Error> {
        let text = recipe.to_toml()?;
        match self.mode {
            Mode::New => {}
            Mode::Resume => return self.sweep(),
            Mode::Overwrite => self.clear(Path::new(&recipe.model))?,
        }
        Ok(write_atomic(&self.recipe(), text.as_bytes())?)
    }

    /// The file to go on from; none where a run begins anew or has not saved yet.
    pub fn saved_state(&self) -> Option<PathBuf> {
        Some(self.state()).filter(|path| self.mode == Mode::Resume && path.is_file())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `recipe.toml`.
    pub fn recipe(&self) -> PathBuf {
        self.path.join("recipe.toml")
    }

    /// `metrics.jsonl`.
    pub fn journal(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// `summary.json`.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    /// The file a run resumes from.
    pub fn state(&self) -> PathBuf {
        self.path.join("state").join(STATE_FILE)
    }

    /// The folder of the last model: `adapter`, or `model` where everything trains.
    pub fn last(&self, method: Method) -> PathBuf {
        self.path.join(if method.trains_everything() { "model" } else { "adapter" })
    }

    /// The table of times that a budget of latency is counted by.
    pub fn latency(&self) -> PathBuf {
        self.path.join("latency.json")
    }

    /// The folder of the model kept at a stop of a budget, as `stops/params-0.6`.
    pub fn stop(&self, name: &str) -> PathBuf {
        self.path.join("stops").join(name)
    }

    /// A free folder for the model that pretraining starts from, or the one that a failed start has left: what an earlier run began
    /// with is its own until [`RunFolder::begin`], and what nobody signed is somebody's.
    pub fn free_initial(&self) -> PathBuf {
        let names = std::iter::once(INITIAL.to_owned()).chain((2..).map(|number| format!("{INITIAL}-{number}")));
        let free = |path: &PathBuf| match self.mode {
            Mode::New => !path.exists() || path.join(INITIAL_SIGN).is_file(),
            Mode::Overwrite | Mode::Resume => !path.exists(),
        };
        names.map(|name| self.path.join(name)).find(free).unwrap_or_default()
    }

    /// The folder of the best model.
    pub fn best(&self) -> PathBuf {
        self.path.join("best")
    }

    /// Removes what an earlier run left; files it did not write stay.
    fn clear(&self, model: &Path) -> Result<(), Error> {
        let entries = std::fs::read_dir(&self.path).map_err(Error::io(&self.path, "read"))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let made = path.file_name().is_some_and(is_initial) && path.join(INITIAL_SIGN).is_file();
            if made && path != model {
                remove(&path)?;
            }
        }
        let budget = PartialRecipe::read(&self.recipe()).ok().and_then(|recipe| recipe.budget);
        for name in budget.iter().flat_map(|budget| budget.stops.iter().map(|&amount| budget.stop_name(amount))) {
            for (folder, sign) in [("stops", "adapter_config.json"), (COMPACT, "compression.json")] {
                let folder = self.path.join(folder);
                let made = folder.join(&name);
                // Whatever else lies there under that name is somebody's.
                if made.join(sign).is_file() {
                    remove(&made)?;
                }
                // Goes if nothing else is in it.
                let _ = std::fs::remove_dir(folder);
            }
        }
        for name in CONTENTS {
            let path = self.path.join(name);
            if name == "state" {
                remove(&path.join(STATE_FILE))?;
            } else {
                remove(&path)?;
            }
        }
        self.sweep()
    }

    /// Removes what a killed process left half-written.
    fn sweep(&self) -> Result<(), Error> {
        let mut folders = vec![self.path.clone()];
        folders.extend(["adapter", "model", "best", "state", "stops"].map(|name| self.path.join(name)));
        let stops = std::fs::read_dir(self.path.join("stops")).into_iter().flatten().flatten();
        folders.extend(stops.map(|entry| entry.path()));
        for folder in folders.iter().filter(|folder| folder.is_dir()) {
            let failed = |action| Error::io(folder, action);
            for entry in std::fs::read_dir(folder).map_err(failed("read"))? {
                let entry = entry.map_err(failed("read"))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with('.') && (name.ends_with(".tmp") || name.ends_with(".new")) {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a folder in a run's is called as those of models that pretraining starts from.
pub(crate) fn is_initial(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name == INITIAL || name.strip_prefix("initial-").is_some_and(is_number))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether nothing is there, or only what a start that failed at once has left.
fn fresh(path: &Path) -> Result<bool, Error> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(Error::io(path, "read")(error)),
    };
    for entry in entries {
        let entry = entry.map_err(Error::io(path, "read"))?;
        let (name, inner) = (entry.file_name(), entry.path());
        let left_over = match name.to_str() {
            Some("state") => !inner.join(STATE_FILE).exists(),
            Some(".initial.new") => true,
            _ if is_initial(&name) => inner.join(INITIAL_SIGN).is_file(),
            Some("latency.json") => path.join("recipe.toml").is_file(),
            Some("metrics.jsonl") => std::fs::metadata(&inner).is_ok_and(|metadata| metadata.len() == 0),
            Some("recipe.toml") => {
                read_text(&inner, SETTINGS_LIMIT_BYTES).is_ok_and(|text| text.starts_with(RECIPE_TITLE))
            }
            _ => false,
        };
        if !left_over {
            return Ok(false);
        }
    }
    Ok(true)
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove")(error)),
        _ => Ok(()),
    }
}

/// Writes trained models into folders of a run.
#[derive(Debug)]
pub struct ModelWriter {
    method: Method,
    config_json: String,
    adapter_config: AdapterConfig,
    tokenizer_files: Vec<PathBuf>,
}

impl ModelWriter {
    /// Prepares what is the same for all models of a run.
    pub fn new(
        recipe: &Recipe,
        config: &Config,
        labels: Option<&Labels>,
        model: &Model,
        tokenizer: &Tokenizer,
    ) -> ModelWriter {
        ModelWriter {
            method: *recipe.method,
            config_json: config_json(config, labels),
            adapter_config: adapter_config(recipe, model),
            tokenizer_files: tokenizer.files(),
        }
    }

    /// Writes the model into `folder` in place of whatever is there.
    ///
    /// # Errors
    /// As [`ModelWriter::write`].
    pub fn write_anew(&self, model: &Model, folder: &Path) -> Result<(), Error> {
        remove(folder)?;
        self.write(model, folder)
    }

    /// Writes the model into `folder`. The folder appears with everything in it; in one that is there, only the tensors are replaced.
    ///
    /// # Errors
    /// A folder that cannot be written, a tensor that is not finite.
    pub fn write(&self, model: &Model, folder: &Path) -> Result<(), Error> {
        if folder.is_dir() && self.method != Method::GatedFull {
            return self.write_tensors(model, folder);
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(folder.file_name().unwrap_or_default());
        name.push(".new");
        let beside = folder.with_file_name(name);
        remove(&beside)?;
        std::fs::create_dir_all(&beside).map_err(Error::io(&beside, "make"))?;
        write_atomic(&beside.join("config.json"), self.config_json.as_bytes())?;
        for file in &self.tokenizer_files {
            copy_into(file, &beside)?;
        }
        self.write_tensors(model, &beside)?;
        Ok(replace_folder(&beside, folder)?)
    }

    fn write_tensors(&self, model: &Model, folder: &Path) -> Result<(), Error> {
        if self.method.has_gates() || !self.method.trains_everything() {
            let adapter = Adapter { config: self.adapter_config.clone(), tensors: model.adapter_tensors() };
            adapter.write(folder)?;
        }
        if !self.method.trains_everything() {
            return Ok(());
        }
        let tensors = model.all_tensors();
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| TensorToWrite::f32(name.as_str(), tensor.shape.as_slice(), &tensor.data))
            .collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok(write_tensors(&folder.join("model.safetensors"), &tensors, &metadata)?)
    }
}

/// The settings under PEFT's names. A budget is none of them: it stands beside them under a name of ours.
fn adapter_config(recipe: &Recipe, model: &Model) -> AdapterConfig {
    let mut config = AdapterConfig {
        bias: "finegates_only".to_owned(),
        target_modules: Some(TargetModules::Names(target_modules(model))),
        modules_to_save: head_modules(model),
        task_type: Some(if recipe.corpus.is_some() { "CAUSAL_LM" } else { "SEQ_CLS" }.to_owned()),
        // Where everything trains, the weights lie beside the gates.
        base_model_name_or_path: Some(recipe.model.clone()).filter(|_| !recipe.method.trains_everything()),
        ..AdapterConfig::default()
    };
    let settings = [
        (&mut config.target_sparsity, recipe.target_sparsity),
        (&mut config.sparsity_loss_weight, recipe.sparsity_weight),
        (&mut config.gate_init_mean, recipe.gate_init_mean),
        (&mut config.gate_init_std, recipe.gate_init_std),
        (&mut config.gate_noise_std, recipe.gate_noise_std),
    ];
    for (setting, value) in settings {
        *setting = value.unwrap_or(*setting);
    }
    if let Some(budget) = &recipe.budget {
        config.form = GateForm::Values;
        config.extra.insert(BUDGET_KEY.to_owned(), Value::from(budget.to_string()));
    }
    config
}

/// The base model's config with the labels of the run; without labels it is a language model's.
fn config_json(config: &Config, labels: Option<&Labels>) -> String {
    let mut raw = config.raw.clone();
    let Some(labels) = labels else {
        raw.insert("architectures".to_owned(), json!([config.family.language_class()]));
        return format!("{:#}\n", Value::Object(raw));
    };
    let names: Vec<String> = match labels.names() {
        Some(names) => names.to_vec(),
        None => vec!["LABEL_0".to_owned()],
    };
    let ids = names.iter().enumerate().map(|(id, name)| (id.to_string(), Value::from(name.as_str())));
    raw.insert("id2label".to_owned(), Value::Object(ids.collect()));
    let ids = names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id)));
    raw.insert("label2id".to_owned(), Value::Object(ids.collect()));
    raw.insert("num_labels".to_owned(), json!(names.len()));
    let problem = if labels.names().is_some() { "single_label_classification" } else { "regression" };
    raw.insert("problem_type".to_owned(), json!(problem));
    raw.insert("architectures".to_owned(), json!([config.family.classifier_class()]));
    format!("{:#}\n", Value::Object(raw))
}

/// The gated modules as PEFT matches them: by the ends of their paths, without the layer's number.
fn target_modules(model: &Model) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for projection in &model.wiring().projections {
        let mut parts = projection.path.rsplit('.').collect::<Vec<_>>();
        let layer = parts.iter().position(|part| part.parse::<usize>().is_ok()).unwrap_or(parts.len());
        parts.truncate(layer);
        parts.reverse();
        let name = parts.join(".");
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The modules of the head, as PEFT saves them whole.
fn head_modules(model: &Model) -> Vec<String> {
    let gated: Vec<&str> = model.wiring().projections.iter().map(|projection| projection.path.as_str()).collect();
    let mut modules: Vec<String> = Vec::new();
    for name in model.adapter_tensors().keys() {
        let path = name.rsplit_once('.').map_or(name.as_str(), |(path, _)| path);
        if gated.contains(&path) {
            continue;
        }
        // A classifier of several layers is one module.
        let module = if path.starts_with("classifier.") { "classifier" } else { path };
        if modules.iter().all(|known| known != module) {
            modules.push(module.to_owned());
        }
    }
    modules
}
