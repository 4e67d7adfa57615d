//! What saves memory changes no bit: layers run again for the backward pass, layers loaded one at a time, word tables that
//! are held in another form.

use std::collections::BTreeMap;
use std::path::PathBuf;

use finegates_checkpoint::adapter::{Adapter, AdapterConfig};
use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_checkpoint::tensors::{Tensor, TensorFile, TensorToWrite, write_tensors};
use finegates_kernels::matrix::Precision;
use finegates_kernels::random;
use finegates_model::language::NO_TARGET;
use finegates_model::{
    Batch, GateNoise, GateSettings, LoadOptions, Method, Model, Penalty, Projection, Purpose, Task, run_layerwise,
};

const ENCODERS: [&str; 5] = ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet"];
/// With one table for input and output: `llama` and `qwen2`.
const DECODERS: [&str; 4] = ["llama", "llama3", "mistral", "qwen2"];

fn folder(family: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(family)
}

fn checkpoint(family: &str) -> Checkpoint {
    Checkpoint::open(&folder(family)).expect("checkpoint")
}

fn batch(lengths: &[usize]) -> Batch {
    let mut batch = Batch::default();
    for (sequence, &length) in lengths.iter().enumerate() {
        let tokens: Vec<u32> = (0..length).map(|at| (5 + 7 * sequence + 3 * at) as u32 % 60 + 5).collect();
        batch.push(&tokens, &vec![0; length]);
    }
    batch
}

fn gradients(model: &mut Model) -> Vec<u32> {
    let mut gradients = Vec::new();
    model.parameters(&mut |parameter| gradients.extend(parameter.gradient.iter().map(|value| value.to_bits())));
    gradients
}

/// Two steps of unlike batches with dropout, noise and a penalty by kurtosis: everything that follows from a pass.
fn steps(model: &mut Model, task: Task) -> Vec<(u64, Vec<u32>)> {
    let mut found = Vec::new();
    for (step, lengths) in [[9, 3, 14].as_slice(), &[4, 1], &[11, 2, 5, 8]].into_iter().enumerate() {
        let (batch, key) = (batch(lengths), Some(step as u64));
        model.draw_gates(&GateNoise::Key(7 + step as u64));
        model.zero_gradients();
        let loss = match task {
            Task::Language => {
                let mut targets: Vec<u32> = batch.tokens[1..].to_vec();
                targets.push(NO_TARGET);
                model.language_pass(&batch, &targets, 0.1, key, None).expect("a pass")
            }
            Task::Classify => {
                let logits = model.forward_training(&batch, key).expect("logits");
                let weights: Vec<f32> = (0..logits.len()).map(|at| 1.0 - 0.3 * at as f32).collect();
                model.backward(&weights);
                logits.iter().map(|&value| f64::from(value)).sum()
            }
        };
        let penalty = model.penalty(&Penalty { kurtosis: true, ..Penalty::default() }, 1.0);
        found.push(((loss + penalty).to_bits(), gradients(model)));
    }
    found
}

#[test]
fn layers_that_run_again_give_the_same_bits_and_keep_less() {
    let language = DECODERS.map(|family| (family, Task::Language));
    let classify = ENCODERS.into_iter().chain(DECODERS).map(|family| (family, Task::Classify));
    for (family, task) in classify.chain(language) {
        for method in [Method::Gates, Method::BitFit, Method::Full, Method::GatedFull] {
            let purpose = Purpose::Training { method, gates: GateSettings::default() };
            let run = |recompute| {
                let add_biases = !method.trains_everything();
                let options = LoadOptions { task, purpose, add_biases, keep_weights: true, ..LoadOptions::default() };
                let mut model = Model::load(&checkpoint(family), &options).expect("model").0;
                model.parameters(&mut |parameter| {
                    // Gates inside (0, 1), where they have a gradient.
                    if parameter.name.contains("finegates") {
                        parameter.value.iter_mut().for_each(|theta| *theta -= 1.0);
                        if method == Method::GatedFull {
                            // Some sleep.
                            parameter.value.iter_mut().step_by(3).for_each(|theta| *theta = -2.0);
                        }
                    }
                });
                model.parameters_changed();
                model.recompute(recompute);
                (steps(&mut model, task), model.kept_bytes())
            };
            let ((plain, kept), (again, kept_less)) = (run(false), run(true));
            assert!(plain.iter().all(|(_, gradients)| gradients.iter().any(|&bits| bits != 0)), "{family} {method}");
            assert!(plain == again, "{family} {method}: other bits");
            // Of at least seven buffers of a layer's width, and the feed-forward block's, one stays.
            assert!(kept_less * 8 < kept, "{family} {method}: {kept_less} of {kept} bytes");
        }
    }
}

