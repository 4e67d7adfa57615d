use std::fs;

use finegates_checkpoint::adapter::{GateForm, LayerGates, TargetModules};
use finegates_checkpoint::{Adapter, AdapterConfig, Tensor};

use crate::support::{folder, shared, write, write_f32};

const CONFIG: &str = r#"{"peft_type": "FINEGATES", "target_sparsity": 0.25, "mine": {"kept": true}}"#;

fn said(config: &str, tensors: &[(&str, &[usize], &[f32])]) -> String {
    let folder = folder();
    write(&folder.path().join("adapter_config.json"), config);
    write_f32(&folder.path().join("adapter_model.safetensors"), tensors);
    let error = Adapter::read(folder.path()).expect_err("a bad adapter").to_string();
    error.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn the_authors_adapter_is_read() {
    let Some(shared) = shared() else { return };
    let adapter = Adapter::read(&shared.join("fixtures/peft-finegates-roberta-base-mrpc")).expect("the authors' own");
    assert_eq!(adapter.gated_modules().count(), 72);
    let LayerGates { form, rows, columns } = adapter.gates("roberta.encoder.layer.3.output.dense").expect("gated");
    assert_eq!(form, GateForm::Theta);
    assert_eq!((rows.len(), columns.len()), (768, 3072));
    assert_eq!(adapter.tensors["classifier.out_proj.weight"].shape, [2, 768]);
    assert_eq!(adapter.config.base_model_name_or_path.as_deref(), Some("roberta-base"));
    assert_eq!((adapter.config.target_sparsity, adapter.config.sparsity_loss_weight), (0.4, 50.0));
    assert_eq!(adapter.config.task_type.as_deref(), Some("SEQ_CLS"));
    assert_eq!(adapter.config.extra["peft_version"], "0.19.2.dev0@UNKNOWN");

    // Written again it holds the same, under the same names.
    let folder = folder();
    adapter.write(folder.path()).expect("write");
    assert_eq!(Adapter::read(folder.path()).expect("read back"), adapter);
    let names = |path: &std::path::Path| {
        let file = finegates_checkpoint::TensorFile::open_file(&path.join("adapter_model.safetensors")).expect("open");
        file.names().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(folder.path()), names(&shared.join("fixtures/peft-finegates-roberta-base-mrpc")));
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("adapter_config.json")).expect("read"))
            .expect("JSON");
    let theirs: serde_json::Value = serde_json::from_str(
        &fs::read_to_string(shared.join("fixtures/peft-finegates-roberta-base-mrpc/adapter_config.json"))
            .expect("read"),
    )
    .expect("JSON");
    assert_eq!(config, theirs);
}

#[test]
fn the_names_of_other_peft_versions_mean_the_same() {
    let folder = folder();
    write(&folder.path().join("adapter_config.json"), CONFIG);
    write_f32(
        &folder.path().join("adapter_model.safetensors"),
        &[
            ("base_model.model.bert.l.query.finegates_rows.default", &[2], &[1.0, -1.0]),
            ("base_model.model.bert.l.query.finegates_columns.default", &[3], &[1.0, 2.0, 3.0]),
            ("base_model.model.bert.l.query.base_layer.bias", &[2], &[0.5, 0.25]),
            ("base_model.model.classifier.modules_to_save.default.weight", &[1, 2], &[4.0, 5.0]),
            ("base_model.model.classifier.original_module.weight", &[1, 2], &[0.0, 0.0]),
        ],
    );
    let adapter = Adapter::read(folder.path()).expect("an adapter");
    assert_eq!(
        adapter.tensors.keys().map(String::as_str).collect::<Vec<_>>(),
        ["bert.l.query.bias", "bert.l.query.finegates_columns", "bert.l.query.finegates_rows", "classifier.weight"]
    );
    assert_eq!(adapter.tensors["classifier.weight"], Tensor { shape: vec![1, 2], data: vec![4.0, 5.0] });
    assert_eq!(adapter.config.target_sparsity, 0.25);
    assert_eq!(adapter.config.gate_noise_std, 0.1);
    assert_eq!(adapter.config.extra["mine"]["kept"], true);
}

