//! Adapters that do not fit their base or their own labels, and files that are too large to be what they are called.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use finegates_checkpoint::{Adapter, AdapterConfig, Checkpoint, Tensor};
use finegates_infer::{Artifact, Engine, Options, Which};
use serde_json::{Map, Value, json};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny/bert")
}

/// An adapter of the tiny model with a head of so many rows and gates on one projection, the rows of which are `gates`.
fn adapter(folder: &Path, classes: usize, gates: Option<usize>) {
    let checkpoint = Checkpoint::open(&tiny()).unwrap();
    let width = checkpoint.config.hidden;
    let tensor = |shape: &[usize]| Tensor { shape: shape.to_vec(), data: vec![0.5; shape.iter().product()] };
    let mut tensors = BTreeMap::from([
        ("classifier.weight".to_owned(), tensor(&[classes, width])),
        ("classifier.bias".to_owned(), tensor(&[classes])),
    ]);
    if let Some(rows) = gates {
        let path = "bert.encoder.layer.1.output.dense";
        tensors.insert(format!("{path}.finegates_rows"), tensor(&[rows]));
        tensors.insert(format!("{path}.finegates_columns"), tensor(&[checkpoint.config.feed_forward]));
    }
    let base = Some(tiny().display().to_string());
    let config = AdapterConfig { base_model_name_or_path: base, ..AdapterConfig::default() };
    Adapter { config, tensors }.write(folder).unwrap();
}

/// Puts a config beside the adapter whose labels are these.
fn labels(folder: &Path, names: &[&str]) {
    let mut config = Checkpoint::open(&tiny()).unwrap().config.raw;
    for key in ["label2id", "num_labels", "problem_type"] {
        config.remove(key);
    }
    let names: Map<String, Value> = names.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
    config.insert("id2label".to_owned(), Value::Object(names));
    std::fs::write(folder.join("config.json"), Value::Object(config).to_string()).unwrap();
}

fn load(folder: &Path) -> Result<Engine, String> {
    Engine::load(folder, &Options::default()).map_err(|error| error.to_string())
}

#[test]
fn an_adapter_of_another_model_is_named_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    adapter(folder.path(), 2, Some(7));
    let file = folder.path().join("adapter_model.safetensors");
    let width = Checkpoint::open(&tiny()).unwrap().config.hidden;
    let expected = format!(
        "{}: bert.encoder.layer.1.output.dense.finegates_rows: expected {width} values, found 7; was it trained on another model?",
        file.display()
    );
    assert_eq!(load(folder.path()).err(), Some(expected));
}

#[test]
fn labels_beside_an_adapter_must_fit_its_head() {
    let folder = tempfile::tempdir().unwrap();
    adapter(folder.path(), 3, None);
    labels(folder.path(), &["a", "b", "c"]);
    assert_eq!(load(folder.path()).unwrap().labels().collect::<Vec<_>>(), ["a", "b", "c"]);
    let path = folder.path().join("config.json").display().to_string();
    labels(folder.path(), &["a", "b"]);
    let expected = format!("{path}: id2label: expected 3 labels, one for each row of the head, found 2");
    assert_eq!(load(folder.path()).err(), Some(expected));
    labels(folder.path(), &["a", "b", "a"]);
    let expected = format!("{path}: id2label: expected a different name for each label, found a for both 0 and 2");
    assert_eq!(load(folder.path()).err(), Some(expected));
    // Without a config of its own, the base's labels are another head's.
    std::fs::remove_file(path).unwrap();
    assert_eq!(load(folder.path()).unwrap().labels().collect::<Vec<_>>(), ["LABEL_0", "LABEL_1", "LABEL_2"]);
}

#[test]
fn a_recipe_too_large_to_be_one_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("recipe.toml")).unwrap();
    file.set_len(2 << 20).unwrap();
    let found = Artifact::find(&folder.path().to_string_lossy(), &Which::Best, None, &Default::default());
    let error = found.err().unwrap().to_string();
    assert!(error.contains("recipe.toml: 2097152 bytes, but such a file has at most 1048576"), "{error}");
}
