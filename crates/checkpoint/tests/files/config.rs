use finegates_checkpoint::{ActivationName, Config, Family, Problem};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::config_text;

fn read(model_type: &str, changes: Value) -> Result<Config, String> {
    Config::from_json(&config_text(json!({"model_type": model_type}), changes)).map_err(|error| error.to_string())
}

#[test]
fn missing_keys_have_transformers_defaults() {
    for (model_type, layers, vocabulary, segments, padding, buckets, classifier) in [
        ("bert", 12, 30522, 2, 0, 0, 0.1),
        ("roberta", 12, 50265, 2, 1, 0, 0.1),
        ("xlm-roberta", 12, 30522, 2, 1, 0, 0.1),
        ("distilbert", 6, 30522, 0, 0, 0, 0.2),
        ("mpnet", 12, 30527, 0, 1, 32, 0.1),
    ] {
        let config = read(model_type, json!({})).expect("defaults are a config");
        assert_eq!(config.family.to_string(), model_type);
        assert_eq!((config.hidden, config.heads, config.feed_forward, config.positions), (768, 12, 3072, 512));
        assert_eq!((config.layers, config.vocabulary, config.segments), (layers, vocabulary, segments));
        assert_eq!((config.padding_id, config.relative_attention_buckets), (padding, buckets));
        assert_eq!(
            (config.hidden_dropout, config.attention_dropout, config.classifier_dropout),
            (0.1, 0.1, classifier)
        );
        assert_eq!((config.norm_eps, config.initializer_range), (1e-12, 0.02));
        assert_eq!(config.activation, ActivationName::Gelu);
        assert!(config.labels.is_empty() && config.problem.is_none() && config.compact.is_none());
        let lost = if config.family.positions_start_after_padding() { padding as usize + 1 } else { 0 };
        assert_eq!(config.max_tokens(), 512 - lost);
    }
}

#[test]
fn each_family_is_read_by_its_own_names() {
    let config = read("roberta", json!({"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "hidden_act": "gelu_new", "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0,
        "classifier_dropout": 0.5, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
        "vocab_size": 100, "pad_token_id": 1, "problem_type": "regression"}))
    .expect("a config");
    assert_eq!((config.hidden, config.layers, config.heads, config.feed_forward), (32, 3, 4, 64));
    assert_eq!((config.hidden_dropout, config.attention_dropout, config.classifier_dropout), (0.3, 0.0, 0.5));
    assert_eq!((config.activation, config.norm_eps), (ActivationName::GeluNew, 1e-5));
    assert_eq!((config.max_tokens(), config.segments, config.problem), (512, 1, Some(Problem::Regression)));

    let config = read(
        "distilbert",
        json!({"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "activation": "relu",
        "dropout": 0.3, "attention_dropout": 0.2, "seq_classif_dropout": 0.4, "sinusoidal_pos_embds": true,
        "problem_type": "single_label_classification"}),
    )
    .expect("a config");
    assert_eq!((config.hidden, config.layers, config.heads, config.feed_forward), (32, 3, 4, 64));
    assert_eq!((config.hidden_dropout, config.attention_dropout, config.classifier_dropout), (0.3, 0.2, 0.4));
    assert_eq!((config.activation, config.problem), (ActivationName::Relu, Some(Problem::Classification)));

    // MPNet's head has the hidden dropout; null means the hidden dropout for the others too.
    let config = read("mpnet", json!({"hidden_dropout_prob": 0.3, "classifier_dropout": 0.5})).expect("a config");
    assert_eq!(config.classifier_dropout, 0.3);
    let text = r#"{"model_type": "bert", "hidden_dropout_prob": 0.3, "classifier_dropout": null}"#;
    assert_eq!(Config::from_json(text).expect("a config").classifier_dropout, 0.3);
}

