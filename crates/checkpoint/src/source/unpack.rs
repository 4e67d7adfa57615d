//! Unpacking wheels and split zip archives that may be hostile: no entry leaves the folder, no link is made, nothing
//! grows beyond what the archive's size can justify, and every checksum is verified.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use crate::Error;
use crate::error::shorten;

/// Most entries of an archive.
const ENTRIES_LIMIT: usize = 100_000;
/// Most bytes that are unpacked for each byte of the archive; text and weights stay well below.
const GROWTH_LIMIT: u64 = 64;
/// Most bytes that are unpacked, whatever the archive's size.
const UNPACKED_LIMIT_BYTES: u64 = 32 << 30;

/// Unpacks the entries of the zip archive `parts` (one file, or the pieces of one) for which `wanted` holds into the
/// existing folder `destination`.
///
/// # Errors
/// When the archive is broken or would do harm, or a file cannot be written. `destination` may then hold a part of it.
pub(super) fn unpack(parts: &[PathBuf], destination: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), Error> {
    let path = &parts[0];
    let broken = |entry: &str, reason: String| Error::Archive { path: path.clone(), entry: shorten(entry), reason };
    let joined = Joined::open(parts)?;
    let limit_bytes = joined.length.saturating_mul(GROWTH_LIMIT).clamp(1 << 20, UNPACKED_LIMIT_BYTES);
    let mut archive =
        ZipArchive::new(BufReader::new(joined)).map_err(|error| broken("its directory", error.to_string()))?;
    if archive.len() > ENTRIES_LIMIT {
        return Err(broken(
            "its directory",
            format!("expected at most {ENTRIES_LIMIT} entries, found {}", archive.len()),
        ));
    }
    let mut remaining = limit_bytes;
    for number in 0..archive.len() {
        let mut entry =
            archive.by_index(number).map_err(|error| broken(&format!("entry {number}"), error.to_string()))?;
        let name = entry.name().map_err(|error| broken(&format!("entry {number}"), error.to_string()))?.into_owned();
        if entry.is_symlink() {
            return Err(broken(&name, "a symbolic link, which is not unpacked".to_owned()));
        }
        let inside = inside(&name)
            .ok_or_else(|| broken(&name, "its path would leave the folder it is unpacked to".to_owned()))?;
        if !wanted(&name) {
            continue;
        }
        let place = destination.join(inside);
        if name.ends_with('/') {
            fs::create_dir_all(&place).map_err(Error::io(&place, "make the folder"))?;
            continue;
        }
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).map_err(Error::io(folder, "make the folder"))?;
        }
        // A name that occurs twice would let one checksum vouch for another content.
        let mut file =
            OpenOptions::new().write(true).create_new(true).open(&place).map_err(Error::io(&place, "unpack"))?;
        let mut piece = vec![0u8; 1 << 17];
        loop {
            let count = match entry.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(&name, error.to_string())),
            };
            remaining = remaining.checked_sub(count as u64).ok_or_else(|| {
                broken(
                    &name,
                    format!("unpacks to more than {limit_bytes} bytes in all, too much for an archive of this size"),
                )
            })?;
            file.write_all(&piece[..count]).map_err(Error::io(&place, "unpack"))?;
        }
    }
    Ok(())
}

/// The relative path of an entry, or `None` when it leads elsewhere.
fn inside(name: &str) -> Option<PathBuf> {
    let name = name.strip_suffix('/').unwrap_or(name);
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0']);
    name.split('/').all(plain).then(|| name.split('/').collect())
}

/// Files read as if they were one.
struct Joined {
    parts: Vec<(u64, File)>,
    length: u64,
    position: u64,
}

impl Joined {
    fn open(paths: &[PathBuf]) -> Result<Joined, Error> {
        let mut joined = Joined { parts: Vec::new(), length: 0, position: 0 };
        for path in paths {
            let file = File::open(path).map_err(Error::io(path, "open"))?;
            let length = file.metadata().map_err(Error::io(path, "examine"))?.len();
            joined.parts.push((joined.length, file));
            joined.length += length;
        }
        Ok(joined)
    }
}

impl Read for Joined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let after = self.parts.partition_point(|(start, _)| *start <= self.position);
        // Empty parts start where the next one does, so the last that starts here or before has bytes left, if any has.
        let Some((start, file)) = after.checked_sub(1).and_then(|index| self.parts.get_mut(index)) else {
            return Ok(0);
        };
        file.seek(SeekFrom::Start(self.position - *start))?;
        let count = file.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Joined {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests;
