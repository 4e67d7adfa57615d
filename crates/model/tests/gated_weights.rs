//! Weights that train behind gates: their gradients against those of the folded model, whose backward pass PyTorch has judged;
//! what sleeps stays as it is; and fresh models.

use std::collections::BTreeMap;
use std::path::PathBuf;

use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_checkpoint::tensors::{TensorToWrite, write_tensors};
use finegates_kernels::random;
use finegates_model::language::NO_TARGET;
use finegates_model::{Batch, GateNoise, GateSettings, LoadOptions, Method, Model, Purpose, Task};

const STOCHASTIC: GateSettings = GateSettings::Stochastic { init_mean: 1.0, init_std: 0.1, noise_std: 0.1 };

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(name)
}

fn load(folder: &std::path::Path, method: Method, gates: GateSettings) -> Model {
    let purpose = Purpose::Training { method, gates };
    let options = LoadOptions { task: Task::Language, purpose, ..LoadOptions::default() };
    Model::load(&Checkpoint::open(folder).expect("checkpoint"), &options).expect("model").0
}

fn batch() -> (Batch, Vec<u32>) {
    let (mut batch, mut targets) = (Batch::default(), Vec::new());
    for (key, length) in [(1, 17), (2, 9), (3, 30)] {
        let ids: Vec<u32> = (0..length).map(|at| 4 + (random::mix(key, at) % 90) as u32).collect();
        batch.push(&ids, &vec![0; ids.len()]);
        targets.extend(ids[1..].iter().copied().chain([NO_TARGET]));
    }
    (batch, targets)
}

/// θ from closed for good over fractional to open.
fn spread_gates(model: &mut Model) {
    model.parameters(&mut |parameter| {
        if parameter.name.contains("finegates") {
            random::fill_normal(random::derive(9, parameter.name), -0.3, 0.7, parameter.value);
        }
    });
    model.parameters_changed();
}

type Gradients = BTreeMap<String, Vec<f32>>;

fn pass(model: &mut Model) -> (f64, Gradients) {
    let (batch, targets) = batch();
    model.zero_gradients();
    let loss = model.language_pass(&batch, &targets, 0.02, None, None).expect("a pass");
    let mut gradients = BTreeMap::new();
    model.parameters(&mut |parameter| drop(gradients.insert(parameter.name.to_owned(), parameter.gradient.to_vec())));
    (loss, gradients)
}

/// `W' = diag(ω_r) W diag(ω_c)` has `dW = diag(ω_r) dW' diag(ω_c)`, and the model of `W'` computes every product whole.
#[test]
fn gradients_of_gated_weights_are_those_of_the_folded_weights_times_the_gates() {
    for family in ["llama", "mistral", "qwen2"] {
        for noise in [GateNoise::None, GateNoise::Key(5)] {
            let mut gated = load(&fixture(family), Method::GatedFull, STOCHASTIC);
            spread_gates(&mut gated);
            gated.draw_gates(&noise);
            let (loss, found) = pass(&mut gated);
            let gates: BTreeMap<String, [Vec<f32>; 2]> = gated
                .projections()
                .map(|projection| {
                    let gates = projection.gates().expect("gates");
                    (projection.path().to_owned(), [gates.rows.values().to_vec(), gates.columns.values().to_vec()])
                })
                .collect();
            let closed = gates.values().flatten().flatten().filter(|value| **value == 0.0).count();
            assert!(closed > 100, "{closed} closed gates");

            let mut folded = load(&fixture(family), Method::Full, STOCHASTIC);
            folded.parameters(&mut |parameter| {
                let path = parameter.name.trim_end_matches(".weight").trim_end_matches(".bias");
                let Some([rows, columns]) = gates.get(path) else { return };
                let columns = if parameter.name.ends_with(".bias") { &[1.0][..] } else { columns };
                for (values, row) in parameter.value.chunks_exact_mut(columns.len()).zip(rows) {
                    values.iter_mut().zip(columns).for_each(|(value, column)| *value *= row * column);
                }
            });
            folded.parameters_changed();
            let (expected_loss, expected) = pass(&mut folded);
            assert!((loss - expected_loss).abs() < 1e-4 * expected_loss, "{family}: {loss} {expected_loss}");
            for (name, mut expected) in expected {
                let path = name.trim_end_matches(".weight").trim_end_matches(".bias");
                if let Some([rows, columns]) = gates.get(path) {
                    let columns = if name.ends_with(".bias") { &[1.0][..] } else { columns };
                    for (values, row) in expected.chunks_exact_mut(columns.len()).zip(rows) {
                        values.iter_mut().zip(columns).for_each(|(value, column)| *value *= row * column);
                    }
                }
                let scale = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                for (at, (found, expected)) in found[&name].iter().zip(&expected).enumerate() {
                    assert!((found - expected).abs() <= 1e-4 * scale, "{family} {name}[{at}]: {found} {expected}");
                    if *expected == 0.0 && gates.contains_key(path) {
                        assert!(found.abs() <= 1e-7 * scale, "{family} {name}[{at}] is closed: {found}");
                    }
                }
            }
        }
    }
}

