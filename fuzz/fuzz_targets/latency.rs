//! Arbitrary text as a table of times: times that are finite and fall as units close, or nothing.

#![no_main]

use finegates_model::Wiring;
use finegates_model::sample::LayerSizes;
use finegates_model::wiring::StackShape;
use finegates_train::budget::{Cost, Live};
use finegates_train::latency::LatencyTable;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let shape = StackShape::encoder(2, 64, 4, 96);
    let whole = LayerSizes { query_key: 64, value: 64, feed_forward: 96 };
    let Some(table) = LatencyTable::parse(text, &whole) else { return };
    let wiring = Wiring::stack(finegates_checkpoint::Family::Bert, &shape).expect("a wiring");
    let cost = Cost::Latency(table);
    let mut live = Live::whole(&wiring);
    let mut before = cost.of(&wiring, &live);
    assert!(before.is_finite() && before > 0.0);
    for left in (0..64).rev() {
        live.rows.iter_mut().for_each(|rows| *rows = (*rows).min(left));
        let now = cost.of(&wiring, &live);
        assert!(now.is_finite() && now >= 0.0 && now <= before * (1.0 + 1e-9), "{now} after {before}");
        before = now;
    }
});
