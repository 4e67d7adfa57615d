//! `model.safetensors` of a compact folder: the projections as they are left, everything else as it is. Each tensor goes
//! from the base to the file on its own, so that no two large ones are in memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_checkpoint::tensors::{FloatType, Sink, StreamedTensor, write_streamed};
use finegates_model::Layerwise;

use crate::Error;
use crate::fold::{Whole, fold, fold_bias};
use crate::liveness::OpenSets;
use crate::report::Change;

/// What the weights take, whole and written.
pub(crate) struct Written {
    pub parameters: Change,
    pub size_bytes: u64,
}

/// Where the numbers of a tensor come from when its turn has come.
enum Numbers<'a> {
    /// The weight of this projection, folded.
    Projection(usize),
    /// What is at hand.
    Values(Vec<f32>),
    /// As the model has it; in the base under the same name where it has no values.
    Other {
        name: &'a str,
        shape: &'a [usize],
        values: &'a [f32],
    },
    Indices(Vec<u32>),
}

/// Writes the file into `folder`.
pub(crate) fn write_weights(
    base: &Checkpoint,
    gated: &Layerwise,
    live: &[OpenSets],
    folder: &Path,
) -> Result<Written, Error> {
    let mut all: Vec<(StreamedTensor, Numbers<'_>)> = Vec::new();
    let mut parameters = Change::default();
    for (index, (place, live)) in gated.wiring.projections.iter().zip(live).enumerate() {
        let name = |suffix: &str| format!("{}.{suffix}", place.path);
        let rest = &gated.projections[index];
        let (kept_rows, kept_columns) = (live.row_indices(), live.column_indices());
        let shape = [kept_rows.len(), kept_columns.len()];
        parameters.before += (place.rows * place.columns) as u64;
        parameters.after += (shape[0] * shape[1]) as u64;
        all.push((StreamedTensor::weights(name("weight"), shape), Numbers::Projection(index)));
        if let Some(bias) = &rest.bias {
            let folded = fold_bias(bias, rest.gates.as_ref().map(|gates| gates.rows.as_slice()), live);
            parameters.before += bias.len() as u64;
            parameters.after += folded.len() as u64;
            all.push((StreamedTensor::weights(name("bias"), [folded.len()]), Numbers::Values(folded)));
        }
        all.push((StreamedTensor::indices(name("kept_rows"), kept_rows.len()), Numbers::Indices(kept_rows)));
        all.push((StreamedTensor::indices(name("kept_columns"), kept_columns.len()), Numbers::Indices(kept_columns)));
    }
    for parameter in &gated.others {
        let count = parameter.shape.iter().product::<usize>() as u64;
        parameters.before += count;
        parameters.after += count;
        let (name, shape, values) = (&parameter.name, &parameter.shape, &parameter.value);
        all.push((StreamedTensor::weights(name, shape.as_slice()), Numbers::Other { name, shape, values }));
    }
    let (tensors, numbers): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    let path = folder.join("model.safetensors");
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut produce = |place: usize, sink: &mut Sink<'_>| match &numbers[place] {
        Numbers::Projection(index) => {
            let wired = &gated.wiring.projections[*index];
            let weight = base.read(&format!("{}.weight", wired.path), &[wired.rows, wired.columns])?;
            let gates = gated.projections[*index].gates.as_ref();
            let gates = gates.map(|state| (state.rows.as_slice(), state.columns.as_slice()));
            let folded = fold(&Whole { weight: &weight, bias: None, gates }, &live[*index]);
            drop(weight);
            sink.write(&folded.weight)
        }
        Numbers::Values(values) => sink.write(values),
        Numbers::Other { name, shape, values: [] } => sink.write(&base.read(name, shape)?),
        Numbers::Other { values, .. } => sink.write(values),
        Numbers::Indices(indices) => sink.write_indices(indices),
    };
    write_streamed(&path, &tensors, FloatType::F32, &metadata, &mut produce)?;
    let size_bytes = fs::metadata(&path).map_err(|source| Error::Folder { path, source })?.len();
    Ok(Written { parameters, size_bytes })
}
