//! The generic formats: columns, labels, broken rows and where they are, splits, streams.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};

use finegates_data::{
    ColumnChoice, Dataset, DatasetOptions, Error, Format, GlueTask, Label, Labels, ReadOptions, RowProblem, TextRows,
    read_split,
};
use tempfile::TempDir;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn options(folder: &TempDir, train: &str, validation: &[&str]) -> DatasetOptions {
    let path = |name: &str| folder.path().join(name);
    DatasetOptions {
        train: Some(path(train)),
        validation: validation.iter().map(|name| path(name)).collect(),
        ..DatasetOptions::default()
    }
}

/// The message without the temporary folder.
fn message(error: &Error, folder: &TempDir) -> String {
    error.to_string().replace(&format!("{}{}", folder.path().display(), std::path::MAIN_SEPARATOR), "")
}

fn labels(dataset: &Dataset) -> Vec<u32> {
    let class = |label| match label {
        Label::Class(class) => class,
        Label::Value(value) => panic!("number {value}"),
    };
    dataset.train.examples.iter().map(|example| class(example.label)).collect()
}

#[test]
fn csv_has_quotes_and_line_breaks_in_them() {
    let csv = "\u{feff}id,Text,Label\r\n1,\"a \"\"b\"\",\r\nc\",spam\r\n\r\n2,plain,ham\r\n3,\"\",spam";
    let folder = folder(&[("a.csv", csv)]);
    let dataset = Dataset::load(&options(&folder, "a.csv", &["a.csv"])).unwrap();
    let texts: Vec<_> = dataset.train.examples.iter().map(|example| example.text.as_str()).collect();
    assert_eq!(texts, ["a \"b\",\r\nc", "plain", ""]);
    assert_eq!(dataset.labels.names().unwrap(), ["ham", "spam"]);
    assert_eq!(labels(&dataset), [1, 0, 1]);
}

#[test]
fn broken_csv_rows_are_reported_with_their_lines() {
    let csv = "text,label\n\"two\nlines\",1\nonly one\n\na,b,c\nok,0\n,\"\"\nlast,\"open\nnever closed\n";
    let folder = folder(&[("a.csv", csv)]);
    let error = Dataset::load(&options(&folder, "a.csv", &["a.csv"])).unwrap_err();
    let expected = "4 broken rows\n  a.csv:4: expected 2 columns, found 1\n  a.csv:6: expected 2 columns, found 3\n  \
                    a.csv:8: column \"label\": no value\n  a.csv:9: a quote is opened and never closed\nmend them, or \
                    leave them out with --skip-bad-rows";
    assert_eq!(message(&error, &folder), expected);
    let skip = DatasetOptions { skip_bad_rows: true, ..options(&folder, "a.csv", &["a.csv"]) };
    let dataset = Dataset::load(&skip).unwrap();
    assert_eq!((dataset.train.examples.len(), dataset.train.skipped_rows), (2, 4));
    assert_eq!(dataset.train.skipped[0].problem, RowProblem::ColumnCount { expected: 2, found: 1 });
}

#[test]
fn tsv_has_no_quotes() {
    let folder = folder(&[("a.tsv", "sentence\tlabel\r\n\"open\t1\r\nit's \"\"\t0\r\n")]);
    let dataset = Dataset::load(&options(&folder, "a.tsv", &["a.tsv"])).unwrap();
    assert_eq!(dataset.train.examples[0].text, "\"open");
    assert_eq!(dataset.train.examples[1].text, "it's \"\"");
}

#[test]
fn bytes_that_are_not_utf8_are_a_broken_row() {
    let folder = folder(&[]);
    std::fs::write(folder.path().join("a.tsv"), b"text\tlabel\nfine\t1\nbad \xff\t0\nalso\t0\n").unwrap();
    let error = Dataset::load(&options(&folder, "a.tsv", &["a.tsv"])).unwrap_err();
    assert!(message(&error, &folder).contains("a.tsv:3: column \"text\": not UTF-8"), "{error}");
}

