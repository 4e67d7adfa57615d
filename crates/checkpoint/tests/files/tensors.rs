use std::collections::BTreeMap;
use std::fs;

use finegates_checkpoint::tensors::{FloatType, Sink, StreamedTensor, write_streamed};
use finegates_checkpoint::{TensorFile, TensorToWrite, write_tensors};
use half::{bf16, f16};
use proptest::prelude::*;

use crate::support::{f32_bytes, folder, safetensors, write, write_f32};

/// What is said about a file with this header and data.
fn said(header: &str, data: &[u8]) -> String {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    write(&path, safetensors(header, data));
    let error = TensorFile::open(folder.path()).expect_err(header).to_string();
    error.strip_prefix(&format!("{}: ", path.display())).expect("the error names the file").to_owned()
}

#[test]
fn every_float_type_is_read_as_f32() {
    let folder = folder();
    let values = [1.5f32, -0.25, 3.0e-3, f32::INFINITY];
    let header = r#"{"__metadata__":{"format":"pt"},
        "bf16":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},"f16":{"dtype":"F16","shape":[4],"data_offsets":[8,16]},
        "f32":{"dtype":"F32","shape":[4,1],"data_offsets":[16,32]},"f64":{"dtype":"F64","shape":[4],"data_offsets":[32,64]},
        "none":{"dtype":"F32","shape":[3,0],"data_offsets":[64,64]},"one":{"dtype":"F32","shape":[],"data_offsets":[64,68]}}"#;
    let mut data: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
    data.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()));
    data.extend(f32_bytes(&values));
    data.extend(values.iter().flat_map(|&value| f64::from(value).to_le_bytes()));
    data.extend(f32_bytes(&[7.0]));
    write(&folder.path().join("model.safetensors"), safetensors(header, &data));
    let file = TensorFile::open(folder.path()).expect("a good file");
    assert_eq!(file.metadata()["format"], "pt");
    assert_eq!(file.names().collect::<Vec<_>>(), ["bf16", "f16", "f32", "f64", "none", "one"]);
    assert_eq!(file.read("f32", &[4, 1]).expect("f32"), values);
    assert_eq!(file.read("f64", &[4]).expect("f64"), values);
    assert_eq!(file.read("f16", &[4]).expect("f16"), values.map(|value| f16::from_f32(value).to_f32()));
    assert_eq!(file.read("bf16", &[2, 2]).expect("bf16"), values.map(|value| bf16::from_f32(value).to_f32()));
    assert!(file.read("none", &[3, 0]).expect("an empty tensor").is_empty());
    assert_eq!(file.read("one", &[]).expect("a scalar"), [7.0]);
    assert_eq!(file.find(&["x", "f16", "f32"]), Some("f16"));
    assert_eq!(file.size_bytes(), 68);
}

#[test]
fn wrong_shapes_types_and_names_are_named() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let header = r#"{"bert.a.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"int":{"dtype":"I64","shape":[1],"data_offsets":[8,16]},
        "table":{"dtype":"I32","shape":[1,1],"data_offsets":[16,20]},"low":{"dtype":"I32","shape":[2],"data_offsets":[20,28]}}"#;
    let mut data = f32_bytes(&[1.0, 2.0]);
    data.extend((1u64 << 33).to_le_bytes());
    data.extend([0; 4]);
    data.extend(5i32.to_le_bytes());
    data.extend((-1i32).to_le_bytes());
    write(&path, safetensors(header, &data));
    let file = TensorFile::open(folder.path()).expect("a good file");
    let prefix = format!("{}: ", path.display());
    let said = |error: finegates_checkpoint::Error| error.to_string().replace(&prefix, "");
    assert_eq!(
        said(file.read("bert.a.weight", &[3]).expect_err("shape")),
        "bert.a.weight: expected shape [3], found [2]"
    );
    assert_eq!(said(file.read("int", &[1]).expect_err("type")), "int: expected type F32, F16, BF16 or F64, found I64");
    assert_eq!(
        said(file.read_u32("bert.a.weight").expect_err("type")),
        "bert.a.weight: expected type U32, I32 or I64, found F32"
    );
    assert_eq!(
        said(file.read_u32("int").expect_err("range")),
        "int: expected indices from 0 to 4294967295, found 8589934592 at position 0"
    );
    assert_eq!(
        said(file.read_u32("low").expect_err("range")),
        "low: expected indices from 0 to 4294967295, found -1 at position 1"
    );
    assert_eq!(
        said(file.read_u32("table").expect_err("rank")),
        "table: expected a one-dimensional list of indices, found shape [1, 1]"
    );
    assert_eq!(
        said(file.read("x", &[1]).expect_err("name")),
        "x: no such tensor; the file holds 4 others; was it saved from another kind of model?"
    );
    assert_eq!(
        said(file.read("roberta.a.weight", &[1]).expect_err("name")),
        "roberta.a.weight: no such tensor; the file holds 4 others; was it saved from another kind of model?"
    );
}

