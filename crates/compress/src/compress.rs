//! From a gated model to a compact folder: fold, slice, write beside, read back, compare, rename into place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_checkpoint::tensors::{TensorToWrite, write_tensors};
use finegates_checkpoint::write::{copy_into, replace_folder, write_atomic};
use finegates_model::{Batch, LoadOptions, Method, Model, Projection};

use crate::Error;
use crate::config;
use crate::fold::{Folded, Whole, fold};
use crate::liveness::liveness;
use crate::removal::{Removal, open_sets};
use crate::report::{self, Change, FORMAT_VERSION, Report, Source};
use crate::verify::verify;

/// What to compress, and where to.
#[derive(Debug)]
pub struct Request<'a> {
    /// The checkpoint that the model was loaded from.
    pub base: &'a Checkpoint,
    /// The gated model, loaded with `keep_weights`, its adapter applied, its gates at evaluation.
    pub model: &'a Model,
    /// How it was trained.
    pub method: Method,
    /// Labels in the order of their ids; empty to keep those of the model's config.
    pub labels: &'a [String],
    /// Tokenizer files to copy, so that the folder is complete in itself.
    pub tokenizer_files: &'a [PathBuf],
    /// Sequences on which both models must agree.
    pub probe: &'a [Batch],
    /// Names for the report.
    pub source: Source,
    /// The folder to make.
    pub destination: &'a Path,
    /// Replace what `destination` holds.
    pub overwrite: bool,
}

/// Removes what the gates closed and what died with it, and writes what is left as a compact checkpoint.
///
/// The folder is written beside its place, loaded back and compared with the gated model on the probe before it is
/// renamed; on any error `destination` is as it was.
///
/// # Errors
/// A model without anything to remove by its kind (full fine-tuning, already compact), a destination in the way, files
/// that cannot be read or written, and logits that differ.
pub fn compress(request: &Request<'_>) -> Result<Report, Error> {
    refuse_what_cannot_shrink(request)?;
    check_destination(request)?;
    let model = request.model;
    let gates: Vec<_> =
        model.projections().filter(|projection| projection.gates().is_some()).map(Projection::gate_state).collect();
    let open = open_sets(model.wiring(), &gates)?;
    let live = liveness(model.wiring(), &open);
    let removal = Removal::count(model.wiring(), &gates, &open, &live)?;
    let folded: Vec<Folded> = model
        .projections()
        .zip(&live)
        .map(|(projection, live)| {
            let path = projection.path();
            let state = gates.iter().find(|state| state.path == path);
            let weight = projection.weight().ok_or_else(|| Error::WeightGone { path: path.to_owned() })?;
            let gates = state.map(|state| (state.rows.as_slice(), state.columns.as_slice()));
            Ok(fold(&Whole { weight, bias: projection.bias(), gates }, live))
        })
        .collect::<Result<_, Error>>()?;

    let (parent, beside) = make_folder_beside(request.destination)?;
    let folder = beside.path();
    let written = write_model(model, &folded, folder)?;
    let size_bytes = Change { before: request.base.tensors.size_bytes(), after: written.size_bytes };
    config::write(request, folder)?;
    for file in request.tokenizer_files {
        copy_into(file, folder)?;
    }
    let verification = {
        let checkpoint = Checkpoint::open(folder)?;
        let (compact, loaded) =
            Model::load(&checkpoint, &LoadOptions { task: model.task(), ..LoadOptions::default() })?;
        if !loaded.initialised.is_empty() {
            return Err(Error::Incomplete { names: loaded.initialised });
        }
        verify(model, &compact, request.probe)?
    };
    let report = Report {
        format_version: FORMAT_VERSION,
        written_by: concat!("finegates ", env!("CARGO_PKG_VERSION")).to_owned(),
        source: request.source.clone(),
        parameters: written.parameters,
        size_bytes,
        verification,
        notes: notes(request, &removal, &size_bytes, &written.parameters),
        removal,
    };
    write_atomic(&folder.join(report::FILE_NAME), &report.to_json())?;
    replace_folder(folder, request.destination)?;
    drop((beside.keep(), parent));
    Ok(report)
}

fn refuse_what_cannot_shrink(request: &Request<'_>) -> Result<(), Error> {
    let folder = request.base.folder.clone();
    if request.base.config.compact.is_some() {
        return Err(Error::AlreadyCompact { folder });
    }
    if request.method == Method::Full {
        return Err(Error::NothingGated { folder });
    }
    Ok(())
}

