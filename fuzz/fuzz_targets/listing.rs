//! The hub's listing of a model, and the index of shards that decides what else is fetched: a commit and plain names.

#![no_main]

use std::sync::LazyLock;

use finegates_checkpoint::source::fuzzing::{parse_listing, shard_names};
use finegates_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    if let Some((commit, _)) = parse_listing(data) {
        assert!(commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    SCRATCH.write("index.json", data);
    for name in shard_names(&SCRATCH.path().join("index.json")).into_iter().flatten() {
        assert!(!name.is_empty() && name != ".." && !name.contains(['/', '\\', ':', '\0']), "{name}");
    }
});
