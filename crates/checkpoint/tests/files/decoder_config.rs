//! Configs of decoders: defaults, both spellings of rotary scaling, windows, and what cannot be.

use finegates_checkpoint::config::{Config, RotaryScaling};
use serde_json::{Value, json};

use crate::support::config_text;

fn read(model_type: &str, changes: Value) -> Result<Config, String> {
    let base = json!({"model_type": model_type, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 256});
    Config::from_json(&config_text(base, changes)).map_err(|error| error.to_string())
}

fn scaling(changes: Value) -> RotaryScaling {
    read("llama", changes).expect("a config").decoder.expect("a decoder").rotary.scaling
}

#[test]
fn missing_keys_have_transformers_defaults() {
    for (model_type, vocabulary, heads, positions, windows) in [
        ("llama", 32000, 32, 2048, None),
        ("mistral", 32000, 8, 131_072, Some(4096)),
        ("qwen2", 151_936, 32, 32768, None),
    ] {
        let config = Config::from_json(&json!({"model_type": model_type}).to_string()).expect("defaults are a config");
        let decoder = config.decoder.as_ref().expect("a decoder");
        assert_eq!((config.hidden, config.layers, config.heads, config.head_dim()), (4096, 32, 32, 128));
        assert_eq!((config.vocabulary, config.key_value_heads(), config.max_tokens()), (vocabulary, heads, positions));
        assert_eq!((decoder.windows[0], decoder.windows.len()), (windows, 32));
        assert_eq!((decoder.rotary.theta, decoder.rotary.scaling), (10000.0, RotaryScaling::None));
        assert_eq!(decoder.query_key_value_bias, model_type == "qwen2");
        assert!(!decoder.attention_output_bias && !decoder.feed_forward_bias && !decoder.tied);
        assert_eq!((config.norm_eps, decoder.padding_id), (1e-6, None));
    }
}

#[test]
fn both_spellings_of_rotary_scaling_are_read() {
    let old = json!({"rope_theta": 500_000.0, "rope_scaling": {"type": "linear", "factor": 4.0}});
    let new = json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0}});
    for changes in [old, new] {
        let rotary = read("llama", changes).expect("a config").decoder.expect("a decoder").rotary;
        assert_eq!((rotary.theta, rotary.scaling), (500_000.0, RotaryScaling::Linear { factor: 4.0 }));
    }
    assert_eq!(
        scaling(json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}})),
        RotaryScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64 }
    );
    assert_eq!(
        scaling(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})),
        RotaryScaling::Dynamic { factor: 2.0, original: 256 }
    );
    assert_eq!(scaling(json!({"rope_scaling": {"rope_type": "default"}})), RotaryScaling::None);
    let longest = |changes| read("llama", changes).expect("a config").max_tokens();
    assert_eq!(longest(json!({"rope_scaling": {"type": "linear", "factor": 2.0}})), 512);
    assert_eq!(longest(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})), 1 << 24);
    assert_eq!(longest(json!({})), 256);
}

#[test]
fn windows_are_those_of_the_layers() {
    let windows = |model_type, changes| {
        let config: Config = read(model_type, changes).expect("a config");
        config.decoder.expect("a decoder").windows
    };
    assert_eq!(windows("mistral", json!({"sliding_window": 16})), [Some(16); 4]);
    let null = Config::from_json(r#"{"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": null}"#);
    assert_eq!(null.expect("a config").decoder.expect("a decoder").windows, [None; 2]);
    assert_eq!(windows("llama", json!({"sliding_window": 16})), [None; 4]);
    let qwen = json!({"sliding_window": 16, "use_sliding_window": true, "max_window_layers": 3});
    assert_eq!(windows("qwen2", qwen), [None, None, None, Some(16)]);
    assert_eq!(windows("qwen2", json!({"sliding_window": 16, "use_sliding_window": false})), [None; 4]);
    let types = json!({"sliding_window": 16, "use_sliding_window": true,
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]});
    assert_eq!(windows("qwen2", types), [None, Some(16), None, Some(16)]);
}

#[test]
fn tokens_and_biases_are_those_named() {
    let config = read(
        "llama",
        json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true, "head_dim": 12,
            "bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": -1, "architectures": ["LlamaForCausalLM"]}),
    )
    .expect("a config");
    assert!(config.is_language_model());
    assert_eq!((config.head_dim(), config.key_value_heads(), config.padding_id), (12, 2, 2));
    let decoder = config.decoder.expect("a decoder");
    assert!(decoder.query_key_value_bias && decoder.attention_output_bias && decoder.feed_forward_bias && decoder.tied);
    assert_eq!((decoder.begin_id, decoder.padding_id, decoder.end_ids), (Some(1), None, vec![2, 7]));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for (changes, said) in [
        (
            json!({"num_key_value_heads": 3}),
            "num_key_value_heads: expected a divisor of num_attention_heads, 8, found 3",
        ),
        (
            json!({"hidden_size": 65}),
            "num_attention_heads: expected a divisor of the hidden size 65, for there is no head_dim, found 8",
        ),
        (json!({"head_dim": 7}), "head_dim: expected an even number, for its dimensions turn in pairs, found 7"),
        (json!({"eos_token_id": [100]}), "eos_token_id: expected ids less than vocab_size 100, found 100"),
        (json!({"bos_token_id": 100}), "bos_token_id: expected an integer from 0 to 99, found 100"),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}),
            "rope_scaling.rope_type: expected one of default, linear, dynamic, llama3, found yarn",
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "rope_scaling.factor: expected a number of at least 1 and at most 10000, found nothing",
        ),
        (
            json!({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}),
            "rope_parameters.high_freq_factor: expected more than low_freq_factor, 4, found 4",
        ),
        (json!({"rope_scaling": [1]}), "rope_scaling: expected an object, found a list of 1"),
        (
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor: expected 1: heads that turn in part are not supported, found 0.5",
        ),
    ] {
        assert_eq!(read("llama", changes).expect_err(said), format!("config.json: {said}"));
    }
    let types = json!({"layer_types": ["full_attention"]});
    let error = read("mistral", types).expect_err("one type for four layers");
    assert_eq!(error, "config.json: layer_types: expected a list of 4, one for each layer, found a list of 1");
}