#[test]
fn a_second_backward_pass_adds_the_same_again() {
    for recompute in [false, true] {
        let purpose = Purpose::Training { method: Method::BitFit, gates: GateSettings::default() };
        let options = LoadOptions { purpose, ..LoadOptions::default() };
        let mut model = Model::load(&checkpoint("llama"), &options).expect("model").0;
        model.recompute(recompute);
        model.zero_gradients();
        let logits = model.forward_training(&batch(&[6, 3]), Some(1)).expect("logits");
        let sums = |model: &mut Model| {
            model.backward(&vec![1.0; logits.len()]);
            let mut sum = Vec::new();
            model.parameters(&mut |parameter| sum.extend_from_slice(parameter.gradient));
            sum
        };
        let (once, twice) = (sums(&mut model), sums(&mut model));
        assert!(once.iter().zip(&twice).all(|(once, twice)| 2.0 * once == *twice), "recompute {recompute}");
    }
}

/// Gates of every kind of value on all projections but one, and a bias on one.
fn adapter(model: &Model) -> Adapter {
    let mut tensors = BTreeMap::new();
    for (index, place) in model.wiring().projections.iter().enumerate().filter(|(index, _)| *index != 3) {
        for (side, length) in [("rows", place.rows), ("columns", place.columns)] {
            let name = format!("{}.finegates_{side}", place.path);
            let mut data = vec![0.0; length];
            random::fill_normal(random::derive(index as u64, side), 0.0, 0.7, &mut data);
            tensors.insert(name, Tensor { shape: vec![length], data });
        }
        if index == 1 {
            let data = (0..place.rows).map(|row| row as f32 * 0.01).collect();
            tensors.insert(format!("{}.bias", place.path), Tensor { shape: vec![place.rows], data });
        }
    }
    Adapter { config: AdapterConfig::default(), tensors }
}

#[test]
fn layers_one_at_a_time_say_what_the_whole_model_says() {
    let language = DECODERS.map(|family| (family, Task::Language));
    let classify = ENCODERS.into_iter().chain(DECODERS).map(|family| (family, Task::Classify));
    let batches = [batch(&[9, 3, 14]), Batch::default(), batch(&[1])];
    for (family, task) in classify.chain(language) {
        let checkpoint = checkpoint(family);
        for precision in [Precision::F32, Precision::Bf16] {
            let options = LoadOptions { task, precision, ..LoadOptions::default() };
            let (mut model, mut report) = Model::load(&checkpoint, &options).expect("model");
            for adapter in [None, Some(adapter(&model))] {
                if let Some(adapter) = &adapter {
                    model.apply_adapter(adapter).expect("an adapter");
                }
                let found = run_layerwise(&checkpoint, &options, adapter.as_ref(), &batches).expect("layers");
                for (batch, logits) in batches.iter().zip(&found.logits) {
                    assert_eq!(*logits, model.forward(batch).expect("logits"), "{family} {precision}");
                }
                assert_eq!((&found.wiring, found.classes), (model.wiring(), model.classes()), "{family}");
                report.initialised.clear();
                assert_eq!(found.report, report, "{family}");
                let gates: Vec<_> = found.projections.iter().map(|rest| rest.gates.clone()).collect();
                let expected = model.projections().map(|one| one.gates().map(|_| one.gate_state()));
                assert_eq!(gates, expected.collect::<Vec<_>>(), "{family}");
                let biases: Vec<_> = found.projections.iter().map(|rest| rest.bias.as_deref()).collect();
                assert_eq!(biases, model.projections().map(Projection::bias).collect::<Vec<_>>(), "{family}");
                let gated: Vec<String> = model.projections().map(|one| format!("{}.", one.path())).collect();
                let mut others: Vec<_> = model
                    .all_parameters()
                    .filter(|parameter| !gated.iter().any(|path| parameter.name.starts_with(path)))
                    .map(|parameter| (parameter.name.clone(), parameter.shape.clone()))
                    .collect();
                let mut found: Vec<_> = found.others.into_iter().map(|one| (one.name, one.shape)).collect();
                others.sort();
                found.sort();
                assert_eq!(found, others, "{family}");
            }
        }
    }
}

