//! Model folders: what loads can answer, and nothing is made by sizes that only the config claims. The memory that a
//! run may take is libFuzzer's limit (`-rss_limit_mb`).

#![no_main]

use std::sync::LazyLock;

use finegates_checkpoint::Checkpoint;
use finegates_fuzz::Scratch;
use finegates_model::{Batch, GateSettings, LoadOptions, Method, Model, Purpose, Wiring};
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    SCRATCH.write_parts(data, "config.json", "model.safetensors");
    let Ok(checkpoint) = Checkpoint::open(SCRATCH.path()) else { return };
    let _ = Wiring::of_checkpoint(&checkpoint);
    let gates = GateSettings::default();
    let training = Purpose::Training { method: Method::Gates, gates };
    for (purpose, labels) in [(Purpose::Inference, None), (training, Some(2))] {
        let Ok((model, _)) = Model::load(&checkpoint, &LoadOptions { purpose, labels, ..LoadOptions::default() })
        else {
            continue;
        };
        assert_eq!(model.config().compact.is_some(), checkpoint.config.compact.is_some());
        let batch = Batch::new([(&[0u32, 0][..], &[0u32, 0][..])]);
        if purpose == Purpose::Inference
            && let Ok(logits) = model.forward(&batch)
        {
            assert_eq!(logits.len(), model.classes());
        }
    }
});
