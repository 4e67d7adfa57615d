//! Rows of CSV and TSV files. TSV is GLUE's: every tab separates, a quote is a character. Each row's fields are given as
//! bytes, for the caller to pick from; the row's first line is counted also where quoted fields hold line breaks.

use std::io::BufRead;

use csv_core::{ReadRecordResult, Reader};

use crate::error::{LONGEST_RECORD, MOST_COLUMNS, RowProblem};
use crate::lines::{Line, LineReader, without_ending};

/// Reads the rows of a CSV or TSV file.
pub struct DelimitedReader {
    lines: LineReader,
    /// The CSV state machine; none for tabs.
    quotes: Option<Box<Reader>>,
    /// The physical line being read, and how much of it is used up.
    raw: Vec<u8>,
    used: usize,
    /// The fields of the row one after another, where each ends, and how many there are; of a row with more than `kept`
    /// fields, only their number is right.
    fields: Vec<u8>,
    ends: Vec<usize>,
    count: usize,
    kept: usize,
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
            kept: MOST_COLUMNS,
        }
    }

    /// Keeps no more than so many fields of a row from now on; all are counted. The row last read loses none.
    pub fn keep(&mut self, fields: usize) {
        self.kept = fields.clamp(1, MOST_COLUMNS).max(self.count);
    }

    /// How many fields the row last read has.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Field `index` of the row last read, which must have no more than are kept.
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
        self.count = 0;
        for field in without_ending(&self.raw).split(|&byte| byte == b'\t') {
            self.count += 1;
            if self.count <= self.kept {
                self.fields.extend_from_slice(field);
                self.ends.push(self.fields.len());
            }
        }
        self.used = self.raw.len();
        Row::Read(self.lines.line())
    }

    fn read_quoted(&mut self, reader: &mut Reader) -> std::io::Result<Row> {
        let start = self.lines.line();
        let (mut filled, mut ended) = (0, 0);
        // Bytes used and fields counted so far; a field takes a byte at least, also an empty one.
        let (mut length, mut count) = (0, 0);
        let (mut too_long, mut open) = (false, false);
        loop {
            let (result, consumed, written, fields) =
                reader.read_record(&self.raw[self.used..], &mut self.fields[filled..], &mut self.ends[ended..]);
            self.used += consumed;
            filled += written;
            ended += fields;
            length += consumed;
            count += fields;
            too_long |= length > LONGEST_RECORD;
            match result {
                ReadRecordResult::OutputFull if too_long || filled >= LONGEST_RECORD => {
                    too_long = true;
                    filled = 0;
                }
                ReadRecordResult::OutputFull => {
                    self.fields.resize((self.fields.len() * 2).clamp(256, LONGEST_RECORD), 0);
                }
                // One more than are kept, so that a row of just as many fits.
                ReadRecordResult::OutputEndsFull if ended > self.kept => ended = 0,
                ReadRecordResult::OutputEndsFull => {
                    self.ends.resize((self.ends.len() * 2).clamp(16, self.kept.max(16) + 1), 0);
                }
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
                self.count = count;
                Row::Read(start)
            }
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufReader, Read};

    use super::*;

    /// What came of each row: its fields, or their number if there are more than are kept, or how it is broken.
    fn rows(text: &str, quoted: bool, kept: usize) -> Vec<Result<Vec<String>, String>> {
        let mut reader = DelimitedReader::new(Box::new(std::io::Cursor::new(text.to_owned())), quoted);
        reader.keep(kept);
        let mut rows = Vec::new();
        loop {
            rows.push(match reader.read().unwrap() {
                Row::End => return rows,
                Row::Broken(_, problem) => Err(problem.to_string()),
                Row::Read(_) if reader.len() > kept => Err(reader.len().to_string()),
                Row::Read(_) => Ok((0..reader.len())
                    .map(|field| String::from_utf8(reader.field(field).to_vec()).unwrap())
                    .collect()),
            });
        }
    }

    #[test]
    fn fields_beyond_those_kept_are_counted() {
        let ok = |fields: &[&str]| Ok(fields.iter().map(|&field| field.to_owned()).collect::<Vec<_>>());
        let wide = "x,".repeat(99);
        let text = format!("a,b,c\n{wide}\n1,\"2\n2\",3\n,,\n,,,\nlast,row");
        let expected = [
            ok(&["a", "b", "c"]),
            Err("100".to_owned()),
            ok(&["1", "2\n2", "3"]),
            ok(&["", "", ""]),
            Err("4".to_owned()),
        ];
        let found = rows(&text, true, 3);
        assert_eq!(found[..5], expected);
        assert_eq!(found[5], ok(&["last", "row"]));
        let tabs = rows(&text.replace('"', "").replace(',', "\t").replace("2\n2", "2"), false, 3);
        assert_eq!(tabs[..2], expected[..2]);
        assert_eq!(tabs[3..], found[3..]);
    }

    #[test]
    fn a_record_of_empty_fields_on_many_lines_takes_no_memory() {
        // A quote is opened at the end of each line and closed on the next, so all lines are one record.
        let line = format!("\"{}\"\n", ",".repeat(1 << 16));
        let lines = LONGEST_RECORD / line.len() + 2;
        let body = std::io::Cursor::new("\"".to_owned()).chain(Repeated { line: line.into_bytes(), at: 0, lines });
        let text = std::io::Cursor::new("a,b\n".to_owned()).chain(body).chain(std::io::Cursor::new("\"\nx,y\n"));
        let mut reader = DelimitedReader::new(Box::new(BufReader::new(text)), true);
        assert!(matches!(reader.read().unwrap(), Row::Read(1)));
        reader.keep(2);
        assert!(matches!(reader.read().unwrap(), Row::Broken(2, RowProblem::TooLong { quoted: true })));
        assert!(reader.ends.len() <= 17, "{}", reader.ends.len());
        assert!(matches!(reader.read().unwrap(), Row::Read(_)));
        assert_eq!((reader.field(0), reader.field(1)), (&b"x"[..], &b"y"[..]));
    }

    /// The same line again and again.
    struct Repeated {
        line: Vec<u8>,
        at: usize,
        lines: usize,
    }

    impl Read for Repeated {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.lines == 0 {
                return Ok(0);
            }
            let taken = (&self.line[self.at..]).read(buffer)?;
            self.at += taken;
            if self.at == self.line.len() {
                (self.at, self.lines) = (0, self.lines - 1);
            }
            Ok(taken)
        }
    }
}
