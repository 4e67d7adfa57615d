//! GGUF files in: a model of llama.cpp's becomes a Hugging Face folder, its weights dequantised, its tokenizer rebuilt.
//! `docs/gguf.md` says what is read and how.
//!
//! Not here: writing GGUF, and running a model in its quantised form.

mod config;
mod metadata;
mod names;
mod quants;
mod reader;
mod rope;
mod tokenizer;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Error;
use crate::config::{Config, parse_json};
use crate::error::shorten;
use crate::read::{CONFIG_LIMIT_BYTES, TOKENIZER_LIMIT_BYTES, read_text};
use crate::tensors::{FloatType, Sink, write_streamed};
use crate::tokenizer::check_json;
use crate::write::{parent, replace_folder, write_atomic};
use config::Form;
use names::{Planned, ROPE_DIVISORS};
pub use quants::Quantisation;
use reader::{Entry, Gguf};

/// Values that are dequantised at once, unless a row or a head has more.
const PIECE_VALUES: usize = 1 << 20;
/// Part of the name under which imported models are kept; to be raised when what an import writes changes.
pub(crate) const IMPORT_VERSION: u32 = 2;
/// The key of `config.json` that tells an import: an object with the `file` it was made from. It is not kept in a
/// [`Config`]: what is made of an import is none.
pub(crate) const IMPORT_MARK: &str = "finegates_import";
/// What the files of an import are called.
const FILES: [&str; 5] =
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];

/// How to import.
#[derive(Clone, Copy, Default)]
pub struct ImportOptions<'a> {
    /// The number type of the weights written; f32 keeps every dequantised value as it is.
    pub float: FloatType,
    /// Told before each tensor, and behind the last, how many are written, and how many there are.
    pub progress: Option<&'a dyn Fn(usize, usize)>,
}

impl fmt::Debug for ImportOptions<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.debug_struct("ImportOptions").field("float", &self.float).finish_non_exhaustive()
    }
}

/// What was imported.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The `model_type` of the folder.
    pub model_type: String,
    /// The number of tensors written.
    pub tensors: usize,
    /// The number of values in them.
    pub parameters: u64,
    /// The bytes of the weights written.
    pub size_bytes: u64,
    /// How many tensors came in which format.
    pub quantisations: BTreeMap<&'static str, usize>,
    /// The tokenizer in a few words.
    pub tokenizer: String,
    /// Whether the output embedding is the input embedding.
    pub tied: bool,
}

/// Writes the model in the GGUF file `file` as a Hugging Face folder. `folder` is written beside its place and renamed when
/// it is complete. It may be there if it is empty or, with `overwrite`, if it holds an earlier import and nothing else.
///
/// # Errors
/// When the file is broken, of a kind of model, format or tokenizer that is not read, when a value does not fit the
/// number type, or when the folder is taken or cannot be written. `folder` is then as it was.
pub fn import(file: &Path, folder: &Path, overwrite: bool, options: &ImportOptions) -> Result<Imported, Error> {
    check_destination(folder, overwrite)?;
    let place = parent(folder);
    fs::create_dir_all(&place).map_err(Error::io(&place, "make the folder"))?;
    let work = tempfile::Builder::new().prefix(".import-").tempdir_in(&place);
    let work = work.map_err(Error::io(&place, "make a folder in"))?;
    // A folder in the temporary one, which nobody else may read.
    let model = work.path().join("model");
    let imported = write_model(file, &model, options)?;
    // It took its time: somebody may have come to the place.
    check_destination(folder, overwrite)?;
    replace_folder(&model, folder)?;
    Ok(imported)
}

