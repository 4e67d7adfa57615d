//! Reads the documents of a corpus file by file, and knows at any time from where to go on.

use std::fs::File;

use super::cursor::check_number;
use super::rows::RowsReader;
use super::text::TextReader;
use super::{Corpus, Cursor, Fingerprint};
use crate::error::Error;
use crate::format::Format;

/// A document, or a part of a long one. The texts of a document's pieces, put together, are its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The text: at most [`super::PIECE_BYTES`]. Only the last piece of a line may be empty.
    pub text: String,
    /// Whether the document begins with it.
    pub starts_document: bool,
    /// Whether the document ends with it.
    pub ends_document: bool,
}

impl Piece {
    /// Whether it is a document with nothing but white space.
    pub(super) fn is_empty_document(&self) -> bool {
        self.starts_document && self.ends_document && self.text.trim().is_empty()
    }
}

/// A place in one file; see [`Cursor`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub position: u64,
    pub lines: u64,
    pub within: u64,
}

/// Reads the pieces of a corpus in order.
///
/// # Example
/// ```
/// # let folder = tempfile::tempdir()?;
/// # std::fs::write(folder.path().join("a.jsonl"), "{\"text\": \"one\"}\n{\"text\": \"two\"}\n")?;
/// use finegates_data::{Corpus, CorpusOptions};
///
/// let corpus = Corpus::open(&CorpusOptions::new(vec![folder.path().to_owned()]))?;
/// let mut reader = corpus.read();
/// assert_eq!(reader.read()?.unwrap().text, "one");
/// let saved = reader.cursor();
/// assert_eq!(corpus.read_from(&saved)?.read()?.unwrap().text, "two");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CorpusReader {
    corpus: Corpus,
    fingerprint: Fingerprint,
    epoch: u64,
    file: usize,
    source: Option<Source>,
    /// Where the last piece ended.
    place: Place,
}

enum Source {
    Text(TextReader),
    Rows(Box<RowsReader>),
}

impl CorpusReader {
    pub(super) fn new(corpus: Corpus) -> CorpusReader {
        let fingerprint = corpus.fingerprint();
        CorpusReader { corpus, fingerprint, epoch: 0, file: 0, source: None, place: Place::default() }
    }

    pub(super) fn resume(corpus: Corpus, cursor: &Cursor) -> Result<CorpusReader, Error> {
        let mut reader = CorpusReader::new(corpus);
        if cursor.corpus != reader.fingerprint {
            let (expected, found) = (cursor.corpus.clone(), reader.fingerprint);
            return Err(Error::OtherCorpus { expected, found });
        }
        for (field, number) in
            [("epoch", cursor.epoch), ("position", cursor.position), ("lines", cursor.lines), ("within", cursor.within)]
        {
            check_number(field, number)?;
        }
        let files = reader.corpus.files.len();
        reader.epoch = cursor.epoch;
        reader.file = match usize::try_from(cursor.file) {
            Ok(file) if file < files => file,
            _ => {
                let (expected, found) = (format!("less than {files}"), cursor.file.to_string());
                return Err(Error::BrokenPlace { field: "file", expected, found });
            }
        };
        reader.place = Place { position: cursor.position, lines: cursor.lines, within: cursor.within };
        reader.source = Some(reader.open()?);
        Ok(reader)
    }

    /// The next piece; none at the end of the corpus. Documents with nothing but white space are passed over. After an error
    /// only [`CorpusReader::cursor`] is of use.
    ///
    /// # Errors
    /// [`Error::BrokenDocument`] for text that is not UTF-8 and rows without text, [`Error::Empty`] for a file without a
    /// document, [`Error::NoSuchColumn`], [`Error::DoubledColumn`] and [`Error::Parquet`] for Parquet files,
    /// [`Error::ChangedFile`], [`Error::Io`].
    pub fn read(&mut self) -> Result<Option<Piece>, Error> {
        loop {
            let mut source = match self.source.take() {
                Some(source) => source,
                None => self.open()?,
            };
            let piece = match &mut source {
                Source::Text(reader) => reader.read()?.map(|piece| (piece, reader.place())),
                Source::Rows(reader) => reader.read()?.map(|piece| (piece, reader.place())),
            };
            if let Some((piece, place)) = piece {
                self.place = place;
                self.source = Some(source);
                return Ok(Some(piece));
            }
            if self.place == Place::default() {
                let path = self.corpus.files[self.file].path.clone();
                return Err(Error::Empty { path, expected: "at least one document; leave the file out of the corpus" });
            }
            if self.file + 1 == self.corpus.files.len() {
                // It stays behind the last piece: that is the place to save.
                self.source = Some(source);
                return Ok(None);
            }
            self.file += 1;
            self.place = Place::default();
        }
    }

    /// Begins again with the first file, for another epoch.
    pub fn rewind(&mut self) {
        self.epoch += 1;
        self.file = 0;
        self.source = None;
        self.place = Place::default();
    }

    /// How often the whole corpus was read before.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The place just behind the last piece.
    pub fn cursor(&self) -> Cursor {
        let Place { position, lines, within } = self.place;
        let (corpus, epoch, file) = (self.fingerprint.clone(), self.epoch, self.file as u64);
        Cursor { corpus, epoch, file, position, lines, within }
    }

    /// Opens the current file at the current place.
    fn open(&self) -> Result<Source, Error> {
        let file = &self.corpus.files[self.file];
        let failed = |source| Error::Io { path: file.path.clone(), source };
        let source = File::open(&file.path).map_err(failed)?;
        let found = source.metadata().map_err(failed)?.len();
        if found != file.size_bytes {
            return Err(Error::ChangedFile { path: file.path.clone(), expected: file.size_bytes, found });
        }
        Ok(match file.format {
            Format::JsonLines | Format::Parquet => {
                Source::Rows(Box::new(RowsReader::open(file, source, &self.corpus.field, self.place)?))
            }
            _ => Source::Text(TextReader::open(file, source, self.corpus.documents, self.place)?),
        })
    }
}