#[test]
fn a_misfit_is_refused_layer_by_layer_as_in_a_whole_model() {
    let checkpoint = checkpoint("bert");
    let model = Model::load(&checkpoint, &LoadOptions::default()).expect("model").0;
    let good = adapter(&model);
    let name = format!("{}.finegates_rows", model.wiring().projections[5].path);
    let mut short = good.clone();
    short.tensors.insert(name.clone(), Tensor { shape: vec![1], data: vec![1.0] });
    let mut unknown = good.clone();
    unknown.tensors.insert("bert.nowhere.bias".to_owned(), Tensor { shape: vec![1], data: vec![1.0] });
    for (bad, word) in [(short, name.as_str()), (unknown, "bert.nowhere.bias")] {
        let error = run_layerwise(&checkpoint, &LoadOptions::default(), Some(&bad), &[]).expect_err(word).to_string();
        let mut model = Model::load(&checkpoint, &LoadOptions::default()).expect("model").0;
        assert_eq!(error, model.apply_adapter(&bad).expect_err(word).to_string());
        assert!(error.contains(word), "{error}");
    }
    let long = batch(&[model.max_length() + 1]);
    let error = run_layerwise(&checkpoint, &LoadOptions::default(), None, &[long]).expect_err("too long");
    assert!(error.to_string().contains("tokens, the model takes"), "{error}");
}

/// The word table of an encoder in a bf16 run is the one rounded to bf16, as its weights are.
#[test]
fn word_tables_of_bf16_runs_are_rounded() {
    for family in ENCODERS {
        let place = tempfile::tempdir().expect("a folder");
        std::fs::copy(folder(family).join("config.json"), place.path().join("config.json")).expect("a copy");
        let file = TensorFile::open_file(&folder(family).join("model.safetensors")).expect("tensors");
        let model = Model::load(&checkpoint(family), &LoadOptions::default()).expect("model").0;
        let gated: Vec<String> = model.projections().map(|one| format!("{}.weight", one.path())).collect();
        let tensors: Vec<(String, Tensor)> = file
            .names()
            .map(|name| {
                let mut tensor = file.read_tensor(name).expect("a tensor");
                if name.contains("word_embeddings") || gated.iter().any(|path| path.ends_with(name)) {
                    tensor.data.iter_mut().for_each(|value| *value = Precision::Bf16.round(*value));
                }
                (name.to_owned(), tensor)
            })
            .collect();
        let written: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| TensorToWrite::f32(name.as_str(), tensor.shape.as_slice(), &tensor.data))
            .collect();
        write_tensors(&place.path().join("model.safetensors"), &written, &BTreeMap::new()).expect("a file");
        let rounded = Checkpoint::open(place.path()).expect("checkpoint");
        // So few rows go through f32 products on every CPU; more may be rounded themselves, where bf16 is multiplied.
        let batch = batch(&[5, 2, 4]);
        let logits = |checkpoint: &Checkpoint, precision| {
            let options = LoadOptions { precision, ..LoadOptions::default() };
            Model::load(checkpoint, &options).expect("model").0.forward(&batch).expect("logits")
        };
        let held = logits(&checkpoint(family), Precision::Bf16);
        assert_eq!(held, logits(&rounded, Precision::F32), "{family}");
        assert_ne!(held, logits(&checkpoint(family), Precision::F32), "{family}");
    }
}
