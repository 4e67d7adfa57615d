//! A model folder opened: its config and its tensors together, with the tensors found under whichever of the names
//! in use their writer chose.

use std::path::{Path, PathBuf};

use crate::config::{Config, Family};
use crate::tensors::TensorFile;
use crate::{Error, compact};

/// A model folder whose config has been read and whose tensor headers have been checked.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder.
    pub folder: PathBuf,
    /// Its `config.json`.
    pub config: Config,
    /// Its weights.
    pub tensors: TensorFile,
}

impl Checkpoint {
    /// Opens a model folder. A compact one is checked against its `finegates` object as a whole.
    ///
    /// # Errors
    /// When the config or the weights are missing, broken, or disagree.
    pub fn open(folder: &Path) -> Result<Checkpoint, Error> {
        let config = Config::read(folder)?;
        let tensors = TensorFile::open(folder)?;
        if let Some(info) = &config.compact {
            compact::validate(info, &tensors)?;
        }
        Ok(Checkpoint { folder: folder.to_path_buf(), config, tensors })
    }

    /// The name under which the file holds the tensor that transformers calls `name` in a sequence classifier of this
    /// family: the same, without the family's prefix (`bert.encoder…` as `encoder…`), and with a norm's `weight` and
    /// `bias` as `gamma` and `beta`.
    pub fn find(&self, name: &str) -> Option<String> {
        candidates(self.config.family, name).into_iter().find(|candidate| self.tensors.contains(candidate))
    }

    /// Reads the tensor that [`Checkpoint::find`] finds for `name`.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn read(&self, name: &str, expected_shape: &[usize]) -> Result<Vec<f32>, Error> {
        let found = self.find(name);
        self.tensors.read(found.as_deref().unwrap_or(name), expected_shape)
    }

    /// Checks by the header alone that [`Checkpoint::read`] would find a tensor of this shape.
    ///
    /// # Errors
    /// As [`TensorFile::check`].
    pub fn check(&self, name: &str, expected_shape: &[usize]) -> Result<(), Error> {
        let found = self.find(name);
        let hint = "; do config.json and the weights belong together?";
        self.tensors.check(found.as_deref().unwrap_or(name), expected_shape, hint)
    }

    /// Checks that the labels in `config.json` name each of the head's `rows` and are told apart by their names; a
    /// config without labels names nothing and is fine.
    ///
    /// # Errors
    /// [`Error::Field`] for `id2label` or `num_labels`.
    pub fn check_labels(&self, rows: usize) -> Result<(), Error> {
        self.config.check_labels(&self.folder, rows)
    }
}

/// The names a tensor may have, the canonical one first.
fn candidates(family: Family, name: &str) -> Vec<String> {
    let prefix = family.prefix();
    let mut bases = vec![name.to_owned()];
    match name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')) {
        Some(rest) => bases.push(rest.to_owned()),
        None => bases.push(format!("{prefix}.{name}")),
    }
    let mut names = Vec::with_capacity(4);
    for base in bases {
        let old = match base.rsplit_once('.') {
            Some((module, "weight")) if is_norm(module) => Some(format!("{module}.gamma")),
            Some((module, "bias")) if is_norm(module) => Some(format!("{module}.beta")),
            _ => None,
        };
        names.push(base);
        names.extend(old);
    }
    names
}

fn is_norm(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    last == "LayerNorm" || last.ends_with("layer_norm")
}