#[test]
fn an_adapter_that_cannot_be_is_refused() {
    let head: (&str, &[usize], &[f32]) = ("base_model.model.classifier.bias", &[1], &[0.0]);
    for (config, expected) in [
        (
            r#"{"peft_type": "LORA"}"#,
            "adapter_config.json: peft_type: expected FINEGATES or FINEGATES_VALUES, for adapters of other methods are not read, found \"LORA\"",
        ),
        (
            r#"{}"#,
            "adapter_config.json: peft_type: expected FINEGATES or FINEGATES_VALUES, for adapters of other methods are not read, found nothing",
        ),
        (
            r#"{"peft_type": "FINEGATES", "target_sparsity": 1.5}"#,
            "adapter_config.json: target_sparsity: expected a share from 0 to 1, found 1.5",
        ),
        (
            r#"{"peft_type": "FINEGATES", "gate_init_std": -1}"#,
            "adapter_config.json: gate_init_std: expected a number of at least 0, found -1",
        ),
        (r#"{"peft_type": "FINEGATES", "bias": 3}"#, "adapter_config.json: bias: expected a string, found 3"),
        (
            r#"{"peft_type": "FINEGATES", "modules_to_save": "classifier"}"#,
            "adapter_config.json: modules_to_save: expected a list of names, found \"classifier\"",
        ),
    ] {
        assert_eq!(said(config, &[head]), expected);
    }
    let rows = "base_model.model.a.q.finegates_rows";
    let columns = "base_model.model.a.q.finegates_columns";
    for (tensors, expected) in [
        (vec![], "its tensors: expected gates, biases or a head, found nothing"),
        (
            vec![(rows, &[2][..], &[1.0, 2.0][..])],
            "a.q.finegates_rows: expected a.q.finegates_columns beside it, found none; was the file cut or edited?",
        ),
        (
            vec![(columns, &[2][..], &[1.0, 2.0][..])],
            "a.q.finegates_columns: expected a.q.finegates_rows beside it, found none; was the file cut or edited?",
        ),
        (
            vec![(rows, &[2], &[1.0, f32::NAN]), (columns, &[1], &[1.0])],
            "a.q.finegates_rows: expected finite values, found NaN at position 1; did the training diverge?",
        ),
        (
            vec![(rows, &[2, 1], &[1.0, 2.0]), (columns, &[1], &[1.0])],
            "a.q.finegates_rows: expected one axis of gates, found shape [2, 1]",
        ),
        (
            vec![(rows, &[0], &[]), (columns, &[1], &[1.0])],
            "a.q.finegates_rows: expected one axis of gates, found shape [0]",
        ),
        (
            vec![(rows, &[2], &[1.0, 2.0]), (columns, &[1], &[1.0]), ("a.q.bias", &[3], &[0.0; 3])],
            "a.q.bias: expected 2 values as its row gates have, found shape [3]",
        ),
        (
            vec![
                (rows, &[1], &[1.0]),
                (columns, &[1], &[1.0]),
                ("a.q.finegates_row_values", &[1], &[1.0]),
                ("a.q.finegates_column_values", &[1], &[1.0]),
            ],
            "a.q.finegates_row_values: is not what peft_type in adapter_config.json says",
        ),
        (
            vec![("a.q.finegates_row_values", &[1], &[1.0]), ("a.q.finegates_columns", &[1], &[1.0])],
            "a.q.finegates_columns: expected a.q.finegates_rows beside it, found none; was the file cut or edited?",
        ),
        (
            vec![(rows, &[1], &[1.0]), (columns, &[1], &[1.0]), ("a.q.finegates_rows", &[1], &[1.0])],
            "base_model.model.a.q.finegates_rows: a second tensor for a.q.finegates_rows",
        ),
    ] {
        assert_eq!(said(CONFIG, &tensors), format!("adapter_model.safetensors: {expected}"));
    }
    let folder = folder();
    write(&folder.path().join("adapter_config.json"), CONFIG);
    write(&folder.path().join("adapter_model.bin"), "");
    let error = Adapter::read(folder.path()).expect_err("a pickle").to_string();
    assert!(
        error.contains("only adapter_model.bin is there") && error.contains("/adapter_model.safetensors'"),
        "{error}"
    );
}

#[test]
fn what_would_not_be_read_back_is_not_written() {
    let folder = folder();
    let mut adapter = Adapter {
        config: AdapterConfig {
            target_modules: Some(TargetModules::Pattern("all-linear".into())),
            ..AdapterConfig::default()
        },
        tensors: [("classifier.bias".to_owned(), Tensor { shape: vec![2], data: vec![1.0, f32::INFINITY] })].into(),
    };
    assert!(adapter.write(&folder.path().join("a")).is_err());
    assert!(!folder.path().join("a").exists());
    adapter.tensors.insert("classifier.bias".to_owned(), Tensor { shape: vec![2], data: vec![1.0, 2.0] });
    adapter.write(&folder.path().join("a")).expect("write");
    assert_eq!(Adapter::read(&folder.path().join("a")).expect("read"), adapter);
}

#[test]
fn numbers_do_not_drift_when_they_are_read_and_written() {
    let text = format!(
        r#"{{"peft_type": "FINEGATES", "target_sparsity": 0.30000000000000004, "mine": [2.2250738585072014e-308, 1e-60, {}1.0]}}"#,
        "9".repeat(80)
    );
    let path = std::path::Path::new("adapter_config.json");
    let first = AdapterConfig::parse(path, &text).expect("a config");
    let second = AdapterConfig::parse(path, &first.to_json()).expect("its own text");
    assert_eq!(first, second);
    assert_eq!(first.target_sparsity, 0.1 + 0.2);
}
