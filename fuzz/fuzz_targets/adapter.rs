//! Adapter folders: what is read can be written, and reads back the same.

#![no_main]

use std::sync::LazyLock;

use finegates_checkpoint::Adapter;
use finegates_fuzz::{Scratch, parts, safetensors};
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let mut pieces = parts(data);
    let (config, header) = (pieces.next().unwrap_or_default(), pieces.next().unwrap_or_default());
    SCRATCH.write("adapter_config.json", config);
    SCRATCH.write("adapter_model.safetensors", &safetensors(header, pieces.next().unwrap_or_default()));
    if let Ok(adapter) = Adapter::read(SCRATCH.path()) {
        for module in adapter.gated_modules() {
            assert!(adapter.gates(module).is_some());
        }
        let copy = SCRATCH.path().join("copy");
        adapter.write(&copy).expect("what was read can be written");
        assert_eq!(Adapter::read(&copy).expect("and read back"), adapter);
    }
});
