//! Rows of text, pairs of texts and labels, read from GLUE's own files, CSV, TSV, JSON lines and Parquet; and plain text for
//! language modelling.
//!
//! [`Dataset::load`] gives training everything at once, with labels resolved; [`TextRows`] streams unlabelled rows for
//! prediction in constant memory; [`Corpus`] streams documents, [`Blocks`] packs their tokens into sequences of one length,
//! and [`Windows`] says what perplexity is measured on. Tokenization is not here, and neither is anything about models.

pub use columns::{ColumnChoice, Columns};
pub use corpus::{
    Corpus, CorpusFile, CorpusOptions, CorpusReader, Cursor, Fingerprint, PIECE_BYTES, Piece, TextDocuments,
};
pub use dataset::{Dataset, DatasetOptions, Example, Label, Split};
pub use error::{BrokenRow, Error, RowProblem};
pub use files::{ValidationSet, validation_files};
pub use format::Format;
pub use glue::GlueTask;
pub use label::Labels;
pub use packing::{Blocks, BlocksState, Packer, Packing, Shuffle};
pub use records::{Record, Records, Value};
pub use split::{ModelSplit, ReadOptions, read_for_model, read_split};
pub use stream::{TextRow, TextRows};
pub use windows::{Window, Windows};

mod columns;
mod corpus;
mod dataset;
mod delimited;
mod error;
mod files;
mod format;
mod glue;
mod json_lines;
mod label;
mod lines;
mod packing;
mod parquet_rows;
mod records;
mod split;
mod stream;
mod windows;
