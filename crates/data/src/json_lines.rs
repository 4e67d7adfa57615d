//! Rows of JSON-lines files: an object a line.

use std::io::BufRead;

use serde_json::{Map, Value};

use crate::error::RowProblem;
use crate::lines::{Line, LineReader, without_ending};

/// Reads the objects of a JSON-lines file.
pub struct JsonLinesReader {
    lines: LineReader,
    raw: Vec<u8>,
}

/// What came of reading a line.
pub enum Object {
    /// The object on this line.
    Read(u64, Map<String, Value>),
    /// The line is broken.
    Broken(u64, RowProblem),
    /// There are no more.
    End,
}

impl JsonLinesReader {
    /// Reads from the first line on.
    pub fn new(source: Box<dyn BufRead + Send>) -> JsonLinesReader {
        JsonLinesReader { lines: LineReader::new(source), raw: Vec::new() }
    }

    /// Goes on after so many lines and bytes of a file, where the source stands.
    pub fn after(source: Box<dyn BufRead + Send>, lines: u64, bytes: u64) -> JsonLinesReader {
        JsonLinesReader { lines: LineReader::after(source, lines, bytes), raw: Vec::new() }
    }

    /// How many lines and how many bytes have been read.
    pub fn place(&self) -> (u64, u64) {
        (self.lines.line(), self.lines.offset())
    }

    /// How long the line last read is, in bytes.
    pub fn line_length(&self) -> usize {
        self.raw.len()
    }

    /// Reads the next object; blank lines are passed over.
    pub fn read(&mut self) -> std::io::Result<Object> {
        loop {
            self.raw.clear();
            let fate = self.lines.read(&mut self.raw)?;
            let line = self.lines.line();
            match fate {
                Line::End => return Ok(Object::End),
                Line::TooLong => return Ok(Object::Broken(line, RowProblem::TooLong { quoted: false })),
                Line::Read if without_ending(&self.raw).trim_ascii().is_empty() => {}
                Line::Read => {
                    return Ok(match serde_json::from_slice::<Value>(without_ending(&self.raw)) {
                        Ok(Value::Object(object)) => Object::Read(line, object),
                        Ok(other) => Object::Broken(line, RowProblem::NotJson(format!("it is {}", kind(&other)))),
                        Err(_) if line == 1 && self.raw.trim_ascii_start().starts_with(b"[") => {
                            let reason = "the file begins with an array; an object a line is expected";
                            Object::Broken(line, RowProblem::NotJson(reason.to_owned()))
                        }
                        Err(error) => Object::Broken(line, RowProblem::NotJson(error_text(&error))),
                    });
                }
            }
        }
    }
}

/// What a JSON value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The parser's message with its column; its line is always 1 here and says nothing.
fn error_text(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((message, _)) => format!("{message} at column {}", error.column()),
        None => text,
    }
}
