//! How gates start and how they are drawn (METHOD.md §2): the moments of θ and of the noise, and what a draw depends on.

use std::path::PathBuf;

use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_model::gate::Gate;
use finegates_model::{GateNoise, GateSettings, LoadOptions, Method, Model, Purpose};

const LENGTH: usize = 100_000;
const SETTINGS: GateSettings = GateSettings::Stochastic { init_mean: 0.7, init_std: 0.2, noise_std: 0.05 };

fn fresh(name: &str, seed: u64) -> Gate {
    match name.strip_suffix(".finegates_rows") {
        Some(path) => Gate::fresh_rows(path, LENGTH, &SETTINGS, seed),
        None => Gate::fresh_columns(name.trim_end_matches(".finegates_columns"), LENGTH, &SETTINGS, seed),
    }
}

/// Five standard errors of the mean and of the standard deviation of that many draws.
fn assert_moments(what: &str, values: &[f32], mean: f64, std: f64) {
    let n = values.len() as f64;
    let found_mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let found_std = (values.iter().map(|&x| (f64::from(x) - found_mean).powi(2)).sum::<f64>() / n).sqrt();
    assert!((found_mean - mean).abs() < 5.0 * std / n.sqrt(), "{what}: mean {found_mean}, not {mean}");
    assert!((found_std - std).abs() < 5.0 * std / (2.0 * n).sqrt(), "{what}: deviation {found_std}, not {std}");
}

fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn fresh_gates_have_the_mean_and_deviation_asked_for() {
    let gate = fresh("a.finegates_rows", 1);
    assert_moments("theta", &gate.parameter.value, 0.7, 0.2);
    assert_eq!(gate.parameter.value, fresh("a.finegates_rows", 1).parameter.value);
    assert_ne!(gate.parameter.value, fresh("a.finegates_columns", 1).parameter.value);
    assert_ne!(gate.parameter.value, fresh("a.finegates_rows", 2).parameter.value);
}

#[test]
fn noise_has_its_deviation_and_is_a_function_of_key_and_name() {
    let noise = |name: &str, key: u64| {
        let mut gate = fresh(name, 1);
        gate.draw(&GateNoise::Key(key));
        for ((&value, &theta), &noise) in
            gate.values().iter().zip(&gate.parameter.value).zip(gate.noise().expect("noise"))
        {
            let expected = (theta.tanh() + noise + 0.5).clamp(0.0, 1.0);
            assert!((value - expected).abs() < 1e-6, "{value} {expected}");
        }
        gate.noise().expect("noise").to_vec()
    };
    let first = noise("a.finegates_rows", 3);
    assert_moments("noise", &first, 0.0, 0.05);
    assert_eq!(first, noise("a.finegates_rows", 3), "the same key draws the same");
    for (what, other) in [("vector", noise("a.finegates_columns", 3)), ("key", noise("a.finegates_rows", 4))] {
        // Five standard errors.
        let together = correlation(&first, &other).abs();
        assert!(together < 5.0 / (LENGTH as f64).sqrt(), "another {what}: {together}");
    }
    let mut gate = fresh("a.finegates_rows", 1);
    gate.draw(&GateNoise::Key(3));
    gate.draw(&GateNoise::None);
    assert!(gate.noise().is_none());
    assert_eq!(gate.values(), gate.evaluation_values());
}

#[test]
fn only_close_closes_a_direct_gate() {
    let mut gate = Gate::direct("a.finegates_row_values".to_owned(), vec![1.0, 0.5, 0.0, 2.0], true);
    gate.close(1);
    // As a step of training might leave them.
    gate.parameter.value.copy_from_slice(&[0.0, 0.3, 0.2, -1.0]);
    gate.changed();
    gate.draw(&GateNoise::None);
    assert_eq!(gate.open(), [0, 3], "what was closed stays so, and an exact 0 is none");
    assert!(gate.values()[0] > 0.0 && gate.values()[0] < 1e-5, "{:?}", gate.values());
    assert_eq!(gate.values()[1..], [0.0, 0.0, -1.0]);
    gate.parameter.value[3] = 0.0;
    gate.adopt();
    gate.changed();
    assert_eq!(gate.evaluation_values()[3], 0.0, "a saved 0 is closed");
}

