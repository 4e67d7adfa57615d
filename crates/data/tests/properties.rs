//! What is written is read back, whatever the text; and arbitrary bytes never panic.

#![allow(clippy::unwrap_used)]

use std::io::Cursor;
use std::path::Path;

use finegates_data::{ColumnChoice, Format, TextRows};
use proptest::prelude::*;

/// The texts of all rows, broken ones as none.
#[allow(clippy::type_complexity)]
fn texts(bytes: Vec<u8>, format: Format) -> Option<Vec<Option<(String, Option<String>)>>> {
    let choice = ColumnChoice::default();
    let mut rows = TextRows::from_reader(Box::new(Cursor::new(bytes)), Path::new("input"), format, &choice).ok()?;
    let mut found = Vec::new();
    while let Some(row) = rows.read().unwrap() {
        found.push(row.ok().map(|row| (row.text, row.pair)));
    }
    Some(found)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn csv_gives_back_any_text(rows in prop::collection::vec((any::<String>(), any::<String>()), 0..12), crlf: bool) {
        let end = if crlf { "\r\n" } else { "\n" };
        let mut csv = format!("text,text_pair{end}");
        for (text, pair) in &rows {
            csv.push_str(&format!("{},{}{end}", quoted(text), quoted(pair)));
        }
        let expected: Vec<_> = rows.into_iter().map(|(text, pair)| Some((text, Some(pair)))).collect();
        prop_assert_eq!(texts(csv.into_bytes(), Format::Csv).unwrap(), expected);
    }

    #[test]
    fn json_lines_give_back_any_text(rows in prop::collection::vec(any::<String>(), 1..12)) {
        let mut lines = String::new();
        for text in &rows {
            lines.push_str(&serde_json::json!({"text": text}).to_string());
            lines.push('\n');
        }
        let expected: Vec<_> = rows.into_iter().map(|text| Some((text, None))).collect();
        prop_assert_eq!(texts(lines.into_bytes(), Format::JsonLines).unwrap(), expected);
    }

    #[test]
    fn tsv_gives_back_any_text_without_tabs_and_line_breaks(rows in prop::collection::vec("[^\t\r\n]{1,20}", 0..12)) {
        let mut tsv = "text\tn\n".to_owned();
        for text in &rows {
            tsv.push_str(&format!("{text}\t1\n"));
        }
        let expected: Vec<_> = rows.into_iter().map(|text| Some((text, None))).collect();
        prop_assert_eq!(texts(tsv.into_bytes(), Format::Tsv).unwrap(), expected);
    }

    #[test]
    fn lines_keep_their_number(rows in prop::collection::vec("[^\r\n]{0,20}", 1..12)) {
        let first_is_marked = rows[0].starts_with('\u{feff}');
        prop_assume!(!first_is_marked);
        let expected: Vec<_> = rows.iter().map(|text| Some((text.clone(), None))).collect();
        let mut found = texts((rows.join("\n") + "\n").into_bytes(), Format::Lines).unwrap();
        found.truncate(rows.len());
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"\"\t\r\n,{}[]:\\ texlab"[..])], 0..200)) {
        for format in [Format::Csv, Format::Tsv, Format::JsonLines, Format::Lines, Format::Parquet] {
            let _ = texts(bytes.clone(), format);
            let mut headed = match format {
                Format::JsonLines => b"{\"text\":1}\n".to_vec(),
                Format::Tsv => b"text\tlabel\n".to_vec(),
                _ => b"text,label\n".to_vec(),
            };
            headed.extend_from_slice(&bytes);
            let _ = texts(headed, format);
        }
    }
}
