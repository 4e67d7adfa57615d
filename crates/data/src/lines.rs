//! Physical lines of a file with their numbers, in constant memory: a byte order mark is dropped, a line beyond the limit is
//! skipped and reported. Carriage returns are left to the formats, which differ about them.

use std::io::BufRead;

use crate::error::LONGEST_RECORD;

/// A line's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It is in the buffer, with its line feed if it has one.
    Read,
    /// It was longer than [`LONGEST_RECORD`] and has been skipped.
    TooLong,
    /// There are no more.
    End,
}

/// Reads lines and counts them.
pub struct LineReader {
    source: Box<dyn BufRead + Send>,
    line: u64,
    offset: u64,
    limit: usize,
}

impl LineReader {
    /// Starts at line 1 of the source.
    pub fn new(source: Box<dyn BufRead + Send>) -> LineReader {
        LineReader::after(source, 0, 0)
    }

    /// Goes on after so many lines and bytes of a file, where the source stands.
    pub fn after(source: Box<dyn BufRead + Send>, lines: u64, bytes: u64) -> LineReader {
        LineReader { source, line: lines, offset: bytes, limit: LONGEST_RECORD }
    }

    /// The number of the line last read, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// How many bytes have been read, the byte order mark and lines that were skipped included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends the next line to `buffer`.
    pub fn read(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<Line> {
        let start = buffer.len();
        let mut too_long = false;
        loop {
            let chunk = match self.source.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                if buffer.len() == start && !too_long {
                    return Ok(Line::End);
                }
                break;
            }
            let end = chunk.iter().position(|&byte| byte == b'\n').map(|position| position + 1);
            let take = end.unwrap_or(chunk.len());
            if too_long || buffer.len() - start + take > self.limit {
                too_long = true;
                buffer.truncate(start);
            } else {
                buffer.extend_from_slice(&chunk[..take]);
            }
            self.source.consume(take);
            self.offset += take as u64;
            if end.is_some() {
                break;
            }
        }
        self.line += 1;
        if self.line == 1 && buffer[start..].starts_with(b"\xef\xbb\xbf") {
            buffer.drain(start..start + 3);
        }
        Ok(if too_long { Line::TooLong } else { Line::Read })
    }
}

/// The line without its line feed or carriage return and line feed.
pub fn without_ending(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lines(bytes: &'static [u8], limit: usize, buffer_size: usize) -> Vec<(u64, Line, Vec<u8>)> {
        let source = std::io::BufReader::with_capacity(buffer_size, bytes);
        let mut reader = LineReader { source: Box::new(source), line: 0, offset: 0, limit };
        let mut found = Vec::new();
        loop {
            let mut buffer = Vec::new();
            match reader.read(&mut buffer).unwrap() {
                Line::End => {
                    assert_eq!(reader.offset(), bytes.len() as u64);
                    return found;
                }
                line => found.push((reader.line(), line, buffer)),
            }
        }
    }

    #[test]
    fn a_line_beyond_the_limit_is_skipped_and_the_next_is_read() {
        for buffer_size in [1, 2, 3, 7, 100] {
            let found = lines(b"\xef\xbb\xbfab\r\n0123456789abc\n\nlast", 8, buffer_size);
            let expected = [
                (1, Line::Read, b"ab\r\n".to_vec()),
                (2, Line::TooLong, vec![]),
                (3, Line::Read, b"\n".to_vec()),
                (4, Line::Read, b"last".to_vec()),
            ];
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn an_empty_source_has_no_line() {
        assert!(lines(b"", 8, 4).is_empty());
    }
}
