use std::collections::BTreeMap;
use std::path::Path;

use finegates_checkpoint::{Checkpoint, CompactInfo, TensorFile, TensorToWrite, compact, write_tensors};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{folder, write};

const MODULE: &str = "bert.encoder.layer.0.intermediate.dense";

fn info() -> CompactInfo {
    CompactInfo { projections: BTreeMap::from([(MODULE.to_owned(), (8, 4))]) }
}

/// A compact checkpoint of one projection.
fn write_compact(
    folder: &Path,
    finegates: Value,
    rows: &[u32],
    columns: &[u32],
    shape: [usize; 2],
    bias: Option<usize>,
) {
    write(&folder.join("config.json"), json!({"model_type": "bert", "finegates": finegates}).to_string());
    let weight: Vec<f32> = (0..shape[0] * shape[1]).map(|i| i as f32).collect();
    let biases = vec![0.5; bias.unwrap_or(0)];
    let mut tensors = vec![
        TensorToWrite::f32(format!("{MODULE}.weight"), shape.to_vec(), &weight),
        TensorToWrite::u32(format!("{MODULE}.kept_rows"), rows),
        TensorToWrite::u32(format!("{MODULE}.kept_columns"), columns),
    ];
    if bias.is_some() {
        tensors.push(TensorToWrite::f32(format!("{MODULE}.bias"), vec![biases.len()], &biases));
    }
    write_tensors(&folder.join("model.safetensors"), &tensors, &BTreeMap::new()).expect("write");
}

#[test]
fn a_projection_is_read_with_its_indices() {
    let folder = folder();
    for (rows, columns, bias) in
        [(vec![0, 3, 7], vec![1, 2], true), (vec![], vec![1], true), (vec![5], vec![], false), (vec![], vec![], true)]
    {
        let shape = [rows.len(), columns.len()];
        write_compact(folder.path(), info().to_json(), &rows, &columns, shape, bias.then_some(rows.len()));
        let checkpoint = Checkpoint::open(folder.path()).expect("a compact checkpoint");
        let projection =
            checkpoint.config.compact.as_ref().expect("compact").read(&checkpoint.tensors, MODULE).expect("read");
        assert_eq!((projection.rows, projection.columns), (8, 4));
        assert_eq!((&projection.kept_rows, &projection.kept_columns), (&rows, &columns));
        assert_eq!(projection.weight.len(), shape[0] * shape[1]);
        assert_eq!(projection.bias, bias.then(|| vec![0.5; rows.len()]));
    }
}

#[test]
fn parts_that_disagree_are_refused_by_name() {
    let folder = folder();
    let path = folder.path().join("model.safetensors").display().to_string();
    for (rows, columns, shape, bias, expected) in [
        (
            vec![3, 0],
            vec![1],
            [2, 1],
            None,
            format!("{path}: {MODULE}.kept_rows: expected ascending indices, found 0 after 3 at position 1"),
        ),
        (
            vec![3, 3],
            vec![1],
            [2, 1],
            None,
            format!("{path}: {MODULE}.kept_rows: expected ascending indices, found 3 after 3 at position 1"),
        ),
        (vec![3, 8], vec![1], [2, 1], None, format!("{path}: {MODULE}.kept_rows: expected indices below 8, found 8")),
        (
            vec![3],
            vec![0, 1, 2, 3, 4],
            [1, 5],
            None,
            format!("{path}: {MODULE}.kept_columns: expected at most 4 indices, found 5"),
        ),
        (
            vec![3],
            vec![0, 1],
            [1, 3],
            None,
            format!(
                "{path}: {MODULE}.weight: expected shape [1, 2], found [1, 3]; its kept_rows and kept_columns say otherwise"
            ),
        ),
        (
            vec![3],
            vec![0, 1],
            [2, 1],
            None,
            format!(
                "{path}: {MODULE}.weight: expected shape [1, 2], found [2, 1]; its kept_rows and kept_columns say otherwise"
            ),
        ),
        (
            vec![3],
            vec![0],
            [1, 1],
            Some(2),
            format!(
                "{path}: {MODULE}.bias: expected shape [1], found [2]; its kept_rows and kept_columns say otherwise"
            ),
        ),
    ] {
        write_compact(folder.path(), info().to_json(), &rows, &columns, shape, bias);
        assert_eq!(Checkpoint::open(folder.path()).expect_err("disagreeing parts").to_string(), expected);
    }
}

