//! Checkpoints whose config.json lies about the weights, and adapters of other models: errors that name the tensor, and
//! nothing made by the sizes that are claimed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use finegates_checkpoint::{Adapter, AdapterConfig, Checkpoint, Tensor, TensorToWrite, write_tensors};
use finegates_model::wiring::{StackShape, WiringError};
use finegates_model::{Batch, GateSettings, LoadOptions, Method, Model, Purpose, Wiring};
use serde_json::{Value, json};

fn tiny(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(family)
}

/// A tiny model with a changed config, and without the tensors that begin with `without`.
fn changed(family: &str, changes: Value, without: &str) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let original = Checkpoint::open(&tiny(family)).expect("a checkpoint");
    let mut config = original.config.raw.clone();
    for (key, value) in changes.as_object().expect("an object") {
        config.insert(key.clone(), value.clone());
    }
    std::fs::write(folder.path().join("config.json"), Value::Object(config).to_string()).expect("write");
    let names = original.tensors.names().filter(|name| without.is_empty() || !name.starts_with(without));
    let tensors: Vec<(&str, Tensor)> =
        names.map(|name| (name, original.tensors.read_tensor(name).expect("a tensor"))).collect();
    let written: Vec<TensorToWrite> =
        tensors.iter().map(|(name, tensor)| TensorToWrite::f32(*name, tensor.shape.as_slice(), &tensor.data)).collect();
    write_tensors(&folder.path().join("model.safetensors"), &written, &BTreeMap::new()).expect("write");
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    (folder, checkpoint)
}

fn training() -> LoadOptions {
    let purpose = Purpose::Training { method: Method::Gates, gates: GateSettings::default() };
    LoadOptions { purpose, ..LoadOptions::default() }
}