#[test]
fn labels_come_in_the_order_of_their_ids() {
    let labels = |changes| read("bert", changes).map(|config| config.labels);
    assert_eq!(
        labels(json!({"id2label": {"1": "b", "0": "a", "2": "c"}})),
        Ok(vec!["a".into(), "b".into(), "c".into()])
    );
    assert_eq!(labels(json!({"num_labels": 3})), Ok(vec!["LABEL_0".into(), "LABEL_1".into(), "LABEL_2".into()]));
    assert_eq!(labels(json!({"id2label": {"0": "LABEL_0"}, "num_labels": 1})), Ok(vec!["LABEL_0".into()]));
    for (changes, said) in [
        (json!({"id2label": {"0": "a", "2": "c"}}), "id2label: expected the indices from 0 to 1, found 2"),
        (json!({"id2label": {"0": "a", "x": "c"}}), "id2label: expected the indices from 0 to 1, found x"),
        (json!({"id2label": {"0": "a", "00": "c"}}), "id2label: expected each index once, found 00 twice"),
        (json!({"id2label": {"0": "a", "1": 7}}), "id2label.1: expected a name, found 7"),
        (json!({"id2label": ["a", "b"]}), "id2label: expected an object from indices to names, found a list of 2"),
        (
            json!({"id2label": {"0": "a"}, "num_labels": 2}),
            "id2label: expected as many labels as num_labels, 2, found 1",
        ),
        (
            json!({"num_labels": 1_000_000_000_000u64}),
            "num_labels: expected an integer from 1 to 65536, found 1000000000000",
        ),
        (json!({"num_labels": 0}), "num_labels: expected an integer from 1 to 65536, found 0"),
    ] {
        let error = labels(changes).expect_err(said);
        assert_eq!(error, format!("config.json: {said}"));
    }
}

#[test]
fn labels_must_fit_the_head_and_be_told_apart() {
    let check = |changes, rows| {
        let config = read("bert", changes).expect("a config, whatever its labels are");
        config.check_labels(std::path::Path::new("model"), rows).map_err(|error| error.to_string())
    };
    let path = std::path::Path::new("model").join("config.json").display().to_string();
    assert_eq!(check(json!({"id2label": {"0": "a", "1": "b"}}), 2), Ok(()));
    assert_eq!(check(json!({}), 3), Ok(()));
    assert_eq!(
        check(json!({"id2label": {"0": "a", "1": "b"}}), 3),
        Err(format!("{path}: id2label: expected 3 labels, one for each row of the head, found 2"))
    );
    assert_eq!(
        check(json!({"num_labels": 4}), 3),
        Err(format!("{path}: num_labels: expected 3 labels, one for each row of the head, found 4"))
    );
    assert_eq!(
        check(json!({"id2label": {"0": "a", "1": "b", "2": "a"}}), 3),
        Err(format!("{path}: id2label: expected a different name for each label, found a for both 0 and 2"))
    );
}

#[test]
fn impossible_values_are_refused_by_name() {
    for (changes, said) in [
        (json!({"hidden_size": 0}), "hidden_size: expected an integer from 1 to 65536, found 0"),
        (json!({"hidden_size": -768}), "hidden_size: expected an integer from 1 to 65536, found -768"),
        (json!({"hidden_size": 768.5}), "hidden_size: expected an integer from 1 to 65536, found 768.5"),
        (json!({"hidden_size": "768"}), "hidden_size: expected an integer from 1 to 65536, found \"768\""),
        (
            json!({"hidden_size": u64::MAX}),
            "hidden_size: expected an integer from 1 to 65536, found 18446744073709551615",
        ),
        (
            json!({"num_hidden_layers": 1e9}),
            "num_hidden_layers: expected an integer from 0 to 4096, found 1000000000.0",
        ),
        (json!({"num_attention_heads": 7}), "num_attention_heads: expected a divisor of the hidden size 768, found 7"),
        (json!({"num_attention_heads": 0}), "num_attention_heads: expected an integer from 1 to 65536, found 0"),
        (json!({"vocab_size": 1u64 << 40}), "vocab_size: expected an integer from 1 to 16777216, found 1099511627776"),
        (
            json!({"max_position_embeddings": 0}),
            "max_position_embeddings: expected an integer from 1 to 16777216, found 0",
        ),
        (json!({"type_vocab_size": 0}), "type_vocab_size: expected an integer from 1 to 65536, found 0"),
        (json!({"layer_norm_eps": 0}), "layer_norm_eps: expected a number above 0 and at most 1, found 0"),
        (json!({"layer_norm_eps": -1.5}), "layer_norm_eps: expected a number above 0 and at most 1, found -1.5"),
        (
            json!({"hidden_dropout_prob": 1}),
            "hidden_dropout_prob: expected a rate of at least 0 and less than 1, found 1",
        ),
        (
            json!({"hidden_dropout_prob": 0.999999999999}),
            "hidden_dropout_prob: expected a rate of at least 0 and less than 1, found 0.999999999999",
        ),
        (json!({"pad_token_id": 30522}), "pad_token_id: expected less than vocab_size 30522, found 30522"),
        (json!({"pad_token_id": -1}), "pad_token_id: expected an integer from 0 to 16777216, found -1"),
        (
            json!({"hidden_act": "sin"}),
            "hidden_act: expected one of gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu, silu, swish, tanh, found \"sin\"",
        ),
        (
            json!({"position_embedding_type": "relative_key"}),
            "position_embedding_type: expected absolute, found \"relative_key\"",
        ),
        (
            json!({"problem_type": "multi_label_classification"}),
            "problem_type: expected regression or single_label_classification, found \"multi_label_classification\"",
        ),
        (
            json!({"is_decoder": true}),
            "is_decoder: expected false: of this family only encoders are supported, found true",
        ),
        (json!({"model_type": 3}), "model_type: expected a string, found 3"),
        (
            json!({"model_type": "gpt2"}),
            "model_type: expected one of bert, roberta, xlm-roberta, distilbert, mpnet, llama, mistral, qwen2, found gpt2",
        ),
        (
            json!({"model_type": null}),
            "model_type: expected one of bert, roberta, xlm-roberta, distilbert, mpnet, llama, mistral, qwen2, found none",
        ),
        (
            json!({"finegates": {"format_version": 2, "projections": {}}}),
            "finegates.format_version: expected at most 1, found 2; it was written by a newer finegates, update this one",
        ),
    ] {
        let error = read("bert", changes).expect_err(said);
        assert_eq!(error, format!("config.json: {said}"));
    }
    let error = read("roberta", json!({"max_position_embeddings": 2})).expect_err("no room for a token");
    assert_eq!(error, "config.json: max_position_embeddings: expected more than pad_token_id + 1, which is 2, found 2");
    let error = read("mpnet", json!({"relative_attention_num_buckets": 31})).expect_err("transformers needs 32");
    assert_eq!(error, "config.json: relative_attention_num_buckets: expected an integer from 32 to 4096, found 31");
    let error = read("distilbert", json!({"n_heads": 5})).expect_err("5 does not divide 768");
    assert_eq!(error, "config.json: n_heads: expected a divisor of the hidden size 768, found 5");
}

