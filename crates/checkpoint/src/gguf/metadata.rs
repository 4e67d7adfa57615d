//! The metadata of a GGUF file: keys with values of the file's types, asked for by the type that is needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::error::shorten;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Of any integer type.
    Integer(i128),
    /// Of either float type.
    Float(f64),
    Flag(bool),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    Flags(Vec<bool>),
    Texts(Vec<String>),
}

impl Value {
    /// In a few words, for a message.
    fn describe(&self) -> String {
        match self {
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
            Value::Text(text) => shorten(text),
            Value::Integers(list) => format!("a list of {} integers", list.len()),
            Value::Floats(list) => format!("a list of {} numbers", list.len()),
            Value::Flags(list) => format!("a list of {} flags", list.len()),
            Value::Texts(list) => format!("a list of {} texts", list.len()),
        }
    }
}

/// All keys of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Metadata {
    pub path: PathBuf,
    pub values: BTreeMap<String, Value>,
}

impl Metadata {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn wrong(&self, key: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::field(&self.path, shorten(key), expected, found)
    }

    fn mismatch<T>(&self, key: &str, expected: &str, value: &Value) -> Result<T, Error> {
        Err(self.wrong(key, expected, value.describe()))
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => self.mismatch(key, "a text", other),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(*flag)),
            Some(other) => self.mismatch(key, "true or false", other),
        }
    }

    /// An integer in a range. A list of equal ones, as some writers give one for each layer, counts as one.
    pub fn integer(&self, key: &str, low: usize, high: usize) -> Result<Option<usize>, Error> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let expected = format!("an integer from {low} to {high}");
        let number = match value {
            Value::Integer(number) => *number,
            Value::Integers(list) => match list.split_first() {
                Some((first, rest)) if rest.iter().all(|other| other == first) => i128::from(*first),
                _ => return self.mismatch(key, &format!("{expected}, the same for every layer"), value),
            },
            other => return self.mismatch(key, &expected, other),
        };
        match usize::try_from(number) {
            Ok(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => self.mismatch(key, &expected, value),
        }
    }

    /// As [`Metadata::integer`], of a key that must be there.
    pub fn demand(&self, key: &str, low: usize, high: usize) -> Result<usize, Error> {
        let missing = || self.wrong(key, format!("an integer from {low} to {high}"), "no such key");
        self.integer(key, low, high)?.ok_or_else(missing)
    }

    /// A finite number, with the fewest digits that give the same f32: files hold f32, and 1e-5 is meant.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        let number = match self.values.get(key) {
            None => return Ok(None),
            Some(Value::Float(number)) => *number,
            Some(Value::Integer(number)) => *number as f64,
            Some(other) => return self.mismatch(key, "a number", other),
        };
        if !number.is_finite() {
            return Err(self.wrong(key, "a finite number", number.to_string()));
        }
        let short = number as f32;
        let same = f64::from(short) == number;
        Ok(Some(if same { short.to_string().parse().unwrap_or(number) } else { number }))
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, Error> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Texts(list)) => Ok(Some(list)),
            Some(other) => self.mismatch(key, "a list of texts", other),
        }
    }

    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, Error> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Integers(list)) => Ok(Some(list)),
            Some(other) => self.mismatch(key, "a list of integers", other),
        }
    }

    pub fn floats(&self, key: &str) -> Result<Option<&[f64]>, Error> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Floats(list)) => Ok(Some(list)),
            Some(other) => self.mismatch(key, "a list of numbers", other),
        }
    }
}
