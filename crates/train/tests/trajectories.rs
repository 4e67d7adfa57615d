//! Twenty steps of training follow PyTorch's: every family, gates with and without kurtosis, bitfit and full fine-tuning, from the
//! same start with the same noise and no dropout. `fixtures/README.md` says how the goldens were made.
#![allow(clippy::unwrap_used)]

#[path = "../../../fixtures/counter_normal.rs"]
mod counter_normal;

use std::collections::BTreeMap;
use std::path::PathBuf;

use counter_normal::counter_normal;

use finegates_checkpoint::{Checkpoint, TensorFile};
use finegates_model::{Batch, GateNoise, LoadOptions, Method, Model, Penalty, Purpose};
use finegates_train::encoded::Targets;
use finegates_train::learner::{Learner, PassInput};
use finegates_train::optimizer::{Decay, LearningRates, Optimizer, OptimizerSettings};
use serde_json::Value;

/// The issue's own bound. PyTorch's f32 differs from its f64 by up to 4.2e-6.
const TOLERANCE: f64 = 1e-4;

struct Golden {
    folder: PathBuf,
    json: Value,
    tensors: TensorFile,
}

impl Golden {
    fn open(family: &str) -> Golden {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(family);
        let json = serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap()).unwrap();
        let tensors = TensorFile::open_file(&folder.join("golden.safetensors")).unwrap();
        Golden { folder, json, tensors }
    }

    fn learner(&self, method: Method) -> Learner {
        let checkpoint = Checkpoint::open(&self.folder).unwrap();
        let purpose = Purpose::Training { method, gates: finegates_model::GateSettings::default() };
        let classes = self.json["classes"].as_u64().unwrap() as usize;
        let options =
            LoadOptions { labels: Some(classes), seed: 1, purpose, keep_weights: false, ..LoadOptions::default() };
        let (mut model, report) = Model::load(&checkpoint, &options).unwrap();
        assert!(report.initialised.is_empty(), "{report:?}");
        model.parameters(&mut |parameter| {
            if parameter.name.contains(".finegates_") {
                let theta = self.tensors.read(&format!("mixed.theta.{}", parameter.name), &[parameter.value.len()]);
                parameter.value.copy_from_slice(&theta.unwrap());
            }
        });
        model.parameters_changed();
        let settings = &self.json["trajectories"]["settings"];
        let optimizer = Optimizer::new(OptimizerSettings {
            beta1: settings["betas"][0].as_f64().unwrap(),
            beta2: settings["betas"][1].as_f64().unwrap(),
            epsilon: settings["eps"].as_f64().unwrap(),
            weight_decay: settings["weight_decay"]["rest"].as_f64().unwrap(),
            decay: Decay::AllButGates,
            clip_norm: 0.0,
        });
        Learner::new(model, optimizer)
    }

    fn rates(&self) -> LearningRates {
        let rate = |group: &str| self.json["trajectories"]["settings"]["learning_rates"][group].as_f64().unwrap();
        LearningRates { gate: rate("gate"), bias: rate("bias"), head: rate("head"), weight: rate("rest") }
    }

    fn batch(&self, step: usize) -> (Batch, Targets) {
        let indices = self.json["trajectories"]["settings"]["batches"][step].as_array().unwrap();
        let sequences: Vec<&Value> =
            indices.iter().map(|index| &self.json["sequences"][index.as_u64().unwrap() as usize]).collect();
        let numbers = |value: &Value| {
            value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect::<Vec<_>>()
        };
        let mut batch = Batch::default();
        for sequence in &sequences {
            batch.push(&numbers(&sequence["ids"]), &numbers(&sequence["segments"]));
        }
        let labels = sequences.iter().map(|sequence| &sequence["label"]);
        let targets = match self.json["problem"].as_str().unwrap() {
            "regression" => Targets::Values(labels.map(|label| label.as_f64().unwrap() as f32).collect()),
            _ => Targets::Classes(labels.map(|label| label.as_u64().unwrap() as u32).collect()),
        };
        (batch, targets)
    }

    /// The number of each gate vector in the noise's streams.
    fn vectors(&self) -> BTreeMap<String, u64> {
        let projections = self.json["projections"].as_array().unwrap();
        let names = projections.iter().enumerate().flat_map(|(index, path)| {
            let path = path.as_str().unwrap();
            let index = 2 * index as u64;
            [(format!("{path}.finegates_rows"), index), (format!("{path}.finegates_columns"), index + 1)]
        });
        names.collect()
    }
}

