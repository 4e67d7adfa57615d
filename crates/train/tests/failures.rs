//! What runs that fail, or find something damaged, leave behind and say.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use finegates_checkpoint::{TensorFile, TensorToWrite, write_tensors};
use finegates_model::Method;
use finegates_train::by_name::ByName;
use finegates_train::error::StateLeft;
use finegates_train::{Error, Event, Mode, PartialRecipe};
use support::{Workshop, assert_same};

fn quick(workshop: &Workshop) -> PartialRecipe {
    PartialRecipe { epochs: Some(1.0), ..workshop.recipe() }
}

#[test]
fn an_overwrite_that_fails_leaves_the_earlier_run() {
    let workshop = Workshop::new("bert", 20, true);
    let first = PartialRecipe { method: Some(ByName(Method::Full)), ..quick(&workshop) };
    workshop.run(first, "run", Mode::New).unwrap();
    let everything = || {
        let mut found = workshop.result("run");
        for name in ["recipe.toml", "summary.json", "state/state.safetensors"] {
            found.insert(name.to_owned(), std::fs::read(workshop.path("run").join(name)).unwrap());
        }
        found
    };
    let before = everything();
    let three_classes = || {
        let text = std::fs::read_to_string(workshop.path("train.tsv")).unwrap() + "the film\t2\n";
        std::fs::write(workshop.path("three.tsv"), text).unwrap();
        workshop.path("three.tsv")
    };
    let (missing, own) = (Some("nowhere/model".to_owned()), workshop.path("run/best").to_str().map(str::to_owned));
    for wrong in [
        PartialRecipe { max_length: Some(1), ..quick(&workshop) },
        PartialRecipe { train: Some(three_classes()), best_metric: Some("f1".to_owned()), ..quick(&workshop) },
        PartialRecipe { train: Some(workshop.path("missing.tsv")), ..quick(&workshop) },
        PartialRecipe { model: missing, ..quick(&workshop) },
        PartialRecipe { model: own, ..quick(&workshop) },
    ] {
        let error = workshop.run(wrong, "run", Mode::Overwrite).unwrap_err();
        assert_same(&everything(), &before, &error.to_string());
    }
    let own = PartialRecipe { model: workshop.path("run/model").to_str().map(str::to_owned), ..quick(&workshop) };
    let error = workshop.run(own, "run", Mode::Overwrite).unwrap_err().to_string();
    assert!(error.contains("overwriting would remove the model that the run is to start from"), "{error}");
    // What was left is whole: the run can be resumed, and then overwritten with a recipe that works.
    workshop.run(PartialRecipe::default(), "run", Mode::Resume).unwrap();
    let other = PartialRecipe { seed: Some(7), ..quick(&workshop) };
    workshop.run(other, "run", Mode::Overwrite).unwrap();
    assert!(everything()["recipe.toml"] != before["recipe.toml"]);
    assert!(workshop.journal("run").len() == before["metrics.jsonl"].split(|&byte| byte == b'\n').count());
}

/// Everything trains, with learning rates that make parameters of such a size at the first step.
fn wild(workshop: &Workshop, rate: f64) -> PartialRecipe {
    PartialRecipe {
        method: Some(ByName(Method::Full)),
        weight_learning_rate: Some(rate),
        head_learning_rate: Some(rate),
        bias_learning_rate: Some(rate),
        weight_decay: Some(0.0),
        warmup_ratio: Some(0.0),
        ..quick(workshop)
    }
}

#[test]
fn a_step_that_makes_infinite_parameters_says_so_and_saves_none() {
    let workshop = Workshop::new("bert", 20, true);
    let error = workshop.run(wild(&workshop, 3e38), "run", Mode::New).unwrap_err();
    let expected = Error::NotFinite { step: 1, what: "updated parameter", value: 0.0, left: StateLeft::Untouched };
    assert_eq!(std::mem::discriminant(&error), std::mem::discriminant(&expected), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("step 1: the updated parameter is "), "{text}");
    assert!(text.contains("no state was saved after it") && text.contains("lower learning rates"), "{text}");
    assert!(!workshop.path("run/state/state.safetensors").exists());
}

