//! `config.json` of Llama-type decoders: grouped heads, rotary positions in both spellings that transformers has used
//! (`rope_theta` beside `rope_scaling`, and `rope_parameters`), sliding windows, biases.

use serde_json::{Map, Value};

use super::reader::{self, Reader, describe};
use super::{ActivationName, Config, Family, labels};
use crate::Error;
use crate::error::shorten;

/// Most dimensions of a head.
const HEAD_LIMIT: u64 = 1 << 14;
/// Largest base of the rotary angles that is believed.
const THETA_LIMIT: f64 = 1e12;
/// Largest stretching of positions that is believed.
const FACTOR_LIMIT: f64 = 1e4;

/// What only decoders have.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Heads of keys and values; divides the number of heads.
    pub key_value_heads: usize,
    /// `E`, dimensions of a head; even.
    pub head_dim: usize,
    /// How positions turn queries and keys.
    pub rotary: Rotary,
    /// For each layer the number of tokens it looks back on, its own included; none for all.
    pub windows: Vec<Option<usize>>,
    /// Whether queries, keys and values have biases.
    pub query_key_value_bias: bool,
    /// Whether the output of attention has a bias.
    pub attention_output_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub feed_forward_bias: bool,
    /// Whether the output embedding is the input embedding.
    pub tied: bool,
    /// `pad_token_id`, where there is one.
    pub padding_id: Option<u32>,
    /// `bos_token_id`, where there is one.
    pub begin_id: Option<u32>,
    /// `eos_token_id`: tokens that end a text.
    pub end_ids: Vec<u32>,
}

/// Rotary position embedding (J. Su et al., *RoFormer*): pair `i` of a head turns by `position · θ^(−2i/E)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// θ, the base.
    pub theta: f32,
    /// How the angles are changed for long texts.
    pub scaling: RotaryScaling,
}

/// How rotary angles are changed for texts longer than those of pretraining, under transformers' names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RotaryScaling {
    /// `default`: not at all.
    None,
    /// `linear`: positions divided by the factor.
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// `dynamic`: the base grows with the text once it is longer than `original` tokens (NTK-aware).
    Dynamic {
        /// At least 1.
        factor: f32,
        /// Tokens up to which nothing changes.
        original: usize,
    },
    /// `llama3`: slow pairs are divided by the factor, fast ones kept, those between mixed.
    Llama3 {
        /// At least 1.
        factor: f32,
        /// Wavelengths above `original / low` are divided.
        low: f32,
        /// Wavelengths below `original / high` are kept.
        high: f32,
        /// Tokens of a text in pretraining.
        original: usize,
    },
}

impl RotaryScaling {
    /// The longest sequence, where the model was made for `positions`.
    pub fn longest(self, positions: usize) -> usize {
        match self {
            RotaryScaling::None | RotaryScaling::Llama3 { .. } => positions,
            RotaryScaling::Linear { factor } => (positions as f64 * f64::from(factor)) as usize,
            // Made to go on without an end; as far as anything here does.
            RotaryScaling::Dynamic { .. } => reader::ROWS_LIMIT as usize,
        }
    }
}

/// The sizes that transformers' class assumes where the config is silent.
struct Defaults {
    vocabulary: usize,
    hidden: usize,
    feed_forward: usize,
    key_value_heads: Option<usize>,
    positions: usize,
    window: Option<usize>,
}

impl Defaults {
    fn of(family: Family) -> Defaults {
        match family {
            Family::Mistral => Defaults {
                vocabulary: 32000,
                hidden: 4096,
                feed_forward: 14336,
                key_value_heads: Some(8),
                positions: 4096 * 32,
                window: Some(4096),
            },
            Family::Qwen2 => Defaults {
                vocabulary: 151_936,
                hidden: 4096,
                feed_forward: 22016,
                key_value_heads: Some(32),
                positions: 32768,
                window: Some(4096),
            },
            _ => Defaults {
                vocabulary: 32000,
                hidden: 4096,
                feed_forward: 11008,
                key_value_heads: None,
                positions: 2048,
                window: None,
            },
        }
    }
}

