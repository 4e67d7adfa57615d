//! The recipe of a run: every setting, where its value comes from, and `recipe.toml`.
//!
//! A [`PartialRecipe`] holds what someone said: flags, or a file. Layers are laid over each other with [`PartialRecipe::over`];
//! [`PartialRecipe::resolve`] fills in the rest, and the resulting [`Recipe`] is written to the run folder in full.

mod check;
mod corpus;
mod objective;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use finegates_checkpoint::read::{SETTINGS_LIMIT_BYTES, read_text};
use finegates_data::{ColumnChoice, DatasetOptions, GlueTask};
use finegates_model::Method;

pub use corpus::OF_EXAMPLES;
pub use objective::{Closings, Importance, Objective};
pub use settings::{PartialRecipe, Recipe, SETTINGS, Setting};

/// How every `recipe.toml` written here begins.
pub(crate) const RECIPE_TITLE: &str = "# Everything this run was made with";

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is too large for a recipe or not a text.
    #[error(transparent)]
    File(Box<finegates_checkpoint::Error>),
    /// The file is not TOML, or a value is of the wrong kind.
    #[error("{}: {problem}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
    /// The file has a key that is no setting.
    #[error("{}: {name}: no such setting; did you mean {nearest}?", path.display())]
    UnknownSetting {
        /// The file.
        path: PathBuf,
        /// The key.
        name: String,
        /// The setting whose name is nearest to it.
        nearest: &'static str,
    },
    /// A setting without which there is no run.
    #[error("{name}: not given; pass {flag}, or set it in the recipe")]
    Missing {
        /// The setting.
        name: &'static str,
        /// Its flag.
        flag: &'static str,
    },
    /// A setting that only a run on a corpus has, or only a run on examples.
    #[error("{name}: {reason}; leave one of the two out")]
    OtherData {
        /// The setting.
        name: &'static str,
        /// Why it has no meaning here.
        reason: &'static str,
    },
    /// Windows of perplexity that the model or the windows themselves have no room for.
    #[error("{name}: expected at most {most} tokens, found {found}")]
    Protocol {
        /// The setting.
        name: &'static str,
        /// What there is room for.
        most: usize,
        /// The value.
        found: usize,
    },
    /// A setting of another objective than the run's.
    #[error(
        "{name}: belongs to --objective {other}, but this run has --objective {objective}; leave one of the two out"
    )]
    OtherObjective {
        /// The setting.
        name: &'static str,
        /// The run's objective.
        objective: Objective,
        /// The setting's.
        other: Objective,
    },
    /// A setting that closes gates, in a run without any.
    #[error("{name}: method {method} has no gates to close; leave one of the two out")]
    NoGates {
        /// The setting.
        name: &'static str,
        /// The run's method.
        method: Method,
    },
    /// A value out of its range.
    #[error("{name}: expected {expected}, found {found}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value.
        found: String,
    },
}

impl PartialRecipe {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// [`RecipeError::Io`], [`RecipeError::File`], [`RecipeError::Toml`], [`RecipeError::UnknownSetting`].
    pub fn read(path: &Path) -> Result<PartialRecipe, RecipeError> {
        let text = read_text(path, SETTINGS_LIMIT_BYTES).map_err(|error| match error {
            finegates_checkpoint::Error::Io { path, source, .. } => RecipeError::Io { path, source },
            other => RecipeError::File(Box::new(other)),
        })?;
        PartialRecipe::from_toml(&text, path)
    }

    /// Reads the text of a recipe file; `path` stands for it in messages.
    ///
    /// # Errors
    /// [`RecipeError::Toml`], [`RecipeError::UnknownSetting`].
    pub fn from_toml(text: &str, path: &Path) -> Result<PartialRecipe, RecipeError> {
        let broken = |error: toml::de::Error| {
            let problem = error.to_string().trim_end().to_owned();
            RecipeError::Toml { path: path.to_owned(), problem }
        };
        let table: toml::Table = toml::from_str(text).map_err(broken)?;
        if let Some(name) = table.keys().find(|name| SETTINGS.iter().all(|setting| setting.name != name.as_str())) {
            let (path, nearest) = (path.to_owned(), nearest(name));
            return Err(RecipeError::UnknownSetting { path, name: name.clone(), nearest });
        }
        toml::from_str(text).map_err(broken)
    }

    /// Makes paths absolute, so that they hold from any folder: those of the data, and a model that is a folder.
    fn with_absolute_paths(mut self) -> Result<PartialRecipe, RecipeError> {
        let absolute = |path: &mut PathBuf| {
            if let Ok(whole) = std::path::absolute(&*path) {
                *path = whole;
            }
        };
        let lists = self.validation.iter_mut().chain(&mut self.corpus).flatten();
        self.data.iter_mut().chain(&mut self.train).chain(lists).for_each(absolute);
        if let Some(model) = self.model.as_mut().filter(|model| Path::new(model.as_str()).is_dir()) {
            let mut path = PathBuf::from(model.as_str());
            absolute(&mut path);
            *model = path.into_os_string().into_string().map_err(|path| RecipeError::OutOfRange {
                name: "model",
                expected: "a path in UTF-8",
                found: path.display().to_string(),
            })?;
        }
        Ok(self)
    }

