//! Reading single fields of an untrusted JSON object, each with its range and its name in the error.

use std::path::Path;

use serde_json::{Map, Value};

use super::ActivationName;
use crate::Error;
use crate::error::shorten;

/// Widest residual stream; the largest models in existence stay well below.
pub(super) const HIDDEN_LIMIT: u64 = 1 << 16;
/// Most layers.
pub(super) const LAYERS_LIMIT: u64 = 1 << 12;
/// Widest feed-forward interior.
pub(super) const FEED_FORWARD_LIMIT: u64 = 1 << 20;
/// Most rows of a token or position table.
pub(crate) const ROWS_LIMIT: u64 = 1 << 24;
/// Most rows of a segment table.
pub(super) const SEGMENTS_LIMIT: u64 = 1 << 16;
/// Most buckets of a relative position bias.
pub(super) const BUCKETS_LIMIT: u64 = 1 << 12;

/// Parses a text as one JSON object.
pub(crate) fn parse_json(path: &Path, text: &str) -> Result<Map<String, Value>, Error> {
    let wrong = |reason: String| Error::Json { path: path.to_path_buf(), reason };
    match serde_json::from_str(text).map_err(|error| wrong(shorten(&error.to_string())))? {
        Value::Object(object) => Ok(object),
        other => Err(wrong(format!("expected an object, found {}", describe(&other)))),
    }
}

/// A JSON value in a few words for a message.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(object) => format!("an object of {} keys", object.len()),
        other => shorten(&other.to_string()),
    }
}

/// The fields of a config file.
pub(crate) struct Reader<'a> {
    pub path: &'a Path,
    pub object: &'a Map<String, Value>,
}

impl Reader<'_> {
    pub fn wrong(&self, field: &str, expected: String, found: String) -> Error {
        Error::field(self.path, field, expected, found)
    }

    /// The value of a key that is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    pub fn size(&self, field: &str, default: usize, low: u64, high: u64) -> Result<usize, Error> {
        let Some(value) = self.get(field) else { return Ok(default) };
        let expected = || format!("an integer from {low} to {high}");
        match value.as_u64().filter(|number| (low..=high).contains(number)) {
            Some(number) => Ok(number as usize),
            None => Err(self.wrong(field, expected(), describe(value))),
        }
    }

    /// As `size`, under the first of several names that is there.
    pub fn size_of(&self, fields: &[&str], default: usize, low: u64, high: u64) -> Result<usize, Error> {
        let field = fields.iter().find(|field| self.get(field).is_some()).unwrap_or(&fields[0]);
        self.size(field, default, low, high)
    }

    pub fn number(&self, field: &str, default: f32, expected: &str, fits: impl Fn(f64) -> bool) -> Result<f32, Error> {
        let Some(value) = self.get(field) else { return Ok(default) };
        match value.as_f64().filter(|number| number.is_finite() && fits(*number)) {
            Some(number) => Ok(number as f32),
            None => Err(self.wrong(field, expected.to_owned(), describe(value))),
        }
    }

    /// A dropout rate.
    pub fn rate(&self, field: &str, default: f32) -> Result<f32, Error> {
        self.number(field, default, "a rate of at least 0 and less than 1", |rate| {
            (0.0..1.0).contains(&rate) && (rate as f32) < 1.0
        })
    }

    /// The epsilon of a norm.
    pub fn epsilon(&self, field: &str, default: f32) -> Result<f32, Error> {
        self.number(field, default, "a number above 0 and at most 1", |eps| eps <= 1.0 && (eps as f32) > 0.0)
    }

    /// A standard deviation.
    pub fn deviation(&self, field: &str, default: f32) -> Result<f32, Error> {
        self.number(field, default, "a number from 0 to 100", |deviation| (0.0..=100.0).contains(&deviation))
    }

    pub fn padding_id(&self, default: u32) -> Result<u32, Error> {
        Ok(self.size("pad_token_id", default as usize, 0, ROWS_LIMIT)? as u32)
    }

    /// A flag.
    pub fn flag(&self, field: &str, default: bool) -> Result<bool, Error> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(field, "true or false".into(), describe(value)))
    }

    pub fn activation(&self, field: &str, default: ActivationName) -> Result<ActivationName, Error> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_str().and_then(ActivationName::from_name).ok_or_else(|| {
            self.wrong(
                field,
                "one of gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu, silu, swish, tanh".into(),
                describe(value),
            )
        })
    }

    /// Refuses one value of a field.
    pub fn refuse(&self, field: &str, refused: &Value, expected: &str) -> Result<(), Error> {
        match self.get(field) {
            Some(value) if value == refused => Err(self.wrong(field, expected.to_owned(), describe(value))),
            _ => Ok(()),
        }
    }

    /// Accepts one string for a field that may be missing.
    pub fn demand(&self, field: &str, accepted: &str) -> Result<(), Error> {
        match self.get(field) {
            Some(value) if value.as_str() != Some(accepted) => {
                Err(self.wrong(field, accepted.to_owned(), describe(value)))
            }
            _ => Ok(()),
        }
    }
}
