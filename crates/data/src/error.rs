//! What can be wrong with a data file: the whole file ([`Error`]) or one row of it ([`BrokenRow`]).

use std::path::PathBuf;

/// The longest line, quoted record or JSON object that is read, in bytes.
pub const LONGEST_RECORD: usize = 16 << 20;

/// The most columns of a CSV or TSV file.
pub const MOST_COLUMNS: usize = 1 << 16;

/// How many broken rows are remembered with their reason; the others are only counted.
pub const SHOWN_BROKEN_ROWS: usize = 8;

/// Why data cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file's name does not tell its format.
    #[error(
        "{}: unknown format; expected a name ending in .tsv, .csv, .jsonl, .json, .parquet or .txt", path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing in the file, or nothing below its header.
    #[error("{}: no rows; expected {expected}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What should have been there.
        expected: &'static str,
    },
    /// The header of a CSV or TSV file cannot be read.
    #[error("{}:1: broken header: {problem}", path.display())]
    BrokenHeader {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// A column that was asked for is not in the file.
    #[error("{}: no column {wanted:?}; the columns are {}{}", path.display(), list(found), hint(found))]
    NoSuchColumn {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        wanted: String,
        /// The names in the file.
        found: Vec<String>,
    },
    /// No column was asked for and none has a name that tells its role.
    #[error(
        "{}: which column is the {role}? the columns are {}; name it with {flag}{}", path.display(), list(found), hint(found)
    )]
    UnclearColumn {
        /// The file.
        path: PathBuf,
        /// `text` or `label`.
        role: &'static str,
        /// The flag that names it.
        flag: &'static str,
        /// The names in the file.
        found: Vec<String>,
    },
    /// Two columns of the file have the name that was asked for.
    #[error("{}: the column {name:?} is there twice; rename one of them", path.display())]
    DoubledColumn {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Rows that cannot be used, when they are not to be left out.
    #[error("{}", broken_rows(rows, *count))]
    BrokenRows {
        /// The first of them.
        rows: Vec<BrokenRow>,
        /// How many there are in all.
        count: usize,
    },
    /// The labels are numbers with a fraction, but a classifier was asked for.
    #[error(
        "{}:{line}: label {label} is not a class; pass --regression to predict numbers, or name another column with \
         --label", path.display()
    )]
    FractionalLabel {
        /// The file.
        path: PathBuf,
        /// The line of the first such label.
        line: u64,
        /// The label.
        label: String,
    },
    /// Every training row has the same label.
    #[error("{}: every row has the label {label:?}; a classifier needs at least two", path.display())]
    OneLabel {
        /// The file.
        path: PathBuf,
        /// The label.
        label: String,
    },
    /// A Parquet file that cannot be read.
    #[error("{}: {problem}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No file for a split is in the folder.
    #[error(
        "{}: no file for {split}; expected {expected}, found {}", path.display(), list(found)
    )]
    NoFile {
        /// The folder.
        path: PathBuf,
        /// `training` or `validation`.
        split: &'static str,
        /// The names looked for.
        expected: &'static str,
        /// The names in the folder.
        found: Vec<String>,
    },
    /// Several files of a folder could be the split.
    #[error("{}: several files for {split}: {}; name one with {flag}", path.display(), list(found))]
    SeveralFiles {
        /// The folder.
        path: PathBuf,
        /// `train` or `validation`.
        split: &'static str,
        /// The flag that names one.
        flag: &'static str,
        /// The names found.
        found: Vec<String>,
    },
    /// The options name no data, or too little.
    #[error("{0}")]
    Missing(&'static str),
    /// An option is out of its range.
    #[error("{name}: expected {expected}, found {found}")]
    OutOfRange {
        /// The option.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value given.
        found: String,
    },
    /// The files of one split have different sets of labels.
    #[error("{}: its metadata names the labels {}, those of the first file are {}", path.display(), list(found), list(expected))]
    LabelNamesDiffer {
        /// The file.
        path: PathBuf,
        /// The names of the first file.
        expected: Vec<String>,
        /// The names of this one.
        found: Vec<String>,
    },
    /// A share of the training rows is to be validated on, but there is a validation file.
    #[error(
        "{}: a validation file, but --validation-fraction was given too; leave one of them out (to keep the file \
         out, name the training file with --train in place of the folder)", path.display()
    )]
    FractionBesideFile {
        /// The first validation file.
        path: PathBuf,
    },
    /// A file whose name does not tell how a corpus is kept in it.
    #[error(
        "{}: expected a corpus file, with a name ending in .txt, .text, .jsonl, .ndjson, .json, .parquet or .pq; rename it or leave \
         it out", path.display()
    )]
    NotACorpus {
        /// The file.
        path: PathBuf,
    },
    /// A document of a corpus that cannot be read.
    #[error("{0}; mend it, or leave the file out of the corpus")]
    BrokenDocument(BrokenRow),
    /// A file of a corpus has another size than when the corpus was opened.
    #[error(
        "{}: expected {expected} bytes as when the corpus was opened, found {found}; do not write to it meanwhile",
        path.display()
    )]
    ChangedFile {
        /// The file.
        path: PathBuf,
        /// Its size then.
        expected: u64,
        /// Its size now.
        found: u64,
    },
    /// A saved place belongs to another corpus.
    #[error(
        "the corpus is not the one this run was reading: expected {expected}, found {found}; give the same files, in the same \
         order and under the same names, or begin a new run"
    )]
    OtherCorpus {
        /// The corpus the place is in.
        expected: crate::corpus::Fingerprint,
        /// The corpus at hand.
        found: crate::corpus::Fingerprint,
    },
    /// A saved place that cannot be one of this corpus.
    #[error("the saved place in the corpus: {field}: expected {expected}, found {found}; is the run's state damaged?")]
    BrokenPlace {
        /// Which part of it.
        field: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The labels of the data are not those of the model that is to be judged on them.
    #[error(
        "{}: the labels of {whose} are not the model's: expected {}, found {}{}", path.display(), list(model),
        list(found), if *task { "; without --task, labels are looked up among the model's own" } else { "" }
    )]
    OtherLabels {
        /// The first file.
        path: PathBuf,
        /// Whose labels they are, in words.
        whose: String,
        /// Whether it is the task that names them.
        task: bool,
        /// Their names.
        found: Vec<String>,
        /// The model's names.
        model: Vec<String>,
    },
    /// The task predicts numbers and the model classes, or the other way round.
    #[error("the task {task} predicts {expected}, but the model {found}")]
    OtherKind {
        /// The task.
        task: crate::glue::GlueTask,
        /// What the task predicts, in words.
        expected: &'static str,
        /// What the model predicts, in words.
        found: String,
    },
}

