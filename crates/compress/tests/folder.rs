//! What `compress` leaves on disk: a folder complete in itself, or nothing at all.

#![allow(clippy::unwrap_used)]

mod tiny;

use std::fs;
use std::path::Path;

use finegates_checkpoint::config::Config;
use finegates_compress::{Error, Removal, Report};
use finegates_model::{Batch, LoadOptions, Method, Model};
use tiny::{CLOSED, FAMILIES, OPEN, Tiny, checkpoint, difference, folder, reload};

/// Every third gate closed.
fn some_closed(family: &str) -> Tiny {
    Tiny::gated(family, |projection, _, at| Some(if (projection + at).is_multiple_of(3) { CLOSED } else { OPEN }))
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn folder_is_complete_and_nothing_else_stays_beside_it() {
    let place = tempfile::tempdir().unwrap();
    let destination = place.path().join("deep").join("compact");
    let tokenizer = ["vocab.txt", "tokenizer_config.json"].map(|name| folder("bert").join(name));
    let tiny = some_closed("bert");
    let report = tiny.compress_with(&destination, |request| request.tokenizer_files = &tokenizer).unwrap();
    let expected = ["compression.json", "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"];
    assert_eq!(names(&destination), expected);
    assert_eq!(names(&place.path().join("deep")), ["compact"]);
    assert_eq!(fs::read(destination.join("vocab.txt")).unwrap(), fs::read(&tokenizer[0]).unwrap());
    let size = fs::metadata(destination.join("model.safetensors")).unwrap().len();
    assert_eq!(report.size_bytes.after, size);
    assert!(report.parameters.after < report.parameters.before);
}

#[test]
fn report_is_read_back_as_it_was_given() {
    let place = tempfile::tempdir().unwrap();
    let destination = place.path().join("compact");
    let report = some_closed("mpnet").compress(&destination).unwrap();
    assert_eq!(Report::read(&destination).unwrap(), report);
    assert!(report.verification.sequences > 0 && report.verification.scale > 0.0);
    assert!(report.verification.max_abs_difference <= report.verification.tolerance * report.verification.scale);
    let text = fs::read_to_string(destination.join("compression.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    for key in ["gated_parameters", "removed_by_gates", "removed_with_liveness"] {
        assert!(value[key].is_u64(), "{key} is an integer");
    }
}

#[test]
fn report_of_version_one_is_still_read() {
    let report = Report::from_json(include_bytes!("fixtures/compression-v1.json")).unwrap();
    assert_eq!((report.format_version, report.source.method.as_str()), (1, "gates"));
    assert_eq!(report.removal.projections.len(), 12);
    assert_eq!(Removal::sum(report.removal.projections.clone()), report.removal, "the sums are those of the parts");
}

#[test]
fn report_of_a_newer_version_or_another_form_is_refused() {
    let newer = Report::from_json(br#"{"format_version": 2, "anything": 1}"#).unwrap_err();
    assert!(newer.contains("newer finegates"), "{newer}");
    assert!(Report::from_json(b"[]").is_err() && Report::from_json(b"").is_err());
    assert!(matches!(Report::read(Path::new("/nowhere")), Err(Error::Folder { .. })));
}

#[test]
fn config_keeps_every_key_and_takes_the_labels_given() {
    let place = tempfile::tempdir().unwrap();
    let destination = place.path().join("compact");
    let labels = ["no".to_owned(), "yes".to_owned()];
    let three = vec![String::new(); 3];
    let other = place.path().join("other");
    let tiny = some_closed("bert");
    tiny.compress_with(&destination, |request| request.labels = &labels).unwrap();
    let original = Config::read(&folder("bert")).unwrap();
    let compact = Config::read(&destination).unwrap();
    assert_eq!(compact.labels, labels);
    assert!(compact.compact.is_some());
    for (key, value) in &original.raw {
        if !["id2label", "label2id", "problem_type"].contains(&key.as_str()) {
            assert_eq!(compact.raw.get(key), Some(value), "{key}");
        }
    }
    let refused = tiny.compress_with(&other, |request| request.labels = &three);
    assert!(matches!(refused, Err(Error::Labels { expected: 2, found: 3 })));
    assert_eq!(names(place.path()), ["compact"]);
}

#[test]
fn folder_is_the_same_bytes_again() {
    let place = tempfile::tempdir().unwrap();
    let (first, second) = (place.path().join("a"), place.path().join("b"));
    some_closed("distilbert").compress(&first).unwrap();
    some_closed("distilbert").compress(&second).unwrap();
    for name in names(&first) {
        assert_eq!(fs::read(first.join(&name)).unwrap(), fs::read(second.join(&name)).unwrap(), "{name}");
    }
}

#[test]
fn head_and_biases_of_a_run_without_gates_are_in_place() {
    for family in FAMILIES {
        let tiny = Tiny::load(family);
        let place = tempfile::tempdir().unwrap();
        let destination = place.path().join("compact");
        let report = tiny.compress_with(&destination, |request| request.method = Method::BitFit).unwrap();
        assert_eq!(report.removal.totals.gated_parameters, 0);
        assert_eq!(report.parameters.before, report.parameters.after);
        assert!(report.notes[0].contains("bitfit"), "{:?}", report.notes);
        assert!(difference(&tiny.model, &reload(&destination)) < 1e-6, "{family}");
    }
}

#[test]
fn folder_with_content_is_replaced_only_when_asked() {
    let place = tempfile::tempdir().unwrap();
    let destination = place.path().join("compact");
    fs::create_dir(&destination).unwrap();
    fs::write(destination.join("mine"), "precious").unwrap();
    let tiny = some_closed("roberta");
    let error = tiny.compress(&destination).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(names(&destination), ["mine"]);
    fs::remove_file(destination.join("mine")).unwrap();
    tiny.compress(&destination).unwrap();
    let again = tiny.compress(&destination).unwrap_err();
    assert!(matches!(again, Error::DestinationTaken { .. }), "{again}");
    fs::write(destination.join("vocab.txt"), "from before").unwrap();
    tiny.compress_with(&destination, |request| request.overwrite = true).unwrap();
    assert_eq!(names(&destination), ["compression.json", "config.json", "model.safetensors"]);
    assert_eq!(names(place.path()), ["compact"]);
}

#[test]
fn empty_folder_is_taken_and_a_file_is_not() {
    let place = tempfile::tempdir().unwrap();
    let (empty, file) = (place.path().join("empty"), place.path().join("file"));
    fs::create_dir(&empty).unwrap();
    fs::write(&file, "text").unwrap();
    let tiny = some_closed("bert");
    tiny.compress(&empty).unwrap();
    let refused = tiny.compress_with(&file, |request| request.overwrite = true);
    assert!(matches!(refused, Err(Error::Destination { .. })));
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
}

#[test]
fn base_checkpoint_is_never_overwritten() {
    let place = tempfile::tempdir().unwrap();
    let base = place.path().join("models").join("base");
    fs::create_dir_all(&base).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(folder("bert").join(name), base.join(name)).unwrap();
    }
    let mut tiny = some_closed("bert");
    tiny.base = finegates_checkpoint::checkpoint::Checkpoint::open(&base).unwrap();
    for destination in [&base, &place.path().join("models")] {
        let refused = tiny.compress_with(destination, |request| request.overwrite = true);
        assert!(matches!(refused, Err(Error::Destination { .. })));
    }
    assert_eq!(names(&base), ["config.json", "model.safetensors"]);
}

#[test]
fn only_a_compact_model_is_overwritten() {
    let place = tempfile::tempdir().unwrap();
    let mine = place.path().join("mine");
    fs::create_dir_all(mine.join("best")).unwrap();
    for name in ["recipe.toml", "best/adapter_config.json"] {
        fs::write(mine.join(name), "precious").unwrap();
    }
    let tiny = some_closed("bert");
    // A compact model with a run inside is not one to delete either.
    let around = place.path().join("around");
    tiny.compress(&around).unwrap();
    fs::create_dir(around.join("run")).unwrap();
    for destination in [place.path(), &mine, &mine.join("best"), &around] {
        let refused = tiny.compress_with(destination, |request| request.overwrite = true);
        assert!(matches!(refused, Err(Error::Destination { .. })), "{}", destination.display());
    }
    for name in ["recipe.toml", "best/adapter_config.json"] {
        assert_eq!(fs::read_to_string(mine.join(name)).unwrap(), "precious");
    }
}

#[test]
fn failure_leaves_nothing_behind() {
    let place = tempfile::tempdir().unwrap();
    let destination = place.path().join("compact");
    let outside = [Batch::new([(&[u32::MAX][..], &[0][..])])];
    let missing = [folder("bert").join("no such file")];
    let tiny = some_closed("bert");
    let none = tiny.compress_with(&destination, |request| request.probe = &[]);
    assert!(matches!(none, Err(Error::EmptyProbe)));
    let outside = tiny.compress_with(&destination, |request| request.probe = &outside);
    assert!(matches!(outside, Err(Error::Model(_))));
    let missing = tiny.compress_with(&destination, |request| request.tokenizer_files = &missing);
    assert!(matches!(missing, Err(Error::Checkpoint(error)) if error.to_string().contains("no such file")));
    assert_eq!(names(place.path()), [""; 0]);
}

#[test]
fn model_that_would_answer_otherwise_is_not_written() {
    let place = tempfile::tempdir().unwrap();
    // What is run has another epsilon than its config.json says, so what is written cannot agree with it.
    let mut base = checkpoint("bert");
    base.config.norm_eps = 0.5;
    let (model, _) = Model::load(&base, &LoadOptions::default()).unwrap();
    let error = Tiny::new(base, model).compress(&place.path().join("compact")).unwrap_err();
    assert!(matches!(error, Error::LogitsDiffer { .. }), "{error}");
    assert!(error.to_string().contains("nothing was written"), "{error}");
    assert_eq!(names(place.path()), [""; 0]);
}

#[test]
fn model_without_a_head_for_its_task_is_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let tiny = some_closed("bert");
    let other = tiny.compress_with(&place.path().join("compact"), |request| request.classes = Some(7)).unwrap_err();
    assert!(other.to_string().contains("no task head") && other.to_string().contains("classifier.weight"), "{other}");
    assert_eq!(names(place.path()), [""; 0]);
}

#[test]
fn gates_that_are_not_numbers_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let tiny = Tiny::gated("bert", |projection, _, _| Some(if projection == 3 { f32::NAN } else { OPEN }));
    let error = tiny.compress(&place.path().join("compact")).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
    assert_eq!(names(place.path()), [""; 0]);
}

#[test]
fn model_that_cannot_shrink_is_refused_with_the_reason() {
    let place = tempfile::tempdir().unwrap();
    let destination = place.path().join("compact");
    let tiny = some_closed("bert");
    let full = tiny.compress_with(&destination, |request| request.method = Method::Full).unwrap_err();
    assert!(full.to_string().contains("nothing to remove"), "{full}");
    tiny.compress(&destination).unwrap();
    let base = finegates_checkpoint::checkpoint::Checkpoint::open(&destination).unwrap();
    let again = Tiny::new(base, reload(&destination));
    let error = again.compress(&place.path().join("again")).unwrap_err();
    assert!(error.to_string().contains("already compact"), "{error}");
}