fn follow(family: &str, run: &str) {
    let golden = Golden::open(family);
    let expected = &golden.json["trajectories"][run];
    let method: Method = expected["method"].as_str().unwrap().parse().unwrap();
    let settings = &golden.json["settings"];
    let number = |key: &str| settings[key].as_f64().unwrap();
    let penalty = (method == Method::Gates).then(|| Penalty {
        target_sparsity: number("target_sparsity") as f32,
        weight: number("penalty_weight") as f32,
        kurtosis: expected["kurtosis"].as_bool().unwrap(),
        temperature: number("temperature") as f32,
    });
    let (vectors, sigma) = (golden.vectors(), number("noise_std"));
    let mut learner = golden.learner(method);
    let close = |what: &str, step: usize, found: f64, expected: &Value| {
        let expected = expected.as_f64().unwrap();
        assert!(
            (found - expected).abs() < TOLERANCE,
            "{family} {run} step {step}: {what}: expected {expected}, found {found}"
        );
    };
    for step in 0..20 {
        let (batch, targets) = golden.batch(step);
        let noise = |name: &str, length: usize| {
            let stream = step as u64 * vectors.len() as u64 + vectors[name];
            (0..length as u64).map(|index| (counter_normal(stream, index) * sigma) as f32).collect::<Vec<_>>()
        };
        let noise = if penalty.is_some() { GateNoise::Given(&noise) } else { GateNoise::None };
        let pass = PassInput {
            batch: &batch,
            targets: &targets,
            noise,
            dropout_key: None,
            penalty: penalty.as_ref(),
            distillation: None,
            share: 1.0,
        };
        let losses = learner.pass(&pass).unwrap();
        close("task loss", step, losses.task, &expected["f64"]["task"][step]);
        if penalty.is_some() {
            close("penalty", step, losses.penalty, &expected["f64"]["penalty"][step]);
        }
        learner.update(&golden.rates()).unwrap();
    }
    learner.model.draw_gates(&GateNoise::None);
    for (sequence, expected) in expected["f64"]["logits_after"].as_array().unwrap().iter().enumerate() {
        let numbers = |key: &str| {
            let values = golden.json["sequences"][sequence][key].as_array().unwrap();
            values.iter().map(|number| number.as_u64().unwrap() as u32).collect::<Vec<_>>()
        };
        let (ids, segments) = (numbers("ids"), numbers("segments"));
        let logits = learner.model.forward(&Batch::new([(&ids[..], &segments[..])])).unwrap();
        for (found, expected) in logits.iter().zip(expected.as_array().unwrap()) {
            close("logits after training", sequence, f64::from(*found), expected);
        }
    }
}

macro_rules! trajectories {
    ($($name:ident: $family:literal;)+) => { $(
        mod $name {
            #[test]
            fn gates_follow_pytorch() {
                super::follow($family, "gates");
            }
            #[test]
            fn gates_with_kurtosis_follow_pytorch() {
                super::follow($family, "gates_kurtosis");
            }
            #[test]
            fn bitfit_follows_pytorch() {
                super::follow($family, "bitfit");
            }
            #[test]
            fn full_fine_tuning_follows_pytorch() {
                super::follow($family, "full");
            }
        }
    )+ };
}

trajectories! {
    bert: "bert";
    roberta: "roberta";
    xlm_roberta: "xlm-roberta";
    distilbert: "distilbert";
    mpnet: "mpnet";
}