#[test]
fn a_loss_that_is_no_number_is_told_also_where_nothing_can_be_saved() {
    let workshop = Workshop::new("bert", 20, true);
    let state = workshop.path("run/state");
    // The state's folder is gone after the first step.
    let watch = |event: &Event<'_>| {
        if matches!(event, Event::Step(_)) && state.is_dir() {
            std::fs::remove_dir_all(&state).unwrap();
        }
        false
    };
    let error = workshop.run_until(wild(&workshop, 1e37), "run", Mode::New, watch).unwrap_err();
    assert!(matches!(&error, Error::NotFinite { left: StateLeft::Unsaved(_), .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("could not be saved (") && text.contains("lower learning rates"), "{text}");
}

#[test]
fn a_state_that_no_run_can_have_come_to_is_refused() {
    let workshop = Workshop::new("bert", 20, true);
    workshop.run(quick(&workshop), "run", Mode::New).unwrap();
    let path = workshop.path("run/state/state.safetensors");
    let file = TensorFile::open_file(&path).unwrap();
    let standing: serde_json::Value = serde_json::from_str(&file.metadata()["finegates_state"]).unwrap();
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let data: Vec<_> = names.iter().map(|name| file.read_tensor(name).unwrap().data).collect();
    let with = |key: &str, value: serde_json::Value| {
        let mut standing = standing.clone();
        match value {
            serde_json::Value::Null => drop(standing.as_object_mut().unwrap().remove(key)),
            value => standing[key] = value,
        }
        let tensors: Vec<_> = names
            .iter()
            .zip(&data)
            .map(|(name, data)| TensorToWrite::f32(name.as_str(), vec![data.len()], data))
            .collect();
        let metadata = BTreeMap::from([("finegates_state".to_owned(), standing.to_string())]);
        write_tensors(&path, &tensors, &metadata).unwrap();
        workshop.run(PartialRecipe::default(), "run", Mode::Resume)
    };
    let refused = |key: &str, value: serde_json::Value| with(key, value).unwrap_err().to_string();
    assert!(refused("seconds", (-1.0).into()).contains("state.safetensors: seconds: expected 0 or a number above it"));
    assert!(refused("seconds", 1e300.into()).contains("seconds: "));
    assert!(refused("step_seconds", (-1e-9).into()).contains("step_seconds: "));
    assert!(refused("format_version", 1.into()).contains("format version 1, of an earlier build"));
    assert!(refused("step", 6.into()).contains("it is after step 6 of a run of 5 steps"));
    assert!(refused("step", 4.into()).contains("in a run of 4"));
    // A run that was not judged yet has none.
    assert_eq!(with("last", serde_json::Value::Null).unwrap().last, None);
    assert!(with("step", 5.into()).unwrap().last.is_some());
}

#[test]
fn missing_lines_of_the_journal_are_told() {
    let workshop = Workshop::new("bert", 40, true);
    let stop = |event: &Event<'_>| matches!(event, Event::Step(record) if record.step == 4);
    workshop.run_until(quick(&workshop), "run", Mode::New, stop).unwrap();
    let path = workshop.path("run/metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.split_inclusive('\n').skip(2).collect::<String>()).unwrap();
    let mut notes: Vec<String> = Vec::new();
    let mut observer = |event: &Event<'_>| {
        if let Event::Note(note) = event {
            notes.push((*note).to_owned());
        }
    };
    let never = AtomicBool::new(false);
    finegates_train::run(PartialRecipe::default(), &workshop.options("run", Mode::Resume), &mut observer, &never)
        .unwrap();
    assert!(notes.iter().any(|note| note.contains("earlier lines are missing")), "{notes:?}");
    let steps = workshop.journal("run").iter().filter(|record| record["kind"] == "step").count();
    assert_eq!(steps, 8);
}
