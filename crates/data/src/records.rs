//! One reader for all formats: the columns of a file, and then its records with the values of the columns selected.
//! A broken record does not end the reading; only a file that cannot be read does.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::delimited::{DelimitedReader, Row};
use crate::error::{BrokenRow, Error, MOST_COLUMNS, RowProblem};
use crate::format::Format;
use crate::json_lines::{JsonLinesReader, Object, kind};
use crate::lines::{Line, LineReader, without_ending};
use crate::parquet_rows::ParquetReader;

/// How many lines a JSON-lines file may have before its first object.
const LINES_BEFORE_FIRST_OBJECT: usize = 1000;

/// How many objects of a JSON-lines file tell its columns, and how many bytes of them at most. A stream has only its first
/// object for that: the next one may be long in coming.
const OBJECTS_AHEAD: usize = 100;
const BYTES_AHEAD: usize = 4 << 20;

/// What one column of one record holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing: a null, or a key that is not there.
    Missing,
    /// Text.
    Text(String),
    /// An integer written as one.
    Integer(i64),
    /// Another number.
    Float(f64),
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// Something that is none of these, in words.
    Other(&'static str),
}

/// The values of the selected columns in one record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The line it begins on, from 1; in Parquet its number, from 1.
    pub line: u64,
    /// A value for each selected column.
    pub values: Vec<Value>,
}

/// Reads the records of a file of any format.
pub struct Records {
    path: PathBuf,
    source: Source,
    columns: Vec<String>,
    selected: Vec<String>,
    indices: Vec<usize>,
    /// Whether records not yet read may have columns that are not among `columns`.
    open: bool,
    /// Columns that must not turn up later.
    unexpected: Vec<&'static str>,
}

enum Source {
    Delimited { reader: DelimitedReader, pending: bool },
    JsonLines { reader: JsonLinesReader, pending: VecDeque<Object> },
    Parquet(Option<ParquetReader>),
    Lines(LineReader),
}

impl Records {
    /// Opens a file.
    ///
    /// # Errors
    /// As [`Records::from_reader`], and [`Error::Io`] if it cannot be opened.
    pub fn open(path: &Path, format: Format) -> Result<Records, Error> {
        let file = File::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        match format {
            Format::Parquet => {
                let reader =
                    ParquetReader::open(file).map_err(|problem| Error::Parquet { path: path.to_owned(), problem })?;
                Ok(Records::from_parquet(path, reader))
            }
            _ => {
                let ahead = if file.metadata().is_ok_and(|metadata| metadata.is_file()) { OBJECTS_AHEAD } else { 1 };
                Records::looking_ahead(Box::new(BufReader::with_capacity(1 << 16, file)), path, format, ahead)
            }
        }
    }

    /// Reads from any source, standard input among them; `path` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Empty`] or [`Error::BrokenHeader`] if it has no usable header, [`Error::Parquet`] for a Parquet stream, whose
    /// end has to be read first.
    pub fn from_reader(source: Box<dyn BufRead + Send>, path: &Path, format: Format) -> Result<Records, Error> {
        Records::looking_ahead(source, path, format, 1)
    }

    fn looking_ahead(
        source: Box<dyn BufRead + Send>,
        path: &Path,
        format: Format,
        objects: usize,
    ) -> Result<Records, Error> {
        let columns;
        let mut open = false;
        let source = match format {
            Format::Csv | Format::Tsv => {
                let mut reader = DelimitedReader::new(source, format == Format::Csv);
                columns = header(&mut reader, path)?;
                reader.keep(columns.len());
                Source::Delimited { reader, pending: false }
            }
            Format::JsonLines => {
                let mut reader = JsonLinesReader::new(source);
                let pending;
                (columns, pending, open) = first_objects(&mut reader, path, objects)?;
                Source::JsonLines { reader, pending }
            }
            Format::Lines => {
                columns = vec!["text".to_owned()];
                Source::Lines(LineReader::new(source))
            }
            Format::Parquet => {
                let problem = "a Parquet file cannot be read as a stream; give it as a file".to_owned();
                return Err(Error::Parquet { path: path.to_owned(), problem });
            }
        };
        Ok(Records::new(path, source, columns, open))
    }

    fn new(path: &Path, source: Source, columns: Vec<String>, open: bool) -> Records {
        let (selected, indices, unexpected) = (Vec::new(), Vec::new(), Vec::new());
        Records { path: path.to_owned(), source, columns, selected, indices, open, unexpected }
    }

    /// Reads a Parquet file held in memory.
    ///
    /// # Errors
    /// [`Error::Parquet`] if it is not one.
    pub fn from_parquet_bytes(bytes: Vec<u8>, path: &Path) -> Result<Records, Error> {
        let reader = ParquetReader::from_chunks(bytes::Bytes::from(bytes))
            .map_err(|problem| Error::Parquet { path: path.to_owned(), problem })?;
        Ok(Records::from_parquet(path, reader))
    }

