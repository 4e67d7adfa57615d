//! The law of compression on the real model: for every family and any gates, the compact model's logits are those of
//! the gated one up to rounding. The mathematics behind it is proved without this model in `identities.rs`.

#![allow(clippy::unwrap_used)]

mod tiny;

use finegates_checkpoint::tensors::Tensor;
use finegates_compress::{Removal, adapter_removal};
use finegates_model::{Batch, Cache, Projection, Task};
use proptest::prelude::*;
use tiny::{CLOSED, DECODERS, FAMILIES, Numbers, OPEN, Tiny, difference, reload, reload_for};

/// f32 rounding over two layers, relative to the greatest logit; a wrong index shows as 1e-2 and more.
const ROUNDING: f64 = 2e-5;

/// Closed with probability `closed`, else fully open or in between.
fn random_theta(closed: f64, numbers: &mut Numbers) -> f32 {
    if numbers.next() < closed {
        return CLOSED;
    }
    // tanh θ + ½ from 0.05 to 1, so that no gate is so small that its row is lost in rounding.
    if numbers.next() < 0.5 { OPEN } else { (-0.48 + numbers.next() * 1.0) as f32 }
}

/// Whole sides that close on top of the random gates: (projection, rows or columns).
type Extremes = Vec<(usize, bool)>;

fn check(family: &str, seed: u64, closed: f64, extremes: &Extremes) -> Result<(), TestCaseError> {
    let mut numbers = Numbers(seed);
    let tiny = Tiny::gated(family, |projection, side, _| {
        let theta = random_theta(closed, &mut numbers);
        let whole = extremes.contains(&(projection, side == "rows"));
        Some(if whole { CLOSED } else { theta })
    });
    let folder = tempfile::tempdir().unwrap();
    let destination = folder.path().join("compact");
    let report = match tiny.compress(&destination) {
        Ok(report) => report,
        Err(error) => return Err(TestCaseError::fail(format!("{family}: {error}"))),
    };
    let compact = reload(&destination);
    let difference = difference(&tiny.model, &compact);
    prop_assert!(difference < ROUNDING, "{family}: logits differ by {difference:e} of their scale");

    let gates: Vec<_> = tiny.model.projections().map(Projection::gate_state).collect();
    let measured = Removal::measure(tiny.model.wiring(), &gates).unwrap();
    prop_assert_eq!(&report.removal, &measured);
    let left: u64 = compact.projections().map(|projection| projection.multiply_adds() as u64).sum();
    prop_assert_eq!(left, report.removal.totals.multiply_adds_after);
    let totals = report.removal.totals;
    prop_assert!(totals.removed_by_gates <= totals.removed_with_liveness);
    prop_assert!(totals.removed_with_liveness <= totals.gated_parameters);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compact_logits_are_the_gated_logits(
        seed in any::<u64>(),
        closed in prop_oneof![0.0..0.3f64, 0.3..0.9f64, Just(0.97)],
        extremes in prop_oneof![
            2 => Just(vec![]),
            1 => prop::collection::vec((0..14usize, any::<bool>()), 1..4),
        ],
    ) {
        for family in tiny::all() {
            check(family, seed, closed, &extremes)?;
        }
    }
}

#[test]
fn direct_gates_below_0_and_above_1_are_folded_as_they_are() {
    for family in tiny::all() {
        let mut numbers = Numbers(9);
        let tiny = Tiny::direct(family, |_, _, _| {
            let closed = numbers.next() < 0.4;
            Some(if closed { 0.0 } else { (numbers.next() * 2.2 - 0.5) as f32 })
        });
        let gates: Vec<_> = tiny.model.projections().map(Projection::gate_state).collect();
        assert!(gates.iter().any(|state| state.rows.iter().any(|&value| value < 0.0)));
        let folder = tempfile::tempdir().unwrap();
        let report = tiny.compress(&folder.path().join("compact")).unwrap();
        assert_eq!(report.removal, Removal::measure(tiny.model.wiring(), &gates).unwrap());
        assert!(report.removal.totals.removed_by_gates > 0);
        assert!(difference(&tiny.model, &reload(&folder.path().join("compact"))) < ROUNDING, "{family}");
    }
}

#[test]
fn nothing_closed_removes_nothing_and_keeps_the_logits() {
    for family in tiny::all() {
        let tiny = Tiny::gated(family, |_, _, _| Some(OPEN));
        let folder = tempfile::tempdir().unwrap();
        let report = tiny.compress(&folder.path().join("compact")).unwrap();
        assert_eq!(report.removal.totals.removed_with_liveness, 0);
        assert_eq!(report.parameters.before, report.parameters.after);
        assert!(report.notes.iter().any(|note| note.contains("no gate is closed")), "{:?}", report.notes);
        assert!(difference(&tiny.model, &reload(&folder.path().join("compact"))) < 1e-6, "{family}");
    }
}