#[test]
fn json_lines_take_numbers_and_report_what_is_none() {
    let lines = "\n{\"text\": \"a\", \"label\": 10}\n{\"text\": 5, \"label\": \"9\"}\n[1]\n{\"text\": \"x\"}\n{\"text\": [], \
                 \"label\": 9}\n{\"text\": \"\n{\"text\": null, \"label\": 9}\n";
    let folder = folder(&[("a.jsonl", lines)]);
    let error = Dataset::load(&options(&folder, "a.jsonl", &["a.jsonl"])).unwrap_err();
    let text = message(&error, &folder);
    assert!(text.contains("a.jsonl:4: not a JSON object: it is an array\n"), "{text}");
    assert!(text.contains("a.jsonl:5: column \"label\": no value\n"), "{text}");
    assert!(text.contains("a.jsonl:6: column \"text\": expected text or a number, found an array\n"), "{text}");
    assert!(text.contains("a.jsonl:7: not a JSON object: EOF while parsing a string at column 10\n"), "{text}");
    assert!(text.contains("a.jsonl:8: column \"text\": no value\n"), "{text}");
    let skip = DatasetOptions { skip_bad_rows: true, ..options(&folder, "a.jsonl", &["a.jsonl"]) };
    let dataset = Dataset::load(&skip).unwrap();
    assert_eq!(dataset.labels.names().unwrap(), ["9", "10"]);
    assert_eq!(labels(&dataset), [1, 0]);
}

#[test]
fn a_json_array_is_explained() {
    let folder = folder(&[("a.json", "[{\"text\": \"a\",\n\"label\": 1}]")]);
    let error = Dataset::load(&options(&folder, "a.json", &["a.json"])).unwrap_err();
    assert!(message(&error, &folder).contains("an object a line is expected"), "{error}");
}

#[test]
fn columns_are_guessed_named_or_asked_for() {
    let folder =
        folder(&[("a.csv", "Premise,Hypothesis,Gold_Label,other\na,b,x,1\nc,d,y,2\n"), ("b.csv", "q;r\n1;2\n")]);
    let dataset = Dataset::load(&options(&folder, "a.csv", &["a.csv"])).unwrap();
    assert_eq!(dataset.train.examples[1].pair.as_deref(), Some("d"));
    let mut named = options(&folder, "a.csv", &["a.csv"]);
    named.columns = ColumnChoice { text: Some("Hypothesis".to_owned()), pair: None, label: Some("other".to_owned()) };
    let dataset = Dataset::load(&named).unwrap();
    assert_eq!((dataset.train.examples[0].text.as_str(), &dataset.train.examples[0].pair), ("b", &None));
    assert_eq!(dataset.labels.names().unwrap(), ["1", "2"]);
    named.columns.text = Some("hypothesys".to_owned());
    let error = Dataset::load(&named).unwrap_err();
    let expected =
        "a.csv: no column \"hypothesys\"; the columns are \"Premise\", \"Hypothesis\", \"Gold_Label\", \"other\"";
    assert_eq!(message(&error, &folder), expected);
    let error = Dataset::load(&options(&folder, "b.csv", &["b.csv"])).unwrap_err();
    let expected = "b.csv: which column is the text? the columns are \"q;r\"; name it with --text (the file seems to be \
                    separated by semicolons; commas are expected)";
    assert_eq!(message(&error, &folder), expected);
}

#[test]
fn fractions_need_regression() {
    let folder = folder(&[("a.csv", "text,score\na,1\nb,2.5\nc,x\n"), ("b.csv", "text,score\na,1\nb,2.5\n")]);
    let error = Dataset::load(&options(&folder, "b.csv", &["b.csv"])).unwrap_err();
    assert!(message(&error, &folder).starts_with("b.csv:3: label 2.5 is not a class; pass --regression"), "{error}");
    let regression = |name| DatasetOptions { regression: true, ..options(&folder, name, &[name]) };
    let dataset = Dataset::load(&regression("b.csv")).unwrap();
    assert_eq!(dataset.train.examples[1].label, Label::Value(2.5));
    let error = Dataset::load(&regression("a.csv")).unwrap_err();
    assert!(message(&error, &folder).contains("a.csv:4: column \"score\": expected a number, found \"x\""), "{error}");
}