/// Three deviations below the threshold a gate sleeps: no draw opens it, and nothing behind it is to be updated.
#[test]
fn what_sleeps_stays_closed_in_every_draw_and_out_of_every_update() {
    let mut model = load(&fixture("qwen2"), Method::GatedFull, STOCHASTIC);
    spread_gates(&mut model);
    let mut parts = Vec::new();
    for key in 1000..1200 {
        model.draw_gates(&GateNoise::Key(key));
        let mut part = Vec::new();
        let mut opened = 0;
        for projection in model.projections() {
            let gates = projection.gates().expect("gates");
            for gate in [&gates.rows, &gates.columns] {
                for (&theta, &value) in gate.parameter.value.iter().zip(gate.values()) {
                    let mean = theta.tanh() + 0.5;
                    assert!(mean > -0.3 - 1e-6 || value == 0.0, "{mean} gave {value}");
                    opened += usize::from(mean < 0.0 && value > 0.0);
                }
                part.push(gate.possible().to_vec());
            }
        }
        assert!(opened > 0, "what is closed but near still opens");
        parts.push(part);
    }
    assert!(parts.iter().all(|part| *part == parts[0]), "what sleeps follows from θ alone");
    let (_, gradients) = pass(&mut model);
    let mut asleep = 0;
    model.parameters(&mut |parameter| {
        let Some(awake) = parameter.awake else { return };
        for (at, gradient) in gradients[parameter.name].iter().enumerate() {
            let (row, column) = (at / awake.width, at % awake.width);
            let sleeps = awake.rows.binary_search(&(row as u32)).is_err()
                || awake.columns.is_some_and(|columns| columns[column] == 0.0);
            assert!(!sleeps || *gradient == 0.0, "{}[{at}]: {gradient}", parameter.name);
            asleep += usize::from(sleeps);
        }
    });
    assert!(asleep > 1000, "{asleep}");
}

