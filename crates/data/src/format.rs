//! The file formats, and which one a file's name tells.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How rows are laid out in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Commas, with quotes as in RFC 4180 and a header.
    Csv,
    /// Tabs, with a header and no quoting at all: a quote is a character like any other, as in GLUE's files.
    Tsv,
    /// A JSON object a line.
    #[serde(rename = "jsonl")]
    JsonLines,
    /// Apache Parquet.
    Parquet,
    /// A text a line, without header or label.
    Lines,
}

impl Format {
    /// The format that a file's extension tells.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`] if the extension is none of the known ones.
    pub fn from_path(path: &Path) -> Result<Format, Error> {
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("csv") => Ok(Format::Csv),
            Some("tsv" | "tab") => Ok(Format::Tsv),
            Some("jsonl" | "ndjson" | "json") => Ok(Format::JsonLines),
            Some("parquet" | "pq") => Ok(Format::Parquet),
            Some("txt" | "text") => Ok(Format::Lines),
            _ => Err(Error::UnknownFormat { path: path.to_owned() }),
        }
    }
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Format, String> {
        match name {
            "csv" => Ok(Format::Csv),
            "tsv" => Ok(Format::Tsv),
            "jsonl" => Ok(Format::JsonLines),
            "parquet" => Ok(Format::Parquet),
            "lines" => Ok(Format::Lines),
            other => Err(format!("expected csv, tsv, jsonl, parquet or lines, found {other:?}")),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Csv => "csv",
            Format::Tsv => "tsv",
            Format::JsonLines => "jsonl",
            Format::Parquet => "parquet",
            Format::Lines => "lines",
        })
    }
}