/// As [`import`], into a new folder and piece by piece. One piece of a tensor is in memory at a time.
pub(crate) fn write_model(file: &Path, folder: &Path, options: &ImportOptions) -> Result<Imported, Error> {
    let mut gguf = Gguf::open(file)?;
    let form = Form::read(&gguf)?;
    let plan = names::plan(&gguf, &form)?;
    let specials = form.special_ids(&gguf.metadata)?;
    let divisors = divisors(&mut gguf)?;
    let mut config = form.config(&gguf.metadata, &specials, divisors.as_deref(), options.float)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    config.insert(IMPORT_MARK.to_owned(), json!({"file": name}));
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let tokenizer = tokenizer::rebuild(&gguf.metadata, &form, &specials)?;
    let config_text = pretty(&Value::Object(config));
    let tokenizer_text = pretty(&tokenizer.tokenizer);
    // What our own reader would refuse is not written.
    let parsed = Config::parse(file, &config_text)?;
    check_json(file, &tokenizer_text, &parsed)?;
    let settings_text = pretty(&tokenizer.settings);
    let size_bytes = settings_text.len() as u64;
    if size_bytes > TOKENIZER_LIMIT_BYTES {
        return Err(Error::TooLarge { path: file.to_path_buf(), size_bytes, limit_bytes: TOKENIZER_LIMIT_BYTES });
    }

    fs::create_dir(folder).map_err(Error::io(folder, "make the folder"))?;
    write_weights(&mut gguf, &plan, &folder.join("model.safetensors"), options)?;
    write_atomic(&folder.join("tokenizer.json"), tokenizer_text.as_bytes())?;
    write_atomic(&folder.join("tokenizer_config.json"), settings_text.as_bytes())?;
    if let Some(generation) = specials.generation() {
        write_atomic(&folder.join("generation_config.json"), pretty(&generation).as_bytes())?;
    }
    write_atomic(&folder.join("config.json"), config_text.as_bytes())?;

    let mut quantisations = BTreeMap::new();
    let mut parameters = 0;
    for entry in plan.iter().filter_map(|planned| gguf.tensors.get(&planned.source)) {
        *quantisations.entry(entry.quantisation.name()).or_insert(0) += 1;
        parameters += entry.count() as u64;
    }
    Ok(Imported {
        model_type,
        tensors: plan.len(),
        parameters,
        size_bytes: parameters * options.float.size_bytes() as u64,
        quantisations,
        tokenizer: tokenizer.description,
        tied: form.tied,
    })
}

/// Whether the folder to write is free, or may be replaced: what else is in it may be somebody's work.
fn check_destination(folder: &Path, overwrite: bool) -> Result<(), Error> {
    if fs::symlink_metadata(folder).is_err() {
        return Ok(());
    }
    let taken = |reason: String| Error::Taken { path: folder.to_path_buf(), reason };
    if !folder.is_dir() {
        return Err(taken("is no folder; name a new one".to_owned()));
    }
    let mut empty = true;
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        empty = false;
        let entry = entry.map_err(Error::io(folder, "list"))?;
        let (name, kind) = (entry.file_name(), entry.file_type().map_err(Error::io(&entry.path(), "examine"))?);
        if overwrite && (!kind.is_file() || !FILES.iter().any(|file| *file == name)) {
            let found = shorten(&name.to_string_lossy());
            return Err(taken(format!("holds something other than an imported model ({found}); name another folder")));
        }
    }
    if !empty && !overwrite {
        return Err(taken("is not empty; name a new folder, or add --overwrite".to_owned()));
    }
    if !empty && !is_import(folder) {
        let reason = format!("holds no import (no {IMPORT_MARK} in its config.json); name another folder");
        return Err(taken(reason));
    }
    Ok(())
}

/// Whether the `config.json` in a folder is one that an import wrote.
fn is_import(folder: &Path) -> bool {
    let path = folder.join("config.json");
    let object = read_text(&path, CONFIG_LIMIT_BYTES).and_then(|text| parse_json(&path, &text));
    object.is_ok_and(|object| object.get(IMPORT_MARK).is_some_and(|mark| mark["file"].is_string()))
}

/// Whether a path is that of a GGUF file, by its name.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

