use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::unpack;

/// A zip file with these entries.
fn archive(folder: &Path, entries: &[(&str, &[u8])]) -> PathBuf {
    let path = folder.join("archive.zip");
    let mut writer = ZipWriter::new(fs::File::create(&path).expect("create"));
    for (name, content) in entries {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        writer.start_file(*name, options).expect("start");
        writer.write_all(content).expect("write");
    }
    writer.finish().expect("finish");
    path
}

fn message(entries: &[(&str, &[u8])]) -> String {
    let folder = tempfile::tempdir().expect("tempdir");
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).expect("create");
    let path = archive(folder.path(), entries);
    let error = unpack(&[path], &inner, |_| true).expect_err("a hostile archive");
    let outside: Vec<_> = fs::read_dir(folder.path()).expect("list").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(outside.len(), 2, "something was written outside: {outside:?}");
    error.to_string()
}

#[test]
fn entries_are_unpacked_whole_and_from_pieces() {
    let folder = tempfile::tempdir().expect("tempdir");
    let weights: Vec<u8> = (0..200_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let path = archive(folder.path(), &[("model/config.json", b"{}"), ("model/model.safetensors", &weights)]);
    let bytes = fs::read(&path).expect("read");
    for pieces in [1, 2, 5] {
        let paths: Vec<PathBuf> = bytes
            .chunks(bytes.len().div_ceil(pieces))
            .enumerate()
            .map(|(number, piece)| {
                let path = folder.path().join(format!("{pieces}.{number}"));
                fs::write(&path, piece).expect("write");
                path
            })
            .collect();
        let destination = folder.path().join(format!("out{pieces}"));
        fs::create_dir(&destination).expect("create");
        unpack(&paths, &destination, |_| true).expect("unpack");
        assert_eq!(fs::read(destination.join("model/config.json")).expect("read"), b"{}");
        assert_eq!(fs::read(destination.join("model/model.safetensors")).expect("read"), weights);
    }
}

#[test]
fn only_wanted_entries_are_unpacked() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = archive(folder.path(), &[("a/x.zip.001", b"1"), ("a/__init__.py", b"")]);
    let destination = folder.path().join("out");
    fs::create_dir(&destination).expect("create");
    unpack(&[path], &destination, |name| name.ends_with(".zip.001")).expect("unpack");
    assert!(destination.join("a/x.zip.001").is_file());
    assert!(!destination.join("a/__init__.py").exists());
}

#[test]
fn no_entry_leaves_the_folder() {
    for name in ["../escaped", "a/../../escaped", "/escaped", "a\\..\\..\\escaped", "C:escaped", "a//b", "./a"] {
        let text = message(&[(name, b"x")]);
        assert!(text.contains("would leave the folder"), "{name}: {text}");
    }
}

#[test]
fn a_bomb_is_stopped_early() {
    let text = message(&[("bomb", &vec![0u8; 100 << 20])]);
    assert!(text.contains("bomb: unpacks to more than"), "{text}");
}

#[test]
fn a_cut_or_changed_archive_is_an_error_at_every_byte() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = archive(folder.path(), &[("config.json", br#"{"model_type": "bert", "hidden_size": 128}"#)]);
    let bytes = fs::read(&path).expect("read");
    let attempt = |bytes: &[u8], number: usize| {
        fs::write(&path, bytes).expect("write");
        let destination = folder.path().join(format!("out{number}"));
        fs::create_dir(&destination).expect("create");
        unpack(std::slice::from_ref(&path), &destination, |_| true)
            .map(|()| fs::read(destination.join("config.json")).ok())
    };
    for end in 0..bytes.len() {
        assert!(attempt(&bytes[..end], end).is_err(), "cut to {end} bytes");
    }
    for place in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[place] ^= 0x55;
        // Whatever happens, no other content comes out under the name.
        if let Ok(Some(content)) = attempt(&changed, bytes.len() + place) {
            assert_eq!(content, br#"{"model_type": "bert", "hidden_size": 128}"#, "byte {place}");
        }
    }
}
