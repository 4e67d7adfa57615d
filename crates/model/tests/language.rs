//! Decoders as language models against PyTorch on tiny random models: logits, losses, gradients, perplexity, greedy
//! generation with a cache. Tolerances as in fixtures/README.md: logits 3.6e-6 and gradients 6.8e-6 are PyTorch's own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_checkpoint::tensors::{Tensor, TensorFile, TensorToWrite, write_tensors};
use finegates_kernels::matrix::Precision;
use finegates_model::language::{Distillation, NO_TARGET};
use finegates_model::wiring::Units;
use finegates_model::{Batch, Cache, GateNoise, GateSettings, LoadOptions, Method, Model, Purpose, Task};
use serde_json::Value;

const MODELS: [&str; 6] = ["llama", "llama3", "mistral", "qwen2", "linear", "dynamic"];

struct Golden {
    name: &'static str,
    folder: PathBuf,
    json: Value,
    tensors: TensorFile,
    gates: TensorFile,
}

impl Golden {
    fn read(name: &'static str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(name);
        let text = std::fs::read_to_string(folder.join("golden_language.json")).expect("golden_language.json");
        let open = |file: &str| TensorFile::open_file(&folder.join(file)).expect("tensors");
        let (tensors, gates) = (open("golden_language.safetensors"), open("golden.safetensors"));
        Self { name, json: serde_json::from_str(&text).expect("json"), tensors, gates, folder }
    }

    fn model(&self, purpose: Purpose) -> Model {
        let checkpoint = Checkpoint::open(&self.folder).expect("checkpoint");
        let options = LoadOptions { task: Task::Language, purpose, ..LoadOptions::default() };
        let (model, report) = Model::load(&checkpoint, &options).expect("model");
        assert_eq!(report.initialised, Vec::<String>::new());
        assert_eq!(report.ignored, ["score.weight"], "the classifier's head");
        model
    }

    fn training(&self, method: Method) -> Model {
        self.model(Purpose::Training { method, gates: GateSettings::default() })
    }

    /// All sequences, and for each token the next one.
    fn batch(&self) -> (Batch, Vec<u32>) {
        let (mut batch, mut targets) = (Batch::default(), Vec::new());
        for ids in self.json["sequences"].as_array().expect("sequences") {
            let ids = numbers(ids);
            batch.push(&ids, &vec![0; ids.len()]);
            targets.extend(ids[1..].iter().copied().chain([NO_TARGET]));
        }
        (batch, targets)
    }

    fn predictions(&self) -> f64 {
        self.json["predictions"].as_f64().expect("predictions")
    }
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().expect("array").iter().map(|number| number.as_u64().expect("number") as u32).collect()
}

fn single(ids: &[u32]) -> Batch {
    Batch::new([(ids, &vec![0; ids.len()][..])])
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst:e}, more than {tolerance:e}");
}

/// 1e-4 of the tensor's largest gradient.
fn assert_gradients(golden: &Golden, scenario: &str, model: &mut Model) {
    let mut found = BTreeMap::new();
    model.parameters(&mut |parameter| {
        found.insert(parameter.name.to_owned(), parameter.gradient.to_vec());
    });
    let prefix = format!("{scenario}.gradient.");
    let mut checked = 0;
    for name in golden.tensors.names().filter_map(|name| name.strip_prefix(&prefix)) {
        let expected = golden.tensors.read_tensor(&format!("{prefix}{name}")).expect("a gradient").data;
        let scale = expected.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
        let gradient = found.get(name).unwrap_or_else(|| panic!("{}: {name} does not train", golden.name));
        assert_close(&format!("{} {scenario} {name}", golden.name), gradient, &expected, (1e-4 * scale).max(1e-7));
        checked += 1;
    }
    assert!(checked > 5, "{}: {checked} gradients", golden.name);
}

