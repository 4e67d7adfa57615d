//! Unlabelled rows one after another, in the file's order and in constant memory: what prediction reads.

use std::io::BufRead;
use std::path::Path;

use crate::columns::{ColumnChoice, Columns};
use crate::error::{BrokenRow, Error};
use crate::format::Format;
use crate::records::Records;
use crate::split::text;

/// A text or a pair of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextRow {
    /// The line it begins on, from 1; in Parquet its number, from 1.
    pub line: u64,
    /// The text.
    pub text: String,
    /// The second text.
    pub pair: Option<String>,
}

/// Reads rows of text from a file or a stream.
///
/// # Example
/// ```
/// use finegates_data::{ColumnChoice, Format, TextRows};
///
/// let input = std::io::Cursor::new("id,text\n7,\"one, two\"\n");
/// let mut rows = TextRows::from_reader(Box::new(input), "input".as_ref(), Format::Csv, &ColumnChoice::default())?;
/// assert_eq!(rows.read()?.unwrap()?.text, "one, two");
/// assert!(rows.read()?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TextRows {
    records: Records,
    columns: Columns,
}

impl TextRows {
    /// Opens a file; without a format its name tells it.
    ///
    /// # Errors
    /// [`Error::Io`], or as [`TextRows::from_reader`].
    pub fn open(path: &Path, format: Option<Format>, columns: &ColumnChoice) -> Result<TextRows, Error> {
        let format = format.map_or_else(|| Format::from_path(path), Ok)?;
        TextRows::from_records(Records::open(path, format)?, columns)
    }

    /// Reads from any source; `path` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::BrokenHeader`], [`Error::NoSuchColumn`], [`Error::UnclearColumn`], [`Error::DoubledColumn`], and
    /// [`Error::Parquet`] for Parquet, which is no stream.
    pub fn from_reader(
        source: Box<dyn BufRead + Send>,
        path: &Path,
        format: Format,
        columns: &ColumnChoice,
    ) -> Result<TextRows, Error> {
        TextRows::from_records(Records::from_reader(source, path, format)?, columns)
    }

    /// Reads the texts of records.
    ///
    /// # Errors
    /// As [`TextRows::from_reader`].
    pub fn from_records(mut records: Records, choice: &ColumnChoice) -> Result<TextRows, Error> {
        let columns = choice.resolve(&records, None, false)?;
        let selected: Vec<&str> = std::iter::once(columns.text.as_str()).chain(columns.pair.as_deref()).collect();
        records.select(&selected)?;
        if records.may_have_more_columns() {
            records.expect_none_of(columns.absent_pairs(choice, None));
        }
        Ok(TextRows { records, columns })
    }

    /// The columns that are read.
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// The next row, or the next broken one; none at the end.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Parquet`] if the source cannot be read on.
    pub fn read(&mut self) -> Result<Option<Result<TextRow, BrokenRow>>, Error> {
        let Some(record) = self.records.read()? else { return Ok(None) };
        let row = record.and_then(|mut record| {
            let broken = |problem| BrokenRow { path: self.records.path().to_owned(), line: record.line, problem };
            let pair = match &self.columns.pair {
                Some(column) => Some(text(record.values.swap_remove(1), column).map_err(broken)?),
                None => None,
            };
            let text = text(record.values.swap_remove(0), &self.columns.text).map_err(broken)?;
            Ok(TextRow { line: record.line, text, pair })
        });
        Ok(Some(row))
    }
}
