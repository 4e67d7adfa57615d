//! Compact checkpoints: whatever opens has indices within bounds and matrices of their size.

#![no_main]

use std::sync::LazyLock;

use finegates_checkpoint::Checkpoint;
use finegates_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    SCRATCH.write_parts(data, "config.json", "model.safetensors");
    let Ok(checkpoint) = Checkpoint::open(SCRATCH.path()) else { return };
    let Some(info) = &checkpoint.config.compact else { return };
    for (module, &(rows, columns)) in &info.projections {
        let projection = info.read(&checkpoint.tensors, module).expect("it was checked when it was opened");
        assert_eq!((projection.rows, projection.columns), (rows, columns));
        assert!(projection.kept_rows.is_sorted() && projection.kept_columns.is_sorted());
        assert!(projection.kept_rows.iter().all(|&row| (row as usize) < rows));
        assert!(projection.kept_columns.iter().all(|&column| (column as usize) < columns));
        assert_eq!(projection.weight.len(), projection.kept_rows.len() * projection.kept_columns.len());
    }
});
