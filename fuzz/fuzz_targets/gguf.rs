//! GGUF files, imported as a whole. What an import writes must be read again.

#![no_main]

use std::sync::LazyLock;

use finegates_checkpoint::TensorFile;
use finegates_checkpoint::gguf::{ImportOptions, import};
use finegates_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    SCRATCH.write("model.gguf", data);
    let folder = SCRATCH.path().join("model");
    if let Ok(imported) = import(&SCRATCH.path().join("model.gguf"), &folder, true, &ImportOptions::default()) {
        let tensors = TensorFile::open(&folder).expect("what was written is read");
        assert_eq!(tensors.names().count(), imported.tensors);
        assert_eq!(tensors.size_bytes(), imported.size_bytes);
    }
});