#[test]
fn a_validation_label_unseen_in_training_is_an_error() {
    let folder = folder(&[("a.csv", "text,label\na,x\nb,y\n"), ("b.csv", "text,label\nc,y\nd,z\n")]);
    let error = Dataset::load(&options(&folder, "a.csv", &["b.csv"])).unwrap_err();
    assert!(
        message(&error, &folder)
            .contains("b.csv:3: column \"label\": unknown label \"z\"; the labels are \"x\", \"y\""),
        "{error}"
    );
    let error = Dataset::load(&options(&folder, "a.csv", &[])).unwrap_err();
    assert!(error.to_string().contains("--validation-fraction"), "{error}");
}

#[test]
fn one_label_is_not_enough() {
    let folder = folder(&[("a.csv", "text,label\na,x\nb,x\n")]);
    let error = Dataset::load(&options(&folder, "a.csv", &["a.csv"])).unwrap_err();
    assert_eq!(message(&error, &folder), "a.csv: every row has the label \"x\"; a classifier needs at least two");
}

#[test]
fn cola_without_a_header_loses_no_row() {
    let rows = "gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tThe rode sailors.\n";
    let folder = folder(&[("train.tsv", rows), ("dev.tsv", &format!("source\tlabel\tannotation\tsentence\n{rows}"))]);
    let options = DatasetOptions {
        task: Some(GlueTask::Cola),
        folder: Some(folder.path().to_owned()),
        ..DatasetOptions::default()
    };
    let dataset = Dataset::load(&options).unwrap();
    assert_eq!(dataset.train.examples, dataset.validation[0].examples);
    assert_eq!(labels(&dataset), [1, 0]);
}

