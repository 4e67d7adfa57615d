//! JSON lines have no header: which columns there are is told by several objects, and of each row by itself.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use finegates_data::{ColumnChoice, Dataset, DatasetOptions, Format, TextRows};

fn file(lines: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    (folder, path)
}

fn load(path: &Path, skip_bad_rows: bool, columns: ColumnChoice) -> Result<Dataset, String> {
    let options = DatasetOptions {
        train: Some(path.to_owned()),
        validation: vec![path.to_owned()],
        skip_bad_rows,
        columns,
        ..DatasetOptions::default()
    };
    Dataset::load(&options).map_err(|error| error.to_string())
}

/// Each row as it is or why it is broken.
fn texts(mut rows: TextRows) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(row) = rows.read().unwrap() {
        found.push(match row {
            Ok(row) => format!("{} {}|{}", row.line, row.text, row.pair.unwrap_or_default()),
            Err(row) => format!("{} {}", row.line, row.problem),
        });
    }
    found
}

const LATE: &str = "column \"text_pair\": not in the first rows, so it was not read as the second text; name it with \
                    --text-pair if every row has it, or the text's own column with --text to read single texts";

#[test]
fn a_first_row_without_a_key_is_one_broken_row() {
    for first in ["{\"text\": \"x\"}", "{\"label\": \"y\"}", "{}", "{\"id\": 3}"] {
        let (_folder, path) =
            file(&[first, "{\"text\": \"a\", \"label\": \"y\"}", "{\"text\": \"b\", \"label\": \"n\"}"]);
        let error = load(&path, false, ColumnChoice::default()).unwrap_err();
        assert!(error.contains("1 broken row\n") && error.contains("a.jsonl:1: column"), "{first}: {error}");
        let named =
            ColumnChoice { text: Some("text".to_owned()), label: Some("label".to_owned()), ..ColumnChoice::default() };
        for columns in [ColumnChoice::default(), named] {
            let dataset = load(&path, true, columns).unwrap();
            assert_eq!((dataset.train.examples.len(), dataset.train.skipped_rows), (2, 1));
        }
    }
}

#[test]
fn a_named_column_is_missed_where_the_whole_file_has_none() {
    let (_folder, path) = file(&["{\"text\": \"a\", \"label\": 1}", "{\"text\": \"b\", \"label\": 0}"]);
    let columns = ColumnChoice { label: Some("lable".to_owned()), ..ColumnChoice::default() };
    let error = load(&path, true, columns).unwrap_err();
    assert!(error.contains("no column \"lable\"; the columns are \"text\", \"label\""), "{error}");
    // Beyond the objects that are looked at it might be there, so it is asked of each row.
    let rows = vec!["{\"text\": \"a\"}"; 150];
    let last = [&rows[..], &["{\"text\": \"a\", \"topic\": 1}", "{\"text\": \"a\", \"topic\": 2}"]].concat();
    let (_folder, path) = file(&last);
    let columns = ColumnChoice { label: Some("topic".to_owned()), ..ColumnChoice::default() };
    let dataset = load(&path, true, columns).unwrap();
    assert_eq!((dataset.train.examples.len(), dataset.train.skipped_rows), (2, 150));
}

#[test]
fn a_second_text_is_never_dropped() {
    let lines = ["{\"text\": \"a\"}", "{\"text\": \"b\", \"text_pair\": \"c\"}"];
    let (_folder, path) = file(&lines);
    let open = |choice: &ColumnChoice| texts(TextRows::open(&path, None, choice).unwrap());
    assert_eq!(open(&ColumnChoice::default()), ["1 column \"text_pair\": no value", "2 b|c"]);
    let alone = ColumnChoice { text: Some("text".to_owned()), ..ColumnChoice::default() };
    assert_eq!(open(&alone), ["1 a|", "2 b|"], "the text was named, and no second");

    let stream = |choice: &ColumnChoice| {
        let source = Box::new(std::io::Cursor::new(lines.join("\n")));
        texts(TextRows::from_reader(source, "input".as_ref(), Format::JsonLines, choice).unwrap())
    };
    assert_eq!(stream(&ColumnChoice::default()), ["1 a|".to_owned(), format!("2 {LATE}")]);
    let pair = ColumnChoice { pair: Some("text_pair".to_owned()), ..ColumnChoice::default() };
    assert_eq!(stream(&pair), ["1 column \"text_pair\": no value", "2 b|c"]);

    let far = [&["{\"text\": \"a\"}"; 150][..], &lines[1..]].concat();
    let (_folder, path) = file(&far);
    let rows = texts(TextRows::open(&path, None, &ColumnChoice::default()).unwrap());
    assert_eq!((rows.len(), rows[150].clone()), (151, format!("151 {LATE}")));
}

#[test]
fn looking_ahead_loses_no_row() {
    for rows in [1, 99, 100, 101, 250] {
        let lines: Vec<String> = (0..rows).map(|row| format!("{{\"text\": \"row {row}\"}}")).collect();
        let lines: Vec<&str> = lines.iter().flat_map(|line| [line.as_str(), "not json"]).collect();
        let (_folder, path) = file(&lines);
        let found = texts(TextRows::open(&path, None, &ColumnChoice::default()).unwrap());
        assert_eq!(found.len(), 2 * rows);
        for (row, found) in found.iter().step_by(2).enumerate() {
            assert_eq!(*found, format!("{} row {row}|", 2 * row + 1));
        }
    }
}
