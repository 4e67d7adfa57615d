//! `generation_config.json`: which ids end a text, and how its author would have tokens chosen. What the file does not
//! say, or a folder without it, is left to `config.json` for the ids and to the caller for the rest.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;
use crate::config::{ROWS_LIMIT, Reader, describe, parse_json};
use crate::read::{CONFIG_LIMIT_BYTES, read_text};

/// Most ids that end a text.
const ENDS_LIMIT: usize = 1 << 10;
/// Largest number of tokens or candidates that is believed.
const COUNT_LIMIT: u64 = 1 << 32;

/// A model's `generation_config.json`, checked. `None` is what the file does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Where it was read from; empty when there was no file.
    pub path: PathBuf,
    /// `eos_token_id`: each of them ends a text; may be empty.
    pub end_ids: Vec<u32>,
    /// `bos_token_id`.
    pub begin_id: Option<u32>,
    /// `pad_token_id`.
    pub padding_id: Option<u32>,
    /// `do_sample`: whether tokens are drawn.
    pub sample: Option<bool>,
    /// `temperature`, at least 0.
    pub temperature: Option<f32>,
    /// `top_k`; 0 is no limit.
    pub top_k: Option<usize>,
    /// `top_p`, from 0 to 1.
    pub top_p: Option<f32>,
    /// `min_p`, from 0 to 1.
    pub min_p: Option<f32>,
    /// `repetition_penalty`, above 0.
    pub repetition_penalty: Option<f32>,
    /// `max_new_tokens`.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Reads what the model in `folder` says. As in transformers, ids come from `config.json` when there is no
    /// `generation_config.json`.
    ///
    /// # Errors
    /// When a file is no JSON object, or a field has a value that cannot be.
    pub fn read(folder: &Path) -> Result<GenerationConfig, Error> {
        let path = folder.join("generation_config.json");
        if path.is_file() {
            let object = parse_json(&path, &read_text(&path, CONFIG_LIMIT_BYTES)?)?;
            return GenerationConfig::parse(&path, &object);
        }
        let path = folder.join("config.json");
        if !path.is_file() {
            return Ok(GenerationConfig::default());
        }
        let object = parse_json(&path, &read_text(&path, CONFIG_LIMIT_BYTES)?)?;
        GenerationConfig::ids(&Reader { path: &path, object: &object })
    }

    /// Reads the text of a `generation_config.json`.
    ///
    /// # Errors
    /// As [`GenerationConfig::read`].
    pub fn from_json(text: &str) -> Result<GenerationConfig, Error> {
        let path = Path::new("generation_config.json");
        GenerationConfig::parse(path, &parse_json(path, text)?)
    }

    /// Checks that every id has a row in a vocabulary of `V` tokens.
    ///
    /// # Errors
    /// [`Error::Field`] for the id that has none.
    pub fn check_ids(&self, vocabulary: usize) -> Result<(), Error> {
        let ends = self.end_ids.iter().map(|&id| ("eos_token_id", id));
        let named = [("bos_token_id", self.begin_id), ("pad_token_id", self.padding_id)];
        let ids = ends.chain(named.into_iter().filter_map(|(field, id)| Some((field, id?))));
        for (field, id) in ids {
            if id as usize >= vocabulary {
                let expected = format!("less than the model's vocab_size {vocabulary}");
                return Err(Error::field(&self.path, field, expected, id.to_string()));
            }
        }
        Ok(())
    }

    fn parse(path: &Path, object: &Map<String, Value>) -> Result<GenerationConfig, Error> {
        let reader = Reader { path, object };
        let number = |field: &str, expected: &str, fits: fn(f64) -> bool| {
            let number = reader.get(field).map(|_| reader.number(field, 0.0, expected, fits));
            match number.transpose()? {
                // What no f32 can hold came out as infinity.
                Some(number) if !number.is_finite() => Err(reader.wrong(field, expected.into(), number.to_string())),
                number => Ok(number),
            }
        };
        let count =
            |field: &str, low: u64| reader.get(field).map(|_| reader.size(field, 0, low, COUNT_LIMIT)).transpose();
        let share = |share: f64| (0.0..=1.0).contains(&share);
        let sample = match reader.get("do_sample") {
            None => None,
            Some(Value::Bool(sample)) => Some(*sample),
            Some(other) => return Err(reader.wrong("do_sample", "true or false".into(), describe(other))),
        };
        Ok(GenerationConfig {
            sample,
            temperature: number("temperature", "a number of at least 0", |number| number >= 0.0)?,
            top_k: count("top_k", 0)?,
            top_p: number("top_p", "a number from 0 to 1", share)?,
            min_p: number("min_p", "a number from 0 to 1", share)?,
            repetition_penalty: number("repetition_penalty", "a number above 0", |number| number as f32 > 0.0)?,
            max_new_tokens: count("max_new_tokens", 1)?,
            ..GenerationConfig::ids(&reader)?
        })
    }

    /// The ids alone.
    fn ids(reader: &Reader) -> Result<GenerationConfig, Error> {
        let id = |field: &str, value: &Value| match value.as_u64().filter(|&id| id < ROWS_LIMIT) {
            Some(id) => Ok(id as u32),
            None => {
                let expected = format!("an id of at least 0 and less than {ROWS_LIMIT}");
                Err(reader.wrong(field, expected, describe(value)))
            }
        };
        // -1 stands for "none" in some files.
        let given = |field: &str| reader.get(field).filter(|value| value.as_i64() != Some(-1));
        let field = "eos_token_id";
        let mut end_ids = match given(field) {
            None => Vec::new(),
            Some(Value::Array(ids)) if ids.len() > ENDS_LIMIT => {
                let expected = format!("a list of at most {ENDS_LIMIT} ids");
                return Err(reader.wrong(field, expected, format!("a list of {}", ids.len())));
            }
            Some(Value::Array(ids)) => ids.iter().map(|value| id(field, value)).collect::<Result<Vec<u32>, Error>>()?,
            Some(value) => vec![id(field, value)?],
        };
        end_ids.sort_unstable();
        end_ids.dedup();
        // bos_token_id is a number in every file known, but a list of one is as clear.
        let one = |field: &str| match given(field) {
            None => Ok(None),
            Some(Value::Array(ids)) if ids.len() == 1 => id(field, &ids[0]).map(Some),
            Some(value) => id(field, value).map(Some),
        };
        Ok(GenerationConfig {
            path: reader.path.to_path_buf(),
            end_ids,
            begin_id: one("bos_token_id")?,
            padding_id: one("pad_token_id")?,
            ..GenerationConfig::default()
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ends_may_be_a_number_or_a_list_and_ids_come_from_the_config_without_the_file() {
        let read = |text: &str| GenerationConfig::from_json(text).unwrap();
        assert_eq!(read(r#"{"eos_token_id": 2, "bos_token_id": 1}"#).end_ids, [2]);
        let config = read(r#"{"eos_token_id": [9, 2, 9], "do_sample": true, "temperature": 0.6, "top_p": 0.9}"#);
        assert_eq!((config.end_ids, config.sample, config.temperature), (vec![2, 9], Some(true), Some(0.6)));
        assert_eq!((config.top_p, config.top_k, config.begin_id), (Some(0.9), None, None));
        let config = read(r#"{"eos_token_id": null, "pad_token_id": -1, "top_k": null, "transformers_version": "5"}"#);
        assert_eq!(config, GenerationConfig { path: config.path.clone(), ..GenerationConfig::default() });

        let folder = tempfile::tempdir().unwrap();
        assert_eq!(GenerationConfig::read(folder.path()).unwrap(), GenerationConfig::default());
        std::fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 7, "top_k": "x"}"#).unwrap();
        assert_eq!(GenerationConfig::read(folder.path()).unwrap().end_ids, [7]);
        std::fs::write(folder.path().join("generation_config.json"), r#"{"top_k": 3}"#).unwrap();
        let config = GenerationConfig::read(folder.path()).unwrap();
        assert_eq!((config.end_ids, config.top_k), (vec![], Some(3)));
    }

    #[test]
    fn values_that_cannot_be_are_told_by_their_field() {
        for (text, field) in [
            (r#"{"eos_token_id": "</s>"}"#, "eos_token_id"),
            (r#"{"eos_token_id": [1, -2]}"#, "eos_token_id"),
            (r#"{"eos_token_id": 99999999999}"#, "eos_token_id"),
            (r#"{"bos_token_id": 1.5}"#, "bos_token_id"),
            (r#"{"do_sample": "yes"}"#, "do_sample"),
            (r#"{"temperature": -0.5}"#, "temperature"),
            (r#"{"temperature": 1e300}"#, "temperature"),
            (r#"{"top_k": -1}"#, "top_k"),
            (r#"{"top_k": 2.5}"#, "top_k"),
            (r#"{"top_p": 1.01}"#, "top_p"),
            (r#"{"min_p": -0.1}"#, "min_p"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"repetition_penalty": 1e-300}"#, "repetition_penalty"),
            (r#"{"max_new_tokens": 0}"#, "max_new_tokens"),
        ] {
            match GenerationConfig::from_json(text) {
                Err(Error::Field { field: found, .. }) => assert_eq!(found, field, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        let many = format!(r#"{{"eos_token_id": {:?}}}"#, vec![1; ENDS_LIMIT + 1]);
        assert!(GenerationConfig::from_json(&many).unwrap_err().to_string().contains("a list of 1025"));
        let config = GenerationConfig::from_json(r#"{"eos_token_id": [1, 50]}"#).unwrap();
        assert!(config.check_ids(51).is_ok());
        let message = config.check_ids(50).unwrap_err().to_string();
        assert_eq!(
            message,
            "generation_config.json: eos_token_id: expected less than the model's vocab_size 50, found 50"
        );
    }
}
