//! Rotary embeddings: how a GGUF file says that they are scaled, in transformers' words.
//!
//! Llama 3.1 and later have no metadata for it: the file holds the divisor of each frequency (`rope_freqs.weight`), from
//! which the settings are found again and held against it.

use std::f64::consts::TAU;
use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::metadata::Metadata;
use crate::Error;

/// How far a divisor may be from the one that the settings give: the file holds f32, computed in f32.
const TOLERANCE: f64 = 1e-4;
/// Llama 3's: the share of the original context below and above which frequencies are scaled in full or not at all, ...
const LOW_FREQUENCY_FACTOR: f64 = 1.0;
const HIGH_FREQUENCY_FACTOR: f64 = 4.0;
/// ... and that context.
const ORIGINAL_CONTEXT: usize = 8192;
const CONTEXT_LIMIT: usize = 1 << 24;
/// The factors that a config may have.
const FACTORS: RangeInclusive<f64> = 1.0..=1e4;

/// What is rotated.
pub(super) struct Rotary<'a> {
    /// The metadata's architecture.
    pub prefix: &'a str,
    /// The base of the frequencies.
    pub theta: f64,
    /// Values of a head.
    pub head: usize,
    /// `rope_freqs.weight`.
    pub divisors: Option<&'a [f32]>,
}

/// `rope_scaling` of `config.json`; null where nothing is scaled.
pub(super) fn scaling(metadata: &Metadata, rotary: &Rotary) -> Result<Value, Error> {
    let key = |name: &str| format!("{}.rope.scaling.{name}", rotary.prefix);
    let kind = metadata.text(&key("type"))?;
    let legacy = format!("{}.rope.scale_linear", rotary.prefix);
    let factor = match metadata.number(&key("factor"))? {
        Some(factor) => Some((key("factor"), factor)),
        None => metadata.number(&legacy)?.map(|factor| (legacy, factor)),
    };
    if let Some((name, factor)) = &factor
        && !FACTORS.contains(factor)
        && !(*factor == 0.0 && matches!(kind, None | Some("none")))
    {
        return Err(metadata.wrong(name, "a factor from 1 to 10000", factor.to_string()));
    }
    let factor = factor.map(|(_, factor)| factor).filter(|&factor| factor != 0.0);
    let divisors = match rotary.divisors {
        Some(divisors) => from_divisors(metadata, rotary, divisors)?,
        None => Value::Null,
    };
    let said = match (kind, factor) {
        (None | Some("none"), None | Some(1.0)) | (Some("linear"), None | Some(1.0)) => Value::Null,
        (Some("none"), Some(_)) => Value::Null,
        (None | Some("linear"), Some(factor)) => json!({"rope_type": "linear", "factor": factor}),
        (Some(other), _) => {
            return Err(metadata.wrong(&key("type"), "none or linear", crate::error::shorten(other)));
        }
    };
    match (said, divisors) {
        (said, Value::Null) => Ok(said),
        (Value::Null, found) => Ok(found),
        (said, _) => {
            Err(metadata.wrong(&key("type"), "none beside rope_freqs.weight, which scales already", said.to_string()))
        }
    }
}

/// The settings that give these divisors.
fn from_divisors(metadata: &Metadata, rotary: &Rotary, divisors: &[f32]) -> Result<Value, Error> {
    let wrong = |reason: String| Error::tensor(metadata.path(), "rope_freqs.weight", reason);
    if divisors.len() != rotary.head / 2 {
        return Err(wrong(format!("expected {} values, half of a head's, found {}", rotary.head / 2, divisors.len())));
    }
    let Some(&last) = divisors.last() else { return Ok(Value::Null) };
    let close = |found: f32, expected: f64| (f64::from(found) - expected).abs() <= TOLERANCE * expected;
    let mut factor = f64::from(last);
    if (factor - factor.round()).abs() < TOLERANCE * factor {
        factor = factor.round();
    }
    if !FACTORS.contains(&factor) {
        return Err(wrong(format!("expected a last divisor from 1 to 10000, found {last}")));
    }
    if divisors.iter().all(|&divisor| close(divisor, factor)) {
        return Ok(if factor == 1.0 { Value::Null } else { json!({"rope_type": "linear", "factor": factor}) });
    }
    let key = format!("{}.rope.scaling.original_context_length", rotary.prefix);
    let contexts = [metadata.integer(&key, 1, CONTEXT_LIMIT)?, Some(ORIGINAL_CONTEXT)];
    for context in contexts.into_iter().flatten() {
        let expected = (0..divisors.len()).map(|pair| llama3_divisor(rotary, pair, factor, context as f64));
        if divisors.iter().zip(expected).all(|(&found, expected)| close(found, expected)) {
            return Ok(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW_FREQUENCY_FACTOR,
                "high_freq_factor": HIGH_FREQUENCY_FACTOR,
                "original_max_position_embeddings": context,
            }));
        }
    }
    Err(wrong(format!(
        "expected the divisors of Llama 3's scaling with factor {factor} and an original context of {ORIGINAL_CONTEXT}; those of another cannot be told in a config.json"
    )))
}

/// What Llama 3's scaling divides the frequency of a pair by (transformers' `_compute_llama3_parameters`).
fn llama3_divisor(rotary: &Rotary, pair: usize, factor: f64, context: f64) -> f64 {
    let wavelength = TAU * rotary.theta.powf(2.0 * pair as f64 / rotary.head as f64);
    if wavelength < context / HIGH_FREQUENCY_FACTOR {
        return 1.0;
    }
    if wavelength > context / LOW_FREQUENCY_FACTOR {
        return factor;
    }
    let smooth = (context / wavelength - LOW_FREQUENCY_FACTOR) / (HIGH_FREQUENCY_FACTOR - LOW_FREQUENCY_FACTOR);
    1.0 / ((1.0 - smooth) / factor + smooth)
}
