//! Labelled files read to judge a model that has its classes in an order, and under names, of its own.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use finegates_data::{Error, GlueTask, Label, Labels, ReadOptions, read_for_model};

fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dev.tsv");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

/// The classes of a file's rows in a model's order, and whether they were its numbers.
fn read(labels: &[&str], task: Option<GlueTask>, model: &[&str]) -> Result<(Vec<u32>, bool), Error> {
    let rows: String = labels.iter().map(|label| format!("a\tb\t{label}\n")).collect();
    let (_folder, path) = file(&format!("sentence1\tsentence2\tlabel\n{rows}"));
    let options = ReadOptions { task, ..ReadOptions::default() };
    let read = read_for_model("dev", &[path], &options, &Labels::named(model.iter().copied()))?;
    let class = |label| match label {
        Label::Class(class) => class,
        Label::Value(value) => panic!("number {value}"),
    };
    Ok((read.split.examples.iter().map(|example| class(example.label)).collect(), read.by_number))
}

const RTE: Option<GlueTask> = Some(GlueTask::Rte);

#[test]
fn numbers_are_the_tasks_whatever_the_models_order() {
    let found = |model| read(&["0", "1", "1"], RTE, model).unwrap();
    assert_eq!(found(&["entailment", "not_entailment"]), (vec![0, 1, 1], false));
    assert_eq!(found(&["not_entailment", "entailment"]), (vec![1, 0, 0], false));
    assert_eq!(found(&["NOT_ENTAILMENT", "Entailment"]), (vec![1, 0, 0], false));
    assert_eq!(found(&["LABEL_0", "LABEL_1"]), (vec![0, 1, 1], false));
    assert_eq!(found(&["1", "0"]), (vec![1, 0, 0], false));
}

#[test]
fn names_are_found_in_whatever_case() {
    let labels = ["ENTAILMENT", "not_entailment"];
    for task in [RTE, None] {
        assert_eq!(read(&labels, task, &["not_entailment", "entailment"]).unwrap(), (vec![1, 0], false));
    }
}

#[test]
fn numbers_without_any_name_are_the_models_and_that_is_said() {
    assert_eq!(read(&["0", "1"], None, &["bad", "good"]).unwrap(), (vec![0, 1], true));
    assert_eq!(read(&["0", "1"], None, &["LABEL_0", "LABEL_1"]).unwrap(), (vec![0, 1], false));
    assert_eq!(read(&["0", "1"], None, &["1", "0"]).unwrap(), (vec![1, 0], false));
    assert_eq!(read(&["good", "bad"], None, &["bad", "good"]).unwrap(), (vec![1, 0], false));
}

#[test]
fn names_that_are_not_the_models_are_an_error_with_both() {
    let error = read(&["0", "1"], RTE, &["bad", "good"]).unwrap_err().to_string();
    let words = ["dev.tsv: the labels of the task rte are not the model's", "\"bad\", \"good\"", "\"not_entailment\""];
    for word in words {
        assert!(error.contains(word), "{error}");
    }
    assert!(read(&["0", "1"], RTE, &["entailment", "neutral", "contradiction"]).is_err());
    assert!(read(&["0", "1"], RTE, &["LABEL_0", "LABEL_1", "LABEL_2"]).is_err());
}

#[test]
fn a_task_of_the_other_kind_is_an_error() {
    let (_folder, path) = file("sentence1\tsentence2\tscore\nx\ty\t1\n");
    let read = |task, model: &Labels| {
        let options = ReadOptions { task: Some(task), ..ReadOptions::default() };
        read_for_model("dev", std::slice::from_ref(&path), &options, model).map(|read| read.split.examples[0].label)
    };
    let error = read(GlueTask::Stsb, &Labels::named(["0", "1"])).unwrap_err().to_string();
    assert_eq!(error, "the task stsb predicts a number, but the model tells the classes \"0\", \"1\"");
    let error = read(GlueTask::Rte, &Labels::Regression).unwrap_err().to_string();
    assert_eq!(error, "the task rte predicts classes, but the model gives a number");
    assert_eq!(read(GlueTask::Stsb, &Labels::Regression).unwrap(), Label::Value(1.0));
}

#[test]
fn the_models_classes_have_the_tasks_numbers() {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let mnli = names(&["contradiction", "ENTAILMENT", "neutral"]);
    assert_eq!(GlueTask::Mnli.places_of(&mnli), Some(vec![2, 0, 1]));
    assert_eq!(GlueTask::Mnli.places_of(&names(&["a", "b", "c"])), None);
    assert_eq!(GlueTask::Stsb.places_of(&mnli), None);
    assert_eq!(GlueTask::Mrpc.positive_class(&names(&["equivalent", "not_equivalent"])), 0);
    assert_eq!(GlueTask::Mrpc.positive_class(&names(&["not_equivalent", "equivalent"])), 1);
    assert_eq!(GlueTask::Mrpc.positive_class(&names(&["LABEL_0", "LABEL_1"])), 1);
}
