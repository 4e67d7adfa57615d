//! The authors' published adapter, counted without its base model. The numbers are those of an independent count in
//! numpy, `removal_reference.py` beside this file. Skipped where the adapter is not at hand, unless
//! `FINEGATES_REQUIRE_SHARED=1` says that it must be.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use finegates_checkpoint::adapter::Adapter;
use finegates_compress::adapter_removal;
use finegates_compress::removal::GateCounts;

#[test]
fn authors_roberta_adapter_removes_less_than_one_per_cent() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    let folder = shared.join("peft-finegates-roberta-base-mrpc");
    if !folder.is_dir() {
        let required = std::env::var_os("FINEGATES_REQUIRE_SHARED").is_some_and(|value| value == "1");
        assert!(!required, "FINEGATES_REQUIRE_SHARED is set and {} is missing", folder.display());
        eprintln!("skipped: {} is not there", folder.display());
        return;
    }
    let adapter = Adapter::read(&folder).unwrap();
    for head_dim in [Some(64), None] {
        let (wiring, removal) = adapter_removal(&adapter, head_dim).unwrap();
        assert_eq!((wiring.projections.len(), removal.layers.len()), (72, 12));
        assert_eq!(removal.totals.gated_parameters, 84_934_656);
        assert_eq!(removal.totals.removed_by_gates, 760_484);
        assert_eq!(removal.totals.removed_with_liveness, 812_066);
        assert_eq!(removal.totals.gates, GateCounts { open: 146_249, fractional: 18_799, closed: 840 });
    }
}