    /// These settings, and those of `lower` where there are none here. Data named here replace those named below as a whole, so that
    /// a training file and another data set's folder are never mixed. Another objective or method than below brings its own settings
    /// and learning rates.
    pub fn over(mut self, mut lower: PartialRecipe) -> PartialRecipe {
        if self.data.is_some() || self.train.is_some() || self.corpus.is_some() {
            lower.data = None;
            lower.train = None;
            lower.corpus = None;
            lower.validation = None;
            lower.validation_fraction = None;
        }
        if self.validation.is_some() {
            lower.validation_fraction = None;
        }
        if self.sparsity_start_step.is_some() || self.sparsity_start_epoch.is_some() {
            lower.sparsity_start_step = None;
            lower.sparsity_start_epoch = None;
        }
        if let Some(objective) = self.said_objective() {
            lower.keep_objective(objective);
        }
        if let Some(method) = self.method {
            lower.keep_method(*method);
        }
        self.fill(lower);
        self
    }

    /// Fills in the defaults and checks the ranges. Paths become absolute, so that the recipe holds from any folder.
    ///
    /// # Errors
    /// [`RecipeError::Missing`], [`RecipeError::OutOfRange`].
    pub fn resolve(self) -> Result<Recipe, RecipeError> {
        let mut settings = self.with_absolute_paths()?;
        if settings.model.as_ref().is_none_or(String::is_empty) {
            return Err(RecipeError::Missing { name: "model", flag: "--model" });
        }
        settings.settle_corpus()?;
        settings.settle_objective()?;
        let recipe = settings.with_defaults();
        recipe.check()?;
        Ok(recipe)
    }

    /// The settings given here that differ from those of a resolved recipe, each as `name: was …, is now …`. Paths are compared as
    /// absolute ones.
    ///
    /// # Errors
    /// [`RecipeError::OutOfRange`] for a setting that no recipe can hold.
    pub fn differences(&self, recipe: &Recipe) -> Result<Vec<String>, RecipeError> {
        let given = self.clone().with_absolute_paths()?.table()?;
        let stored = recipe.table()?;
        let text = |value: Option<&toml::Value>| value.map_or("not set".to_owned(), toml::Value::to_string);
        let changed = given.iter().filter(|(name, value)| stored.get(*name) != Some(value));
        Ok(changed.map(|(name, value)| format!("{name}: was {}, is now {value}", text(stored.get(name)))).collect())
    }
}

impl Recipe {
    /// The text of `recipe.toml`: every setting with what it means.
    ///
    /// # Errors
    /// [`RecipeError::OutOfRange`] for a setting that TOML cannot hold; a recipe that was resolved has none.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        let values = self.table()?;
        let mut text =
            "# Everything this run was made with. Pass it back with --recipe; flags win over it.\n".to_owned();
        let mut heading = "";
        for setting in &SETTINGS {
            if setting.heading != heading {
                heading = setting.heading;
                text.push_str(&format!("\n## {heading}\n\n"));
            }
            text.push_str(&format!("# {}\n", setting.description));
            match values.get(setting.name) {
                Some(value) => text.push_str(&format!("{} = {value}\n", setting.name)),
                None => text.push_str(&format!("# {} is not set\n", setting.name)),
            }
        }
        Ok(text)
    }

    /// Where the data are and how to read them.
    pub fn dataset_options(&self) -> DatasetOptions {
        DatasetOptions {
            task: self.task,
            folder: self.data.clone(),
            train: self.train.clone(),
            validation: self.validation.clone().unwrap_or_default(),
            validation_fraction: self.validation_fraction,
            seed: self.seed,
            columns: ColumnChoice { text: self.text.clone(), pair: self.text_pair.clone(), label: self.label.clone() },
            regression: self.regression,
            skip_bad_rows: self.skip_bad_rows,
            max_train_rows: self.max_train_rows,
            max_validation_rows: self.max_validation_rows,
        }
    }
}

/// What the defaults of some settings depend on.
pub(crate) struct Context {
    /// The method chosen.
    pub method: Method,
    /// The objective chosen; none for methods without gates.
    pub objective: Option<Objective>,
    /// Whether the next token of a corpus is learned.
    pub corpus: bool,
    /// The task chosen.
    pub task: Option<GlueTask>,
    /// Whether the labels are numbers.
    pub regression: bool,
}

/// A setting as TOML has it; none if it is not set. TOML's whole numbers have 63 bits and a sign, and its texts are UTF-8.
fn toml_value(name: &'static str, setting: &impl serde::Serialize) -> Result<Option<toml::Value>, RecipeError> {
    let mut table = toml::Table::try_from(BTreeMap::from([(name, setting)])).map_err(|_| {
        let refused = |expected, found| RecipeError::OutOfRange { name, expected, found };
        match serde_json::to_value(setting) {
            Ok(number) => refused("at most 9223372036854775807", number.to_string()),
            Err(_) => refused("a path in UTF-8", "other bytes".to_owned()),
        }
    })?;
    Ok(table.remove(name))
}

/// The setting whose name takes the fewest edits.
fn nearest(name: &str) -> &'static str {
    let wanted = name.replace('-', "_");
    SETTINGS.iter().map(|setting| setting.name).min_by_key(|candidate| edits(&wanted, candidate)).unwrap_or_default()
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
