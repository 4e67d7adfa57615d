//! Folders of every kind, with a run's recipe: what they are, or an error. Nothing is fetched.

#![no_main]

use std::sync::LazyLock;

use finegates_checkpoint::source::FetchOptions;
use finegates_fuzz::{Scratch, parts};
use finegates_infer::{Artifact, Which};
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

const FILES: [&str; 5] =
    ["recipe.toml", "adapter_config.json", "config.json", "best/adapter_config.json", "adapter/config.json"];

fuzz_target!(|data: &[u8]| {
    let Some((&kinds, data)) = data.split_first() else { return };
    for folder in ["best", "adapter"] {
        std::fs::create_dir_all(SCRATCH.path().join(folder)).expect("make the folder");
    }
    let mut pieces = parts(data);
    for (number, name) in FILES.iter().enumerate() {
        SCRATCH.remove(name);
        if kinds & (1 << number) != 0 {
            SCRATCH.write(name, pieces.next().unwrap_or_default());
        }
    }
    let fetch = FetchOptions { offline: true, environment: Some(&|_| None), ..FetchOptions::default() };
    let path = SCRATCH.path().to_string_lossy();
    for which in [Which::Best, Which::Last] {
        let Ok(artifact) = Artifact::find(&path, &which, None, &fetch) else { continue };
        let _ = (artifact.base_name(), artifact.method());
    }
});
