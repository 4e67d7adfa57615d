//! Arbitrary bytes as a run's saved state: where it stands, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("finegates-fuzz-{}.safetensors", std::process::id()));
    if std::fs::write(&path, bytes).is_ok() {
        let _ = finegates_train::state::read(&path);
    }
});
