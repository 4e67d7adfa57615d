//! Where a reader stands in a corpus, and in which one: what a run saves to go on later from the same place.

use serde::{Deserialize, Serialize};

use super::{CorpusFile, TextDocuments};
use crate::error::Error;

/// What tells one corpus from another. Not for security.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// How many files it has.
    pub files: u64,
    /// How many bytes they have together.
    pub bytes: u64,
    /// A hash of names and sizes in their order and of how the files are read, in hexadecimal digits.
    pub digest: String,
}

impl Fingerprint {
    pub(super) fn of(files: &[CorpusFile], field: &str, documents: TextDocuments) -> Fingerprint {
        let mut hash = Fnv1a::new();
        hash.text(field);
        hash.number(match documents {
            TextDocuments::File => 0,
            TextDocuments::Line => 1,
        });
        for file in files {
            hash.text(&file.name);
            hash.number(file.size_bytes);
        }
        Fingerprint {
            files: files.len() as u64,
            bytes: files.iter().fold(0, |sum, file| sum.saturating_add(file.size_bytes)),
            digest: format!("{:016x}", hash.0),
        }
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files = if self.files == 1 { "file" } else { "files" };
        // A state may be damaged: no more of it is shown than a digest has.
        let digest: String = self.digest.chars().take(16).collect();
        write!(f, "{} {files} of {} bytes ({})", self.files, self.bytes, digest.escape_default())
    }
}

/// A place in a corpus: just behind a piece, or at its beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The corpus.
    pub corpus: Fingerprint,
    /// How often the whole corpus was read before.
    pub epoch: u64,
    /// The number of the file, from 0.
    pub file: u64,
    /// In text the bytes before the place, in JSON lines those before the line of the next or unfinished document, in Parquet
    /// the rows before it.
    pub position: u64,
    /// The line feeds before `position`; 0 in Parquet.
    pub lines: u64,
    /// How many bytes of the unfinished document have been read; 0 between documents.
    pub within: u64,
}

/// The largest number that a place is believed: counts go on from it and never come to their end.
const MOST_COUNTED: u64 = 1 << 53;

/// Refuses a number of a saved place that nothing can have been counted up to.
pub(crate) fn check_number(field: &'static str, number: u64) -> Result<(), Error> {
    if number <= MOST_COUNTED {
        return Ok(());
    }
    Err(Error::BrokenPlace { field, expected: format!("at most {MOST_COUNTED}"), found: number.to_string() })
}

/// FNV-1a over 64 bits (Fowler, Noll, Vo), the same on every platform.
struct Fnv1a(u64);

impl Fnv1a {
    fn new() -> Fnv1a {
        Fnv1a(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    /// With its length, so that two names never run together.
    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        // From the reference's own test vectors.
        for (text, expected) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            let mut hash = Fnv1a::new();
            hash.bytes(text.as_bytes());
            assert_eq!(hash.0, expected, "{text}");
        }
    }
}
