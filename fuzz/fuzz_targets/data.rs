//! Arbitrary bytes as a data file of each format, labelled and not: rows or errors come of it, never a panic.

#![no_main]

use std::path::{Path, PathBuf};
use std::sync::Once;

use finegates_data::{ColumnChoice, Format, Labels, ReadOptions, Records, TextRows, read_split};
use libfuzzer_sys::fuzz_target;

static QUIET: Once = Once::new();

fuzz_target!(|input: &[u8]| {
    // The Parquet library panics on some malformed files and the reader catches that; only what escapes it counts.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let Some((&choice, bytes)) = input.split_first() else { return };
    let path = Path::new("input");
    let columns = ColumnChoice::default();
    let formats = [Format::Csv, Format::Tsv, Format::JsonLines, Format::Lines];
    let rows = match formats.get(usize::from(choice % 5)) {
        Some(&format) => {
            let source = Box::new(std::io::Cursor::new(bytes.to_vec()));
            TextRows::from_reader(source, path, format, &columns)
        }
        None => Records::from_parquet_bytes(bytes.to_vec(), path)
            .and_then(|records| TextRows::from_records(records, &columns)),
    };
    if let Ok(mut rows) = rows {
        while let Ok(Some(_)) = rows.read() {}
    }
    // The labelled reader takes files; one in a thousand inputs goes through it, for speed.
    if choice == 255 {
        let file: PathBuf = std::env::temp_dir().join(format!("finegates-fuzz-{}.csv", std::process::id()));
        if std::fs::write(&file, bytes).is_ok() {
            let options = ReadOptions { skip_bad_rows: bytes.len() % 2 == 0, ..ReadOptions::default() };
            let _ = read_split("fuzz", &[file], &options, &Labels::named(["no", "yes"]));
        }
    }
});
