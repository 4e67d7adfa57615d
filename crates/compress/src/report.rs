//! `compression.json`: what was removed from what, what it saved, and how the result was verified.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::removal::Removal;

/// The file's name in a compact folder.
pub const FILE_NAME: &str = "compression.json";

/// Version of the file's form.
pub const FORMAT_VERSION: u32 = 1;

/// No compression report is nearly as large: about 400 bytes a projection.
const SIZE_LIMIT_BYTES: u64 = 64 << 20;

/// Everything `compression.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the file's form, [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The program that wrote it, with its version.
    pub written_by: String,
    /// What was compressed.
    pub source: Source,
    /// Every parameter of the model (embeddings, norms, biases and head included), before and after.
    pub parameters: Change,
    /// Size of the base's weights as they are stored, and of `model.safetensors` as written.
    pub size_bytes: Change,
    /// How the result was compared with the gated model.
    pub verification: Verification,
    /// What a reader of the numbers should know.
    pub notes: Vec<String>,
    /// Weights removed, in all, per layer and per projection.
    #[serde(flatten)]
    pub removal: Removal,
}

/// Where the gated model came from, in the user's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The base checkpoint as it was named.
    pub base: String,
    /// The run or adapter as it was named.
    pub adapter: Option<String>,
    /// The method it was trained with.
    pub method: String,
}

/// A number before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Of the gated model, nothing removed.
    pub before: u64,
    /// Of the compact model.
    pub after: u64,
}

/// How the written model was compared with the gated one: logits on the same probe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// Sequences of the probe.
    pub sequences: usize,
    /// Tokens of the probe.
    pub tokens: usize,
    /// Greatest difference between two logits.
    pub max_abs_difference: f64,
    /// Greatest magnitude among the gated model's logits.
    pub scale: f64,
    /// The most that `max_abs_difference / scale` may be.
    pub tolerance: f64,
}

impl Report {
    /// Reads the report of a compact folder.
    ///
    /// # Errors
    /// If it is missing, too large, not JSON of this form, or of a newer version.
    pub fn read(folder: &Path) -> Result<Report, Error> {
        let path = folder.join(FILE_NAME);
        let fail = |source| Error::Folder { path: path.clone(), source };
        let size_bytes = std::fs::metadata(&path).map_err(fail)?.len();
        if size_bytes > SIZE_LIMIT_BYTES {
            let reason = format!("{size_bytes} bytes, but a report has at most {SIZE_LIMIT_BYTES}");
            return Err(Error::Report { path, reason });
        }
        let bytes = std::fs::read(&path).map_err(fail)?;
        Report::from_json(&bytes).map_err(|reason| Error::Report { path, reason })
    }

    /// Reads a report from the bytes of a `compression.json`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn from_json(bytes: &[u8]) -> Result<Report, String> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let Version { format_version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if format_version > FORMAT_VERSION {
            return Err(format!(
                "format_version: expected at most {FORMAT_VERSION}, found {format_version}; it was written by a newer finegates, update this one"
            ));
        }
        let report: Report = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        report.removal.check()?;
        Ok(report)
    }

    /// The file's content.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("strings, numbers and lists are always JSON");
        text.push(b'\n');
        text
    }
}
