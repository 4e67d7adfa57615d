//! A corpus for language modelling: files of plain text, JSON lines and Parquet as one stream of documents, in constant
//! memory and resumable at any place. A document comes in pieces of at most [`PIECE_BYTES`]; tokenization is not here.

mod cursor;
mod cut;
mod reader;
mod rows;
mod text;

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::format::Format;
pub(crate) use cursor::check_number;
pub use cursor::{Cursor, Fingerprint};
pub use cut::PIECE_BYTES;
pub use reader::{CorpusReader, Piece};

/// What is one document in a text file. Rows of JSON lines and Parquet are a document each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextDocuments {
    /// The file, to the byte but for a byte order mark. Blank lines are text: they part the paragraphs of a novel as well as
    /// the articles of an encyclopedia.
    #[default]
    File,
    /// Each line, without its line feed or carriage return and line feed.
    Line,
}

impl std::str::FromStr for TextDocuments {
    type Err = String;

    fn from_str(name: &str) -> Result<TextDocuments, String> {
        match name {
            "file" => Ok(TextDocuments::File),
            "line" => Ok(TextDocuments::Line),
            other => Err(format!("expected file or line, found {other:?}")),
        }
    }
}

impl std::fmt::Display for TextDocuments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TextDocuments::File => "file",
            TextDocuments::Line => "line",
        })
    }
}

/// Where a corpus is and how to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusOptions {
    /// Files, and folders that are searched for files: `.txt`, `.text`, `.jsonl`, `.ndjson`, `.json`, `.parquet` and `.pq`.
    pub paths: Vec<PathBuf>,
    /// The field of JSON lines and the column of Parquet that holds the text.
    pub field: String,
    /// What is one document in a text file.
    pub documents: TextDocuments,
}

impl CorpusOptions {
    /// The corpus in these files and folders, with texts in `text` and a document a text file.
    pub fn new(paths: Vec<PathBuf>) -> CorpusOptions {
        CorpusOptions { paths, field: "text".to_owned(), documents: TextDocuments::File }
    }
}

/// A file of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its name: in a folder that was given, its path from there with `/` between the parts, otherwise its file name.
    pub name: String,
    /// [`Format::Lines`] for plain text, [`Format::JsonLines`] or [`Format::Parquet`].
    pub format: Format,
    /// Its size.
    pub size_bytes: u64,
}

/// The files of a corpus in the order in which they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    files: Vec<CorpusFile>,
    field: String,
    documents: TextDocuments,
}

impl Corpus {
    /// Finds the files: the paths in the order given; in folders, and in folders in them, everything by name. In folders,
    /// what is hidden and what is no corpus file by its name is passed over, and links to folders are not followed.
    ///
    /// # Errors
    /// [`Error::Missing`] without paths, [`Error::Io`], [`Error::NotACorpus`] for a file of another kind,
    /// [`Error::NoFile`] for a folder without corpus files, [`Error::Empty`] for a file without a byte.
    pub fn open(options: &CorpusOptions) -> Result<Corpus, Error> {
        let mut files = Vec::new();
        for path in &options.paths {
            let before = files.len();
            if !path.is_dir() {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                files.push(file(path.clone(), name)?.ok_or_else(|| Error::NotACorpus { path: path.clone() })?);
                continue;
            }
            let passed_over = walk(path, &mut files)?;
            if files.len() == before {
                let expected = ".txt, .jsonl, .json or .parquet files";
                return Err(Error::NoFile { path: path.clone(), split: "the corpus", expected, found: passed_over });
            }
        }
        if files.is_empty() {
            return Err(Error::Missing("no corpus; name at least one file or folder of text"));
        }
        Ok(Corpus { files, field: options.field.clone(), documents: options.documents })
    }

    /// The files.
    pub fn files(&self) -> &[CorpusFile] {
        &self.files
    }

    /// The size of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size_bytes))
    }

    /// What tells this corpus from others: the files' names and sizes in their order, and how they are read.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.files, &self.field, self.documents)
    }

    /// Reads from the beginning.
    pub fn read(&self) -> CorpusReader {
        CorpusReader::new(self.clone())
    }

    /// Reads on from a saved place: what follows is what would have followed then.
    ///
    /// # Errors
    /// [`Error::OtherCorpus`] if the place is in another corpus, [`Error::BrokenPlace`] if there is no such place, and those
    /// of [`CorpusReader::read`].
    pub fn read_from(&self, cursor: &Cursor) -> Result<CorpusReader, Error> {
        CorpusReader::resume(self.clone(), cursor)
    }
}

/// Adds the corpus files of a folder and returns the names of the others.
fn walk(folder: &Path, files: &mut Vec<CorpusFile>) -> Result<Vec<String>, Error> {
    let mut passed_over = Vec::new();
    let mut found = vec![(folder.to_owned(), String::new(), true)];
    // Last in, first out: a folder's entries are put on it backwards.
    while let Some((path, name, is_folder)) = found.pop() {
        if !is_folder {
            match file(path, name.clone())? {
                Some(file) => files.push(file),
                None => passed_over.push(name),
            }
            continue;
        }
        let failed = |source| Error::Io { path: path.clone(), source };
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let own = entry.file_name().to_string_lossy().into_owned();
            let is_file = kind.is_file() || (kind.is_symlink() && entry.path().is_file());
            if !own.starts_with('.') && (is_file || kind.is_dir()) {
                let name = if name.is_empty() { own } else { format!("{name}/{own}") };
                entries.push((entry.path(), name, kind.is_dir()));
            }
        }
        entries.sort_unstable_by(|one, other| other.1.cmp(&one.1));
        found.extend(entries);
    }
    Ok(passed_over)
}

/// A corpus file with its size, if its name says that it is one.
fn file(path: PathBuf, name: String) -> Result<Option<CorpusFile>, Error> {
    let size_bytes = std::fs::metadata(&path).map_err(|source| Error::Io { path: path.clone(), source })?.len();
    match Format::from_path(&path) {
        Ok(format @ (Format::Lines | Format::JsonLines | Format::Parquet)) => {
            if size_bytes == 0 {
                return Err(Error::Empty { path, expected: "text; leave the file out of the corpus" });
            }
            Ok(Some(CorpusFile { path, name, format, size_bytes }))
        }
        _ => Ok(None),
    }
}
