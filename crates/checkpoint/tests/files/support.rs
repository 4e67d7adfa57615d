//! Files made by hand, byte for byte, so that the reader is not tested against its own writer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use finegates_checkpoint::{TensorToWrite, write_tensors};
use serde_json::Value;

pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

pub fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("a file in a folder")).expect("make the folder");
    fs::write(path, bytes).expect("write");
}

/// A safetensors file with this header and data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes f32 tensors of these names, shapes and values.
pub fn write_f32(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let tensors: Vec<TensorToWrite> =
        tensors.iter().map(|(name, shape, data)| TensorToWrite::f32(*name, *shape, data)).collect();
    write_tensors(path, &tensors, &BTreeMap::new()).expect("write tensors");
}

/// A config of a family with a few keys changed; null removes one.
pub fn config_text(base: Value, changes: Value) -> String {
    let (Value::Object(mut base), Value::Object(changes)) = (base, changes) else { panic!("expected objects") };
    for (key, value) in changes {
        if value.is_null() {
            base.remove(&key);
        } else {
            base.insert(key, value);
        }
    }
    Value::Object(base).to_string()
}

/// The folder of shared data beside the repository; tests that need it say so when it is missing, and fail if
/// `FINEGATES_REQUIRE_SHARED=1`.
pub fn shared() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if !path.is_dir() {
        let required = std::env::var_os("FINEGATES_REQUIRE_SHARED").is_some_and(|value| value == "1");
        assert!(!required, "FINEGATES_REQUIRE_SHARED is set and {} is missing", path.display());
        eprintln!("skipped: {} is missing", path.display());
        return None;
    }
    Some(path)
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}
