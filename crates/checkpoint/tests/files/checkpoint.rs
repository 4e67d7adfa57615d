use finegates_checkpoint::Checkpoint;

use crate::support::{folder, write, write_f32};

fn open(model_type: &str, tensors: &[&str]) -> (tempfile::TempDir, Checkpoint) {
    let folder = folder();
    write(&folder.path().join("config.json"), format!(r#"{{"model_type": "{model_type}"}}"#));
    let tensors: Vec<(&str, &[usize], &[f32])> = tensors.iter().map(|name| (*name, &[1][..], &[3.0][..])).collect();
    write_f32(&folder.path().join("model.safetensors"), &tensors);
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    (folder, checkpoint)
}

#[test]
fn tensors_are_found_with_and_without_prefix_and_under_old_norm_names() {
    let norm = "bert.embeddings.LayerNorm.weight";
    for written in
        [norm, "embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.gamma"]
    {
        let (_folder, checkpoint) = open("bert", &[written]);
        assert_eq!(checkpoint.find(norm).as_deref(), Some(written));
        assert_eq!(checkpoint.read(norm, &[1]).expect("read"), [3.0]);
        assert_eq!(checkpoint.find("bert.embeddings.LayerNorm.bias"), None);
    }
    for written in ["distilbert.transformer.layer.0.sa_layer_norm.bias", "transformer.layer.0.sa_layer_norm.beta"] {
        let (_folder, checkpoint) = open("distilbert", &[written]);
        assert_eq!(checkpoint.find("distilbert.transformer.layer.0.sa_layer_norm.bias").as_deref(), Some(written));
    }
    let (_folder, checkpoint) = open("xlm-roberta", &["roberta.encoder.x.weight"]);
    assert_eq!(checkpoint.find("encoder.x.weight").as_deref(), Some("roberta.encoder.x.weight"));
    // gamma means a norm's weight only.
    let (_folder, checkpoint) = open("bert", &["bert.pooler.dense.gamma"]);
    assert_eq!(checkpoint.find("bert.pooler.dense.weight"), None);
    let error = checkpoint.read("bert.pooler.dense.weight", &[1]).expect_err("missing").to_string();
    assert!(error.contains(": bert.pooler.dense.weight: no such tensor; "), "{error}");
}

#[test]
fn a_folder_that_is_no_model_says_what_is_missing() {
    let folder = folder();
    let error = Checkpoint::open(folder.path()).expect_err("empty").to_string();
    assert!(error.contains("config.json: cannot open"), "{error}");
}
