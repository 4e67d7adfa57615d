//! What a run is made from, and what is made of it before the first step: encoded examples, the measure of a budget, counts.

use std::path::{Path, PathBuf};

use finegates_checkpoint::{Checkpoint, Tokenizer};
use finegates_model::Model;

use crate::budget::{Cost, Measure};
use crate::encoded::Encoded;
use crate::error::Error;
use crate::folder::RunFolder;
use crate::latency::LatencyTable;
use crate::material::Data;
use crate::observer::{Event, Observer};
use crate::recipe::Recipe;

/// What a run is made from.
pub struct Inputs {
    /// Every setting.
    pub recipe: Recipe,
    /// The examples, or the corpus.
    pub data: Data,
    /// The base model.
    pub checkpoint: Checkpoint,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Fingerprint of the base model's files.
    pub base_fingerprint: String,
    /// Where measured times are kept for other runs.
    pub latency_tables: Option<PathBuf>,
}

/// How the cost of a model is counted. A resumed run counts times by the table it began with.
pub(crate) fn cost(
    measure: Measure,
    model: &Model,
    attended: f64,
    folder: &RunFolder,
    latency_tables: Option<&Path>,
    observer: &mut dyn Observer,
) -> Result<Cost, Error> {
    let (sequences, tokens) = match measure {
        Measure::Parameters => return Ok(Cost::Parameters),
        Measure::MultiplyAdds => return Ok(Cost::MultiplyAdds { attended }),
        Measure::Latency { sequences, tokens } => (sequences, tokens),
    };
    if folder.saved_state().is_some() {
        let path = folder.latency();
        let found = if path.is_file() { "no such table for this model" } else { "nothing" };
        let table = LatencyTable::read(&path, model.config());
        return table.map(Cost::Latency).ok_or(Error::LatencyTable { path, found });
    }
    let mut measuring =
        || observer.event(&Event::Note("measuring how long layers of this model's sizes take on this machine"));
    Ok(Cost::Latency(LatencyTable::of(model, sequences, tokens, latency_tables, &mut measuring)?))
}

/// Encodes a split and says what was left out or cut.
pub(crate) fn encode(
    split: &finegates_data::Split,
    tokenizer: &Tokenizer,
    max_length: usize,
    observer: &mut dyn Observer,
) -> Result<Encoded, Error> {
    if split.skipped_rows > 0 {
        let first = split.skipped.first().map_or(String::new(), |row| format!(", the first is {row}"));
        let note = format!("{}: {} broken rows left out{first}", split.name, split.skipped_rows);
        observer.event(&Event::Note(&note));
    }
    let encoded = Encoded::new(split, tokenizer, max_length)?;
    if encoded.truncated > 0 {
        let (cut, all) = (encoded.truncated, encoded.len());
        let note = format!("{}: {cut} of {all} examples were cut to {max_length} tokens", split.name);
        observer.event(&Event::Note(&note));
    }
    Ok(encoded)
}

pub(crate) fn count_trainable(model: &mut Model) -> usize {
    let mut count = 0;
    model.parameters(&mut |parameter| count += parameter.value.len());
    count
}

pub(crate) fn gated_parameters(model: &Model) -> u64 {
    model.wiring().projections.iter().map(|projection| projection.rows as u64 * projection.columns as u64).sum()
}
