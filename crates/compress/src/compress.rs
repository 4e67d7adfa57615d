//! From a gated model to a compact folder: fold, slice, write beside, read back, compare, rename into place.

use std::fs;
use std::path::{Path, PathBuf};

use finegates_checkpoint::adapter::Adapter;
use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_checkpoint::write::{copy_into, replace_folder, write_atomic};
use finegates_model::{Batch, GateState, LoadOptions, Method, Task, run_layerwise};

use crate::Error;
use crate::config;
use crate::liveness::liveness;
use crate::removal::{Removal, open_sets};
use crate::report::{self, Change, FORMAT_VERSION, Report, Source};
use crate::verify::verify;
use crate::weights::write_weights;

/// What to compress, and where to.
#[derive(Debug)]
pub struct Request<'a> {
    /// The checkpoint that was trained on.
    pub base: &'a Checkpoint,
    /// What training changed of it; none where nothing is.
    pub adapter: Option<&'a Adapter>,
    /// What the head predicts.
    pub task: Task,
    /// Classes of the head; `None` takes the checkpoint's.
    pub classes: Option<usize>,
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
/// renamed; on any error `destination` is as it was. Neither model is ever whole in memory: layers are run one at a time,
/// and weights go from the base to the file one at a time.
///
/// # Errors
/// A model without anything to remove by its kind (full fine-tuning, already compact), an adapter that does not fit, a
/// missing head, a destination in the way, files that cannot be read or written, and logits that differ.
pub fn compress(request: &Request<'_>) -> Result<Report, Error> {
    refuse_what_cannot_shrink(request)?;
    check_destination(request)?;
    if request.probe.iter().all(|batch| batch.sequences() == 0) {
        return Err(Error::EmptyProbe);
    }
    let options = LoadOptions { task: request.task, ..LoadOptions::default() };
    let with_labels = LoadOptions { labels: request.classes, ..options };
    let gated = run_layerwise(request.base, &with_labels, request.adapter, request.probe)?;
    if !gated.report.initialised.is_empty() {
        return Err(Error::NoHead { names: gated.report.initialised });
    }
    let gates: Vec<GateState> = gated.projections.iter().filter_map(|projection| projection.gates.clone()).collect();
    let open = open_sets(&gated.wiring, &gates)?;
    let live = liveness(&gated.wiring, &open);
    let removal = Removal::count(&gated.wiring, &gates, &open, &live)?;

    let (parent, beside) = make_folder_beside(request.destination)?;
    let folder = beside.path();
    let written = write_weights(request.base, &gated, &live, folder)?;
    let size_bytes = Change { before: request.base.tensors.size_bytes(), after: written.size_bytes };
    config::write(request, &gated, folder)?;
    for file in request.tokenizer_files {
        copy_into(file, folder)?;
    }
    let compact = run_layerwise(&Checkpoint::open(folder)?, &options, None, request.probe)?;
    if !compact.report.initialised.is_empty() {
        return Err(Error::Incomplete { names: compact.report.initialised });
    }
    let verification = verify(&gated.logits, &compact.logits, request.probe)?;
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