pub(super) fn read(family: Family, reader: &Reader) -> Result<Config, Error> {
    let defaults = Defaults::of(family);
    let hidden = reader.size("hidden_size", defaults.hidden, 1, reader::HIDDEN_LIMIT)?;
    let layers = reader.size("num_hidden_layers", 32, 0, reader::LAYERS_LIMIT)?;
    let heads = reader.size("num_attention_heads", 32, 1, reader::HIDDEN_LIMIT)?;
    // A null means as many as there are heads; a missing key the family's default.
    let silent = match reader.object.get("num_key_value_heads") {
        Some(Value::Null) => heads,
        _ => defaults.key_value_heads.unwrap_or(heads),
    };
    let key_value_heads = reader.size("num_key_value_heads", silent, 1, reader::HIDDEN_LIMIT)?;
    if !heads.is_multiple_of(key_value_heads) {
        let expected = format!("a divisor of num_attention_heads, {heads}");
        return Err(reader.wrong("num_key_value_heads", expected, key_value_heads.to_string()));
    }
    if reader.get("head_dim").is_none() && !hidden.is_multiple_of(heads) {
        let expected = format!("a divisor of the hidden size {hidden}, for there is no head_dim");
        return Err(reader.wrong("num_attention_heads", expected, heads.to_string()));
    }
    let head_dim = reader.size("head_dim", hidden / heads, 1, HEAD_LIMIT)?;
    if !head_dim.is_multiple_of(2) {
        return Err(reader.wrong(
            "head_dim",
            "an even number, for its dimensions turn in pairs".into(),
            head_dim.to_string(),
        ));
    }
    let vocabulary = reader.size("vocab_size", defaults.vocabulary, 1, reader::ROWS_LIMIT)?;
    let positions = reader.size("max_position_embeddings", defaults.positions, 1, reader::ROWS_LIMIT)?;
    let attention_bias = reader.flag("attention_bias", false)?;
    let padding_id = token(reader, "pad_token_id", vocabulary)?;
    let end_ids = tokens(reader, "eos_token_id", vocabulary)?;
    if reader.get("partial_rotary_factor").and_then(Value::as_f64).is_some_and(|factor| factor != 1.0) {
        let found = describe(&reader.object["partial_rotary_factor"]);
        return Err(reader.wrong(
            "partial_rotary_factor",
            "1: heads that turn in part are not supported".into(),
            found,
        ));
    }
    Ok(Config {
        family,
        hidden,
        layers,
        heads,
        feed_forward: reader.size("intermediate_size", defaults.feed_forward, 1, reader::FEED_FORWARD_LIMIT)?,
        vocabulary,
        positions,
        segments: 0,
        norm_eps: reader.epsilon("rms_norm_eps", 1e-6)?,
        activation: reader.activation("hidden_act", ActivationName::Silu)?,
        hidden_dropout: 0.0,
        attention_dropout: reader.rate("attention_dropout", 0.0)?,
        classifier_dropout: 0.0,
        initializer_range: reader.deviation("initializer_range", 0.02)?,
        padding_id: padding_id.or(end_ids.first().copied()).unwrap_or(0),
        relative_attention_buckets: 0,
        decoder: Some(DecoderConfig {
            key_value_heads,
            head_dim,
            rotary: rotary(reader, positions)?,
            windows: windows(family, reader, layers, defaults.window)?,
            query_key_value_bias: family == Family::Qwen2 || family == Family::Llama && attention_bias,
            attention_output_bias: family == Family::Llama && attention_bias,
            feed_forward_bias: family == Family::Llama && reader.flag("mlp_bias", false)?,
            tied: reader.flag("tie_word_embeddings", false)?,
            padding_id,
            begin_id: token(reader, "bos_token_id", vocabulary)?,
            end_ids,
        }),
        labels: labels::read(reader)?,
        problem: labels::problem(reader)?,
        raw: Map::new(),
        compact: None,
    })
}

/// One token's id; −1, as old configs write it, is none.
fn token(reader: &Reader, field: &str, vocabulary: usize) -> Result<Option<u32>, Error> {
    match reader.get(field) {
        None => Ok(None),
        Some(value) if value.as_i64() == Some(-1) => Ok(None),
        Some(_) => Ok(Some(reader.size(field, 0, 0, vocabulary as u64 - 1)? as u32)),
    }
}

/// One token's id, or a list of them.
fn tokens(reader: &Reader, field: &str, vocabulary: usize) -> Result<Vec<u32>, Error> {
    let Some(Value::Array(items)) = reader.get(field) else {
        return Ok(token(reader, field, vocabulary)?.into_iter().collect());
    };
    let id = |item: &Value| item.as_u64().filter(|&id| id < vocabulary as u64).map(|id| id as u32);
    let wrong = |item| reader.wrong(field, format!("ids less than vocab_size {vocabulary}"), describe(item));
    items.iter().take(1024).map(|item| id(item).ok_or_else(|| wrong(item))).collect()
}