#[test]
fn fresh_weights_are_those_of_transformers() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = |changes: &[(&str, serde_json::Value)]| {
        let text = std::fs::read_to_string(fixture("qwen2").join("config.json")).expect("a config");
        let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for (key, value) in changes {
            config[*key] = value.clone();
        }
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        finegates_checkpoint::Config::read(folder.path()).expect("a config")
    };
    let untied = config(&[
        ("tie_word_embeddings", false.into()),
        ("initializer_range", 0.05.into()),
        ("pad_token_id", 3.into()),
    ]);
    let make = |seed| {
        let made = finegates_model::initialise::initialise(&untied, seed, folder.path());
        let bytes = std::fs::read(folder.path().join("model.safetensors")).expect("weights");
        (made.expect("weights"), bytes)
    };
    let (parameters, bytes) = make(1);
    assert_ne!(bytes, make(2).1);
    assert_eq!(bytes, make(1).1, "a function of the seed");
    let model = load(folder.path(), Method::Full, STOCHASTIC);
    let (mut found, mut normal) = (0, Vec::new());
    for parameter in model.all_parameters() {
        found += parameter.value.len() as u64;
        let name = &parameter.name;
        match () {
            () if name.ends_with("norm.weight") => assert!(parameter.value.iter().all(|&value| value == 1.0), "{name}"),
            () if name.ends_with(".bias") => assert!(parameter.value.iter().all(|&value| value == 0.0), "{name}"),
            () => normal.extend(parameter.value.iter().map(|&value| f64::from(value))),
        }
        if name.contains("embed_tokens") {
            let width = parameter.shape[1];
            let zero = |row: usize| parameter.value[row * width..][..width].iter().all(|&value| value == 0.0);
            assert!(zero(3) && !zero(2) && !zero(4), "the padding row and no other");
        }
    }
    assert_eq!(found, parameters);
    let n = normal.len() as f64;
    let mean = normal.iter().sum::<f64>() / n;
    let deviation = (normal.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt();
    // Five standard errors, and the padding row.
    assert!(mean.abs() < 5.0 * 0.05 / n.sqrt(), "{mean}");
    assert!((deviation - 0.05).abs() < 5.0 * 0.05 / (2.0 * n).sqrt() + 0.05 * 32.0 / n, "{deviation}");

    let error = |changes: &[(&str, serde_json::Value)]| {
        finegates_model::initialise::initialise(&config(changes), 1, folder.path()).expect_err("refused").to_string()
    };
    let large = [("hidden_size", 16384.into()), ("intermediate_size", 16384.into()), ("num_hidden_layers", 60.into())];
    let said = error(&large);
    assert!(said.contains("parameters are more than a fresh model may have"), "{said}");
    let encoder = finegates_checkpoint::Config::read(&fixture("bert")).expect("a config");
    let said = finegates_model::initialise::initialise(&encoder, 1, folder.path()).expect_err("refused").to_string();
    assert!(said.contains("an encoder cannot be pretrained"), "{said}");
}

/// Every step of training sees the weights of the step before, also where the packs leave out what sleeps.
#[test]
fn packs_follow_weights_that_change_behind_closing_gates() {
    let mut model = load(&fixture("llama"), Method::GatedFull, STOCHASTIC);
    for round in 0..4 {
        model.parameters(&mut |parameter| match parameter.name.contains("finegates") {
            true => random::fill_normal(
                random::derive(round, parameter.name),
                0.6 - 0.5 * round as f32,
                0.5,
                parameter.value,
            ),
            false => parameter.value.iter_mut().for_each(|value| *value *= 0.97),
        });
        model.parameters_changed();
        model.draw_gates(&GateNoise::Key(round));
        let (loss, found) = pass(&mut model);
        // The same numbers in a model that has packed nothing before.
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::copy(fixture("llama").join("config.json"), folder.path().join("config.json")).expect("copied");
        let tensors = model.all_tensors();
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| TensorToWrite::f32(name.as_str(), tensor.shape.as_slice(), &tensor.data))
            .collect();
        write_tensors(&folder.path().join("model.safetensors"), &tensors, &BTreeMap::new()).expect("written");
        let mut fresh = load(folder.path(), Method::GatedFull, STOCHASTIC);
        let mut theta = BTreeMap::new();
        model.parameters(&mut |parameter| drop(theta.insert(parameter.name.to_owned(), parameter.value.to_vec())));
        fresh.parameters(&mut |parameter| parameter.value.copy_from_slice(&theta[parameter.name]));
        fresh.parameters_changed();
        fresh.draw_gates(&GateNoise::Key(round));
        let (expected_loss, expected) = pass(&mut fresh);
        assert_eq!((loss.to_bits(), found), (expected_loss.to_bits(), expected), "round {round}");
    }
}
