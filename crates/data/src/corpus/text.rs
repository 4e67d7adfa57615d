//! The documents of a text file, read in bounded pieces: the whole file, or each of its lines.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::cut::{PIECE_BYTES, cut};
use super::reader::{Piece, Place};
use super::{CorpusFile, TextDocuments};
use crate::error::{BrokenRow, Error, RowProblem};
use crate::lines::without_ending;

/// How many bytes are read at once. There are always a piece and the letter behind it in the buffer, if the file has them.
const READ_BYTES: usize = 4 * PIECE_BYTES;
const ENOUGH_BYTES: usize = PIECE_BYTES + 4;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads the pieces of a text file.
pub(super) struct TextReader {
    path: PathBuf,
    source: File,
    documents: TextDocuments,
    buffer: Vec<u8>,
    /// Where in the buffer the next piece begins.
    start: usize,
    ended: bool,
    place: Place,
}

impl TextReader {
    pub fn open(
        file: &CorpusFile,
        mut source: File,
        documents: TextDocuments,
        place: Place,
    ) -> Result<TextReader, Error> {
        let path = file.path.clone();
        if place.position > file.size_bytes {
            let (expected, found) = (format!("at most {} bytes", file.size_bytes), place.position.to_string());
            return Err(Error::BrokenPlace { field: "position", expected, found });
        }
        source.seek(SeekFrom::Start(place.position)).map_err(failed(&path))?;
        Ok(TextReader { path, source, documents, buffer: Vec::new(), start: 0, ended: false, place })
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// The next piece that is not an empty document's.
    pub fn read(&mut self) -> Result<Option<Piece>, Error> {
        loop {
            self.fill()?;
            let bytes = &self.buffer[self.start..];
            if bytes.is_empty() {
                return Ok(None);
            }
            let window = &bytes[..bytes.len().min(ENOUGH_BYTES)];
            let line_end = match self.documents {
                TextDocuments::File => None,
                TextDocuments::Line => window.iter().position(|&byte| byte == b'\n'),
            };
            let (text, taken, ends_document) = match line_end {
                Some(end) if end <= PIECE_BYTES => (self.text(without_ending(&bytes[..=end]), true)?, end + 1, true),
                _ if bytes.len() <= PIECE_BYTES => (self.text(bytes, true)?, bytes.len(), true),
                _ => {
                    let text = self.text(window, false)?;
                    let taken = cut(text, PIECE_BYTES);
                    (&text[..taken], taken, false)
                }
            };
            let text = text.to_owned();
            let piece = Piece { starts_document: self.place.within == 0, ends_document, text };
            let lines = self.buffer[self.start..self.start + taken].iter().filter(|&&byte| byte == b'\n').count();
            self.start += taken;
            self.place.position += taken as u64;
            self.place.lines += lines as u64;
            self.place.within = if ends_document { 0 } else { self.place.within + taken as u64 };
            if !piece.is_empty_document() {
                return Ok(Some(piece));
            }
        }
    }

    /// Bytes as text; unless they are `whole`, their last letter may be cut off and is left out then.
    fn text<'b>(&self, bytes: &'b [u8], whole: bool) -> Result<&'b str, Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(error) => {
                let valid = &bytes[..error.valid_up_to()];
                if error.error_len().is_none() && !whole {
                    return Ok(std::str::from_utf8(valid).unwrap_or_default());
                }
                let lines = valid.iter().filter(|&&byte| byte == b'\n').count();
                let line = self.place.lines + lines as u64 + 1;
                let row = BrokenRow { path: self.path.clone(), line, problem: RowProblem::LineNotUtf8 };
                Err(Error::BrokenDocument(row))
            }
        }
    }

    /// Reads on if the buffer has not enough.
    fn fill(&mut self) -> Result<(), Error> {
        if self.ended || self.buffer.len() - self.start >= ENOUGH_BYTES {
            return Ok(());
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let wanted = (READ_BYTES - self.buffer.len()) as u64;
        let read = (&mut self.source).take(wanted).read_to_end(&mut self.buffer).map_err(failed(&self.path))?;
        self.ended = (read as u64) < wanted;
        if self.place.position == 0 && self.buffer.starts_with(BYTE_ORDER_MARK) {
            self.start = BYTE_ORDER_MARK.len();
            self.place.position = self.start as u64;
        }
        Ok(())
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}
