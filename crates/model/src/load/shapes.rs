//! Whether a checkpoint's weights are of the sizes its config.json names. Asked of the files' headers before anything is
//! made by those sizes, so that no config makes more be allocated than the weights beside it justify.

use finegates_checkpoint::Checkpoint;

use crate::error::Error;
use crate::family::Description;
use crate::wiring::StackShape;

/// Largest new head that is made whatever the file's size, in bytes: beyond 4096 dimensions.
const NEW_HEAD_BYTES: u64 = 128 << 20;

/// Checks every tensor that the model without its head consists of.
///
/// # Errors
/// The first tensor that is missing or of another shape, by name.
pub(crate) fn check(checkpoint: &Checkpoint) -> Result<(), Error> {
    let (config, description) = (&checkpoint.config, Description::of(&checkpoint.config));
    let prefix = description.prefix;
    let norm = |path: &str| {
        checkpoint.check(&format!("{path}.weight"), &[config.hidden])?;
        match config.decoder {
            Some(_) => Ok(()),
            None => checkpoint.check(&format!("{path}.bias"), &[config.hidden]),
        }
    };
    for module in std::iter::once(description.word).chain(description.position).chain(description.segment) {
        let name = format!("{prefix}.{module}.weight");
        // How many rows a table has, the file decides.
        let rows = checkpoint.find(&name).and_then(|found| checkpoint.tensors.shape(&found)?.first().copied());
        checkpoint.check(&name, &[rows.unwrap_or(0), config.hidden])?;
    }
    for module in description.embedding_norm.into_iter().chain(description.last_norm) {
        norm(&format!("{prefix}.{module}"))?;
    }
    if let Some(module) = description.relative_bias {
        let shape = [config.relative_attention_buckets, config.heads];
        checkpoint.check(&format!("{prefix}.{module}.weight"), &shape)?;
    }
    let shape = StackShape::of(config);
    for layer in 0..config.layers {
        for wired in shape.projections(config.family, layer) {
            let (path, sizes) = (wired.path, (wired.rows, wired.columns));
            match &config.compact {
                // What is left of it was checked when the checkpoint was opened.
                Some(compact) => check_declared(&path, compact.projections.get(&path).copied(), sizes)?,
                None => {
                    checkpoint.check(&format!("{path}.weight"), &[wired.rows, wired.columns])?;
                    if wired.bias {
                        checkpoint.check(&format!("{path}.bias"), &[wired.rows])?;
                    }
                }
            }
        }
        let layer = format!("{prefix}.{}.{layer}", description.layers);
        norm(&format!("{layer}.{}", description.attention_norm))?;
        norm(&format!("{layer}.{}", description.feed_forward_norm))?;
    }
    Ok(())
}

/// Checks the sizes before removal that a compact checkpoint declares for a projection.
pub(super) fn check_declared(
    path: &str,
    declared: Option<(usize, usize)>,
    (rows, columns): (usize, usize),
) -> Result<(), Error> {
    if declared == Some((rows, columns)) {
        return Ok(());
    }
    let found = declared.unwrap_or_default();
    Err(Error::Compact(format!(
        "{path}: config.json declares {} × {} before removal, the architecture has {rows} × {columns}",
        found.0, found.1
    )))
}

/// Checks that a head which the file lacks would not dwarf the file.
pub(super) fn check_new_head(checkpoint: &Checkpoint, rows: usize, columns: usize) -> Result<(), Error> {
    let size_bytes = (rows as u64).saturating_mul(columns as u64).saturating_mul(4);
    let limit_bytes = NEW_HEAD_BYTES.max(checkpoint.tensors.size_bytes());
    if size_bytes <= limit_bytes {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "{}: hidden_size: a new head of {rows} × {columns} would be larger than all weights that are there; check it and the number of labels",
        checkpoint.folder.join("config.json").display()
    )))
}
