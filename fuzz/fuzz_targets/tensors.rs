//! Safetensors files: as raw bytes, with a true header length, and as a shard behind an index.

#![no_main]

use std::sync::LazyLock;

use finegates_checkpoint::TensorFile;
use finegates_fuzz::{Scratch, parts, safetensors};
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fn read_all(file: &TensorFile) {
    for name in file.names() {
        if let Ok(tensor) = file.read_tensor(name) {
            assert_eq!(tensor.data.len(), tensor.shape.iter().product::<usize>());
            assert!(file.read(name, &tensor.shape).is_ok());
        }
        let _ = file.read_u32(name);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut pieces = parts(data);
    let (first, second, third) = (pieces.next().unwrap_or_default(), pieces.next().unwrap_or_default(), pieces.next());
    SCRATCH.remove("model.safetensors.index.json");
    SCRATCH.write("model.safetensors", data);
    if let Ok(file) = TensorFile::open(SCRATCH.path()) {
        read_all(&file);
    }
    let whole = safetensors(first, second);
    SCRATCH.write("model.safetensors", &whole);
    if let Ok(file) = TensorFile::open(SCRATCH.path()) {
        read_all(&file);
    }
    if let Some(index) = third {
        SCRATCH.remove("model.safetensors");
        SCRATCH.write("a.safetensors", &whole);
        SCRATCH.write("model.safetensors.index.json", index);
        if let Ok(file) = TensorFile::open(SCRATCH.path()) {
            read_all(&file);
        }
    }
});
