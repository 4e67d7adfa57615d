//! Parquet: hub-style files are read with their label names; files that cannot be read say why.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use finegates_data::{
    ColumnChoice, Dataset, DatasetOptions, GlueTask, Label, Labels, ReadOptions, Records, TextRows, read_for_model,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

const HUB: &str = r#"{"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}"#;

/// Writes `text` (null where none), `label` and `weight`.
fn write(path: &Path, rows: &[(Option<&str>, i64)], compression: Compression, metadata: Option<&str>) {
    let schema = "message rows { optional binary text (UTF8); required int64 label; required double weight; }";
    let pairs = metadata.map(|value| vec![KeyValue::new("huggingface".to_owned(), value.to_owned())]);
    let properties = WriterProperties::builder().set_compression(compression).set_key_value_metadata(pairs).build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in rows.chunks(2) {
        let mut group = writer.next_row_group().unwrap();
        let texts: Vec<ByteArray> = rows.iter().filter_map(|row| row.0.map(ByteArray::from)).collect();
        let present: Vec<i16> = rows.iter().map(|row| i16::from(row.0.is_some())).collect();
        let labels: Vec<i64> = rows.iter().map(|row| row.1).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&present), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&vec![0.5; rows.len()], None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

const ROWS: [(Option<&str>, i64); 5] = [(Some("a"), 1), (Some("b"), 0), (Some("c"), 1), (Some("d"), 0), (Some("e"), 1)];

#[test]
fn every_pure_codec_is_read_and_the_hub_names_the_labels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    let gzip = parquet::basic::GzipLevel::default();
    let brotli = parquet::basic::BrotliLevel::default();
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(gzip),
        Compression::BROTLI(brotli),
        Compression::LZ4_RAW,
    ];
    for codec in codecs {
        write(&path, &ROWS, codec, Some(HUB));
        let options = DatasetOptions {
            folder: Some(folder.path().to_owned()),
            validation_fraction: Some(0.2),
            ..DatasetOptions::default()
        };
        let dataset = Dataset::load(&options).unwrap();
        assert_eq!(dataset.labels.names().unwrap(), ["neg", "pos"]);
        assert_eq!((dataset.train.examples.len(), dataset.validation[0].examples.len()), (4, 1));
        let mut all: Vec<_> = dataset.train.examples.iter().chain(&dataset.validation[0].examples).collect();
        all.sort_by(|a, b| a.text.cmp(&b.text));
        assert_eq!((all[0].text.as_str(), all[0].label, all[3].label), ("a", Label::Class(1), Label::Class(0)));
    }
}

#[test]
fn the_names_in_a_file_are_found_among_a_models() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dev.parquet");
    write(&path, &ROWS, Compression::SNAPPY, Some(HUB));
    let read = |names: [&str; 2], task| {
        let options = ReadOptions { task, ..ReadOptions::default() };
        let read = read_for_model("dev", std::slice::from_ref(&path), &options, &Labels::named(names));
        read.map(|read| read.split.examples[0].label).map_err(|error| error.to_string())
    };
    assert_eq!(read(["neg", "pos"], None), Ok(Label::Class(1)));
    assert_eq!(read(["POS", "NEG"], None), Ok(Label::Class(0)));
    let error = read(["spam", "ham"], None).unwrap_err();
    assert!(error.contains("its metadata") && error.contains("\"spam\"") && error.contains("\"neg\""), "{error}");
    assert_eq!(
        read(["positive", "negative"], Some(GlueTask::Sst2)),
        Ok(Label::Class(0)),
        "the task's names come first"
    );
}

#[test]
fn a_null_text_and_an_unknown_label_are_broken_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    write(&path, &[(Some("a"), 1), (None, 0), (Some("c"), -1)], Compression::SNAPPY, None);
    let options = DatasetOptions {
        task: Some(GlueTask::Sst2),
        train: Some(path.clone()),
        validation: vec![path],
        ..DatasetOptions::default()
    };
    let error = Dataset::load(&options).unwrap_err().to_string();
    assert!(error.contains("train.parquet:2: column \"text\": no value"), "{error}");
    assert!(error.contains("train.parquet:3: column \"label\": unknown label \"-1\""), "{error}");
}

#[test]
fn rows_stream_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, &ROWS, Compression::SNAPPY, None);
    let mut rows = TextRows::open(&path, None, &ColumnChoice::default()).unwrap();
    let mut found = String::new();
    while let Some(row) = rows.read().unwrap() {
        let row = row.unwrap();
        found.push_str(&format!("{}{} ", row.line, row.text));
    }
    assert_eq!(found, "1a 2b 3c 4d 5e ");
}

#[test]
#[cfg(not(feature = "parquet-zstd"))]
fn zstd_says_what_to_do() {
    // No encoder is built in either: the codec's number is patched into the footer of a file without compression.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, &ROWS[..2], Compression::UNCOMPRESSED, None);
    let bytes = std::fs::read(&path).unwrap();
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let mut refused = 0;
    for index in 0..bytes.len() {
        let mut patched = bytes.clone();
        // Thrift's compact protocol: field 4 of the column metadata, an i32, zigzag 0 -> zigzag 6.
        if patched[index..].starts_with(&[0x15, 0x00]) {
            patched[index + 1] = 12;
            if let Err(error) = Records::from_parquet_bytes(patched, Path::new("a.parquet")) {
                refused +=
                    usize::from(error.to_string().contains("compressed with zstd, which this build cannot read"));
            }
        }
    }
    assert!(refused > 0, "{zstd}");
}

#[test]
fn malformed_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, &ROWS, Compression::SNAPPY, Some(HUB));
    let bytes = std::fs::read(&path).unwrap();
    let read_all = |bytes: Vec<u8>| -> Result<usize, String> {
        let records = Records::from_parquet_bytes(bytes, Path::new("a.parquet")).map_err(|error| error.to_string())?;
        let mut rows = TextRows::from_records(records, &ColumnChoice::default()).map_err(|error| error.to_string())?;
        let mut count = 0;
        while rows.read().map_err(|error| error.to_string())?.is_some() {
            count += 1;
        }
        Ok(count)
    };
    assert_eq!(read_all(bytes.clone()), Ok(5));
    for length in 0..bytes.len() {
        assert!(read_all(bytes[..length].to_vec()).is_err());
    }
    // Any byte may be wrong; what comes of it is rows or an error, never a panic.
    for index in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut wrong = bytes.clone();
            wrong[index] ^= flip;
            let _ = read_all(wrong);
        }
    }
}
