//! What the fuzz targets share: hostile bytes put into the files of one folder, for the readers read folders.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

/// A folder whose files are rewritten for every input.
pub struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// A new folder, in memory where the system has such a place.
    pub fn new() -> Scratch {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        Scratch { folder: folder.expect("a temporary folder") }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes one file.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.folder.path().join(name), bytes).expect("write into the temporary folder");
    }

    /// Writes a config and a safetensors file from the parts of an input: config, header, data.
    pub fn write_parts(&self, data: &[u8], config: &str, tensors: &str) {
        let mut pieces = parts(data);
        let mut next = || pieces.next().unwrap_or_default();
        self.write(config, next());
        let header = next();
        self.write(tensors, &safetensors(header, next()));
    }

    /// Removes one file, if it is there.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.folder.path().join(name));
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

/// The parts of an input that holds several files, between bytes 0xff 0x00 (which no text file has).
pub fn parts(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let current = rest?;
        match current.windows(2).position(|pair| pair == [0xff, 0x00]) {
            Some(end) => {
                rest = Some(&current[end + 2..]);
                Some(&current[..end])
            }
            None => {
                rest = None;
                Some(current)
            }
        }
    })
}

/// A safetensors file with this text as its header and these bytes after it, so that the fuzzer need not guess lengths.
pub fn safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(data);
    bytes
}