#[test]
fn lying_headers_are_refused() {
    let entry = |body: &str| format!(r#"{{"t":{{{body}}}}}"#);
    for (header, data, expected) in [
        (
            entry(r#""dtype":"F32","shape":[2],"data_offsets":[0,12]"#),
            8,
            "t: data_offsets [0, 12] lie outside the 8 bytes of data; is the file cut short?",
        ),
        (
            entry(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#),
            8,
            "t: data_offsets [8, 0] lie outside the 8 bytes of data; is the file cut short?",
        ),
        (
            entry(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#),
            8,
            "t: shape [3] of F32 needs 12 bytes, data_offsets span 8",
        ),
        (
            entry(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]"#),
            0,
            "t: shape [4294967296, 4294967296] of F32 is no whole number of bytes or too large",
        ),
        (
            entry(r#""dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]"#),
            0,
            "t: shape [4611686018427387904] of F32 is no whole number of bytes or too large",
        ),
        (
            entry(r#""dtype":"F32","shape":[0,9223372036854775807,3],"data_offsets":[0,0]"#),
            0,
            "t: shape [0, 9223372036854775807, 3] of F32 is no whole number of bytes or too large",
        ),
        (
            entry(r#""dtype":"F4","shape":[1],"data_offsets":[0,0]"#),
            0,
            "t: shape [1] of F4 is no whole number of bytes or too large",
        ),
        (
            entry(r#""dtype":"F32","shape":[1],"data_offsets":[0,4]"#),
            8,
            "broken safetensors header: the tensors end at 4, the data at 8",
        ),
        (
            entry(r#""dtype":"F32","shape":[1],"data_offsets":[4,8]"#),
            8,
            "t: data begins at 4, which leaves a hole before it (that ends at 0)",
        ),
    ] {
        assert_eq!(said(&header, &vec![0; data]), expected);
    }
    let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert_eq!(said(two, &[0; 8]), "b: data begins at 4, which overlaps the tensor before it (that ends at 8)");
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    assert!(said(twice, &[0; 4]).starts_with("broken safetensors header: a occurs twice"));
    let ranks = format!(r#"{{"t":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(16));
    assert_eq!(said(&ranks, &[0; 4]), "t: expected at most 16 axes, found 17");
    for (body, expected) in [
        (r#""dtype":"F33","shape":[1],"data_offsets":[0,4]"#, "broken safetensors header: t: unknown variant `F33`"),
        (
            r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#,
            "broken safetensors header: t: invalid value: integer `-1`",
        ),
        (
            r#""dtype":"F32","shape":[1e30],"data_offsets":[0,4]"#,
            "broken safetensors header: t: invalid type: floating point",
        ),
        (r#""dtype":"F32","data_offsets":[0,4]"#, "broken safetensors header: t: missing field `shape`"),
    ] {
        let found = said(&entry(body), &[0; 4]);
        assert!(found.starts_with(expected), "{found}");
    }
    assert!(said("[]", &[]).starts_with("broken safetensors header: invalid type: sequence"));
}

#[test]
fn a_header_longer_than_the_file_or_any_header_is_not_allocated() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let said = |bytes: &[u8]| {
        write(&path, bytes);
        TensorFile::open_file(&path)
            .expect_err("no safetensors")
            .to_string()
            .replace(&format!("{}: ", path.display()), "")
    };
    assert_eq!(said(b""), "broken safetensors header: the file has 0 bytes, too few for a header");
    assert_eq!(
        said(&[0xff; 64]),
        "broken safetensors header: it claims 18446744073709551615 bytes, at most 100000000 are allowed; is this a safetensors file?"
    );
    let mut short = 90_000_000u64.to_le_bytes().to_vec();
    short.extend(b"{}");
    assert_eq!(
        said(&short),
        "broken safetensors header: it claims 90000000 bytes, the file has 2 after the length; is it cut short?"
    );
}

#[test]
fn a_file_cut_anywhere_is_an_error_never_a_panic() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    write_f32(
        &path,
        &[("a.weight", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), ("b", &[1], &[7.0]), ("empty", &[0], &[])],
    );
    let bytes = fs::read(&path).expect("read");
    let file = TensorFile::open_file(&path).expect("whole");
    assert_eq!(file.read("a.weight", &[3, 2]).expect("whole"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    for end in 0..bytes.len() {
        write(&path, &bytes[..end]);
        let error = TensorFile::open_file(&path).expect_err("cut").to_string();
        assert!(error.starts_with(&path.display().to_string()), "{error}");
    }
    // Cut after it was opened: the error comes when the data is read, and names the tensor.
    write(&path, &bytes);
    let file = TensorFile::open_file(&path).expect("whole");
    fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(bytes.len() as u64 - 6)).expect("cut");
    let error = file.read("b", &[1]).expect_err("cut").to_string();
    assert!(error.contains(": b: cannot read its data"), "{error}");
}

#[test]
fn shards_are_read_through_their_index() {
    let folder = folder();
    let index = folder.path().join("model.safetensors.index.json");
    write_f32(&folder.path().join("one.safetensors"), &[("a", &[1], &[1.0]), ("b", &[1], &[2.0])]);
    write_f32(&folder.path().join("two.safetensors"), &[("c", &[2], &[3.0, 4.0])]);
    write(
        &index,
        r#"{"metadata":{"total_size":16},"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"}}"#,
    );
    let file = TensorFile::open(folder.path()).expect("shards");
    assert_eq!(file.read("c", &[2]).expect("read"), [3.0, 4.0]);
    assert_eq!(file.read("b", &[1]).expect("read"), [2.0]);
    assert_eq!(file.names().count(), 3);

    let said = |text: &str| {
        write(&index, text);
        TensorFile::open(folder.path()).expect_err(text).to_string().replace(&format!("{}: ", index.display()), "")
    };
    assert_eq!(
        said(r#"{"weight_map":{"a":"three.safetensors"}}"#),
        "a: its file three.safetensors is missing; was the download complete?"
    );
    assert_eq!(
        said(r#"{"weight_map":{"c":"one.safetensors"}}"#),
        "c: the index says it lies in one.safetensors, which does not hold it"
    );
    for outside in ["../one.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "C:x", r"..\\x", "~/../x"] {
        let found = said(&format!(r#"{{"weight_map":{{"a":"{outside}"}}}}"#));
        assert!(found.starts_with("a: expected the name of a file in the same folder, found "), "{outside}: {found}");
    }
    assert!(said(r#"{"weight_map":[]}"#).starts_with("not valid JSON: invalid type"));
    assert!(said(r#"{}"#).starts_with("not valid JSON: missing field `weight_map`"));
}

#[test]
fn a_folder_without_safetensors_says_what_to_do() {
    let folder = folder();
    let said = |folder: &std::path::Path| TensorFile::open(folder).expect_err("nothing to read").to_string();
    let name = folder.path().display().to_string();
    assert_eq!(
        said(folder.path()),
        format!("{name}: expected model.safetensors or model.safetensors.index.json, found no such file")
    );
    write(&folder.path().join("pytorch_model.bin"), b"");
    let error = said(folder.path());
    assert!(error.starts_with(&format!("{name}: only pytorch_model.bin is there")), "{error}");
    assert!(error.contains("python3 -c \"import sys") && error.ends_with(&format!("'{name}'")), "{error}");
    assert!(said(&folder.path().join("missing")).contains("cannot open the folder"));
}

#[test]
fn a_streamed_file_is_the_one_written_at_once() {
    let folder = folder();
    let (at_once, streamed) = (folder.path().join("at once"), folder.path().join("streamed"));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let (weight, kept) = ([1.5, -0.25, 3.0, 0.0, 1e-30, 7.0], [0, 3, 70_000]);
    let whole = [
        TensorToWrite::f32("b.weight", vec![3, 2], &weight),
        TensorToWrite::u32("a.kept", &kept),
        TensorToWrite::u32("z", &[]),
    ];
    write_tensors(&at_once, &whole, &metadata).expect("written");
    let planned = [
        StreamedTensor::weights("b.weight", [3, 2]),
        StreamedTensor::indices("a.kept", 3),
        StreamedTensor::indices("z", 0),
    ];
    let mut order = Vec::new();
    write_streamed(&streamed, &planned, FloatType::F32, &metadata, &mut |place, sink| {
        order.push(place);
        match place {
            0 => weight.chunks(4).try_for_each(|part| sink.write(part)),
            1 => sink.write_indices(&kept),
            _ => Ok(()),
        }
    })
    .expect("streamed");
    assert_eq!(order, [1, 0, 2], "by name, whatever the order they are named in");
    assert_eq!(fs::read(&streamed).expect("read"), fs::read(&at_once).expect("read"));
    // In 16 bits indices stay what they are.
    write_streamed(&streamed, &planned, FloatType::Bf16, &metadata, &mut |place, sink| match place {
        0 => sink.write(&weight),
        1 => sink.write_indices(&kept),
        _ => Ok(()),
    })
    .expect("streamed");
    let file = TensorFile::open_file(&streamed).expect("a good file");
    assert_eq!(file.read_u32("a.kept").expect("indices"), kept);
    assert_eq!(file.read("b.weight", &[3, 2]).expect("weights")[..3], weight[..3]);
    let refused = |produce: &mut dyn FnMut(usize, &mut Sink<'_>) -> Result<(), finegates_checkpoint::Error>| {
        write_streamed(&streamed, &planned, FloatType::F32, &metadata, produce).expect_err("refused").to_string()
    };
    let error = refused(&mut |_, sink| sink.write(&[1.0; 3]));
    assert!(error.contains("a.kept") && error.contains("expected indices, found weights"), "{error}");
    let error = refused(&mut |_, sink| sink.write_indices(&kept));
    assert!(error.contains("b.weight") && error.contains("expected weights, found indices"), "{error}");
    let error = refused(&mut |_, sink| sink.write_indices(&kept[..2]));
    assert!(error.contains("a.kept") && error.contains("does not hold 2 numbers"), "{error}");
    assert_eq!(TensorFile::open_file(&streamed).expect("as before").read_u32("a.kept").expect("indices"), kept);
}

#[test]
fn equal_tensors_give_equal_bytes_and_read_back() {
    let folder = folder();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let values: Vec<f32> = (0..10_000).map(|i| (i as f32).sin()).collect();
    let indices = [1u32, 5, u32::MAX];
    let mut tensors = vec![
        TensorToWrite::f32("z.weight", vec![100, 100], &values),
        TensorToWrite::u32("a.kept_rows", &indices),
        TensorToWrite::f32("empty", vec![0, 5], &[]),
    ];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_tensors(&a, &tensors, &metadata).expect("write");
    tensors.reverse();
    write_tensors(&b, &tensors, &metadata).expect("write");
    assert_eq!(fs::read(&a).expect("read"), fs::read(&b).expect("read"));
    let file = TensorFile::open_file(&a).expect("open");
    assert_eq!(file.read("z.weight", &[100, 100]).expect("read"), values);
    assert_eq!(file.read_u32("a.kept_rows").expect("read"), indices);
    // The library that everyone else uses reads the same.
    let bytes = fs::read(&a).expect("read");
    let theirs = safetensors::SafeTensors::deserialize(&bytes).expect("theirs");
    assert_eq!(theirs.tensor("z.weight").expect("there").data(), f32_bytes(&values));
    assert_eq!(theirs.tensor("empty").expect("there").shape(), [0, 5]);

    let twice = [TensorToWrite::u32("a", &indices), TensorToWrite::u32("a", &indices)];
    assert!(
        write_tensors(&a, &twice, &metadata)
            .expect_err("twice")
            .to_string()
            .ends_with("a: cannot be written twice into one file")
    );
    let short = [TensorToWrite::f32("a", vec![3], &values[..2])];
    assert!(
        write_tensors(&a, &short, &metadata)
            .expect_err("short")
            .to_string()
            .ends_with("a: shape [3] does not hold 2 numbers")
    );
}

proptest! {
    #[test]
    fn no_header_makes_the_reader_panic(header in "\\PC{0,200}", data in prop::collection::vec(any::<u8>(), 0..64)) {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        write(&path, safetensors(&header, &data));
        let _ = TensorFile::open_file(&path);
    }

    #[test]
    fn a_header_is_believed_only_if_it_is_true(
        entries in prop::collection::vec((prop::sample::select(vec!["F32", "F16", "BF16", "I64", "U8"]), prop::collection::vec(0u64..5, 0..3), 0u64..40, 0u64..40), 0..4),
        length in 0usize..64,
    ) {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        let mut header = serde_json::Map::new();
        for (number, (dtype, shape, begin, end)) in entries.iter().enumerate() {
            header.insert(format!("t{number}"), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}));
        }
        let bytes = safetensors(&serde_json::Value::Object(header).to_string(), &vec![1; length]);
        write(&path, &bytes);
        let ours = TensorFile::open_file(&path);
        let theirs = safetensors::SafeTensors::deserialize(&bytes);
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours.err().map(|e| e.to_string()), theirs.err());
        if let Ok(file) = ours {
            for name in file.names() {
                let _ = file.read_tensor(name);
                let _ = file.read_u32(name);
            }
        }
    }
}
