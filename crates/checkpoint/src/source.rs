//! Where model folders come from.

use std::path::{Path, PathBuf};

use crate::Error;

/// How to fetch what is not there yet.
#[derive(Clone, Copy, Default)]
pub struct FetchOptions<'a> {
    /// Use only what is on this machine.
    pub offline: bool,
    /// Told in words what is going on.
    pub progress: Option<&'a (dyn Fn(&str) + Sync)>,
}

/// Finds the model folder that `spec` means.
///
/// # Errors
/// When there is none.
pub fn resolve(spec: &str, _options: &FetchOptions) -> Result<PathBuf, Error> {
    let folder = Path::new(spec);
    if folder.is_dir() {
        return Ok(folder.to_path_buf());
    }
    Err(Error::Spec { spec: spec.to_owned(), reason: "no such folder".to_owned() })
}
