//! Files and folders that are either completely there or not at all: written beside their place, synced, renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::Error;

/// Writes `bytes` to `path` so that a crash at any moment leaves the old content or the new one, nothing between.
///
/// # Errors
/// [`Error::Io`] when the folder is missing or not writable, or the disk is full; the old content is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], for content that is produced while it is written.
///
/// # Errors
/// As [`write_atomic`]; an error of `produce` leaves the old content untouched too.
pub fn write_atomic_with(path: &Path, produce: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
    let folder = parent(path);
    let mut builder = tempfile::Builder::new();
    let prefix = beside_prefix(path);
    builder.prefix(&prefix).suffix(".tmp");
    #[cfg(unix)]
    {
        // Temporary files are private by default; a model file is as readable as any other (the umask still holds).
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut beside = builder.tempfile_in(&folder).map_err(Error::io(path, "create a temporary file beside it"))?;
    produce(beside.as_file_mut()).map_err(Error::io(path, "write"))?;
    beside.as_file().sync_all().map_err(Error::io(path, "sync"))?;
    beside.persist(path).map_err(|failed| Error::Io {
        path: path.to_path_buf(),
        action: "rename into place",
        source: failed.error,
    })?;
    sync_folder(&folder)
}

/// Moves the finished folder `temporary` to `destination`, replacing what is there. Both must lie on one file system.
///
/// An existing `destination` is first renamed aside and removed at the end, so that a crash leaves either the old
/// folder (at most under its `.old` name) or the new one, never a mixture.
///
/// # Errors
/// [`Error::Io`]; when the last rename fails the old folder is put back.
pub fn replace_folder(temporary: &Path, destination: &Path) -> Result<(), Error> {
    sync_tree(temporary)?;
    let folder = parent(destination);
    let mut aside = None;
    if fs::symlink_metadata(destination).is_ok() {
        let old = unused_name(destination, "old")?;
        fs::rename(destination, &old).map_err(Error::io(destination, "move the old folder aside"))?;
        aside = Some(old);
    }
    if let Err(source) = fs::rename(temporary, destination) {
        if let Some(old) = &aside {
            // The original error matters more than a second one here.
            let _ = fs::rename(old, destination);
        }
        return Err(Error::Io { path: destination.to_path_buf(), action: "rename into place", source });
    }
    sync_folder(&folder)?;
    if let Some(old) = aside {
        let removed = if old.is_dir() { fs::remove_dir_all(&old) } else { fs::remove_file(&old) };
        removed.map_err(Error::io(&old, "remove the replaced folder"))?;
    }
    Ok(())
}

/// The folder a path lies in; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes a rename in `folder` survive a power cut. Windows has no such call and needs none.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    if cfg!(unix) {
        File::open(folder).and_then(|handle| handle.sync_all()).map_err(Error::io(folder, "sync"))?;
    }
    Ok(())
}

/// Makes everything below `folder` survive a power cut.
pub(crate) fn sync_tree(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let entry = entry.map_err(Error::io(folder, "list"))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io(&path, "examine"))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            // Opened for writing, for Windows syncs no handle that cannot write.
            fs::OpenOptions::new()
                .append(true)
                .open(&path)
                .and_then(|file| file.sync_all())
                .map_err(Error::io(&path, "sync"))?;
        }
    }
    sync_folder(folder)
}

fn beside_prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    prefix
}

fn unused_name(path: &Path, word: &str) -> Result<PathBuf, Error> {
    let folder = parent(path);
    for number in 0..10_000u32 {
        let mut name = beside_prefix(path);
        name.push(format!("{word}{number}"));
        let candidate = folder.join(name);
        if fs::symlink_metadata(&candidate).is_err() {
            return Ok(candidate);
        }
    }
    Err(Error::Io {
        path: path.to_path_buf(),
        action: "find an unused name beside it",
        source: io::Error::from(io::ErrorKind::AlreadyExists),
    })
}