#[test]
fn what_is_no_json_object_is_said_to_be_none() {
    let said = |text: &str| Config::from_json(text).expect_err("no config").to_string();
    assert!(said("").starts_with("config.json: not valid JSON: EOF"));
    assert_eq!(said("[1]"), "config.json: not valid JSON: expected an object, found a list of 1");
    assert!(said(&"[".repeat(100_000)).starts_with("config.json: not valid JSON: recursion limit"));
    assert_eq!(Family::ALL.map(|family| family.to_string().parse::<Family>()), Family::ALL.map(Ok));
}

#[test]
fn what_is_no_text_is_said_to_be_none() {
    let folder = crate::support::folder();
    crate::support::write(&folder.path().join("config.json"), b"{\"model_type\": \"\xff\"}");
    let error = Config::read(folder.path()).expect_err("no text").to_string();
    assert!(
        error.ends_with(
            "config.json: expected UTF-8 text, found another byte at position 16; is it cut or another kind of file?"
        ),
        "{error}"
    );
}

#[test]
fn unknown_keys_survive() {
    let config = read("bert", json!({"torch_dtype": "float32", "mine": [1, 2]})).expect("a config");
    assert_eq!(config.raw["mine"], json!([1, 2]));
    assert_eq!(config.raw["model_type"], json!("bert"));
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC*") {
        let _ = Config::from_json(&text);
    }

    #[test]
    fn no_values_make_the_reader_panic(
        family in prop::sample::select(vec!["bert", "roberta", "xlm-roberta", "distilbert", "mpnet"]),
        values in prop::collection::vec((0usize..24, any::<i64>(), any::<f64>(), 0usize..5), 0..8),
    ) {
        const KEYS: [&str; 24] = ["hidden_size", "dim", "num_hidden_layers", "n_layers", "num_attention_heads", "n_heads",
            "intermediate_size", "hidden_dim", "vocab_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
            "hidden_act", "activation", "hidden_dropout_prob", "dropout", "classifier_dropout", "initializer_range",
            "pad_token_id", "relative_attention_num_buckets", "id2label", "num_labels", "problem_type", "finegates"];
        let mut changes = serde_json::Map::new();
        for (key, integer, float, kind) in values {
            let value = match kind {
                0 => json!(integer),
                1 => json!(integer % 1000),
                2 => json!(float),
                3 => json!({integer.to_string(): "x", "format_version": 1, "projections": {"a": {"rows": integer}}}),
                _ => json!(format!("{integer}")),
            };
            changes.insert(KEYS[key].to_owned(), value);
        }
        if let Ok(config) = read(family, Value::Object(changes)) {
            prop_assert!(config.hidden % config.heads == 0);
            prop_assert!(config.max_tokens() >= 1);
        }
    }
}
