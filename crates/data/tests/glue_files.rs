//! Every GLUE file at hand is read in full, with the row counts its README gives. Skipped where the files are missing, unless
//! `FINEGATES_REQUIRE_SHARED=1` says that they must be there.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use finegates_data::{Dataset, DatasetOptions, GlueTask, Label, Labels, ReadOptions, Split, read_split};

fn glue() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/glue");
    if !folder.is_dir() {
        let required = std::env::var_os("FINEGATES_REQUIRE_SHARED").is_some_and(|value| value == "1");
        assert!(!required, "FINEGATES_REQUIRE_SHARED is set and {} is missing", folder.display());
        eprintln!("skipped: {} is missing", folder.display());
        return None;
    }
    Some(folder)
}

fn load(task: GlueTask) -> Option<Dataset> {
    let options = DatasetOptions { task: Some(task), folder: Some(glue()?), ..DatasetOptions::default() };
    Some(Dataset::load(&options).unwrap())
}

fn classes(split: &Split) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for example in &split.examples {
        match example.label {
            Label::Class(class) => *counts.entry(class).or_default() += 1,
            Label::Value(value) => panic!("a number {value} among classes"),
        }
    }
    counts
}

fn rows(dataset: &Dataset) -> (usize, Vec<(&str, usize)>) {
    let validation = dataset.validation.iter().map(|split| (split.name.as_str(), split.examples.len())).collect();
    (dataset.train.examples.len(), validation)
}

#[test]
fn cola_is_read_in_full() {
    let Some(dataset) = load(GlueTask::Cola) else { return };
    assert_eq!(rows(&dataset), (8551, vec![("validation", 1043)]));
    assert_eq!(classes(&dataset.validation[0]), BTreeMap::from([(0, 322), (1, 721)]));
    let first = &dataset.train.examples[0];
    assert_eq!(first.text, "Our friends won't buy this analysis, let alone the next one we propose.");
    assert_eq!((&first.pair, first.label), (&None, Label::Class(1)));
}

#[test]
fn sst2_is_read_in_full() {
    let Some(dataset) = load(GlueTask::Sst2) else { return };
    assert_eq!(rows(&dataset), (67349, vec![("validation", 872)]));
    assert_eq!(classes(&dataset.validation[0]), BTreeMap::from([(0, 428), (1, 444)]));
    assert_eq!(dataset.labels.names().unwrap(), ["negative", "positive"]);
}

#[test]
fn mrpc_is_read_in_full() {
    let Some(dataset) = load(GlueTask::Mrpc) else { return };
    assert_eq!(rows(&dataset), (3668, vec![("validation", 408)]));
    assert_eq!(classes(&dataset.validation[0]), BTreeMap::from([(0, 129), (1, 279)]));
    let first = &dataset.validation[0].examples[0];
    assert_eq!(
        first.pair.as_deref(),
        Some("\" The foodservice pie business does not fit our long-term growth strategy .")
    );
    let Some(folder) = glue() else { return };
    let options = ReadOptions { task: Some(GlueTask::Mrpc), ..ReadOptions::default() };
    let test = read_split("test", &[folder.join("MRPC/msr_test_labelled.tsv")], &options, &dataset.labels).unwrap();
    assert_eq!(test.examples.len(), 1725);
    assert_eq!(classes(&test), BTreeMap::from([(0, 578), (1, 1147)]));
}

#[test]
fn stsb_is_read_in_full_as_regression() {
    let Some(dataset) = load(GlueTask::Stsb) else { return };
    assert_eq!(rows(&dataset), (5749, vec![("validation", 1500)]));
    assert_eq!(dataset.labels, Labels::Regression);
    let scores = dataset.train.examples.iter().map(|example| match example.label {
        Label::Value(value) => value,
        Label::Class(class) => panic!("a class {class} among numbers"),
    });
    assert!(scores.clone().all(|score| (0.0..=5.0).contains(&score)));
    assert_eq!(scores.take(2).collect::<Vec<_>>(), [5.0, 3.8]);
}

#[test]
fn the_sample_of_mnli_is_read_in_full() {
    let Some(dataset) = load(GlueTask::Mnli) else { return };
    assert_eq!(rows(&dataset), (8999, vec![("validation", 1000)]));
    assert_eq!(dataset.labels.names().unwrap(), ["entailment", "neutral", "contradiction"]);
    assert_eq!(dataset.train.examples[0].label, Label::Class(0));
}

#[test]
fn the_fingerprint_is_stable_and_tells_data_apart() {
    let Some(first) = load(GlueTask::Mrpc) else { return };
    let Some(mut second) = load(GlueTask::Mrpc) else { return };
    assert_eq!(first.fingerprint(), second.fingerprint());
    second.validation[0].examples[7].label =
        Label::Class(1 - u32::from(second.validation[0].examples[7].label == Label::Class(1)));
    assert_ne!(first.fingerprint(), second.fingerprint());
}