    fn from_parquet(path: &Path, reader: ParquetReader) -> Records {
        let columns = reader.columns().to_vec();
        Records::new(path, Source::Parquet(Some(reader)), columns, false)
    }

    /// The file's columns; in JSON lines the keys of the first objects, of a stream those of the very first.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Whether there may be more columns than [`Records::columns`] has: JSON lines were not read to their end for them.
    pub fn may_have_more_columns(&self) -> bool {
        self.open
    }

    /// A record with a value in one of these columns, in whatever case, is broken from now on: the caller would pass over it.
    pub(crate) fn expect_none_of(&mut self, columns: Vec<&'static str>) {
        self.unexpected = columns;
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names that a Parquet file's metadata gives the integers of a column, as the Hugging Face hub writes them.
    pub fn class_names(&self, column: &str) -> Option<Vec<String>> {
        match &self.source {
            Source::Parquet(Some(reader)) => reader.class_names(column),
            _ => None,
        }
    }

    /// Takes the first row of a file without a header for a record, under these column names. Only before the first record.
    pub fn without_header(&mut self, columns: &[&str]) {
        if let Source::Delimited { pending, reader } = &mut self.source
            && reader.len() == columns.len()
        {
            *pending = true;
            self.columns = columns.iter().map(|&column| column.to_owned()).collect();
        }
    }

    /// Chooses the columns whose values the records have, in this order. A column that may yet turn up is not missed.
    ///
    /// # Errors
    /// [`Error::NoSuchColumn`] and [`Error::DoubledColumn`].
    pub fn select(&mut self, columns: &[&str]) -> Result<(), Error> {
        self.selected = columns.iter().map(|&column| column.to_owned()).collect();
        self.indices.clear();
        for &column in columns {
            let mut found = self.columns.iter().enumerate().filter(|(_, name)| *name == column);
            match (found.next(), found.next()) {
                (Some((index, _)), None) => self.indices.push(index),
                (Some(_), Some(_)) => {
                    return Err(Error::DoubledColumn { path: self.path.clone(), name: column.to_owned() });
                }
                (None, _) if self.open => {}
                (None, _) => {
                    let (path, wanted) = (self.path.clone(), column.to_owned());
                    return Err(Error::NoSuchColumn { path, wanted, found: self.columns.clone() });
                }
            }
        }
        if let Source::Parquet(reader) = &mut self.source {
            *reader = match reader.take().map(|reader| reader.select(columns)) {
                Some(Ok(reader)) => Some(reader),
                Some(Err(problem)) => return Err(Error::Parquet { path: self.path.clone(), problem }),
                None => None,
            };
        }
        Ok(())
    }

    /// The next record, or the next broken row; none at the end.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Parquet`] if the file cannot be read on.
    pub fn read(&mut self) -> Result<Option<Result<Record, BrokenRow>>, Error> {
        let next = match &mut self.source {
            Source::Delimited { reader, pending } => {
                let row = if std::mem::take(pending) { Ok(Row::Read(1)) } else { reader.read() };
                match row {
                    Err(source) => return Err(Error::Io { path: self.path.clone(), source }),
                    Ok(Row::End) => return Ok(None),
                    Ok(Row::Broken(line, problem)) => Err((line, problem)),
                    Ok(Row::Read(line)) if reader.len() != self.columns.len() => {
                        Err((line, RowProblem::ColumnCount { expected: self.columns.len(), found: reader.len() }))
                    }
                    Ok(Row::Read(line)) => Ok((line, self.indices.iter().map(|&i| text(reader.field(i))).collect())),
                }
            }
            Source::JsonLines { reader, pending } => {
                let object = match pending.pop_front() {
                    Some(object) => object,
                    None => reader.read().map_err(|source| Error::Io { path: self.path.clone(), source })?,
                };
                match object {
                    Object::End => return Ok(None),
                    Object::Broken(line, problem) => Err((line, problem)),
                    Object::Read(line, mut object) => match late(&object, &self.unexpected) {
                        Some(column) => Err((line, RowProblem::LateColumn { column })),
                        None => {
                            Ok((line, self.selected.iter().map(|column| json_value(object.get_mut(column))).collect()))
                        }
                    },
                }
            }
            Source::Parquet(reader) => match reader.as_mut().and_then(|reader| reader.read(&self.selected)) {
                None => return Ok(None),
                Some(Ok(row)) => Ok(row),
                Some(Err(problem)) => return Err(Error::Parquet { path: self.path.clone(), problem }),
            },
            Source::Lines(reader) => {
                let mut raw = Vec::new();
                match reader.read(&mut raw).map_err(|source| Error::Io { path: self.path.clone(), source })? {
                    Line::End => return Ok(None),
                    Line::TooLong => Err((reader.line(), RowProblem::TooLong { quoted: false })),
                    Line::Read => match std::str::from_utf8(without_ending(&raw)) {
                        Ok(line) => Ok((reader.line(), vec![Value::Text(line.to_owned()); self.indices.len()])),
                        Err(_) => Err((reader.line(), RowProblem::LineNotUtf8)),
                    },
                }
            }
        };
        Ok(Some(match next {
            Ok((line, values)) => Ok(Record { line, values }),
            Err((line, problem)) => Err(BrokenRow { path: self.path.clone(), line, problem }),
        }))
    }
}

fn text(field: &[u8]) -> Value {
    match std::str::from_utf8(field) {
        Ok(text) => Value::Text(text.to_owned()),
        Err(_) => Value::NotUtf8,
    }
}

pub(crate) fn json_value(value: Option<&mut serde_json::Value>) -> Value {
    match value.map(serde_json::Value::take) {
        None | Some(serde_json::Value::Null) => Value::Missing,
        Some(serde_json::Value::String(text)) => Value::Text(text),
        Some(serde_json::Value::Bool(value)) => Value::Text(value.to_string()),
        Some(serde_json::Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Value::Integer(integer),
            (None, Some(float)) => Value::Float(float),
            (None, None) => Value::Text(number.to_string()),
        },
        Some(other) => Value::Other(kind(&other)),
    }
}

/// The names in the first row of a CSV or TSV file.
fn header(reader: &mut DelimitedReader, path: &Path) -> Result<Vec<String>, Error> {
    let broken = |problem| Error::BrokenHeader { path: path.to_owned(), problem };
    match reader.read().map_err(|source| Error::Io { path: path.to_owned(), source })? {
        Row::End => Err(Error::Empty { path: path.to_owned(), expected: "a header row and rows below it" }),
        Row::Broken(_, problem) => Err(broken(problem)),
        Row::Read(_) if reader.len() > MOST_COLUMNS => Err(broken(RowProblem::TooManyColumns { found: reader.len() })),
        Row::Read(_) => (0..reader.len())
            .map(|index| match std::str::from_utf8(reader.field(index)) {
                Ok(name) => Ok(name.trim().to_owned()),
                Err(_) => Err(broken(RowProblem::NotUtf8 { column: (index + 1).to_string() })),
            })
            .collect(),
    }
}

/// The key of an object that is one of `unexpected` and has a value.
fn late(object: &serde_json::Map<String, serde_json::Value>, unexpected: &[&str]) -> Option<String> {
    let is_late = |key: &str| unexpected.iter().any(|name| name.eq_ignore_ascii_case(key));
    if unexpected.is_empty() {
        return None;
    }
    let says = |value: &serde_json::Value| !value.is_null() && value.as_str() != Some("");
    object.iter().find(|(key, value)| says(value) && is_late(key)).map(|(key, _)| key.clone())
}

/// The keys of the first `wanted` objects in the order in which they turn up, everything read up to there, and whether there
/// is more.
fn first_objects(
    reader: &mut JsonLinesReader,
    path: &Path,
    wanted: usize,
) -> Result<(Vec<String>, VecDeque<Object>, bool), Error> {
    let mut pending = VecDeque::new();
    let (mut columns, mut known) = (Vec::new(), HashSet::new());
    let (mut objects, mut bytes) = (0, 0);
    let enough = |objects, bytes, lines| {
        objects == wanted || (objects > 0 && (bytes >= BYTES_AHEAD || lines >= LINES_BEFORE_FIRST_OBJECT))
    };
    while !enough(objects, bytes, pending.len()) {
        let object = reader.read().map_err(|source| Error::Io { path: path.to_owned(), source })?;
        bytes += reader.line_length();
        match object {
            Object::Read(_, ref fields) => {
                columns.extend(fields.keys().filter(|key| known.insert((*key).clone())).cloned());
                objects += 1;
            }
            Object::Broken(_, problem) if objects == 0 && pending.len() + 1 >= LINES_BEFORE_FIRST_OBJECT => {
                return Err(Error::BrokenHeader { path: path.to_owned(), problem });
            }
            Object::Broken(..) => {}
            Object::End if objects > 0 => return Ok((columns, pending, false)),
            Object::End => match pending.pop_front() {
                Some(Object::Broken(line, problem)) => {
                    let row = BrokenRow { path: path.to_owned(), line, problem };
                    return Err(Error::BrokenRows { rows: vec![row], count: pending.len() + 1 });
                }
                _ => return Err(Error::Empty { path: path.to_owned(), expected: "a JSON object a line" }),
            },
        }
        pending.push_back(object);
    }
    Ok((columns, pending, true))
}
