//! Rows of CSV and TSV files. TSV is GLUE's: every tab separates, a quote is a character. Each row's fields are given as
//! bytes, for the caller to pick from; the row's first line is counted also where quoted fields hold line breaks.

use std::io::BufRead;

use csv_core::{ReadRecordResult, Reader};

use crate::error::{LONGEST_RECORD, RowProblem};
use crate::lines::{Line, LineReader, without_ending};

/// Reads the rows of a CSV or TSV file.
pub struct DelimitedReader {
    lines: LineReader,
    /// The CSV state machine; none for tabs.
    quotes: Option<Box<Reader>>,
    /// The physical line being read, and how much of it is used up.
    raw: Vec<u8>,
    used: usize,
    /// The fields of the row one after another, where each ends, and how many there are.
    fields: Vec<u8>,
    ends: Vec<usize>,
    count: usize,
}

/// What came of reading a row.
pub enum Row {
    /// Its fields are there; the number is the line it begins on.
    Read(u64),
    /// It is broken.
    Broken(u64, RowProblem),
    /// There are no more.
    End,
}

impl DelimitedReader {
    /// Reads commas and quotes, or tabs.
    pub fn new(source: Box<dyn BufRead + Send>, quoted: bool) -> DelimitedReader {
        DelimitedReader {
            lines: LineReader::new(source),
            quotes: quoted.then(|| Box::new(Reader::new())),
            raw: Vec::new(),
            used: 0,
            fields: Vec::new(),
            ends: Vec::new(),
            count: 0,
        }
    }

    /// How many fields the row last read has.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Field `index` of the row last read.
    pub fn field(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.fields[start..self.ends[index]]
    }

    /// Reads the next row; lines with nothing on them are passed over.
    pub fn read(&mut self) -> std::io::Result<Row> {
        self.count = 0;
        while without_ending(&self.raw[self.used..]).is_empty() {
            match self.next_line()? {
                Line::Read => {}
                Line::TooLong => return Ok(Row::Broken(self.lines.line(), RowProblem::TooLong { quoted: false })),
                Line::End => return Ok(Row::End),
            }
        }
        match self.quotes.take() {
            None => Ok(self.split_tabs()),
            Some(mut reader) => {
                let row = self.read_quoted(&mut reader);
                self.quotes = Some(reader);
                row
            }
        }
    }

    /// Puts the next physical line into `raw`, with a line feed also where the file ends without one.
    fn next_line(&mut self) -> std::io::Result<Line> {
        self.raw.clear();
        self.used = 0;
        let line = self.lines.read(&mut self.raw)?;
        if line == Line::Read && !self.raw.ends_with(b"\n") {
            self.raw.push(b'\n');
        }
        Ok(line)
    }

    fn split_tabs(&mut self) -> Row {
        self.fields.clear();
        self.ends.clear();
        for field in without_ending(&self.raw).split(|&byte| byte == b'\t') {
            self.fields.extend_from_slice(field);
            self.ends.push(self.fields.len());
        }
        self.used = self.raw.len();
        self.count = self.ends.len();
        Row::Read(self.lines.line())
    }

    fn read_quoted(&mut self, reader: &mut Reader) -> std::io::Result<Row> {
        let start = self.lines.line();
        let (mut filled, mut ended) = (0, 0);
        let (mut too_long, mut open) = (false, false);
        loop {
            let (result, consumed, written, fields) =
                reader.read_record(&self.raw[self.used..], &mut self.fields[filled..], &mut self.ends[ended..]);
            self.used += consumed;
            filled += written;
            ended += fields;
            match result {
                ReadRecordResult::OutputFull if filled >= LONGEST_RECORD => {
                    too_long = true;
                    filled = 0;
                }
                ReadRecordResult::OutputFull => {
                    self.fields.resize((self.fields.len() * 2).clamp(256, LONGEST_RECORD), 0);
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize((self.ends.len() * 2).max(16), 0),
                // Every line ends in a line feed, so a record that wants more is inside quotes.
                ReadRecordResult::InputEmpty => match self.next_line()? {
                    Line::Read => {}
                    Line::End => open = true,
                    Line::TooLong => {
                        reader.reset();
                        return Ok(Row::Broken(start, RowProblem::TooLong { quoted: true }));
                    }
                },
                ReadRecordResult::Record | ReadRecordResult::End => break,
            }
        }
        Ok(match (too_long, open) {
            (true, _) => Row::Broken(start, RowProblem::TooLong { quoted: true }),
            (false, true) => Row::Broken(start, RowProblem::OpenQuote),
            (false, false) => {
                self.count = ended;
                Row::Read(start)
            }
        })
    }
}
