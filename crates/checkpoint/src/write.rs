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

/// Copies a file's content into `folder` under the same name, atomically. Its permissions stay behind: a model that may only
/// be read is not passed on as one that cannot be written.
///
/// # Errors
/// [`Error::Io`] naming the file that cannot be read or written.
pub fn copy_into(file: &Path, folder: &Path) -> Result<(), Error> {
    let mut source = File::open(file).map_err(Error::io(file, "open"))?;
    let name = file.file_name().unwrap_or_default();
    write_atomic_with(&folder.join(name), |copy| io::copy(&mut source, copy).map(drop))
}

/// Moves the finished folder `temporary` to `destination`, replacing what is there. Both must lie on one file system.
///
/// On Linux and macOS the two change places in one step, so that a crash leaves the old folder or the new one. Where the
/// file system cannot, the old folder is first renamed aside; a crash between the two renames leaves it there, and
/// [`restore_folder`] puts it back.
///
/// # Errors
/// [`Error::Io`]; when the last rename fails the old folder is put back.
pub fn replace_folder(temporary: &Path, destination: &Path) -> Result<(), Error> {
    sync_tree(temporary)?;
    let into_place = Error::io(destination, "rename into place");
    let old = if fs::symlink_metadata(destination).is_err() {
        fs::rename(temporary, destination).map_err(into_place)?;
        None
    } else if exchange(temporary, destination) {
        Some(temporary.to_path_buf())
    } else {
        let aside = aside(destination);
        remove(&aside)?;
        fs::rename(destination, &aside).map_err(Error::io(destination, "move the old folder aside"))?;
        if let Err(source) = fs::rename(temporary, destination) {
            // That putting it back may fail too matters less than why the new one could not come.
            let _ = fs::rename(&aside, destination);
            return Err(into_place(source));
        }
        Some(aside)
    };
    sync_folder(&parent(destination))?;
    old.map_or(Ok(()), |old| remove(&old))
}

/// Puts back the folder that an interrupted [`replace_folder`] left aside, when `destination` is missing; says whether
/// there was one.
///
/// # Errors
/// [`Error::Io`].
pub fn restore_folder(destination: &Path) -> Result<bool, Error> {
    let aside = aside(destination);
    if fs::symlink_metadata(destination).is_ok() || fs::symlink_metadata(&aside).is_err() {
        return Ok(false);
    }
    fs::rename(&aside, destination).map_err(Error::io(destination, "put the old folder back"))?;
    sync_folder(&parent(destination))?;
    Ok(true)
}

/// Where the old folder waits while the new one takes its place.
fn aside(destination: &Path) -> PathBuf {
    let mut name = beside_prefix(destination);
    name.push("old");
    parent(destination).join(name)
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(about) if about.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.map_err(Error::io(path, "remove the replaced folder"))
}

/// Lets two paths change places in one step, where the system can.
#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn exchange(one: &Path, other: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn exchange(_one: &Path, _other: &Path) -> bool {
    false
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
