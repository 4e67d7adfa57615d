//! From the metadata of a GGUF file to `config.json` and `generation_config.json`.

use serde_json::{Map, Value, json};

use super::metadata::{Metadata, Value as MetadataValue};
use super::reader::Gguf;
use super::rope::{self, Rotary};
use crate::Error;
use crate::error::shorten;
use crate::tensors::FloatType;

const HIDDEN_LIMIT: usize = 1 << 16;
const LAYERS_LIMIT: usize = 1 << 12;
const FEED_FORWARD_LIMIT: usize = 1 << 20;
const ROWS_LIMIT: usize = 1 << 24;
/// Most values of a head's row of queries, and of all heads together.
const HEAD_LIMIT: usize = 1 << 14;
const QUERIES_LIMIT: usize = 1 << 20;
/// Most values of a head's rows: where rows change places, so many are in memory together.
const PIECE_LIMIT: usize = 1 << 24;

/// A kind of model, under the name that GGUF files give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Llama, and what has its form: SmolLM2, TinyLlama, Mistral.
    Llama,
    Qwen2,
}

impl Architecture {
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
        }
    }

    /// Whether the rows of queries and keys are stored in the order of interleaved rotary pairs.
    pub fn permutes(self) -> bool {
        self == Architecture::Llama
    }
}

/// What the metadata says of a model's form.
#[derive(Debug)]
pub(super) struct Form {
    pub architecture: Architecture,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub key_value_heads: usize,
    pub head: usize,
    pub feed_forward: usize,
    pub vocabulary: usize,
    pub context: usize,
    pub tied: bool,
    pub attention_bias: bool,
    pub feed_forward_bias: bool,
}