#[test]
fn every_gate_closed_leaves_embeddings_norms_and_head() {
    for family in tiny::all() {
        let tiny = Tiny::gated(family, |_, _, _| Some(CLOSED));
        let folder = tempfile::tempdir().unwrap();
        let report = tiny.compress(&folder.path().join("compact")).unwrap();
        let totals = report.removal.totals;
        assert_eq!(totals.removed_by_gates, totals.gated_parameters);
        assert_eq!(totals.multiply_adds_after, 0);
        assert!(difference(&tiny.model, &reload(&folder.path().join("compact"))) < ROUNDING, "{family}");
    }
}

#[test]
fn layer_closed_by_its_six_rows_disappears() {
    for family in FAMILIES {
        let mut numbers = Numbers(4);
        let tiny = Tiny::gated(family, |projection, side, _| match (projection, side) {
            (6.., "rows") => Some(CLOSED),
            _ => Some(random_theta(0.2, &mut numbers)),
        });
        let folder = tempfile::tempdir().unwrap();
        let report = tiny.compress(&folder.path().join("compact")).unwrap();
        let layer = &report.removal.layers[1].totals;
        assert_eq!(layer.removed_with_liveness, layer.gated_parameters);
        assert!(report.notes.iter().any(|note| note.starts_with("layer 1:")), "{:?}", report.notes);
        assert!(difference(&tiny.model, &reload(&folder.path().join("compact"))) < ROUNDING, "{family}");
    }
}

#[test]
fn heads_without_values_are_gone_and_heads_without_scores_attend_uniformly() {
    for family in FAMILIES {
        let width = Tiny::load(family).model.config().hidden / Tiny::load(family).model.config().heads;
        // Layer 0: values of the first head closed, queries of the second. Layer 1: all values closed.
        let tiny = Tiny::gated(family, |projection, side, at| {
            let first = projection == 2 && at < width;
            let second = projection == 0 && (width..2 * width).contains(&at);
            let closed = side == "rows" && (first || second || projection == 8);
            Some(if closed { CLOSED } else { OPEN })
        });
        let folder = tempfile::tempdir().unwrap();
        let report = tiny.compress(&folder.path().join("compact")).unwrap();
        let places = &report.removal.projections;
        let hidden = places[0].rows;
        assert_eq!((places[0].live_rows, places[1].live_rows), (hidden - 2 * width, hidden - 2 * width), "{family}");
        assert_eq!((places[2].live_rows, places[3].live_columns), (hidden - width, hidden - width), "{family}");
        for place in &places[6..9] {
            assert_eq!((place.live_rows, place.live_columns), (0, 0), "{}", place.path);
        }
        assert_eq!((places[9].live_rows, places[9].live_columns), (hidden, 0), "its biases are live");
        assert!(difference(&tiny.model, &reload(&folder.path().join("compact"))) < ROUNDING, "{family}");
    }
}

#[test]
fn feed_forward_without_units_leaves_its_bias() {
    for family in FAMILIES {
        let tiny = Tiny::gated(family, |projection, side, _| {
            Some(if projection == 4 && side == "rows" { CLOSED } else { OPEN })
        });
        let folder = tempfile::tempdir().unwrap();
        let report = tiny.compress(&folder.path().join("compact")).unwrap();
        let down = &report.removal.projections[5];
        assert_eq!((down.live_rows, down.live_columns), (down.rows, 0));
        assert!(difference(&tiny.model, &reload(&folder.path().join("compact"))) < ROUNDING, "{family}");
    }
}

#[test]
fn projection_without_gates_shrinks_with_its_partners() {
    for family in FAMILIES {
        // Gates on query, value and up only; some of them closed.
        let mut numbers = Numbers(9);
        let tiny = Tiny::gated(family, |projection, _, _| {
            matches!(projection % 6, 0 | 2 | 4).then(|| random_theta(0.4, &mut numbers))
        });
        let folder = tempfile::tempdir().unwrap();
        let report = tiny.compress(&folder.path().join("compact")).unwrap();
        let places = &report.removal.projections;
        assert!(!places[5].gated && places[5].live_columns < places[5].columns, "{family}");
        assert_eq!(places[5].live_columns, places[4].live_rows);
        let gated: u64 = places.iter().filter(|place| place.gated).map(|place| place.parameters()).sum();
        assert_eq!(report.removal.totals.gated_parameters, gated);
        assert!(difference(&tiny.model, &reload(&folder.path().join("compact"))) < ROUNDING, "{family}");
    }
}

#[test]
fn adapter_alone_is_counted_as_with_its_model() {
    for family in FAMILIES {
        let tiny = Tiny::load(family);
        let config = tiny.model.config();
        let head_dim = config.hidden / config.heads;
        let mut numbers = Numbers(21);
        let adapter = tiny::adapter(tiny.model.wiring(), &mut |_, _, _| Some(random_theta(0.5, &mut numbers)));
        let (_, alone) = adapter_removal(&adapter, Some(head_dim)).unwrap();
        let mut model = tiny.model;
        model.apply_adapter(&adapter).unwrap();
        let gates: Vec<_> = model.projections().map(Projection::gate_state).collect();
        let with_model = Removal::measure(model.wiring(), &gates).unwrap();
        assert_eq!(alone.totals, with_model.totals, "{family}");
        assert_eq!(alone.layers, with_model.layers, "{family}");
    }
}

