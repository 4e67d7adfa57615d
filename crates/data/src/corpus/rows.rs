//! The documents of JSON lines and Parquet: a row's text each, handed out in bounded pieces.

use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use super::CorpusFile;
use super::cut::{PIECE_BYTES, cut};
use super::reader::{Piece, Place};
use crate::error::{BrokenRow, Error, RowProblem};
use crate::format::Format;
use crate::json_lines::{JsonLinesReader, Object};
use crate::parquet_rows::ParquetReader;
use crate::records::{Value, json_value};
use crate::split;

/// Reads the rows of a file and cuts their texts.
pub(super) struct RowsReader {
    path: PathBuf,
    rows: Rows,
    field: String,
    /// The document that is being handed out, as far as `place.within` bytes.
    text: String,
    place: Place,
    /// Where the row after it begins.
    next: Place,
}

enum Rows {
    JsonLines(JsonLinesReader),
    Parquet(ParquetReader),
}

impl RowsReader {
    pub fn open(file: &CorpusFile, source: File, field: &str, place: Place) -> Result<RowsReader, Error> {
        let path = file.path.clone();
        let rows = match file.format {
            Format::Parquet => Rows::Parquet(parquet(file, source, field, place)?),
            _ => {
                if place.position > file.size_bytes {
                    let (expected, found) = (format!("at most {} bytes", file.size_bytes), place.position.to_string());
                    return Err(Error::BrokenPlace { field: "position", expected, found });
                }
                let mut source = source;
                let sought = source.seek(SeekFrom::Start(place.position));
                sought.map_err(|source| Error::Io { path: path.clone(), source })?;
                let source = Box::new(BufReader::with_capacity(1 << 16, source));
                Rows::JsonLines(JsonLinesReader::after(source, place.lines, place.position))
            }
        };
        let start = Place { within: 0, ..place };
        let mut reader =
            RowsReader { path, rows, field: field.to_owned(), text: String::new(), place: start, next: start };
        if place.within > 0 {
            let there = usize::try_from(place.within).ok();
            let there = match reader.read_row()? {
                true => there.filter(|&within| within < reader.text.len() && reader.text.is_char_boundary(within)),
                false => None,
            };
            if there.is_none() {
                let expected = format!("a letter within a text of {} bytes", reader.text.len());
                return Err(Error::BrokenPlace { field: "within", expected, found: place.within.to_string() });
            }
            reader.place.within = place.within;
        }
        Ok(reader)
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// The next piece that is not an empty document's.
    pub fn read(&mut self) -> Result<Option<Piece>, Error> {
        loop {
            if self.place.within == 0 && !self.read_row()? {
                return Ok(None);
            }
            // What is in memory is shorter than the address space.
            let within = usize::try_from(self.place.within).unwrap_or(usize::MAX);
            let rest = self.text.get(within..).unwrap_or_default();
            let taken = cut(rest, PIECE_BYTES);
            let ends_document = taken == rest.len();
            let piece = Piece { starts_document: within == 0, ends_document, text: rest[..taken].to_owned() };
            if ends_document {
                self.place = self.next;
                self.text = String::new();
            } else {
                self.place.within += taken as u64;
            }
            if !piece.is_empty_document() {
                return Ok(Some(piece));
            }
        }
    }

    /// Reads the next row's text; says whether there was one.
    fn read_row(&mut self) -> Result<bool, Error> {
        let broken = |line, problem| Err(Error::BrokenDocument(BrokenRow { path: self.path.clone(), line, problem }));
        let (line, value) = match &mut self.rows {
            Rows::JsonLines(reader) => {
                let object = reader.read().map_err(|source| Error::Io { path: self.path.clone(), source })?;
                let (lines, position) = reader.place();
                self.next = Place { position, lines, within: 0 };
                match object {
                    Object::End => return Ok(false),
                    Object::Broken(line, problem) => return broken(line, problem),
                    Object::Read(line, mut object) => match object.get_mut(&self.field) {
                        Some(value) => (line, json_value(Some(value))),
                        None => {
                            let found = object.keys().cloned().collect();
                            return broken(line, RowProblem::NoField { wanted: self.field.clone(), found });
                        }
                    },
                }
            }
            Rows::Parquet(reader) => {
                let row = reader.read(std::slice::from_ref(&self.field));
                self.next = Place { position: reader.rows_read(), lines: 0, within: 0 };
                match row {
                    None => return Ok(false),
                    Some(Err(problem)) => return Err(Error::Parquet { path: self.path.clone(), problem }),
                    Some(Ok((line, mut values))) => (line, values.pop().unwrap_or(Value::Missing)),
                }
            }
        };
        match split::text(value, &self.field) {
            Ok(text) => self.text = text,
            Err(problem) => return broken(line, problem),
        }
        Ok(true)
    }
}

fn parquet(file: &CorpusFile, source: File, field: &str, place: Place) -> Result<ParquetReader, Error> {
    let broken = |problem| Error::Parquet { path: file.path.clone(), problem };
    let reader = ParquetReader::open(source).map_err(broken)?;
    match reader.columns().iter().filter(|column| *column == field).count() {
        1 => {}
        0 => {
            let (path, wanted) = (file.path.clone(), field.to_owned());
            return Err(Error::NoSuchColumn { path, wanted, found: reader.columns().to_vec() });
        }
        _ => return Err(Error::DoubledColumn { path: file.path.clone(), name: field.to_owned() }),
    }
    let mut reader = reader.select(&[field]).map_err(broken)?;
    reader.skip(place.position).map_err(broken)?;
    Ok(reader)
}
