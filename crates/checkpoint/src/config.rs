//! `config.json` of the encoder and decoder families, each with its own key names and with transformers' defaults for
//! keys that are missing. Every number is checked for being possible before anyone allocates by it.

mod decoder;
mod labels;
mod reader;
pub mod sizes;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::Error;
use crate::compact::CompactInfo;
use crate::read::{CONFIG_LIMIT_BYTES, read_text};
pub use decoder::{DecoderConfig, Rotary, RotaryScaling};
pub(crate) use reader::{ROWS_LIMIT, Reader, describe, parse_json};

/// A model family; its `Display` is the `model_type` in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// BERT and its relatives of the same form (MiniLM among them).
    Bert,
    /// RoBERTa.
    Roberta,
    /// XLM-RoBERTa.
    XlmRoberta,
    /// DistilBERT.
    DistilBert,
    /// MPNet, with its shared relative position bias.
    MpNet,
    /// Llama 2 and 3, and what has their form: TinyLlama, SmolLM2.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: Llama with biases of queries, keys and values.
    Qwen2,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 8] = [
        Family::Bert,
        Family::Roberta,
        Family::XlmRoberta,
        Family::DistilBert,
        Family::MpNet,
        Family::Llama,
        Family::Mistral,
        Family::Qwen2,
    ];

    /// The `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Bert => "bert",
            Family::Roberta => "roberta",
            Family::XlmRoberta => "xlm-roberta",
            Family::DistilBert => "distilbert",
            Family::MpNet => "mpnet",
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
        }
    }

    /// What transformers calls its sequence classifier.
    pub fn classifier_class(self) -> &'static str {
        match self {
            Family::Bert => "BertForSequenceClassification",
            Family::Roberta => "RobertaForSequenceClassification",
            Family::XlmRoberta => "XLMRobertaForSequenceClassification",
            Family::DistilBert => "DistilBertForSequenceClassification",
            Family::MpNet => "MPNetForSequenceClassification",
            Family::Llama => "LlamaForSequenceClassification",
            Family::Mistral => "MistralForSequenceClassification",
            Family::Qwen2 => "Qwen2ForSequenceClassification",
        }
    }

    /// What transformers calls its language model, if it is a decoder.
    pub fn language_class(self) -> Option<&'static str> {
        match self {
            Family::Llama => Some("LlamaForCausalLM"),
            Family::Mistral => Some("MistralForCausalLM"),
            Family::Qwen2 => Some("Qwen2ForCausalLM"),
            _ => None,
        }
    }

    /// Whether it is a decoder: causal attention, and a next token to predict.
    pub fn is_decoder(self) -> bool {
        matches!(self, Family::Llama | Family::Mistral | Family::Qwen2)
    }

    /// What the names of the stack's tensors begin with in a classifier's checkpoint.
    pub fn prefix(self) -> &'static str {
        match self {
            Family::Bert => "bert",
            Family::Roberta | Family::XlmRoberta => "roberta",
            Family::DistilBert => "distilbert",
            Family::MpNet => "mpnet",
            Family::Llama | Family::Mistral | Family::Qwen2 => "model",
        }
    }

    /// Whether position 0 of a sequence has the row `padding_id + 1` of the position table, as in RoBERTa.
    pub fn positions_start_after_padding(self) -> bool {
        matches!(self, Family::Roberta | Family::XlmRoberta | Family::MpNet)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.model_type())
    }
}

impl FromStr for Family {
    type Err = String;

    /// # Errors
    /// The list of the supported families.
    fn from_str(text: &str) -> Result<Family, String> {
        let found = Family::ALL.into_iter().find(|family| family.model_type() == text);
        found.ok_or_else(|| format!("expected one of {}, found {text}", crate::error::SUPPORTED_FAMILIES))
    }
}

/// The activation function of the feed-forward part, under the names of transformers' `ACT2FN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationName {
    /// `gelu`, with the error function.
    Gelu,
    /// `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`: the approximation with tanh.
    GeluNew,
    /// `relu`.
    Relu,
    /// `silu`, `swish`.
    Silu,
    /// `tanh`.
    Tanh,
}

impl ActivationName {
    fn from_name(name: &str) -> Option<ActivationName> {
        Some(match name {
            "gelu" | "gelu_python" => ActivationName::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" | "gelu_accurate" => {
                ActivationName::GeluNew
            }
            "relu" => ActivationName::Relu,
            "silu" | "swish" => ActivationName::Silu,
            "tanh" => ActivationName::Tanh,
            _ => return None,
        })
    }
}

/// What the head predicts, when the config says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A number.
    Regression,
    /// One of several labels.
    Classification,
}

