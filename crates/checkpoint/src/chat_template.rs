//! Where a model says how its chats are written: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`,
//! and the special tokens that templates name. Nothing is rendered here.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;
use crate::config::{describe, parse_json};
use crate::read::{SETTINGS_LIMIT_BYTES, TOKENIZER_LIMIT_BYTES, read_text};

/// The special tokens that templates know by name.
const NAMED_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Most bytes of a special token.
const TOKEN_LIMIT_BYTES: usize = 1 << 10;
/// Most named templates.
const TEMPLATES_LIMIT: usize = 64;

/// The chat templates of a model folder, in Jinja as they are written there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// The file they come from; that of the special tokens when there are none.
    pub path: PathBuf,
    /// Names and sources; one without a name is called `default`.
    pub templates: Vec<(String, String)>,
    /// The special tokens that the folder names, such as `bos_token`, with their texts.
    pub special_tokens: Vec<(String, String)>,
}

impl ChatTemplates {
    /// Reads what is in `folder`; a folder without templates has an empty list. `chat_template.jinja` wins over
    /// `tokenizer_config.json`, as in transformers.
    ///
    /// # Errors
    /// When a file cannot be read or a field has a value that cannot be.
    pub fn read(folder: &Path) -> Result<ChatTemplates, Error> {
        let config_path = folder.join("tokenizer_config.json");
        let config = read_object(&config_path)?;
        let map_path = folder.join("special_tokens_map.json");
        let map = read_object(&map_path)?;
        let mut special_tokens = Vec::new();
        for name in NAMED_TOKENS {
            let places = [(&config_path, &config), (&map_path, &map)];
            let given = places.into_iter().find_map(|(path, object)| Some((path, present(object, name)?)));
            if let Some((path, value)) = given {
                special_tokens.push((name.to_owned(), token(path, name, value)?));
            }
        }
        let alone = folder.join("chat_template.jinja");
        if alone.is_file() {
            let source = read_text(&alone, SETTINGS_LIMIT_BYTES)?;
            return Ok(ChatTemplates { path: alone, templates: vec![("default".into(), source)], special_tokens });
        }
        let templates = match present(&config, "chat_template") {
            None => Vec::new(),
            Some(value) => templates(&config_path, value)?,
        };
        Ok(ChatTemplates { path: config_path, templates, special_tokens })
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>, Error> {
    match path.is_file() {
        true => parse_json(path, &read_text(path, TOKENIZER_LIMIT_BYTES)?),
        false => Ok(Map::new()),
    }
}

fn present<'o>(object: &'o Map<String, Value>, name: &str) -> Option<&'o Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// A token as a string or as an object with its properties.
fn token(path: &Path, name: &str, value: &Value) -> Result<String, Error> {
    let text = value.as_str().or_else(|| value.get("content")?.as_str());
    text.filter(|text| text.len() <= TOKEN_LIMIT_BYTES).map(str::to_owned).ok_or_else(|| {
        let expected = format!("a token of at most {TOKEN_LIMIT_BYTES} bytes");
        Error::field(path, name, expected, describe(value))
    })
}

/// One template, or a list of `{name, template}`.
fn templates(path: &Path, value: &Value) -> Result<Vec<(String, String)>, Error> {
    let field = "chat_template";
    let wrong = |expected: &str, found: String| Error::field(path, field, expected, found);
    let source = |value: &Value| match value.as_str() {
        Some(source) if source.len() as u64 <= SETTINGS_LIMIT_BYTES => Ok(source.to_owned()),
        Some(source) => {
            let expected = format!("at most {SETTINGS_LIMIT_BYTES} bytes");
            Err(wrong(&expected, format!("{} bytes", source.len())))
        }
        None => Err(wrong("a template as a string", describe(value))),
    };
    match value {
        Value::String(_) => Ok(vec![("default".to_owned(), source(value)?)]),
        Value::Array(items) if items.len() <= TEMPLATES_LIMIT => {
            let named = |item: &Value| match (item.get("name").and_then(Value::as_str), item.get("template")) {
                (Some(name), Some(template)) => Ok((name.to_owned(), source(template)?)),
                _ => Err(wrong("templates as objects with name and template", describe(item))),
            };
            items.iter().map(named).collect()
        }
        _ => Err(wrong(&format!("a string, or a list of at most {TEMPLATES_LIMIT} templates"), describe(value))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn pairs(found: &[(String, String)]) -> Vec<(&str, &str)> {
        found.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
    }

    #[test]
    fn templates_are_found_in_each_of_their_places() {
        assert_eq!(ChatTemplates::read(folder(&[]).path()).unwrap().templates, []);
        let config =
            r#"{"chat_template": "{{ x }}", "bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null}"#;
        let map = r#"{"bos_token": "<other>", "unk_token": "<unk>"}"#;
        let mut files = vec![("tokenizer_config.json", config), ("special_tokens_map.json", map)];
        let found = ChatTemplates::read(folder(&files).path()).unwrap();
        assert_eq!(pairs(&found.templates), [("default", "{{ x }}")]);
        assert_eq!(pairs(&found.special_tokens), [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]);
        files.push(("chat_template.jinja", "alone\n"));
        let found = ChatTemplates::read(folder(&files).path()).unwrap();
        assert_eq!(pairs(&found.templates), [("default", "alone\n")]);
        assert!(found.path.ends_with("chat_template.jinja"));
        let listed =
            r#"{"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}"#;
        let found = ChatTemplates::read(folder(&[("tokenizer_config.json", listed)]).path()).unwrap();
        assert_eq!(pairs(&found.templates), [("default", "a"), ("tool_use", "b")]);
    }

    #[test]
    fn values_that_cannot_be_are_told_by_their_field() {
        for (config, field) in [
            (r#"{"chat_template": 1}"#, "chat_template"),
            (r#"{"chat_template": [{"name": "x"}]}"#, "chat_template"),
            (r#"{"chat_template": [{"name": "x", "template": 2}]}"#, "chat_template"),
            (r#"{"bos_token": ["<s>"]}"#, "bos_token"),
        ] {
            match ChatTemplates::read(folder(&[("tokenizer_config.json", config)]).path()) {
                Err(Error::Field { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{config}: {other:?}"),
            }
        }
        let long = format!(r#"{{"bos_token": "{}"}}"#, "x".repeat(TOKEN_LIMIT_BYTES + 1));
        assert!(ChatTemplates::read(folder(&[("tokenizer_config.json", &long)]).path()).is_err());
    }
}