/// Reading token by token with caches as narrow as removal left them.
#[test]
fn a_compact_language_model_goes_on_as_the_gated_one() {
    for family in DECODERS {
        for (seed, closed) in [(1, 0.1), (2, 0.3), (3, 0.6)] {
            let mut numbers = Numbers(seed);
            let theta = |_: usize, _: &str, _: usize| Some(random_theta(closed, &mut numbers));
            let tiny = Tiny::gated_for(Task::Language, family, theta);
            let folder = tempfile::tempdir().unwrap();
            let destination = folder.path().join("compact");
            tiny.compress(&destination).unwrap();
            let compact = reload_for(Task::Language, &destination);
            assert_eq!(compact.task(), Task::Language);
            assert!(difference(&tiny.model, &compact) < ROUNDING, "{family}");
            let mut prompts = Batch::default();
            prompts.push(&[5, 6, 7, 8, 9, 10], &[0; 6]);
            prompts.push(&[11], &[0]);
            let mut caches = vec![Cache::default(); 4];
            let mut refs: Vec<&mut Cache> = caches.iter_mut().collect();
            let (gated, small) = refs.split_at_mut(2);
            let mut both =
                [tiny.model.read_prompts(&prompts, gated).unwrap(), compact.read_prompts(&prompts, small).unwrap()];
            for token in 20..30 {
                let scale = both[0].iter().fold(0.0, |most: f32, value| most.max(value.abs()));
                let gap = both[0].iter().zip(&both[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(gap < ROUNDING as f32 * scale, "{family}: {gap:e} of {scale:e} before token {token}");
                both = [
                    tiny.model.read_tokens(&[token, token + 1], gated).unwrap(),
                    compact.read_tokens(&[token, token + 1], small).unwrap(),
                ];
            }
            let narrowed = caches[2].size_bytes() < caches[0].size_bytes();
            assert!(narrowed || closed < 0.3, "{family}: caches of {} bytes", caches[2].size_bytes());
        }
    }
}

/// Biases that training added where the base has none are live, folded and written like any others.
#[test]
fn added_biases_are_kept_with_what_is_left() {
    for family in DECODERS {
        let mut numbers = Numbers(5);
        let mut tiny = Tiny::load(family);
        let mut adapter = tiny::adapter(tiny.model.wiring(), &mut |_, _, _| Some(random_theta(0.5, &mut numbers)));
        for place in &tiny.model.wiring().projections {
            let data: Vec<f32> = (0..place.rows).map(|_| numbers.next() as f32 - 0.5).collect();
            adapter.tensors.insert(format!("{}.bias", place.path), Tensor { shape: vec![place.rows], data });
        }
        tiny.adapt(adapter);
        assert!(tiny.model.wiring().projections.iter().all(|place| place.bias), "{family}");
        let folder = tempfile::tempdir().unwrap();
        tiny.compress(&folder.path().join("compact")).unwrap();
        assert!(difference(&tiny.model, &reload(&folder.path().join("compact"))) < ROUNDING, "{family}");
    }
}

#[test]
fn a_compact_model_takes_no_adapter() {
    let tiny = Tiny::gated("llama", |_, _, _| Some(OPEN));
    let folder = tempfile::tempdir().unwrap();
    tiny.compress(&folder.path().join("compact")).unwrap();
    let mut compact = reload(&folder.path().join("compact"));
    let adapter = tiny::adapter(tiny.model.wiring(), &mut |_, _, _| Some(OPEN));
    let error = compact.apply_adapter(&adapter).unwrap_err().to_string();
    assert!(error.contains("a compact model takes no adapter"), "{error}");
}

#[test]
fn of_a_decoder_a_pair_of_key_rows_takes_its_queries_along_and_a_head_its_keys() {
    // llama of the fixtures: four query heads of eight dimensions, two heads of keys and values.
    let tiny = Tiny::gated("llama", |projection, side, at| {
        let closed = match (projection, side) {
            // Pair 1 of the first key head; one row only of pair 2.
            (1, "rows") => [1, 5, 2].contains(&at),
            // All values of the second key head.
            (2, "rows") => at >= 8,
            _ => false,
        };
        Some(if closed { CLOSED } else { OPEN })
    });
    let folder = tempfile::tempdir().unwrap();
    let report = tiny.compress(&folder.path().join("compact")).unwrap();
    let places = &report.removal.projections;
    assert_eq!((places[0].live_rows, places[1].live_rows), (12, 5), "six of eight dimensions of two heads");
    assert_eq!((places[2].live_rows, places[3].live_columns), (8, 16));
    assert!(difference(&tiny.model, &reload(&folder.path().join("compact"))) < ROUNDING);
}