#[test]
fn sizes_that_the_weights_do_not_have_are_refused_by_the_tensors_name() {
    for (changes, expected) in [
        (
            json!({"num_hidden_layers": 4096, "intermediate_size": 1 << 20, "hidden_size": 1 << 16}),
            "model.safetensors: bert.embeddings.word_embeddings.weight: expected shape [",
        ),
        (
            json!({"num_hidden_layers": 4096, "intermediate_size": 1 << 20}),
            "model.safetensors: bert.encoder.layer.0.intermediate.dense.weight: expected shape [1048576, ",
        ),
        (
            json!({"num_hidden_layers": 4096}),
            "model.safetensors: bert.encoder.layer.2.attention.self.query.weight: no such tensor",
        ),
    ] {
        let (_folder, checkpoint) = changed("bert", changes, "");
        for options in [LoadOptions::default(), training()] {
            let error = Model::load(&checkpoint, &options).expect_err("a lie").to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = Wiring::of_checkpoint(&checkpoint).expect_err("a lie").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn more_layers_than_any_encoder_has_are_refused_without_weights_too() {
    let shape = StackShape::encoder(4096, 1 << 16, 1, 1 << 20);
    let refused = Wiring::stack(finegates_checkpoint::Family::Bert, &shape);
    assert_eq!(refused, Err(WiringError::TooLarge { found: 4096 * ((1 << 20) + (1 << 17)) }));
}

#[test]
fn labels_that_do_not_fit_the_head_are_refused_unless_it_is_replaced() {
    let (_folder, original) = changed("bert", json!({}), "");
    let rows = Model::load(&original, &LoadOptions::default()).expect("a model").0.classes();
    let names = |count: usize| {
        let names = (0..count).map(|index| (index.to_string(), json!(format!("label {index}"))));
        Value::Object(names.collect())
    };
    let mut alike = names(rows);
    alike["1"] = alike["0"].clone();
    for (labels, expected) in [
        (
            names(rows + 1),
            format!("id2label: expected {rows} labels, one for each row of the head, found {}", rows + 1),
        ),
        (alike, "id2label: expected a different name for each label, found label 0 for both 0 and 1".to_owned()),
    ] {
        let changes = json!({"id2label": labels, "label2id": null, "num_labels": null, "problem_type": null});
        let (_folder, checkpoint) = changed("bert", changes.clone(), "");
        let error = Model::load(&checkpoint, &LoadOptions::default()).expect_err("labels").to_string();
        assert!(error.contains("config.json: ") && error.ends_with(&expected), "{error}");
        Model::load(&checkpoint, &training()).expect("training brings its own");
        Model::load(&checkpoint, &LoadOptions { labels: Some(rows), ..LoadOptions::default() }).expect("its own too");
        // A base without a head says what it likes.
        let (_folder, checkpoint) = changed("bert", changes, "classifier");
        Model::load(&checkpoint, &LoadOptions::default()).expect("no head");
    }
    let (_folder, checkpoint) = changed("bert", json!({"id2label": null, "num_labels": null}), "");
    assert_eq!(Model::load(&checkpoint, &LoadOptions::default()).expect("no labels").0.classes(), rows);
}

#[test]
fn a_new_head_does_not_dwarf_its_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let hidden = 1 << 15;
    let config = json!({"model_type": "bert", "hidden_size": hidden, "num_hidden_layers": 0, "num_attention_heads": 1,
        "vocab_size": 1, "max_position_embeddings": 1, "type_vocab_size": 1});
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("write");
    let row = vec![0.0; hidden];
    let table = |name: &str| TensorToWrite::f32(format!("bert.embeddings.{name}.weight"), vec![1, hidden], &row);
    let norm = |part: &str| TensorToWrite::f32(format!("bert.embeddings.LayerNorm.{part}"), vec![hidden], &row);
    let tensors = [
        table("word_embeddings"),
        table("position_embeddings"),
        table("token_type_embeddings"),
        norm("weight"),
        norm("bias"),
    ];
    write_tensors(&folder.path().join("model.safetensors"), &tensors, &BTreeMap::new()).expect("write");
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    let error = Model::load(&checkpoint, &LoadOptions::default()).expect_err("four gigabytes").to_string();
    assert!(error.contains("config.json: hidden_size: a new head of 32768 × 32768 would be larger"), "{error}");
}

#[test]
fn a_model_without_layers_is_its_embeddings_and_head() {
    let (_folder, checkpoint) = changed("bert", json!({"num_hidden_layers": 0}), "bert.encoder");
    let batch = Batch::new([(&[2u32, 17, 3][..], &[0u32, 0, 0][..]), (&[2, 3], &[0, 0])]);
    let (model, report) = Model::load(&checkpoint, &LoadOptions::default()).expect("a model");
    assert_eq!((report.initialised, report.ignored), (Vec::new(), Vec::new()));
    let logits = model.forward(&batch).expect("logits");
    assert_eq!(logits.len(), 2 * model.classes());
    // Nothing mixes the tokens, so the first one alone decides.
    assert_eq!(logits[..model.classes()], logits[model.classes()..]);
    let full = Purpose::Training { method: Method::Full, gates: GateSettings::default() };
    let options = LoadOptions { purpose: full, ..LoadOptions::default() };
    let mut model = Model::load(&checkpoint, &options).expect("a model").0;
    assert_eq!(model.forward_training(&batch, None).expect("logits"), logits);
    model.zero_gradients();
    model.backward(&vec![1.0; logits.len()]);
    let mut embeddings_move = false;
    model.parameters(&mut |parameter| {
        embeddings_move |= parameter.name.contains("word_embeddings") && parameter.gradient.iter().any(|&d| d != 0.0);
    });
    assert!(embeddings_move);
}

#[test]
fn an_adapter_of_another_model_is_refused_with_its_files_name() {
    let query = "bert.encoder.layer.0.attention.self.query";
    let adapter = |module: &str, rows: usize| {
        let gates = |length: usize| Tensor { shape: vec![length], data: vec![1.0; length] };
        let tensors = [("rows", rows), ("columns", 3)]
            .map(|(side, length)| (format!("{module}.finegates_{side}"), gates(length)))
            .into();
        Adapter { config: AdapterConfig::default(), tensors }
    };
    let said = |adapter: &Adapter| {
        let checkpoint = Checkpoint::open(&tiny("bert")).expect("a checkpoint");
        let (mut model, _) = Model::load(&checkpoint, &LoadOptions::default()).expect("a model");
        model.apply_adapter(adapter).expect_err("another model's").to_string()
    };
    let error = said(&adapter(query, 7));
    let expected = format!("adapter_model.safetensors: {query}.finegates_rows: expected ");
    assert!(error.starts_with(&expected) && error.ends_with("found 7; was it trained on another model?"), "{error}");
    let error = said(&adapter("roberta.encoder.layer.0.attention.self.query", 3));
    assert!(error.starts_with("adapter_model.safetensors: roberta.encoder"), "{error}");
    let error = said(&adapter(&"x".repeat(10_000), 3));
    assert!(error.len() < 500, "{error}");
}
