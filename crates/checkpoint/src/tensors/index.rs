//! Weights in several files: the index that says which tensor lies in which, and what to say when there are none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

use serde::Deserialize;

use super::{Shard, TensorFile};
use crate::Error;
use crate::error::shorten;
use crate::read::{TOKENIZER_LIMIT_BYTES, read_text};

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens the shards that `path` lists; they must lie in `folder` itself.
pub(super) fn open(folder: &Path, path: &Path) -> Result<TensorFile, Error> {
    let index = read(path)?;
    let mut shards = Vec::new();
    let mut headers = Vec::new();
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for (name, file) in &index.weight_map {
        let number = match numbers.get(file.as_str()) {
            Some(&number) => number,
            None => {
                let shard_path = folder.join(plain_name(path, name, file)?);
                if !shard_path.is_file() {
                    return Err(Error::tensor(
                        path,
                        name,
                        format!("its file {} is missing; was the download complete?", shorten(file)),
                    ));
                }
                let (shard, header) = Shard::open(&shard_path)?;
                shards.push(shard);
                headers.push(header);
                numbers.insert(file, shards.len() - 1);
                shards.len() - 1
            }
        };
        let Some(entry) = headers[number].entries.remove(name) else {
            return Err(Error::tensor(
                path,
                name,
                format!("the index says it lies in {}, which does not hold it", shorten(file)),
            ));
        };
        entries.insert(name.clone(), (number, entry));
    }
    Ok(TensorFile { path: path.to_path_buf(), shards, entries, metadata: BTreeMap::new() })
}

/// The names of the shards an index lists, each a plain file name.
pub(crate) fn shard_names(path: &Path) -> Result<BTreeSet<String>, Error> {
    let index = read(path)?;
    index.weight_map.iter().map(|(name, file)| Ok(plain_name(path, name, file)?.to_owned())).collect()
}

fn read(path: &Path) -> Result<Index, Error> {
    let text = read_text(path, TOKENIZER_LIMIT_BYTES)?;
    serde_json::from_str(&text)
        .map_err(|error| Error::Json { path: path.to_path_buf(), reason: shorten(&error.to_string()) })
}

/// `file` when it is a plain file name, an error when it could lead outside the folder.
fn plain_name<'f>(path: &Path, name: &str, file: &'f str) -> Result<&'f str, Error> {
    let mut components = Path::new(file).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    if !plain || file.contains(['/', '\\', ':', '\0']) {
        return Err(Error::tensor(
            path,
            name,
            format!("expected the name of a file in the same folder, found {}", shorten(file)),
        ));
    }
    Ok(file)
}

/// What to say about a folder without `<stem>.safetensors`: `model` or `adapter_model`.
pub(crate) fn explain_absence(folder: &Path, stem: &str) -> Error {
    if let Err(source) = fs::read_dir(folder) {
        return Error::Io { path: folder.to_path_buf(), action: "open the folder", source };
    }
    let pickle = if stem == "model" { "pytorch_model" } else { stem };
    for ending in [".bin", ".bin.index.json"] {
        let found = format!("{pickle}{ending}");
        if folder.join(&found).is_file() {
            return Error::OnlyPickle {
                folder: folder.to_path_buf(),
                found,
                command: conversion_command(folder, pickle, stem),
            };
        }
    }
    let sharded = if stem == "model" { " or model.safetensors.index.json" } else { "" };
    Error::NoTensors { folder: folder.to_path_buf(), expected: format!("{stem}.safetensors{sharded}") }
}

/// A line for a shell with Python, torch and safetensors. Copies are made because tied tensors share memory, which
/// safetensors refuses; `weights_only` keeps the pickle from running code.
fn conversion_command(folder: &Path, pickle: &str, stem: &str) -> String {
    let folder = folder.display().to_string();
    let script = format!(
        "import sys, glob, torch; from safetensors.torch import save_file; d = sys.argv[1]; \
         save_file({{k: v.clone().contiguous() for f in sorted(glob.glob(glob.escape(d) + '/{pickle}*.bin')) \
         for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}}, d + '/{stem}.safetensors', {{'format': 'pt'}})"
    );
    format!("python3 -c \"{script}\" '{}'", folder.replace('\'', r"'\''"))
}