/// The command that imports a file, for messages.
pub(crate) fn command(file: &Path) -> String {
    format!("finegates import '{}' --output FOLDER", file.display().to_string().replace('\'', r"'\''"))
}

/// The GGUF files in a folder, sorted.
pub(crate) fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| is_gguf(path) && path.is_file()).collect();
    files.sort();
    files
}

fn write_weights(gguf: &mut Gguf, plan: &[Planned], path: &Path, options: &ImportOptions) -> Result<(), Error> {
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let tensors: Vec<_> = plan.iter().map(|planned| planned.tensor.clone()).collect();
    let mut written = 0;
    let mut buffers = Buffers::default();
    write_streamed(path, &tensors, options.float, &metadata, &mut |place, sink| {
        if let Some(progress) = options.progress {
            progress(written, plan.len());
        }
        written += 1;
        let planned = &plan[place];
        let Some(entry) = gguf.tensors.get(&planned.source).cloned() else {
            return Err(Error::tensor(gguf.metadata.path(), &planned.source, "no such tensor"));
        };
        copy(gguf, &entry, planned.interleaved, &mut buffers, sink)
    })?;
    if let Some(progress) = options.progress {
        progress(plan.len(), plan.len());
    }
    Ok(())
}

#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    values: Vec<f32>,
    ordered: Vec<f32>,
}

/// Writes a tensor's values, piece by piece.
fn copy(
    gguf: &mut Gguf,
    entry: &Entry,
    interleaved: Option<usize>,
    buffers: &mut Buffers,
    sink: &mut Sink,
) -> Result<(), Error> {
    let columns = entry.columns();
    let rows = entry.count() / columns;
    // Where rows change places they do so within a head; a bias is a single row of them all.
    let head = interleaved.filter(|_| entry.shape.len() > 1);
    let piece = head.unwrap_or((PIECE_VALUES / columns).max(1));
    let mut first = 0;
    while first < rows {
        let count = piece.min(rows - first);
        gguf.read_rows(entry, first, count, &mut buffers.bytes, &mut buffers.values)?;
        match interleaved {
            None => sink.write(&buffers.values)?,
            Some(head) => {
                let width = if entry.shape.len() > 1 { columns } else { 1 };
                buffers.ordered.clear();
                for one in buffers.values.chunks_exact(head * width) {
                    separate_pairs(one, width, &mut buffers.ordered);
                }
                sink.write(&buffers.ordered)?;
            }
        }
        first += count;
    }
    Ok(())
}

/// Puts the rows of one head back: llama.cpp keeps the two rows of a rotary pair side by side, transformers half a head
/// apart. Row `2 i + half` becomes row `half · E/2 + i`.
fn separate_pairs(head: &[f32], width: usize, ordered: &mut Vec<f32>) {
    for half in 0..2 {
        for pair in head.chunks_exact(2 * width) {
            ordered.extend_from_slice(&pair[half * width..(half + 1) * width]);
        }
    }
}

/// `rope_freqs.weight`, if the file has it.
fn divisors(gguf: &mut Gguf) -> Result<Option<Vec<f32>>, Error> {
    let Some(entry) = gguf.tensors.get(ROPE_DIVISORS).cloned() else { return Ok(None) };
    if entry.shape.len() != 1 || entry.count() > PIECE_VALUES {
        let reason = format!("expected one axis, half a head long, found shape {:?}", entry.shape);
        return Err(Error::tensor(gguf.metadata.path(), ROPE_DIVISORS, reason));
    }
    let mut values = Vec::new();
    gguf.read_rows(&entry, 0, 1, &mut Vec::new(), &mut values)?;
    Ok(Some(values))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_pairs_go_half_a_head_apart() {
        let mut ordered = Vec::new();
        separate_pairs(&[0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5], 2, &mut ordered);
        assert_eq!(ordered, [0.0, 0.5, 2.0, 2.5, 1.0, 1.5, 3.0, 3.5]);
    }
}