/// A model's `config.json`, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The family.
    pub family: Family,
    /// `D`, the width of the residual stream.
    pub hidden: usize,
    /// The number of layers; may be 0.
    pub layers: usize,
    /// `H`, the number of attention heads before any compression; divides `hidden` in encoders.
    pub heads: usize,
    /// `F`, the inner width of the feed-forward part before any compression.
    pub feed_forward: usize,
    /// `V`, the rows of the token table.
    pub vocabulary: usize,
    /// The rows of the position table, or the positions a decoder was made for; see [`Config::max_tokens`] for how many tokens that is.
    pub positions: usize,
    /// The rows of the segment table; 0 for families without one.
    pub segments: usize,
    /// The epsilon of every norm.
    pub norm_eps: f32,
    /// The activation of the feed-forward part.
    pub activation: ActivationName,
    /// Dropout after embeddings, attention output and feed-forward.
    pub hidden_dropout: f32,
    /// Dropout of attention probabilities.
    pub attention_dropout: f32,
    /// Dropout in the classification head, resolved as the family's `ForSequenceClassification` does.
    pub classifier_dropout: f32,
    /// The standard deviation with which transformers initialises a missing head.
    pub initializer_range: f32,
    /// `pad_token_id`. Where a decoder has none, the end of its texts; see [`DecoderConfig::padding_id`].
    pub padding_id: u32,
    /// The rows of MPNet's table of relative position biases, at least 32; 0 for the other families. Transformers'
    /// class sorts distances into 32 buckets whatever this says.
    pub relative_attention_buckets: usize,
    /// What only decoders have.
    pub decoder: Option<DecoderConfig>,
    /// The labels in the order of their ids; empty when the config names none.
    pub labels: Vec<String>,
    /// What the head predicts, when the config says so.
    pub problem: Option<Problem>,
    /// The whole object, so that keys unknown to us survive; without the mark of an import.
    pub raw: Map<String, Value>,
    /// The `finegates` object of a compact checkpoint.
    pub compact: Option<CompactInfo>,
}

impl Config {
    /// The class of transformers that `architectures` names first.
    fn architecture(&self) -> Option<&str> {
        self.raw.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str)
    }

    /// Whether `architectures` names a language model.
    pub fn is_language_model(&self) -> bool {
        self.architecture().is_some_and(|class| Some(class) == self.family.language_class())
    }

    /// Whether `architectures` names a sequence classifier.
    pub fn is_classifier(&self) -> bool {
        self.architecture() == Some(self.family.classifier_class())
    }

    /// `E`, the dimensions of a head before any compression.
    pub fn head_dim(&self) -> usize {
        self.decoder.as_ref().map_or(self.hidden / self.heads.max(1), |decoder| decoder.head_dim)
    }

    /// The number of heads of keys and values before any compression; divides `heads`.
    pub fn key_value_heads(&self) -> usize {
        self.decoder.as_ref().map_or(self.heads, |decoder| decoder.key_value_heads)
    }

    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// When it is missing, no JSON, of an unsupported family, or has a value that cannot be.
    pub fn read(folder: &Path) -> Result<Config, Error> {
        let path = folder.join("config.json");
        Config::parse(&path, &read_text(&path, CONFIG_LIMIT_BYTES)?)
    }

    /// Reads a config from the text of a `config.json`.
    ///
    /// # Errors
    /// As [`Config::read`], the file being called `config.json`.
    pub fn from_json(text: &str) -> Result<Config, Error> {
        Config::parse(Path::new("config.json"), text)
    }

    /// The longest sequence the position table has room for, or that a decoder was made for, special tokens included.
    pub fn max_tokens(&self) -> usize {
        if let Some(decoder) = &self.decoder {
            return decoder.rotary.scaling.longest(self.positions);
        }
        match self.family.positions_start_after_padding() {
            true => self.positions - self.padding_id as usize - 1,
            false => self.positions,
        }
    }

    /// Checks that the labels name each of the head's `rows`, and are told apart by their names. A config without
    /// labels names nothing and is fine. Asked where answers are given, for training brings labels of its own, and
    /// transformers reads a config whose labels do not fit. `folder` is where the config lies, for the message.
    ///
    /// # Errors
    /// [`Error::Field`] for `id2label` or `num_labels`.
    pub fn check_labels(&self, folder: &Path, rows: usize) -> Result<(), Error> {
        labels::check(&Reader { path: &folder.join("config.json"), object: &self.raw }, &self.labels, rows)
    }

    pub(crate) fn parse(path: &Path, text: &str) -> Result<Config, Error> {
        let mut raw = parse_json(path, text)?;
        raw.remove(crate::gguf::IMPORT_MARK);
        let reader = Reader { path, object: &raw };
        let family = family(&reader)?;
        if !family.is_decoder() {
            reader.refuse("is_decoder", &Value::Bool(true), "false: of this family only encoders are supported")?;
        }
        let config = match family {
            Family::DistilBert => distilbert(&reader)?,
            Family::Llama | Family::Mistral | Family::Qwen2 => decoder::read(family, &reader)?,
            _ => bert_like(family, &reader)?,
        };
        let compact = match raw.get("finegates") {
            Some(object) => Some(CompactInfo::from_json(path, object)?),
            None => None,
        };
        let config = Config { compact, raw: raw.clone(), ..config };
        config.check_together(&reader)?;
        Ok(config)
    }

    /// What no single field can be checked for.
    fn check_together(&self, reader: &Reader) -> Result<(), Error> {
        let key = if self.family == Family::DistilBert { "n_heads" } else { "num_attention_heads" };
        if self.decoder.is_none() && !self.hidden.is_multiple_of(self.heads) {
            return Err(reader.wrong(
                key,
                format!("a divisor of the hidden size {}", self.hidden),
                self.heads.to_string(),
            ));
        }
        if self.padding_id as usize >= self.vocabulary {
            return Err(reader.wrong(
                "pad_token_id",
                format!("less than vocab_size {}", self.vocabulary),
                self.padding_id.to_string(),
            ));
        }
        if self.family.positions_start_after_padding() && self.positions <= self.padding_id as usize + 1 {
            let expected = format!("more than pad_token_id + 1, which is {}", self.padding_id + 1);
            return Err(reader.wrong("max_position_embeddings", expected, self.positions.to_string()));
        }
        Ok(())
    }
}

