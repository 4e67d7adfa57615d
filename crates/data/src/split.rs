//! The examples of one split: its files read, its broken rows gathered, its labels resolved.

use std::path::{Path, PathBuf};

use crate::columns::ColumnChoice;
use crate::dataset::{Example, Label, Split};
use crate::error::{BrokenRow, Error, RowProblem, SHOWN_BROKEN_ROWS};
use crate::format::Format;
use crate::glue::GlueTask;
use crate::label::{LabelTable, Labels, label_text};
use crate::records::{Record, Records, Value};

/// How labelled files are read.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// The columns, where they are named.
    pub columns: ColumnChoice,
    /// The task whose columns and labels are expected.
    pub task: Option<GlueTask>,
    /// Leave broken rows out and count them, instead of refusing the file.
    pub skip_bad_rows: bool,
}

/// Reads labelled files against labels already known, as evaluation does.
///
/// # Errors
/// Any of [`Error`]; a label that is none of `labels` is a broken row.
pub fn read_split(name: &str, files: &[PathBuf], options: &ReadOptions, labels: &Labels) -> Result<Split, Error> {
    RawSplit::read(files, options)?.resolve(name, labels, options.skip_bad_rows)
}

/// Rows whose labels are not yet resolved.
pub(crate) struct RawSplit {
    pub files: Vec<PathBuf>,
    pub table: LabelTable,
    /// Class names that the files themselves give.
    pub class_names: Option<Vec<String>>,
    rows: Vec<RawRow>,
    label_column: String,
    broken: BrokenRows,
}

struct RawRow {
    text: String,
    pair: Option<String>,
    label: u32,
    file: u32,
    line: u64,
}

#[derive(Default)]
struct BrokenRows {
    shown: Vec<BrokenRow>,
    count: usize,
}

impl BrokenRows {
    fn push(&mut self, row: BrokenRow) {
        self.count += 1;
        if self.shown.len() < SHOWN_BROKEN_ROWS {
            self.shown.push(row);
        }
    }
}

impl RawSplit {
    /// Reads all rows of all files.
    pub fn read(files: &[PathBuf], options: &ReadOptions) -> Result<RawSplit, Error> {
        let mut split = RawSplit {
            files: files.to_vec(),
            table: LabelTable::default(),
            class_names: None,
            rows: Vec::new(),
            label_column: String::new(),
            broken: BrokenRows::default(),
        };
        for (index, path) in files.iter().enumerate() {
            split.read_file(index, path, options)?;
        }
        Ok(split)
    }

    fn read_file(&mut self, index: usize, path: &Path, options: &ReadOptions) -> Result<(), Error> {
        let mut records = open(path, options.task)?;
        let columns = options.columns.resolve(&records, options.task, true)?;
        let label = columns.label.clone().unwrap_or_default();
        let names = records.class_names(&label);
        match (&self.class_names, &names) {
            (Some(expected), Some(found)) if expected != found => {
                let (expected, found) = (expected.clone(), found.clone());
                return Err(Error::LabelNamesDiffer { path: path.to_owned(), expected, found });
            }
            (None, Some(_)) => self.class_names = names,
            _ => {}
        }
        self.label_column.clone_from(&label);
        let mut selected = vec![columns.text.as_str(), label.as_str()];
        selected.extend(columns.pair.as_deref());
        records.select(&selected)?;
        let file = u32::try_from(index).unwrap_or(u32::MAX);
        while let Some(record) = records.read()? {
            let row = record.and_then(|Record { line, mut values }| {
                let broken = |problem| BrokenRow { path: path.to_owned(), line, problem };
                let pair = match &columns.pair {
                    Some(column) => Some(text(values.swap_remove(2), column).map_err(broken)?),
                    None => None,
                };
                check(&values[1], &label).map_err(broken)?;
                let label_value = label_text(values.swap_remove(1)).unwrap_or_default();
                let number = self.table.number(&label_value, index, line);
                let text = text(values.swap_remove(0), &columns.text).map_err(broken)?;
                match number {
                    Some(number) => Ok(RawRow { text, pair, label: number, file, line }),
                    None => Err(broken(RowProblem::NoValue { column: label.clone() })),
                }
            });
            match row {
                Ok(row) => self.rows.push(row),
                Err(row) => self.broken.push(row),
            }
        }
        Ok(())
    }

    /// Gives every row its class or number.
    pub fn resolve(mut self, name: &str, labels: &Labels, skip_bad_rows: bool) -> Result<Split, Error> {
        let mut examples = Vec::with_capacity(self.rows.len());
        for row in std::mem::take(&mut self.rows) {
            let raw = self.table.label(row.label);
            let label = match labels {
                Labels::Regression => raw.target().map(Label::Value),
                Labels::Classes { .. } => labels.class_of(raw).map(Label::Class),
            };
            match label {
                Some(label) => examples.push(Example { text: row.text, pair: row.pair, label }),
                None => {
                    let (column, found) = (self.label_column.clone(), raw.text.clone());
                    let problem = match labels {
                        Labels::Regression => RowProblem::NotANumber { column, found },
                        Labels::Classes { names, .. } => {
                            RowProblem::UnknownLabel { column, found, known: names.clone() }
                        }
                    };
                    let path = self.files[row.file as usize].clone();
                    self.broken.push(BrokenRow { path, line: row.line, problem });
                }
            }
        }
        let BrokenRows { shown, count } = self.broken;
        if count > 0 && !skip_bad_rows {
            return Err(Error::BrokenRows { rows: shown, count });
        }
        if examples.is_empty() {
            let path = self.files.first().cloned().unwrap_or_default();
            return Err(Error::Empty { path, expected: "at least one usable row" });
        }
        Ok(Split { name: name.to_owned(), files: self.files, examples, skipped_rows: count, skipped: shown })
    }

    /// How many rows are usable so far.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The refusal of this split's broken rows, if they are to be refused.
    pub fn refuse_broken(&self, skip_bad_rows: bool) -> Result<(), Error> {
        match self.broken.count {
            count if count > 0 && !skip_bad_rows => Err(Error::BrokenRows { rows: self.broken.shown.clone(), count }),
            _ => Ok(()),
        }
    }
}

/// Opens a file as the task's own, where there is a task: GLUE's raw files have names of many kinds, all of them TSV.
pub(crate) fn open(path: &Path, task: Option<GlueTask>) -> Result<Records, Error> {
    let format = match (Format::from_path(path), task) {
        (Ok(Format::Lines) | Err(_), Some(_)) => Format::Tsv,
        (format, _) => format?,
    };
    let mut records = Records::open(path, format)?;
    if let Some(columns) = task.and_then(|task| task.columns_without_header(records.columns())) {
        records.without_header(columns);
    }
    Ok(records)
}

/// The text in a value.
pub(crate) fn text(value: Value, column: &str) -> Result<String, RowProblem> {
    check(&value, column)?;
    Ok(label_text(value).unwrap_or_default())
}

fn check(value: &Value, column: &str) -> Result<(), RowProblem> {
    let column = || column.to_owned();
    match value {
        Value::Missing => Err(RowProblem::NoValue { column: column() }),
        Value::NotUtf8 => Err(RowProblem::NotUtf8 { column: column() }),
        Value::Other(found) => Err(RowProblem::NotText { column: column(), found }),
        Value::Text(_) | Value::Integer(_) | Value::Float(_) => Ok(()),
    }
}