/// Direct gates of any value, negative and above 1 too: the gradient is that of the logits' sum, by central differences.
#[test]
fn direct_gates_have_the_gradient_of_finite_differences() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny/bert");
    let purpose = Purpose::Training { method: Method::Gates, gates: GateSettings::Direct };
    let options = LoadOptions { purpose, ..LoadOptions::default() };
    let (mut model, _) = Model::load(&Checkpoint::open(&folder).expect("checkpoint"), &options).expect("model");
    let batch = finegates_model::Batch::new([(&[1u32, 7, 9, 4, 2][..], &[0u32; 5][..]), (&[1, 5, 2], &[0; 3])]);
    model.parameters(&mut |parameter| {
        if parameter.name.contains("finegates") {
            let key = finegates_kernels::random::derive(5, parameter.name);
            finegates_kernels::random::fill_normal(key, 0.8, 0.6, parameter.value);
        }
    });
    model.close([finegates_model::wiring::units::Slot {
        projection: 4,
        side: finegates_model::wiring::Side::Row,
        index: 3,
    }]);
    model.parameters_changed();
    let weights: Vec<f32> = (0..2 * model.classes()).map(|at| 1.0 - 0.3 * at as f32).collect();
    let loss = |model: &mut Model| -> f64 {
        model.draw_gates(&GateNoise::None);
        let logits = model.forward_training(&batch, None).expect("logits");
        logits.iter().zip(&weights).map(|(&logit, &weight)| f64::from(logit) * f64::from(weight)).sum()
    };
    loss(&mut model);
    model.zero_gradients();
    model.backward(&weights);
    let mut gradients: Vec<(String, Vec<f32>)> = Vec::new();
    model.parameters(&mut |parameter| {
        if parameter.name.contains("finegates") {
            gradients.push((parameter.name.to_owned(), parameter.gradient.to_vec()));
        }
    });
    let scale = gradients.iter().flat_map(|(_, gradient)| gradient).fold(0.0_f32, |most, value| most.max(value.abs()));
    let mut checked = 0;
    for (name, gradient) in &gradients {
        for (index, &expected) in gradient.iter().enumerate().step_by(5) {
            let mut shifted = |by: f32| {
                let mut closed = false;
                model.parameters(&mut |parameter| {
                    if parameter.name == name {
                        closed = parameter.value[index] == 0.0;
                        parameter.value[index] += by;
                    }
                });
                model.parameters_changed();
                (loss(&mut model), closed)
            };
            const STEP: f32 = 2e-3;
            let ((above, closed), (below, _)) = (shifted(STEP), shifted(-2.0 * STEP));
            shifted(STEP);
            let found = ((above - below) / f64::from(2.0 * STEP)) as f32;
            // Rounding of the logits over the step, and the third derivative: a few thousandths of the largest gradient.
            assert!((found - expected).abs() < 5e-3 * scale, "{name}[{index}]: {expected}, by differences {found}");
            checked += usize::from(!closed);
        }
    }
    assert!(checked > 80, "{checked}");
}

#[test]
fn every_vector_of_a_model_is_drawn_for_itself() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny/bert");
    let purpose = Purpose::Training { method: Method::Gates, gates: GateSettings::default() };
    let options = LoadOptions { purpose, ..LoadOptions::default() };
    let (mut model, _) = Model::load(&Checkpoint::open(&folder).expect("checkpoint"), &options).expect("model");
    let mut draw = |key: u64| {
        model.draw_gates(&GateNoise::Key(key));
        let gates = model.projections().flat_map(|projection| {
            let gates = projection.gates().expect("gates");
            [&gates.rows, &gates.columns].map(|gate| gate.noise().expect("noise").to_vec())
        });
        gates.collect::<Vec<_>>()
    };
    let (first, again, next) = (draw(1), draw(1), draw(2));
    assert_eq!((first.len(), &first), (24, &again));
    let mut starts: Vec<u32> = first.iter().chain(&next).map(|noise| noise[0].to_bits()).collect();
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts.len(), 48, "no two vectors and no two draws begin alike");
}
