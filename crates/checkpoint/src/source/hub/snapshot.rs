//! The hub's cache on disk: contents by their hash, snapshots that link to them, and which commit a branch was at.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::{Kind, Repository};
use crate::Error;
use crate::read::{SETTINGS_LIMIT_BYTES, read_text};
use crate::write::{parent, sync_folder, write_atomic};

/// The cache of one model or data set.
pub(super) struct Storage {
    folder: PathBuf,
}

impl Storage {
    pub fn new(cache: &Path, repository: &Repository) -> Storage {
        let kind = match repository.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        Storage { folder: cache.join(format!("{kind}--{}", repository.id.replace('/', "--"))) }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The place of a content.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The commit that a revision is, or was when it was last asked for.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = read_text(&self.reference(revision), SETTINGS_LIMIT_BYTES).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The snapshot of a revision, when everything a model needs is in it.
    pub fn cached(&self, revision: &str) -> Option<PathBuf> {
        Some(self.snapshot(&self.commit(revision)?)).filter(|folder| super::complete(folder))
    }

    /// Remembers that `revision` is `commit`.
    pub fn point(&self, revision: &str, commit: &str) -> Result<(), Error> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.reference(revision);
        make_folder(&parent(&path))?;
        write_atomic(&path, commit.as_bytes())
    }

    fn reference(&self, revision: &str) -> PathBuf {
        let mut path = self.folder.join("refs");
        path.extend(revision.split('/'));
        path
    }

    /// Has `download` complete a partial file, which may have a beginning, and puts it in the content's place. Two processes after one content take
    /// turns, and the second finds the first's.
    pub fn download_blob(
        &self,
        etag: &str,
        download: impl FnOnce(&mut File) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let blob = self.blob(etag);
        make_folder(&parent(&blob))?;
        let partial = parent(&blob).join(format!("{etag}.finegates.incomplete"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(Error::io(&partial, "open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                file.lock().map_err(Error::io(&partial, "wait for another download of"))?;
                if blob.is_file() {
                    return Ok(());
                }
            }
            // Some network file systems have no locks; the hash still guards the content.
            Err(TryLockError::Error(_)) => {}
        }
        download(&mut file)?;
        fs::rename(&partial, &blob).map_err(Error::io(&blob, "rename into place"))?;
        sync_folder(&parent(&blob))
    }

    /// Makes `place` in a snapshot show the content `blob`.
    pub fn link(&self, blob: &Path, place: &Path) -> Result<(), Error> {
        let folder = parent(place);
        make_folder(&folder)?;
        let _ = fs::remove_file(place);
        let name = blob.file_name().unwrap_or_default();
        // From the folder the file is in: up to the snapshot, and out of it.
        let depth = place.strip_prefix(&self.folder).map_or(3, |inside| inside.components().count()) - 1;
        let target = std::iter::repeat_n("..", depth).collect::<PathBuf>().join("blobs").join(name);
        match symlink(&target, place) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && place.is_file() => {}
            // As huggingface_hub does where links are not allowed: the content itself moves into the snapshot.
            Err(_) => fs::rename(blob, place).map_err(Error::io(place, "move into the snapshot"))?,
        }
        sync_folder(&folder)
    }
}

/// Whether a text is a git commit, and so may be part of a path.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn make_folder(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(Error::io(folder, "make a folder of the hub's cache"))
}

#[cfg(unix)]
fn symlink(target: &Path, place: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, place)
}

#[cfg(windows)]
fn symlink(target: &Path, place: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, place)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _place: &Path) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
