//! Llama configs by the name of their size: those of the GaLore study (J. Zhao et al., 2024; `configs/llama_*.json` of its
//! repository), which FineGates pretrains too. They say nothing of tokens: those follow from the tokenizer.

use serde_json::{Map, Value, json};

/// Name, hidden size, feed-forward size, layers, heads.
const SIZES: [(&str, [usize; 4]); 11] = [
    ("9m", [128, 352, 4, 4]),
    ("20m", [256, 688, 4, 4]),
    ("35m", [384, 1024, 6, 8]),
    ("40m", [416, 1024, 8, 8]),
    ("60m", [512, 1376, 8, 8]),
    ("71m", [512, 1368, 12, 8]),
    ("100m", [640, 1708, 12, 10]),
    ("130m", [768, 2048, 12, 12]),
    ("250m", [768, 2560, 24, 16]),
    ("350m", [1024, 2736, 24, 16]),
    ("1b", [2048, 5461, 24, 32]),
];

/// The names, as `llama-9m`.
pub fn names() -> impl Iterator<Item = String> {
    SIZES.iter().map(|(name, _)| format!("llama-{name}"))
}

/// The `config.json` of a size by its name, with or without `llama-`; none for an unknown one. `vocab_size` and the ids of
/// tokens are to be added.
pub fn named(name: &str) -> Option<Map<String, Value>> {
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix("llama-").or(name.strip_prefix("llama_")).unwrap_or(&name);
    let (_, [hidden, feed_forward, layers, heads]) = SIZES.iter().find(|(known, _)| *known == name)?;
    let config = json!({
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "initializer_range": 0.02,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": false,
    });
    match config {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    /// Embedding and head of 32,000 tokens, with the layers, come to what the name says.
    #[test]
    fn every_size_has_the_parameters_of_its_name() {
        for name in names() {
            let mut object = named(&name).expect("a size");
            object.insert("vocab_size".to_owned(), 32_000.into());
            let config = Config::from_json(&Value::Object(object).to_string()).expect("a config");
            let layer = 4 * config.hidden * config.hidden + 3 * config.hidden * config.feed_forward;
            let found = (2 * config.vocabulary * config.hidden + config.layers * layer) as f64 / 1e6;
            let size = name.trim_start_matches("llama-");
            let said = match size.strip_suffix('m') {
                Some(millions) => millions.parse().expect("a number"),
                None => 1000.0,
            };
            assert!((found / said - 1.0_f64).abs() < 0.35, "{name}: {found}");
        }
        assert!(named("llama-8m").is_none() && named("9m") == named("llama_9M"));
    }
}
