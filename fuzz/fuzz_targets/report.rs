//! Arbitrary bytes as `compression.json`: numbers that fit together, or an error.

#![no_main]

use finegates_compress::Report;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(report) = Report::from_json(bytes) else { return };
    let totals = &report.removal.totals;
    assert!(totals.removed_by_gates <= totals.removed_with_liveness);
    assert!(totals.removed_with_liveness <= totals.gated_parameters);
});
