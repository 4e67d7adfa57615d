//! `metrics.jsonl`: a line a step and a line an evaluation. A resumed run cuts off what came after its last saved state, so that no
//! step is there twice.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Error;

/// The journal, open for appending.
pub struct Journal {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    complete: bool,
}

impl Journal {
    /// Opens the journal and cuts it to its first `size_bytes`. If it is shorter than that, because someone edited it, it is cut to
    /// its last whole line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, size_bytes: u64) -> Result<Journal, Error> {
        let failed = |action| Error::io(path, action);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed("open"))?;
        let found = file.metadata().map_err(failed("examine"))?.len();
        let complete = found >= size_bytes;
        let size_bytes = if complete { size_bytes } else { whole_lines(&mut file).map_err(failed("read"))? };
        file.set_len(size_bytes).map_err(failed("shorten"))?;
        file.seek(SeekFrom::End(0)).map_err(failed("seek in"))?;
        Ok(Journal { path: path.to_owned(), file, size_bytes, complete })
    }

    /// Whether everything that was asked for was there.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// Adds a line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, record: &impl Serialize) -> Result<(), Error> {
        let mut line = serde_json::to_vec(record).map_err(|error| Error::io(&self.path, "write")(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io(&self.path, "write"))?;
        self.size_bytes += line.len() as u64;
        Ok(())
    }

    /// Makes what was written survive a power cut, and says how long it is.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&mut self) -> Result<u64, Error> {
        self.file.sync_data().map_err(Error::io(&self.path, "sync"))?;
        Ok(self.size_bytes)
    }
}

fn whole_lines(file: &mut File) -> std::io::Result<u64> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut content)?;
    Ok(content.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last as u64 + 1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reopening_cuts_to_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut journal = Journal::open(&path, 0).unwrap();
        journal.write(&serde_json::json!({"step": 1})).unwrap();
        let saved = journal.sync().unwrap();
        journal.write(&serde_json::json!({"step": 2})).unwrap();
        drop(journal);
        let mut journal = Journal::open(&path, saved).unwrap();
        journal.write(&serde_json::json!({"step": 2, "again": true})).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2,\"again\":true}\n");
        std::fs::write(&path, "{\"step\":1}\n{\"st").unwrap();
        let journal = Journal::open(&path, 1000).unwrap();
        assert_eq!((journal.size_bytes, journal.complete()), (11, false));
        assert!(Journal::open(&path, 11).unwrap().complete());
    }
}