#[test]
fn logits_after_every_token_equal_pytorch() {
    for name in MODELS {
        let golden = Golden::read(name);
        let model = golden.model(Purpose::Inference);
        for (index, ids) in golden.json["sequences"].as_array().expect("sequences").iter().enumerate() {
            let ids = numbers(ids);
            let expected = golden.tensors.read_tensor(&format!("logits.{index}")).expect("logits").data;
            let vocabulary = expected.len() / ids.len();
            // What a text that goes on beyond the original length says of its beginning depends on its length.
            let firsts = if name == "dynamic" { ids.len()..=ids.len() } else { 1..=ids.len() };
            for length in firsts {
                let found = model.forward(&single(&ids[..length])).expect("logits");
                assert_close(name, &found, &expected[(length - 1) * vocabulary..][..vocabulary], 2e-5);
            }
        }
    }
}

#[test]
fn losses_and_gradients_of_everything_equal_pytorch() {
    for name in MODELS.into_iter().filter(|name| !["linear", "dynamic"].contains(name)) {
        let golden = Golden::read(name);
        let mut model = golden.training(Method::Full);
        let (batch, targets) = golden.batch();
        model.zero_gradients();
        let total =
            model.language_pass(&batch, &targets, 1.0 / golden.predictions() as f32, None, None).expect("a pass");
        let expected = golden.json["full"]["f64"]["loss"].as_f64().expect("loss");
        assert!((total / golden.predictions() - expected).abs() < 1e-5, "{name}: {total}");
        assert_gradients(&golden, "full", &mut model);
    }
}

#[test]
fn gradients_of_gates_equal_pytorch() {
    for name in MODELS {
        let golden = Golden::read(name);
        let mut model = golden.training(Method::Gates);
        model.parameters(&mut |parameter| {
            if parameter.name.contains("finegates") {
                let theta = format!("mixed.theta.{}", parameter.name);
                parameter.value.copy_from_slice(&golden.gates.read_tensor(&theta).expect("theta").data);
            }
        });
        model.parameters_changed();
        let (batch, targets) = golden.batch();
        let loss = |name: &str| golden.json["mixed"]["f64"][name].as_f64().expect("loss");
        model.draw_gates(&GateNoise::None);
        let total: f64 = model.token_losses(&batch, &targets).expect("losses").iter().sum();
        assert!((total / golden.predictions() - loss("loss_evaluation")).abs() < 1e-5, "{name}: {total}");
        let noise =
            |name: &str, _: usize| golden.gates.read_tensor(&format!("mixed.noise.{name}")).expect("noise").data;
        model.draw_gates(&GateNoise::Given(&noise));
        model.zero_gradients();
        let total =
            model.language_pass(&batch, &targets, 1.0 / golden.predictions() as f32, None, None).expect("a pass");
        assert!((total / golden.predictions() - loss("loss_training")).abs() < 1e-5, "{name}: {total}");
        assert_gradients(&golden, "mixed", &mut model);
    }
}

