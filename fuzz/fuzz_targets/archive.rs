//! Zip archives, whole and in two pieces: whatever they hold, nothing is written outside the folder, no link is made, and
//! nothing grows beyond what the archive's size justifies.

#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use finegates_checkpoint::source::fuzzing::unpack;
use finegates_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

/// The size of everything in a folder, in which there are only files and folders.
fn size_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    entries
        .map(|entry| {
            let about = fs::symlink_metadata(entry.path()).expect("an entry");
            assert!(about.is_file() || about.is_dir(), "{:?} is neither file nor folder", entry.path());
            if about.is_dir() { size_bytes(&entry.path()) } else { about.len() }
        })
        .sum()
}

fn attempt(parts: &[PathBuf], size: usize) {
    let inner = SCRATCH.path().join("inner");
    let _ = fs::remove_dir_all(&inner);
    fs::create_dir(&inner).expect("make the folder");
    let _ = unpack(parts, &inner);
    assert!(size_bytes(&inner) <= (size as u64 * 64).max(1 << 20));
    let outside = fs::read_dir(SCRATCH.path()).expect("a folder").flatten().count();
    assert_eq!(outside, 3, "something was written outside the folder");
}

fuzz_target!(|data: &[u8]| {
    let (first, second) = data.split_at(data.len() / 2);
    SCRATCH.write("a", data);
    SCRATCH.write("b", second);
    let [a, b] = ["a", "b"].map(|name| SCRATCH.path().join(name));
    attempt(std::slice::from_ref(&a), data.len());
    SCRATCH.write("a", first);
    attempt(&[a, b], data.len());
});
