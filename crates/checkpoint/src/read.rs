//! Reading whole text files, each with the size it may have at most: what is larger is another kind of file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::Error;

/// Largest recipe, summary or other file of settings that people and this program write.
pub const SETTINGS_LIMIT_BYTES: u64 = 1 << 20;
/// Largest `config.json` or `adapter_config.json`; labels are what makes one long, and 65,536 of them have a third of it.
pub const CONFIG_LIMIT_BYTES: u64 = 16 << 20;
/// Largest file of a tokenizer, or index of shards; a tokenizer with a quarter of a million entries has a tenth of it.
pub const TOKENIZER_LIMIT_BYTES: u64 = 256 << 20;

/// Reads a text file of at most `limit_bytes`.
///
/// # Errors
/// When it cannot be read, is larger, or is not UTF-8.
pub fn read_text(path: &Path, limit_bytes: u64) -> Result<String, Error> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let size_bytes = file.metadata().map_err(Error::io(path, "examine"))?.len();
    let mut bytes = Vec::new();
    if size_bytes <= limit_bytes {
        // The limit once more, for a file may grow and a device has no size.
        file.by_ref().take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    }
    let size_bytes = size_bytes.max(bytes.len() as u64);
    if size_bytes > limit_bytes {
        return Err(Error::TooLarge { path: path.to_path_buf(), size_bytes, limit_bytes });
    }
    String::from_utf8(bytes)
        .map_err(|error| Error::Text { path: path.to_path_buf(), position: error.utf8_error().valid_up_to() })
}