#[test]
fn projections_missing_on_either_side_are_named() {
    let folder = folder();
    let path = folder.path().join("model.safetensors").display().to_string();
    let more = json!({"format_version": 1, "projections": {MODULE: {"rows": 8, "columns": 4}, "bert.other": {"rows": 1, "columns": 1}}});
    write_compact(folder.path(), more, &[0], &[0], [1, 1], None);
    let error = Checkpoint::open(folder.path()).expect_err("a projection without tensors").to_string();
    assert!(error.starts_with(&format!("{path}: bert.other.kept_rows: no such tensor; ")), "{error}");
    write_compact(folder.path(), json!({"format_version": 1, "projections": {}}), &[0], &[0], [1, 1], None);
    let error = Checkpoint::open(folder.path()).expect_err("indices without a projection").to_string();
    assert_eq!(
        error,
        format!(
            "{path}: {MODULE}.kept_columns: config.json lists no such projection in finegates.projections; do the two files belong together?"
        )
    );
}

#[test]
fn the_object_in_the_config_is_checked() {
    let said =
        |value: Value| CompactInfo::from_json(Path::new("config.json"), &value).expect_err("a bad object").to_string();
    assert_eq!(CompactInfo::from_json(Path::new("config.json"), &info().to_json()).expect("a good object"), info());
    for (value, expected) in [
        (json!(null), "finegates.format_version: expected an integer of at least 1, found null"),
        (json!({"projections": {}}), "finegates.format_version: expected an integer of at least 1, found null"),
        (
            json!({"format_version": 0, "projections": {}}),
            "finegates.format_version: expected an integer of at least 1, found 0",
        ),
        (
            json!({"format_version": "1", "projections": {}}),
            "finegates.format_version: expected an integer of at least 1, found \"1\"",
        ),
        (
            json!({"format_version": 7}),
            "finegates.format_version: expected at most 1, found 7; it was written by a newer finegates, update this one",
        ),
        (
            json!({"format_version": 1}),
            "finegates.projections: expected an object from module paths to sizes, found nothing",
        ),
        (
            json!({"format_version": 1, "projections": {"a": {"rows": 0, "columns": 1}}}),
            "finegates.projections.a.rows: expected an integer from 1 to 16777216, found 0",
        ),
        (
            json!({"format_version": 1, "projections": {"a": {"rows": 1}}}),
            "finegates.projections.a.columns: expected an integer from 1 to 16777216, found null",
        ),
        (
            json!({"format_version": 1, "projections": {"a": [1, 1]}}),
            "finegates.projections.a.rows: expected an integer from 1 to 16777216, found null",
        ),
    ] {
        assert_eq!(said(value), format!("config.json: {expected}"));
    }
}

/// The one artifact of version 1, written by hand once and never again: later versions must read it.
#[test]
fn version_1_stays_readable() {
    let folder = crate::support::fixtures().join("compact-v1");
    let checkpoint = Checkpoint::open(&folder).expect("version 1");
    let info = checkpoint.config.compact.as_ref().expect("compact");
    assert_eq!(info.projections["bert.encoder.layer.0.intermediate.dense"], (4, 2));
    let projection = info.read(&checkpoint.tensors, "bert.encoder.layer.0.intermediate.dense").expect("read");
    assert_eq!((projection.kept_rows, projection.kept_columns), (vec![1, 3], vec![0, 1]));
    assert_eq!((projection.weight, projection.bias), (vec![1.0, 2.0, 3.0, 4.0], Some(vec![0.5, -0.5])));
}

proptest! {
    #[test]
    fn what_is_accepted_is_consistent(
        rows in prop::collection::vec(0u32..10, 0..6),
        columns in prop::collection::vec(0u32..6, 0..6),
        height in 0usize..6,
        width in 0usize..6,
    ) {
        let folder = folder();
        write_compact(folder.path(), info().to_json(), &rows, &columns, [height, width], None);
        let tensors = TensorFile::open(folder.path()).expect("a safetensors file");
        let ascending = |kept: &[u32], original: u32| kept.windows(2).all(|pair| pair[0] < pair[1]) && kept.iter().all(|&index| index < original);
        let good = ascending(&rows, 8) && ascending(&columns, 4) && rows.len() == height && columns.len() == width;
        prop_assert_eq!(compact::validate(&info(), &tensors).is_ok(), good);
        prop_assert_eq!(info().read(&tensors, MODULE).is_ok(), good);
    }
}