impl Form {
    pub fn read(gguf: &Gguf) -> Result<Form, Error> {
        let metadata = &gguf.metadata;
        let architecture = match metadata.text("general.architecture")? {
            Some("llama") => Architecture::Llama,
            Some("qwen2") => Architecture::Qwen2,
            other => {
                let found = other.map_or("no such key".to_owned(), shorten);
                return Err(metadata.wrong("general.architecture", "llama (Mistral too) or qwen2", found));
            }
        };
        if let Some(parts) = metadata.integer("split.count", 0, usize::MAX)?.filter(|&parts| parts > 1) {
            let expected = "a whole model; merge its parts with llama-gguf-split --merge";
            return Err(metadata.wrong("split.count", expected, parts.to_string()));
        }
        let key = |name: &str| format!("{}.{name}", architecture.name());
        if let Some(experts) = metadata.integer(&key("expert_count"), 0, usize::MAX)?.filter(|&experts| experts > 0) {
            return Err(metadata.wrong(&key("expert_count"), "a model without experts", experts.to_string()));
        }
        let hidden = metadata.demand(&key("embedding_length"), 1, HIDDEN_LIMIT)?;
        let heads = metadata.demand(&key("attention.head_count"), 1, HIDDEN_LIMIT)?;
        let key_value_heads = metadata.integer(&key("attention.head_count_kv"), 1, heads)?.unwrap_or(heads);
        if !heads.is_multiple_of(key_value_heads) {
            let expected = format!("a divisor of the {heads} heads");
            return Err(metadata.wrong(&key("attention.head_count_kv"), expected, key_value_heads.to_string()));
        }
        let head = match metadata.integer(&key("attention.key_length"), 1, HEAD_LIMIT)? {
            Some(head) => head,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a divisor of the embedding length {hidden}");
                return Err(metadata.wrong(&key("attention.head_count"), expected, heads.to_string()));
            }
        };
        for (what, product, limit) in [
            ("the queries of one", head, HEAD_LIMIT),
            ("the queries of all", heads.saturating_mul(head), QUERIES_LIMIT),
            ("the weights of one", head.saturating_mul(hidden), PIECE_LIMIT),
        ] {
            if product > limit {
                let expected = format!("heads such that {what} together have at most {limit} values");
                return Err(metadata.wrong(&key("attention.key_length"), expected, product.to_string()));
            }
        }
        if !head.is_multiple_of(2) {
            return Err(metadata.wrong(&key("attention.key_length"), "an even number", head.to_string()));
        }
        for name in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = metadata.integer(&key(name), 0, HIDDEN_LIMIT)?.filter(|&other| other != head) {
                return Err(metadata.wrong(&key(name), format!("{head}, the length of a head"), other.to_string()));
            }
        }
        let Some(embedding) = gguf.tensors.get("token_embd.weight").filter(|entry| entry.shape.len() == 2) else {
            let hint = "expected the table of tokens, [vocabulary, width]".to_owned();
            return Err(Error::MissingTensor {
                path: metadata.path().to_path_buf(),
                name: "token_embd.weight".to_owned(),
                hint,
            });
        };
        let vocabulary = embedding.shape[0];
        let claimed = metadata.integer(&key("vocab_size"), 1, ROWS_LIMIT)?.unwrap_or(vocabulary);
        if claimed != vocabulary || vocabulary > ROWS_LIMIT {
            let expected = format!("the {vocabulary} rows of token_embd.weight, at most {ROWS_LIMIT}");
            return Err(metadata.wrong(&key("vocab_size"), expected, claimed.to_string()));
        }
        Ok(Form {
            architecture,
            hidden,
            layers: metadata.demand(&key("block_count"), 1, LAYERS_LIMIT)?,
            heads,
            key_value_heads,
            head,
            feed_forward: metadata.demand(&key("feed_forward_length"), 1, FEED_FORWARD_LIMIT)?,
            vocabulary,
            context: metadata.demand(&key("context_length"), 1, ROWS_LIMIT)?,
            tied: !gguf.tensors.contains_key("output.weight"),
            attention_bias: architecture == Architecture::Llama && gguf.tensors.contains_key("blk.0.attn_q.bias"),
            feed_forward_bias: architecture == Architecture::Llama && gguf.tensors.contains_key("blk.0.ffn_up.bias"),
        })
    }

    /// The ids of special tokens, each checked against the vocabulary.
    pub fn special_ids(&self, metadata: &Metadata) -> Result<Specials, Error> {
        // SentencePiece's own, where a file does not say.
        let sentencepiece = metadata.text("tokenizer.ggml.model")? == Some("llama");
        let id = |name: &str, default: Option<u32>| -> Result<Option<u32>, Error> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match metadata.values.get(&key) {
                None => Ok(default.filter(|&id| sentencepiece && (id as usize) < self.vocabulary)),
                // llama.cpp writes all ones for "none".
                Some(MetadataValue::Integer(number)) if *number == -1 || *number == i128::from(u32::MAX) => Ok(None),
                Some(_) => Ok(metadata.integer(&key, 0, self.vocabulary - 1)?.map(|id| id as u32)),
            }
        };
        Ok(Specials {
            begin: id("bos", Some(1))?,
            end: id("eos", Some(2))?,
            end_of_turn: id("eot", None)?,
            end_of_message: id("eom", None)?,
            unknown: id("unknown", Some(0))?,
            padding: id("padding", None)?,
        })
    }

    /// `config.json`.
    pub fn config(
        &self,
        metadata: &Metadata,
        specials: &Specials,
        divisors: Option<&[f32]>,
        float: FloatType,
    ) -> Result<Map<String, Value>, Error> {
        let prefix = self.architecture.name();
        let key = |name: &str| format!("{prefix}.{name}");
        let epsilon_key = key("attention.layer_norm_rms_epsilon");
        let epsilon = metadata.number(&epsilon_key)?.filter(|&epsilon| epsilon > 0.0 && epsilon <= 1.0);
        let Some(epsilon) = epsilon else {
            return Err(metadata.wrong(&epsilon_key, "a number above 0 and at most 1", "none such"));
        };
        let theta = metadata.number(&key("rope.freq_base"))?.unwrap_or(10000.0);
        if !(1.0..=1e12).contains(&theta) {
            return Err(metadata.wrong(&key("rope.freq_base"), "a number from 1 to 1e12", theta.to_string()));
        }
        let scaling = rope::scaling(metadata, &Rotary { prefix, theta, head: self.head, divisors })?;
        let window_key = key("attention.sliding_window");
        let window = metadata.integer(&window_key, 0, ROWS_LIMIT)?.filter(|&window| window > 0);
        let (class, model_type) = match (self.architecture, window) {
            (Architecture::Qwen2, None) => ("Qwen2ForCausalLM", "qwen2"),
            (Architecture::Qwen2, Some(window)) if window < self.context => {
                return Err(metadata.wrong(&window_key, "no sliding window in qwen2", window.to_string()));
            }
            (Architecture::Qwen2, Some(_)) => ("Qwen2ForCausalLM", "qwen2"),
            (Architecture::Llama, None) => ("LlamaForCausalLM", "llama"),
            // Llama's form with a window is Mistral.
            (Architecture::Llama, Some(_)) => ("MistralForCausalLM", "mistral"),
        };
        let mut config = Map::new();
        let mut put = |name: &str, value: Value| {
            config.insert(name.to_owned(), value);
        };
        put("architectures", json!([class]));
        put("model_type", json!(model_type));
        put("hidden_size", json!(self.hidden));
        put("intermediate_size", json!(self.feed_forward));
        put("num_hidden_layers", json!(self.layers));
        put("num_attention_heads", json!(self.heads));
        put("num_key_value_heads", json!(self.key_value_heads));
        put("head_dim", json!(self.head));
        put("hidden_act", json!("silu"));
        put("rms_norm_eps", json!(epsilon));
        put("rope_theta", json!(theta));
        put("rope_scaling", scaling);
        put("max_position_embeddings", json!(self.context));
        put("vocab_size", json!(self.vocabulary));
        put("tie_word_embeddings", json!(self.tied));
        match model_type {
            "llama" => {
                put("attention_bias", json!(self.attention_bias));
                put("mlp_bias", json!(self.feed_forward_bias));
            }
            "mistral" => {
                if self.attention_bias || self.feed_forward_bias {
                    return Err(metadata.wrong(&window_key, "no sliding window in a model with biases", "one"));
                }
                put("sliding_window", json!(window));
            }
            _ => put("use_sliding_window", json!(false)),
        }
        put("attention_dropout", json!(0.0));
        put("bos_token_id", json!(specials.begin));
        put("eos_token_id", json!(specials.end));
        put("pad_token_id", json!(specials.padding));
        put("torch_dtype", json!(float.torch_name()));
        Ok(config)
    }
}

/// The ids of tokens with a meaning of their own.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Specials {
    pub begin: Option<u32>,
    pub end: Option<u32>,
    pub end_of_turn: Option<u32>,
    pub end_of_message: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
}

impl Specials {
    /// The tokens after which a model has said all, the end of text first.
    fn ends(&self) -> Vec<u32> {
        let mut ends = Vec::new();
        for id in [self.end, self.end_of_turn, self.end_of_message].into_iter().flatten() {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        ends
    }

    /// `generation_config.json`; none where there is nothing to say.
    pub fn generation(&self) -> Option<Value> {
        let ends = self.ends();
        let mut generation = Map::new();
        if let Some(id) = self.begin {
            generation.insert("bos_token_id".to_owned(), json!(id));
        }
        match ends.as_slice() {
            [] => {}
            [id] => drop(generation.insert("eos_token_id".to_owned(), json!(id))),
            several => drop(generation.insert("eos_token_id".to_owned(), json!(several))),
        }
        if let Some(id) = self.padding {
            generation.insert("pad_token_id".to_owned(), json!(id));
        }
        (!generation.is_empty()).then_some(Value::Object(generation))
    }
}