/// What each layer looks back on: `layer_types` where it is there, or the rule of the family.
fn windows(
    family: Family,
    reader: &Reader,
    layers: usize,
    default: Option<usize>,
) -> Result<Vec<Option<usize>>, Error> {
    let window = match (family, reader.object.get("sliding_window")) {
        // Llama has no windows, and a null is none for the others.
        (Family::Llama, _) | (_, Some(Value::Null)) => None,
        (Family::Qwen2, _) if !reader.flag("use_sliding_window", false)? => None,
        (_, None) => default,
        (_, Some(_)) => Some(reader.size("sliding_window", 0, 1, u64::from(u32::MAX))?),
    };
    if let Some(types) = reader.get("layer_types").filter(|_| family != Family::Llama) {
        let items = types.as_array().filter(|items| items.len() == layers);
        let Some(items) = items else {
            return Err(reader.wrong(
                "layer_types",
                format!("a list of {layers}, one for each layer"),
                describe(types),
            ));
        };
        return items
            .iter()
            .map(|item| match item.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(window),
                _ => Err(reader.wrong("layer_types", "full_attention or sliding_attention".into(), describe(item))),
            })
            .collect();
    }
    // Qwen2's lower layers look back on everything.
    let first = match family {
        Family::Qwen2 => reader.size("max_window_layers", 28, 0, reader::LAYERS_LIMIT)?,
        _ => 0,
    };
    Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
}

fn rotary(reader: &Reader, positions: usize) -> Result<Rotary, Error> {
    // As transformers reads them: the old spelling wins where it says anything.
    let says = |name: &&str| reader.get(name).is_some_and(|value| value.as_object().is_none_or(|map| !map.is_empty()));
    let name = ["rope_scaling", "rope_parameters"].into_iter().find(says);
    let empty = Map::new();
    let object = match name.and_then(|name| reader.get(name)) {
        None => &empty,
        Some(Value::Object(object)) => object,
        Some(other) => {
            return Err(reader.wrong(name.unwrap_or_default(), "an object".into(), describe(other)));
        }
    };
    let prefix = name.unwrap_or("rope_scaling");
    let inside = Reader { path: reader.path, object };
    let named = |error: Error| match error {
        Error::Field { path, field, expected, found } => {
            Error::Field { path, field: format!("{prefix}.{field}"), expected, found }
        }
        other => other,
    };
    let above = |high: f64| move |number: f64| number > 0.0 && number <= high;
    let outside = reader.number("rope_theta", 10000.0, "a number above 0", above(THETA_LIMIT))?;
    let theta = inside.number("rope_theta", outside, "a number above 0", above(THETA_LIMIT)).map_err(named)?;
    let kind = ["rope_type", "type"].into_iter().find_map(|field| inside.get(field));
    let kind = match kind {
        None => "default",
        Some(Value::String(kind)) => kind.as_str(),
        Some(other) => return Err(named(inside.wrong("rope_type", "a name".into(), describe(other)))),
    };
    let number = |field: &str, fits: &dyn Fn(f64) -> bool, expected: &str| {
        if inside.get(field).is_none() {
            return Err(named(inside.wrong(field, expected.to_owned(), "nothing".into())));
        }
        inside.number(field, 1.0, expected, fits).map_err(named)
    };
    let factor = || {
        number("factor", &|factor| (1.0..=FACTOR_LIMIT).contains(&factor), "a number of at least 1 and at most 10000")
    };
    let original =
        |default| inside.size("original_max_position_embeddings", default, 1, reader::ROWS_LIMIT).map_err(named);
    let scaling = match kind {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear { factor: factor()? },
        // Transformers takes the model's own positions here, whatever else the object says.
        "dynamic" => RotaryScaling::Dynamic { factor: factor()?, original: positions },
        "llama3" => {
            let low = number("low_freq_factor", &above(FACTOR_LIMIT), "a number above 0")?;
            let high = number("high_freq_factor", &above(FACTOR_LIMIT), "a number above 0")?;
            if high <= low {
                return Err(named(inside.wrong(
                    "high_freq_factor",
                    format!("more than low_freq_factor, {low}"),
                    high.to_string(),
                )));
            }
            RotaryScaling::Llama3 { factor: factor()?, low, high, original: original(positions)? }
        }
        other => {
            let expected = "one of default, linear, dynamic, llama3".to_owned();
            return Err(named(inside.wrong("rope_type", expected, shorten(other))));
        }
    };
    Ok(Rotary { theta, scaling })
}
