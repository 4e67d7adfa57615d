//! The labels of a classifier, and what kind of problem its head solves.

use std::collections::HashMap;

use serde_json::Value;

use super::Problem;
use super::reader::{Reader, describe};
use crate::Error;
use crate::error::shorten;

/// Most labels of a head.
const LABELS_LIMIT: u64 = 1 << 16;

/// `id2label` in the order of the ids, or `LABEL_0`… where only `num_labels` is given as transformers does, or none.
pub(super) fn read(reader: &Reader) -> Result<Vec<String>, Error> {
    let count = match reader.get("num_labels") {
        Some(_) => Some(reader.size("num_labels", 0, 1, LABELS_LIMIT)?),
        None => None,
    };
    let Some(value) = reader.get("id2label") else {
        return Ok((0..count.unwrap_or(0)).map(|index| format!("LABEL_{index}")).collect());
    };
    let Some(map) = value.as_object() else {
        return Err(reader.wrong("id2label", "an object from indices to names".into(), describe(value)));
    };
    if let Some(count) = count.filter(|&count| count != map.len()) {
        return Err(reader.wrong("id2label", format!("as many labels as num_labels, {count}"), map.len().to_string()));
    }
    if map.len() as u64 > LABELS_LIMIT {
        return Err(reader.wrong("id2label", format!("at most {LABELS_LIMIT} labels"), map.len().to_string()));
    }
    let mut labels = vec![None; map.len()];
    for (key, name) in map {
        let slot = key.parse::<usize>().ok().and_then(|index| labels.get_mut(index));
        let Some(slot) = slot else {
            return Err(reader.wrong("id2label", format!("the indices from 0 to {}", map.len() - 1), shorten(key)));
        };
        let Some(name) = name.as_str() else {
            return Err(reader.wrong(&format!("id2label.{key}"), "a name".into(), describe(name)));
        };
        if slot.replace(name.to_owned()).is_some() {
            return Err(reader.wrong("id2label", "each index once".into(), format!("{} twice", shorten(key))));
        }
    }
    // Every index fits and none occurs twice, so every slot is filled.
    Ok(labels.into_iter().flatten().collect())
}

/// Whether the labels fit a head of so many rows, each by a name of its own.
pub(super) fn check(reader: &Reader, labels: &[String], rows: usize) -> Result<(), Error> {
    if labels.is_empty() {
        return Ok(());
    }
    if labels.len() != rows {
        let field = if reader.get("id2label").is_some() { "id2label" } else { "num_labels" };
        let expected = format!("{rows} labels, one for each row of the head");
        return Err(reader.wrong(field, expected, labels.len().to_string()));
    }
    let mut seen = HashMap::new();
    for (index, name) in labels.iter().enumerate() {
        if let Some(first) = seen.insert(name, index) {
            let found = format!("{} for both {first} and {index}", shorten(name));
            return Err(reader.wrong("id2label", "a different name for each label".into(), found));
        }
    }
    Ok(())
}

/// `problem_type`.
pub(super) fn problem(reader: &Reader) -> Result<Option<Problem>, Error> {
    match reader.get("problem_type") {
        None => Ok(None),
        Some(Value::String(name)) if name == "regression" => Ok(Some(Problem::Regression)),
        Some(Value::String(name)) if name == "single_label_classification" => Ok(Some(Problem::Classification)),
        Some(other) => {
            Err(reader.wrong("problem_type", "regression or single_label_classification".into(), describe(other)))
        }
    }
}