/// The loss by its definition from logits of both models, and the gradients of gates by differences of it.
#[test]
fn a_teacher_has_its_share_in_loss_and_gradients() {
    let (share, temperature, factor) = (0.7_f32, 2.0_f32, 0.5_f32);
    for name in ["llama", "qwen2"] {
        let golden = Golden::read(name);
        let teacher = golden.model(Purpose::Inference);
        let purpose = Purpose::Training { method: Method::Gates, gates: GateSettings::Direct };
        let mut model = golden.model(purpose);
        let units = Units::of(model.wiring()).units.into_iter();
        model.close(units.step_by(4).flat_map(|unit| unit.slots));
        model.draw_gates(&GateNoise::None);
        let ids = numbers(&golden.json["sequences"][0]);
        let targets: Vec<u32> = ids[1..].iter().copied().chain([NO_TARGET]).collect();
        let by_definition = |model: &Model| -> f64 {
            let losses = (1..ids.len()).map(|length| {
                let logits = |model: &Model| -> Vec<f64> {
                    let logits = model.forward(&single(&ids[..length])).expect("logits");
                    logits.into_iter().map(f64::from).collect()
                };
                let (student, teaching) = (logits(model), logits(&teacher));
                let temperature = f64::from(temperature);
                let divergence: f64 = (0..student.len())
                    .map(|token| {
                        let (p, q) =
                            (log_softmax(&teaching, temperature, token), log_softmax(&student, temperature, token));
                        p.exp() * (p - q)
                    })
                    .sum();
                let text = -log_softmax(&student, 1.0, targets[length - 1] as usize);
                f64::from(1.0 - share) * text + f64::from(share) * temperature * temperature * divergence
            });
            losses.sum()
        };
        let expected = by_definition(&model);
        model.zero_gradients();
        let distillation = Distillation { teacher: &teacher, share, temperature };
        let total = model.language_pass(&single(&ids), &targets, factor, None, Some(&distillation)).expect("a pass");
        assert!((total - expected).abs() < 1e-5 * expected, "{name}: {total}, by definition {expected}");
        let mut gates = BTreeMap::new();
        model.parameters(&mut |parameter| {
            if parameter.name.contains("finegates") {
                gates.insert(parameter.name.to_owned(), (parameter.value.to_vec(), parameter.gradient.to_vec()));
            }
        });
        for (gate, (values, gradients)) in gates.iter().step_by(3) {
            let index = (0..values.len()).filter(|&index| values[index] != 0.0).nth(1).expect("an open gate");
            let mut at = |value: f32| {
                model.parameters(&mut |parameter| {
                    if parameter.name == *gate {
                        parameter.value[index] = value;
                    }
                });
                model.parameters_changed();
                model.draw_gates(&GateNoise::None);
                by_definition(&model)
            };
            let step = 0.02;
            let difference =
                f64::from(factor) * (at(values[index] + step) - at(values[index] - step)) / f64::from(2.0 * step);
            at(values[index]);
            let found = f64::from(gradients[index]);
            assert!(
                (found - difference).abs() < 5e-3 * difference.abs().max(0.02),
                "{name} {gate}: {found}, {difference}"
            );
        }
    }
}

/// Of logits divided by the temperature.
fn log_softmax(logits: &[f64], temperature: f64, token: usize) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| ((logit - largest) / temperature).exp()).sum();
    (logits[token] - largest) / temperature - sum.ln()
}

#[test]
fn losses_of_windows_equal_pytorch() {
    for name in MODELS {
        let golden = Golden::read(name);
        let model = golden.model(Purpose::Inference);
        let ids = numbers(&golden.json["perplexity"]["ids"]);
        for window in golden.json["perplexity"]["f64"]["windows"].as_array().expect("windows") {
            let at = |key: &str| window[key].as_u64().expect("a number") as usize;
            let (begin, end, first) = (at("begin"), at("end"), at("first_target"));
            let targets: Vec<u32> = (begin..end)
                .map(|token| if token + 1 >= first && token + 1 < end { ids[token + 1] } else { NO_TARGET })
                .collect();
            let losses = model.token_losses(&single(&ids[begin..end]), &targets).expect("losses");
            let mean = losses.iter().sum::<f64>() / at("targets") as f64;
            assert!((mean - window["loss"].as_f64().expect("loss")).abs() < 1e-5, "{name}: {window}");
        }
    }
}