fn family(reader: &Reader) -> Result<Family, Error> {
    let found = match reader.object.get("model_type") {
        Some(Value::String(name)) => name.clone(),
        Some(other) => return Err(reader.wrong("model_type", "a string".into(), reader::describe(other))),
        None => "none".to_owned(),
    };
    found
        .parse()
        .map_err(|_| Error::UnsupportedFamily { path: reader.path.to_path_buf(), found: crate::error::shorten(&found) })
}

fn bert_like(family: Family, reader: &Reader) -> Result<Config, Error> {
    reader.demand("position_embedding_type", "absolute")?;
    let hidden_dropout = reader.rate("hidden_dropout_prob", 0.1)?;
    let mpnet = family == Family::MpNet;
    Ok(Config {
        family,
        hidden: reader.size("hidden_size", 768, 1, reader::HIDDEN_LIMIT)?,
        layers: reader.size("num_hidden_layers", 12, 0, reader::LAYERS_LIMIT)?,
        heads: reader.size("num_attention_heads", 12, 1, reader::HIDDEN_LIMIT)?,
        feed_forward: reader.size("intermediate_size", 3072, 1, reader::FEED_FORWARD_LIMIT)?,
        vocabulary: reader.size("vocab_size", default_vocabulary(family), 1, reader::ROWS_LIMIT)?,
        positions: reader.size("max_position_embeddings", 512, 1, reader::ROWS_LIMIT)?,
        segments: if mpnet { 0 } else { reader.size("type_vocab_size", 2, 1, reader::SEGMENTS_LIMIT)? },
        norm_eps: reader.epsilon("layer_norm_eps", 1e-12)?,
        activation: reader.activation("hidden_act", ActivationName::Gelu)?,
        hidden_dropout,
        attention_dropout: reader.rate("attention_probs_dropout_prob", 0.1)?,
        // MPNet's head has no setting of its own.
        classifier_dropout: if mpnet { hidden_dropout } else { reader.rate("classifier_dropout", hidden_dropout)? },
        initializer_range: reader.deviation("initializer_range", 0.02)?,
        padding_id: reader.padding_id(if family == Family::Bert { 0 } else { 1 })?,
        relative_attention_buckets: if mpnet {
            reader.size("relative_attention_num_buckets", 32, 32, reader::BUCKETS_LIMIT)?
        } else {
            0
        },
        decoder: None,
        labels: labels::read(reader)?,
        problem: labels::problem(reader)?,
        raw: Map::new(),
        compact: None,
    })
}

fn distilbert(reader: &Reader) -> Result<Config, Error> {
    Ok(Config {
        family: Family::DistilBert,
        hidden: reader.size_of(&["dim", "hidden_size"], 768, 1, reader::HIDDEN_LIMIT)?,
        layers: reader.size_of(&["n_layers", "num_hidden_layers"], 6, 0, reader::LAYERS_LIMIT)?,
        heads: reader.size_of(&["n_heads", "num_attention_heads"], 12, 1, reader::HIDDEN_LIMIT)?,
        feed_forward: reader.size("hidden_dim", 3072, 1, reader::FEED_FORWARD_LIMIT)?,
        vocabulary: reader.size("vocab_size", 30522, 1, reader::ROWS_LIMIT)?,
        positions: reader.size("max_position_embeddings", 512, 1, reader::ROWS_LIMIT)?,
        segments: 0,
        // Not in the config: the class has it written in.
        norm_eps: 1e-12,
        activation: reader.activation("activation", ActivationName::Gelu)?,
        hidden_dropout: reader.rate("dropout", 0.1)?,
        attention_dropout: reader.rate("attention_dropout", 0.1)?,
        classifier_dropout: reader.rate("seq_classif_dropout", 0.2)?,
        initializer_range: reader.deviation("initializer_range", 0.02)?,
        padding_id: reader.padding_id(0)?,
        relative_attention_buckets: 0,
        decoder: None,
        labels: labels::read(reader)?,
        problem: labels::problem(reader)?,
        raw: Map::new(),
        compact: None,
    })
}

fn default_vocabulary(family: Family) -> usize {
    match family {
        Family::Roberta => 50265,
        Family::MpNet => 30527,
        _ => 30522,
    }
}
