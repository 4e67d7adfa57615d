//! The two hashes that tell whether a download is what was announced: SHA-256 of large files and wheels, and git's
//! SHA-1 of small files on the hub. Integrity against accidents and mirrors, for the announcement itself comes over TLS.

use std::fs::File;
use std::io;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::Error;

/// A hash of a file in the making.
pub(super) enum Hasher {
    /// SHA-256 of the content.
    Sha256(Box<Sha256>),
    /// Git's SHA-1, of the length and the content.
    GitSha1(Box<Sha1>),
}

impl Hasher {
    pub fn sha256() -> Hasher {
        Hasher::Sha256(Box::default())
    }

    /// The hash that the hub's `etag` is, when it has the form of one. `size` is that of the whole file.
    pub fn of_etag(etag: &str, size: u64) -> Option<Hasher> {
        let hexadecimal = etag.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        match etag.len() {
            64 if hexadecimal => Some(Hasher::sha256()),
            40 if hexadecimal => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {size}\0"));
                Some(Hasher::GitSha1(Box::new(hasher)))
            }
            _ => None,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::GitSha1(hasher) => hasher.update(bytes),
        }
    }

    /// The hash in lower-case hexadecimal digits.
    pub fn finish(self) -> String {
        let digest: Vec<u8> = match self {
            Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
            Hasher::GitSha1(hasher) => hasher.finalize().to_vec(),
        };
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The SHA-256 of a file.
pub(super) fn sha256_of(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut hasher = Hasher::sha256();
    io::copy(&mut file, &mut hasher).map_err(Error::io(path, "read"))?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::Hasher;

    #[test]
    fn hashes_are_those_of_git_and_of_sha256sum() {
        let mut git = Hasher::of_etag(&"0".repeat(40), 6).expect("forty digits are git's");
        git.update(b"hello\n");
        // printf 'hello\n' | git hash-object --stdin
        assert_eq!(git.finish(), "ce013625030ba8dba906f756967f9e9ca394464a");
        let mut sha = Hasher::of_etag(&"0".repeat(64), 6).expect("sixty-four digits are SHA-256");
        sha.update(b"hello\n");
        assert_eq!(sha.finish(), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        assert!(Hasher::of_etag("abc-1", 6).is_none());
    }
}
