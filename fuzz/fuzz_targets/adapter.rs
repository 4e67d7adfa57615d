//! Adapter folders: what is read can be written, and reads back the same.

#![no_main]

use std::sync::LazyLock;

use finegates_checkpoint::Adapter;
use finegates_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    SCRATCH.write_parts(data, "adapter_config.json", "adapter_model.safetensors");
    if let Ok(adapter) = Adapter::read(SCRATCH.path()) {
        for module in adapter.gated_modules() {
            assert!(adapter.gates(module).is_some());
        }
        let copy = SCRATCH.path().join("copy");
        adapter.write(&copy).expect("what was read can be written");
        assert_eq!(Adapter::read(&copy).expect("and read back"), adapter);
    }
});
