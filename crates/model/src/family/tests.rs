//! Dropout: which sites each family has, and a backward pass that uses the masks of its forward pass.

use std::path::PathBuf;

use finegates_checkpoint::checkpoint::Checkpoint;

use crate::head::Head;
use crate::layer::LayerNorms;
use crate::{Batch, GateNoise, GateSettings, LoadOptions, Method, Model, Purpose};

const FAMILIES: [&str; 5] = ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet"];
const KEY: u64 = 5;
const SEGMENTS: [u32; 9] = [0; 9];

fn model(family: &str, method: Method) -> Model {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(family);
    let checkpoint = Checkpoint::open(&folder).expect("checkpoint");
    let purpose = Purpose::Training { method, gates: GateSettings::default() };
    Model::load(&checkpoint, &LoadOptions { purpose, ..LoadOptions::default() }).expect("model").0
}

fn batch() -> Batch {
    let sequences: [&[u32]; 3] = [&[2, 17, 33, 8, 54, 3], &[2, 60, 3], &[2, 11, 12, 13, 70, 71, 72, 40, 3]];
    Batch::new(sequences.map(|tokens| (tokens, &SEGMENTS[..tokens.len()])))
}

/// The rates of a model's dropouts, site by site; of every layer the same.
fn rates(model: &mut Model) -> [(&'static str, Vec<&mut f32>); 5] {
    let (mut probabilities, mut attention_output, mut feed_forward_output) = (Vec::new(), Vec::new(), Vec::new());
    for layer in &mut model.stack.layers {
        probabilities.push(&mut layer.attention.dropout);
        let LayerNorms::After { dropouts: [attention, feed_forward], .. } = &mut layer.norms else {
            panic!("an encoder norms after its blocks");
        };
        attention_output.push(attention);
        feed_forward_output.push(feed_forward);
    }
    let Head::FirstToken(head) = &mut model.head else { panic!("an encoder's classifier reads the first token") };
    [
        ("embeddings", vec![&mut model.embeddings.dropout]),
        ("attention probabilities", probabilities),
        ("attention output", attention_output),
        ("feed-forward output", feed_forward_output),
        ("head", vec![&mut head.dropout]),
    ]
}

/// Sites as in transformers' modelling files: DistilBERT's `TransformerBlock` norms `sa_output + x` without a dropout.
#[test]
fn every_family_drops_out_where_transformers_does() {
    for family in FAMILIES {
        let mut model = model(family, Method::BitFit);
        let calm = model.forward_training(&batch(), None).expect("logits");
        for site in 0..5 {
            let mut name = "";
            let kept: Vec<Vec<f32>> = rates(&mut model)
                .into_iter()
                .enumerate()
                .map(|(index, (found, rates))| {
                    if index == site {
                        name = found;
                    }
                    let kept = rates.iter().map(|rate| **rate).collect();
                    rates.into_iter().filter(|_| index != site).for_each(|rate| *rate = 0.0);
                    kept
                })
                .collect();
            let logits = model.forward_training(&batch(), Some(KEY)).expect("logits");
            let expected = (family, name) != ("distilbert", "attention output");
            assert_eq!(logits != calm, expected, "{family}: {name}");
            for ((_, rates), kept) in rates(&mut model).into_iter().zip(kept) {
                rates.into_iter().zip(kept).for_each(|(rate, kept)| *rate = kept);
            }
        }
    }
}

/// `Σ weights · logits` in training with the masks of [`KEY`].
fn loss(model: &mut Model, weights: &[f32]) -> f64 {
    let logits = model.forward_training(&batch(), Some(KEY)).expect("logits");
    logits.iter().zip(weights).map(|(&logit, &weight)| f64::from(logit) * f64::from(weight)).sum()
}

/// Adds `step · direction` to one parameter.
fn shift(model: &mut Model, name: &str, direction: &[f32], step: f32) {
    model.parameters(&mut |parameter| {
        if parameter.name == name {
            parameter.value.iter_mut().zip(direction).for_each(|(value, &d)| *value += step * d);
        }
    });
    model.parameters_changed();
}

/// Along the gradient of each parameter the loss changes by the gradient's length, as central differences say. A backward pass
/// with other masks than the forward pass is far off; rounding of f32 logits and the curvature allow for 2 %.
#[test]
fn gradients_with_dropout_are_differences_of_the_loss() {
    const STEP: f32 = 4e-3;
    for family in FAMILIES {
        for method in [Method::Full, Method::Gates, Method::GatedFull] {
            let mut model = model(family, method);
            for (_, rates) in rates(&mut model) {
                rates.into_iter().filter(|rate| **rate > 0.0).for_each(|rate| *rate = 0.3);
            }
            // Gates inside (0, 1), where they have a gradient.
            model.parameters(&mut |parameter| {
                if parameter.name.contains(".finegates_") {
                    parameter.value.iter_mut().for_each(|theta| *theta -= 1.0);
                }
            });
            model.parameters_changed();
            model.draw_gates(&GateNoise::None);
            let weights: Vec<f32> = (0..3 * model.classes()).map(|i| 1.0 - 0.4 * i as f32).collect();
            model.zero_gradients();
            loss(&mut model, &weights);
            model.backward(&weights);
            let mut gradients = Vec::new();
            model.parameters(&mut |parameter| gradients.push((parameter.name.to_owned(), parameter.gradient.to_vec())));
            let mut checked = 0;
            for (name, gradient) in gradients {
                let length = gradient.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>().sqrt();
                if length < 0.02 {
                    // Key biases, which softmax cancels, and others whose change drowns in rounding.
                    continue;
                }
                let direction: Vec<f32> = gradient.iter().map(|&d| (f64::from(d) / length) as f32).collect();
                let mut at = |step| {
                    shift(&mut model, &name, &direction, step);
                    model.draw_gates(&GateNoise::None);
                    loss(&mut model, &weights)
                };
                let (up, down) = (at(STEP), at(-2.0 * STEP));
                at(STEP);
                let found = (up - down) / (2.0 * f64::from(STEP));
                let close = (found - length).abs() < 0.02 * length + 2e-3;
                assert!(close, "{family} {method} {name}: {found}, by the backward pass {length}");
                checked += 1;
            }
            assert!(checked > 12, "{family} {method}: {checked} parameters");
        }
    }
}