/// One row that cannot be used, and where it is.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}:{line}: {problem}", path.display())]
pub struct BrokenRow {
    /// The file.
    pub path: PathBuf,
    /// The line the row begins on, from 1; in Parquet the row's number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub problem: RowProblem,
}

/// What can be wrong with one row.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// A row with more or fewer columns than the header.
    #[error("expected {expected} columns, found {found}")]
    ColumnCount {
        /// Columns of the header.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
    /// A column without a value.
    #[error("column {column:?}: no value")]
    NoValue {
        /// The column.
        column: String,
    },
    /// An object without the field that holds the text.
    #[error("no field {wanted:?}; the fields are {}; name the one that holds the text", list(found))]
    NoField {
        /// The name asked for.
        wanted: String,
        /// The names in the object.
        found: Vec<String>,
    },
    /// A value that is neither text nor a number.
    #[error("column {column:?}: expected text or a number, found {found}")]
    NotText {
        /// The column.
        column: String,
        /// What it is.
        found: &'static str,
    },
    /// Bytes that are not UTF-8.
    #[error("column {column:?}: not UTF-8")]
    NotUtf8 {
        /// The column, or its number from 1.
        column: String,
    },
    /// A second text in a file whose first rows have none.
    #[error(
        "column {column:?}: not in the first rows, so it was not read as the second text; name it with --text-pair if every row \
         has it, or the text's own column with --text to read single texts"
    )]
    LateColumn {
        /// The column.
        column: String,
    },
    /// A header with more columns than are read.
    #[error("expected at most {MOST_COLUMNS} columns, found {found}")]
    TooManyColumns {
        /// How many it has.
        found: usize,
    },
    /// A line that is not UTF-8.
    #[error("the line is not UTF-8")]
    LineNotUtf8,
    /// A line that is not a JSON object.
    #[error("not a JSON object: {0}")]
    NotJson(String),
    /// A record beyond the limit.
    #[error("longer than {} MiB{}", LONGEST_RECORD >> 20, if *quoted { "; is a quote left open?" } else { "" })]
    TooLong {
        /// Whether it ended inside quotes.
        quoted: bool,
    },
    /// The file ends inside quotes.
    #[error("a quote is opened and never closed")]
    OpenQuote,
    /// A label that is not a number, for regression.
    #[error("column {column:?}: expected a number, found {found:?}")]
    NotANumber {
        /// The column.
        column: String,
        /// What it is.
        found: String,
    },
    /// A label that is none of the known ones.
    #[error("column {column:?}: unknown label {found:?}; the labels are {}", list(known))]
    UnknownLabel {
        /// The column.
        column: String,
        /// The label.
        found: String,
        /// The known labels, in order.
        known: Vec<String>,
    },
}

/// Names in quotes, the first few of them.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 24;
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut text = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// A header of one column with another separator in it was probably written with that separator.
fn hint(found: &[String]) -> &'static str {
    match found {
        [only] if only.contains('\t') => " (is the file separated by tabs? then give it a name ending in .tsv)",
        [only] if only.contains(';') => " (the file seems to be separated by semicolons; commas are expected)",
        [only] if only.contains(',') => " (is the file separated by commas? then give it a name ending in .csv)",
        _ => "",
    }
}

fn broken_rows(rows: &[BrokenRow], count: usize) -> String {
    let mut text = match count {
        1 => "1 broken row".to_owned(),
        count if count == rows.len() => format!("{count} broken rows"),
        count => format!("{count} broken rows, the first of them"),
    };
    for row in rows {
        text.push_str(&format!("\n  {row}"));
    }
    text.push_str("\nmend them, or leave them out with --skip-bad-rows");
    text
}