#[test]
fn every_task_is_read_from_the_columns_glue_and_the_hub_give_it() {
    let files = [
        ("cola", "sentence\tlabel\tidx\na\t1\t0\n", ("a", None, 1)),
        ("sst2", "sentence\tlabel\na \t0\n", ("a ", None, 0)),
        ("mrpc", "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t8\t9\t\"a\tb\r\n", ("\"a", Some("b"), 1)),
        ("mrpc", "sentence1\tsentence2\tlabel\tidx\na\tb\tequivalent\t0\n", ("a", Some("b"), 1)),
        ("qqp", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta?\t\t1\n", ("a?", Some(""), 1)),
        ("mnli", "premise\thypothesis\tlabel\tidx\na\tb\t2\t0\n", ("a", Some("b"), 2)),
        ("qnli", "index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment\n", ("a", Some("b"), 1)),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n", ("a", Some("b"), 0)),
        ("wnli", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", ("a", Some("b"), 1)),
    ];
    for (task, content, (text, pair, class)) in files {
        let folder = folder(&[("train.tsv", content), ("dev.tsv", content)]);
        let (task, data) = (Some(task.parse().unwrap()), Some(folder.path().to_owned()));
        let dataset = Dataset::load(&DatasetOptions { task, folder: data, ..DatasetOptions::default() }).unwrap();
        let example = &dataset.train.examples[0];
        assert_eq!((example.text.as_str(), example.pair.as_deref(), example.label), (text, pair, Label::Class(class)));
    }
}

#[test]
fn mnli_is_validated_on_matched_and_mismatched_apart() {
    let header = "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n";
    let rows = format!("{header}0\t1\ta\tb\tneutral\tcontradiction\n1\t2\tc\td\tneutral\tentailment\n");
    let broken = format!("{header}0\t1\ta\tb\tneutral\t-\n");
    let folder =
        folder(&[("train.tsv", &rows), ("dev_matched.tsv", &rows), ("dev_mismatched.tsv", &rows), ("x.tsv", &broken)]);
    let options = DatasetOptions {
        task: Some(GlueTask::Mnli),
        folder: Some(folder.path().to_owned()),
        ..DatasetOptions::default()
    };
    let dataset = Dataset::load(&options).unwrap();
    let names: Vec<_> = dataset.validation.iter().map(|split| split.name.as_str()).collect();
    assert_eq!(names, ["matched", "mismatched"]);
    assert_eq!(labels(&dataset), [2, 0]);
    let read = ReadOptions { task: Some(GlueTask::Mnli), ..ReadOptions::default() };
    let error = read_split("x", &[folder.path().join("x.tsv")], &read, &dataset.labels).unwrap_err();
    assert!(error.to_string().contains("x.tsv:2: column \"gold_label\": unknown label \"-\""), "{error}");
}

#[test]
fn a_fraction_is_kept_aside_the_same_each_time() {
    let rows: String = (0..100).map(|row| format!("row {row},{}\n", row % 2)).collect();
    let folder = folder(&[("a.csv", &format!("text,label\n{rows}"))]);
    let with_seed = |seed| {
        let options = DatasetOptions { validation_fraction: Some(0.2), seed, ..options(&folder, "a.csv", &[]) };
        Dataset::load(&options).unwrap()
    };
    let dataset = with_seed(1);
    assert_eq!((dataset.train.examples.len(), dataset.validation[0].examples.len()), (80, 20));
    assert_eq!(dataset, with_seed(1));
    assert_ne!(dataset, with_seed(2));
    let mut all: Vec<_> =
        dataset.train.examples.iter().chain(&dataset.validation[0].examples).map(|e| &e.text).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 100);
    let limited = DatasetOptions {
        validation_fraction: Some(0.2),
        max_train_rows: Some(10),
        max_validation_rows: Some(5),
        ..options(&folder, "a.csv", &[])
    };
    let dataset = Dataset::load(&limited).unwrap();
    assert_eq!((dataset.train.examples.len(), dataset.validation[0].examples.len()), (10, 5));
}

#[test]
fn a_fraction_and_a_validation_file_exclude_each_other() {
    let rows: String = (0..20).map(|row| format!("row {row},{}\n", row % 2)).collect();
    let content = format!("text,label\n{rows}");
    let folder = folder(&[("train.csv", &content), ("dev.csv", &content)]);
    let whole =
        DatasetOptions { folder: Some(folder.path().to_owned()), validation_fraction: Some(0.2), ..Default::default() };
    let error = Dataset::load(&whole).unwrap_err();
    let expected = "dev.csv: a validation file, but --validation-fraction was given too; leave one of them out";
    assert!(message(&error, &folder).starts_with(expected), "{error}");
    let named = DatasetOptions { validation_fraction: Some(0.2), ..options(&folder, "train.csv", &["dev.csv"]) };
    assert!(matches!(Dataset::load(&named).unwrap_err(), Error::FractionBesideFile { .. }));
    let alone = DatasetOptions { validation_fraction: Some(0.2), ..options(&folder, "train.csv", &[]) };
    assert_eq!(Dataset::load(&alone).unwrap().validation[0].examples.len(), 4);
    // A folder that gives only the validation file is enough where the training file is named.
    let apart = DatasetOptions { folder: Some(folder.path().to_owned()), ..options(&folder, "train.csv", &[]) };
    assert_eq!(Dataset::load(&apart).unwrap().validation[0].examples.len(), 20);
}

#[test]
fn classes_are_numbered_as_a_trained_head_has_them() {
    let folder = folder(&[("a.csv", "text,label\na,no\nb,yes\nc,maybe\n")]);
    let mut dataset = Dataset::load(&options(&folder, "a.csv", &["a.csv"])).unwrap();
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    assert!(!dataset.match_order(&names(&["YES", "NO"])));
    assert!(!dataset.match_order(&names(&["MAYBE", "NO", "YES"])));
    assert!(!dataset.match_order(&names(&["x", "NO", "YES"])));
    assert_eq!(labels(&dataset), [1, 2, 0]);
    assert!(dataset.match_order(&names(&["YES", "MAYBE", "NO"])));
    assert_eq!(dataset.labels.names().unwrap(), ["yes", "maybe", "no"]);
    assert_eq!(labels(&dataset), [2, 0, 1]);
}

#[test]
fn rows_stream_in_order_with_every_format() {
    let folder = folder(&[
        ("a.txt", "first\n\nthird, \"quoted\"\tand a tab"),
        ("a.csv", "n,sentence1,sentence2\n1,a,\"b\nc\"\n2,d\n3,e,f\n"),
        ("a.jsonl", "{\"sentence\": \"x\"}\n{}\n"),
    ]);
    let read = |name: &str| {
        let mut rows = TextRows::open(&folder.path().join(name), None, &ColumnChoice::default()).unwrap();
        let mut found = Vec::new();
        while let Some(row) = rows.read().unwrap() {
            found.push(match row {
                Ok(row) => (row.line, row.text, row.pair.unwrap_or_default()),
                Err(row) => (row.line, "broken".to_owned(), row.problem.to_string()),
            });
        }
        found
    };
    let row = |line, text: &str, pair: &str| (line, text.to_owned(), pair.to_owned());
    assert_eq!(read("a.txt"), [row(1, "first", ""), row(2, "", ""), row(3, "third, \"quoted\"\tand a tab", "")]);
    let broken = row(4, "broken", "expected 3 columns, found 2");
    assert_eq!(read("a.csv"), [row(2, "a", "b\nc"), broken, row(5, "e", "f")]);
    assert_eq!(read("a.jsonl"), [row(1, "x", ""), row(2, "broken", "column \"sentence\": no value")]);
}

#[test]
fn a_long_line_does_not_fill_the_memory() {
    let folder = folder(&[]);
    let path = folder.path().join("a.csv");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    writeln!(file, "text,label\n\"open,1").unwrap();
    for _ in 0..300_000 {
        writeln!(file, "a line of sixty characters or so, to fill sixteen mebibytes,0").unwrap();
    }
    file.flush().unwrap();
    let mut rows = TextRows::open(&path, None, &ColumnChoice::default()).unwrap();
    let row = rows.read().unwrap().unwrap().unwrap_err();
    assert_eq!((row.line, row.to_string().contains("longer than 16 MiB; is a quote left open?")), (2, true));
    assert!(rows.read().unwrap().is_none());
}

#[test]
fn missing_and_empty_files_are_named() {
    let folder = folder(&[("empty.csv", ""), ("header.tsv", "text\tlabel\n"), ("what.xyz", "")]);
    let load = |name: &str| Dataset::load(&options(&folder, name, &[name])).unwrap_err();
    assert!(matches!(load("none.csv"), Error::Io { path, .. } if path.ends_with("none.csv")));
    assert!(matches!(load("empty.csv"), Error::Empty { .. }));
    assert!(matches!(load("header.tsv"), Error::Empty { .. }));
    assert!(matches!(load("what.xyz"), Error::UnknownFormat { .. }));
    let nothing = Dataset::load(&DatasetOptions::default()).unwrap_err();
    assert!(nothing.to_string().contains("--data"), "{nothing}");
    let format = Format::from_path(Path::new("A.TSV")).unwrap();
    assert_eq!((format, format.to_string().parse::<Format>()), (Format::Tsv, Ok(Format::Tsv)));
    assert_eq!("MNLI".parse::<GlueTask>(), Ok(GlueTask::Mnli));
    assert_eq!("sst-2".parse::<GlueTask>(), Ok(GlueTask::Sst2));
    assert!("imdb".parse::<GlueTask>().unwrap_err().contains("cola, sst2, mrpc"));
    assert_eq!(Labels::Regression.outputs(), 1);
    let _: PathBuf = folder.path().to_owned();
}