/// Refuses a destination that would be lost, or that would take the base with it.
fn check_destination(request: &Request<'_>) -> Result<(), Error> {
    let path = request.destination;
    if path.file_name().is_none() {
        return Err(Error::Destination { path: path.to_owned(), reason: "is no name for a new folder".to_owned() });
    }
    let kind = match fs::metadata(path) {
        Ok(kind) => kind,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Folder { path: path.to_owned(), source }),
    };
    let refuse = |reason: &str| Err(Error::Destination { path: path.to_owned(), reason: reason.to_owned() });
    if !kind.is_dir() {
        return refuse("is a file; name a new folder");
    }
    let fail = |source| Error::Folder { path: path.to_owned(), source };
    let empty = fs::read_dir(path).map_err(fail)?.next().is_none();
    if !empty && !request.overwrite {
        return Err(Error::DestinationTaken { path: path.to_owned() });
    }
    // Whatever else is in a folder may be somebody's work: runs, data, whole disks.
    if !empty && let Some(name) = foreign(path).map_err(fail)? {
        return refuse(&format!(
            "holds something other than a compact model ({name}), which overwriting would delete; name another folder"
        ));
    }
    let (inside, place) = (fs::canonicalize(&request.base.folder), fs::canonicalize(path));
    if inside.is_ok_and(|inside| place.is_ok_and(|place| inside.starts_with(place))) {
        return refuse("holds the base checkpoint, which overwriting would delete; name another folder");
    }
    Ok(())
}

/// An entry of a folder that no compact model has, or the report that every one has if that is missing.
fn foreign(folder: &Path) -> std::io::Result<Option<String>> {
    if !folder.join(report::FILE_NAME).is_file() {
        return Ok(Some(format!("no {}", report::FILE_NAME)));
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let weights = [".safetensors", ".safetensors.index.json"].iter().any(|end| name.ends_with(end));
        let known = [report::FILE_NAME, "config.json"].contains(&name.as_str())
            || name.starts_with("model") && weights
            || finegates_checkpoint::tokenizer::FILES.contains(&name.as_str());
        if !known || !entry.file_type()?.is_file() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A new folder beside the destination; it goes away by itself unless it is kept.
fn make_folder_beside(destination: &Path) -> Result<(PathBuf, tempfile::TempDir), Error> {
    let parent = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let fail = |source| Error::Folder { path: parent.clone(), source };
    fs::create_dir_all(&parent).map_err(fail)?;
    let name = destination.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".partial");
    #[cfg(unix)]
    {
        // Temporary folders are private by default; a model is as readable as any other file (the umask still holds).
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o777));
    }
    let beside = builder.tempdir_in(&parent).map_err(fail)?;
    Ok((parent, beside))
}

/// What the weights take, whole and written.
struct Written {
    parameters: Change,
    size_bytes: u64,
}

/// Writes `model.safetensors`: the projections as they are left, everything else as it is.
fn write_model(model: &Model, folded: &[Folded], folder: &Path) -> Result<Written, Error> {
    let mut tensors = Vec::new();
    let mut replaced = BTreeSet::new();
    for (projection, left) in model.projections().zip(folded) {
        let name = |suffix: &str| format!("{}.{suffix}", projection.path());
        let (rows, columns) = (left.kept_rows.len(), left.kept_columns.len());
        tensors.push(TensorToWrite::f32(name("weight"), vec![rows, columns], &left.weight));
        if let Some(bias) = &left.bias {
            tensors.push(TensorToWrite::f32(name("bias"), vec![rows], bias));
        }
        tensors.push(TensorToWrite::u32(name("kept_rows"), &left.kept_rows));
        tensors.push(TensorToWrite::u32(name("kept_columns"), &left.kept_columns));
        replaced.extend([name("weight"), name("bias")]);
    }
    let mut parameters = Change::default();
    for parameter in model.all_parameters() {
        let count = parameter.shape.iter().product::<usize>();
        parameters.before += count as u64;
        if replaced.contains(&parameter.name) {
            continue;
        }
        if parameter.value.len() != count {
            return Err(Error::WeightGone { path: parameter.name.clone() });
        }
        parameters.after += count as u64;
        tensors.push(TensorToWrite::f32(parameter.name.as_str(), parameter.shape.as_slice(), &parameter.value));
    }
    parameters.after +=
        folded.iter().map(|left| (left.weight.len() + left.bias.as_ref().map_or(0, Vec::len)) as u64).sum::<u64>();
    let path = folder.join("model.safetensors");
    write_tensors(&path, &tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]))?;
    let size_bytes = fs::metadata(&path).map_err(|source| Error::Folder { path, source })?.len();
    Ok(Written { parameters, size_bytes })
}

/// What a reader of the numbers should know.
fn notes(request: &Request<'_>, removal: &Removal, size_bytes: &Change, parameters: &Change) -> Vec<String> {
    let mut notes = Vec::new();
    if size_bytes.before < 3 * parameters.before {
        notes.push(
            "the base stores its weights in 16 bits and the compact model in 32, for the gates are folded in"
                .to_owned(),
        );
    }
    let totals = &removal.totals;
    if totals.gates.total() == 0 {
        notes.push(format!(
            "method {}: no gates, so nothing could be removed; the trained biases and head are in place",
            request.method
        ));
    } else if totals.gates.closed == 0 {
        notes.push("no gate is closed, so nothing was removed; fractional gates are folded in".to_owned());
    }
    for layer in &removal.layers {
        let mut projections = removal.projections.iter().filter(|projection| projection.layer == layer.layer);
        if projections.all(|projection| projection.live_parameters() == 0) {
            notes.push(format!("layer {}: no weight is left; its norms and biases still act", layer.layer));
        }
    }
    notes
}
