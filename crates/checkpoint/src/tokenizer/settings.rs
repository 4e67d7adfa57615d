//! `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`: what they say beyond the vocabulary.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, TruncationDirection};

use crate::Error;
use crate::config::parse_json;
use crate::error::shorten;
use crate::read::{TOKENIZER_LIMIT_BYTES, read_text};

/// The settings that matter for encoding. What a file does not say is `None`.
#[derive(Debug, Default)]
pub(super) struct Settings {
    path: PathBuf,
    /// `tokenizer_class` without `Fast`.
    pub class: Option<String>,
    pub lower_case: Option<bool>,
    pub strip_accents: Option<bool>,
    pub chinese_characters: Option<bool>,
    pub add_prefix_space: Option<bool>,
    pub trim_offsets: Option<bool>,
    pub truncation_side: Option<TruncationDirection>,
    /// Whether `model_input_names` lists `token_type_ids`.
    pub uses_segments: Option<bool>,
    /// `added_tokens_decoder`, by id.
    pub added: Vec<(u32, AddedToken)>,
    named: Map<String, Value>,
}

impl Settings {
    /// Reads those of the files that are in `folder`.
    pub fn read(folder: &Path) -> Result<Settings, Error> {
        let path = folder.join("tokenizer_config.json");
        let config = read_if_there(&path)?;
        let mut settings = Settings { path, ..Settings::default() };
        settings.class =
            settings.text(&config, "tokenizer_class")?.map(|class| class.trim_end_matches("Fast").to_owned());
        settings.lower_case = settings.flag(&config, "do_lower_case")?;
        settings.strip_accents = settings.flag(&config, "strip_accents")?;
        settings.chinese_characters = settings.flag(&config, "tokenize_chinese_chars")?;
        settings.add_prefix_space = settings.flag(&config, "add_prefix_space")?;
        settings.trim_offsets = settings.flag(&config, "trim_offsets")?;
        settings.truncation_side = match settings.text(&config, "truncation_side")?.as_deref() {
            None => None,
            Some("right") => Some(TruncationDirection::Right),
            Some("left") => Some(TruncationDirection::Left),
            Some(other) => return Err(settings.wrong("truncation_side", "right or left", other)),
        };
        settings.uses_segments = config
            .get("model_input_names")
            .and_then(Value::as_array)
            .map(|names| names.iter().any(|name| name.as_str() == Some("token_type_ids")));
        settings.added = settings.added_tokens(folder, &config)?;
        settings.named = read_if_there(&folder.join("special_tokens_map.json"))?;
        settings.named.extend(config);
        Ok(settings)
    }

    /// A special token such as `cls_token`, under its name in the files or else `default`. Where the files do not say,
    /// `takes_space` is whether it takes the space before it along.
    pub fn special(&self, name: &str, default: &str, takes_space: bool) -> Result<AddedToken, Error> {
        let plain = |content: &str| AddedToken::from(content, true).lstrip(takes_space);
        match self.named.get(name).filter(|value| !value.is_null()) {
            None => Ok(plain(default)),
            Some(Value::String(content)) => Ok(plain(content)),
            Some(value) => self.token(name, value),
        }
    }

    fn added_tokens(&self, folder: &Path, config: &Map<String, Value>) -> Result<Vec<(u32, AddedToken)>, Error> {
        let mut added = Vec::new();
        if let Some(listed) = config.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, value) in listed {
                let Ok(number) = id.parse() else { return Err(self.wrong("added_tokens_decoder", "ids as keys", id)) };
                added.push((number, self.token(&format!("added_tokens_decoder.{id}"), value)?));
            }
        } else {
            for (content, id) in read_if_there(&folder.join("added_tokens.json"))? {
                let Some(number) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                    return Err(self.wrong("added_tokens.json", "ids as values", &id.to_string()));
                };
                added.push((number, AddedToken::from(content, false)));
            }
        }
        added.sort_by_key(|(id, _)| *id);
        Ok(added)
    }

    /// A token written as an object with its properties.
    fn token(&self, field: &str, value: &Value) -> Result<AddedToken, Error> {
        let Some(content) = value.get("content").and_then(Value::as_str) else {
            return Err(self.wrong(field, "a token with its content", &value.to_string()));
        };
        let flag = |name: &str, default: bool| value.get(name).and_then(Value::as_bool).unwrap_or(default);
        let special = flag("special", true);
        Ok(AddedToken::from(content, special)
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .single_word(flag("single_word", false))
            .normalized(flag("normalized", !special)))
    }

    fn text(&self, config: &Map<String, Value>, field: &str) -> Result<Option<String>, Error> {
        match config.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.wrong(field, "a string", &other.to_string())),
        }
    }

    fn flag(&self, config: &Map<String, Value>, field: &str) -> Result<Option<bool>, Error> {
        match config.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(field, "true or false", &other.to_string())),
        }
    }

    fn wrong(&self, field: &str, expected: &str, found: &str) -> Error {
        Error::field(&self.path, field, expected, shorten(found))
    }
}

fn read_if_there(path: &Path) -> Result<Map<String, Value>, Error> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    parse_json(path, &read_text(path, TOKENIZER_LIMIT_BYTES)?)
}