/// Weights held in bf16 are those rounded to it: the same losses and gradients as of a model with rounded weights, gates
/// open and closed, whatever is packed anew. Where a unit multiplies bf16, up to its rounding of the activations.
#[test]
fn bf16_weights_are_rounded_weights() {
    // With tables of their own for input and output, and with one for both.
    for name in ["llama", "llama3", "mistral"] {
        let golden = Golden::read(name);
        let (batch, targets) = golden.batch();
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::copy(golden.folder.join("config.json"), folder.path().join("config.json")).expect("a copy");
        let file = TensorFile::open_file(&golden.folder.join("model.safetensors")).expect("tensors");
        let tensors: Vec<(String, Tensor)> = file
            .names()
            .map(|name| {
                let mut tensor = file.read_tensor(name).expect("a tensor");
                if name.contains("_proj.weight") || name.contains("lm_head") || name.contains("embed_tokens") {
                    tensor.data.iter_mut().for_each(|value| *value = Precision::Bf16.round(*value));
                }
                (name.to_owned(), tensor)
            })
            .collect();
        let written = tensors
            .iter()
            .map(|(name, tensor)| TensorToWrite::f32(name.as_str(), tensor.shape.as_slice(), &tensor.data));
        let written: Vec<_> = written.collect();
        write_tensors(&folder.path().join("model.safetensors"), &written, &BTreeMap::new()).expect("a file");
        let run = |precision: Precision, rounded: bool| {
            let purpose = Purpose::Training { method: Method::Gates, gates: GateSettings::Direct };
            let options = LoadOptions { task: Task::Language, purpose, precision, ..LoadOptions::default() };
            let folder = if rounded { folder.path() } else { &golden.folder };
            let checkpoint = Checkpoint::open(folder).expect("checkpoint");
            let mut model = Model::load(&checkpoint, &options).expect("model").0;
            let slots = Units::of(model.wiring()).units.into_iter().step_by(3).flat_map(|unit| unit.slots);
            model.close(slots);
            model.draw_gates(&GateNoise::None);
            model.zero_gradients();
            let total = model.language_pass(&batch, &targets, 1.0, None, None).expect("a pass");
            let mut gradients = Vec::new();
            model.parameters(&mut |parameter| gradients.extend_from_slice(parameter.gradient));
            (total, gradients)
        };
        let (bf16, rounded, plain) =
            (run(Precision::Bf16, false), run(Precision::F32, true), run(Precision::F32, false));
        if finegates_kernels::cpu::bf16_unit().is_none() {
            assert_eq!(bf16.0.to_bits(), rounded.0.to_bits(), "{name}");
            assert!(bf16.1 == rounded.1, "{name}: gradients");
        } else {
            // The unit rounds activations and their gradients to 8 bits too, each by up to 1 in 256 and in both directions.
            assert!((bf16.0 - rounded.0).abs() < 0.004 * rounded.0, "{name}: {} and {}", bf16.0, rounded.0);
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let apart = norm(&mut bf16.1.iter().zip(&rounded.1).map(|(a, b)| a - b));
            let relative = apart / norm(&mut rounded.1.iter().copied());
            assert!(relative > 1e-6 && relative < 0.02, "{name}: gradients {relative} apart");
        }
        assert!((bf16.0 - plain.0).abs() > 1e-6 && (bf16.0 - plain.0).abs() < 0.02 * plain.0, "{name}");
    }
}

fn most_likely(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    best.expect("logits") as u32
}

#[test]
fn token_by_token_with_a_cache_says_what_transformers_says() {
    for name in MODELS {
        let golden = Golden::read(name);
        let model = golden.model(Purpose::Inference);
        let cases = golden.json["generation"].as_array().expect("generation");
        let mut batch = Batch::default();
        let mut caches = vec![Cache::default(); cases.len()];
        let mut refs: Vec<&mut Cache> = caches.iter_mut().collect();
        for case in cases {
            let prompt = numbers(&case["prompt"]);
            batch.push(&prompt, &vec![0; prompt.len()]);
        }
        let mut logits = model.read_prompts(&batch, &mut refs).expect("prompts");
        let vocabulary = logits.len() / cases.len();
        let mut said = vec![Vec::new(); cases.len()];
        for step in 0..12 {
            let next: Vec<u32> = logits.chunks_exact(vocabulary).map(most_likely).collect();
            said.iter_mut().zip(&next).for_each(|(said, &token)| said.push(token));
            if step < 11 {
                logits = model.read_tokens(&next, &mut refs).expect("tokens");
            }
        }
        for (index, (case, said)) in cases.iter().zip(&said).enumerate() {
            assert_eq!(*said, numbers(&case["tokens"]), "{name}");
            let expected = golden.tensors.read_tensor(&format!("generation.{index}.last_logits")).expect("logits").data;
            assert_close(name, &logits[index * vocabulary..][..vocabulary], &expected, 2e-5);
        }
    }
}

#[test]
fn a_cache_that_is_full_is_an_error() {
    let golden = Golden::read("llama");
    let model = golden.model(Purpose::Inference);
    let limit = model.max_length();
    let ids: Vec<u32> = (0..limit as u32).map(|token| token % 90).collect();
    let mut cache = Cache::default();
    model.read_prompts(&single(&ids), &mut [&mut cache]).expect("as long as the model takes");
    assert_eq!(cache.length(), limit);
    let error = model.read_tokens(&[5], &mut [&mut cache]).expect_err("one more");
    assert!(error.to_string().contains(&limit.to_string()), "{error}");
}
