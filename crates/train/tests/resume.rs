//! The laws of a run: the same bits with any number of threads, and whether it was interrupted, killed or neither.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use finegates_checkpoint::{TensorFile, TensorToWrite, write_tensors};
use finegates_data::GlueTask;
use finegates_model::Method;
use finegates_train::by_name::ByName;
use finegates_train::schedule::Interval;
use finegates_train::{Ending, Error, Event, Mode, PartialRecipe};
use support::{Workshop, assert_same};

/// Everything at once: gates with kurtosis, dropout, accumulation with a short last group, a schedule, evaluations inside epochs.
fn busy(workshop: &Workshop) -> PartialRecipe {
    PartialRecipe {
        kurtosis: Some(true),
        gradient_accumulation: Some(3),
        epochs: Some(3.0),
        gate_learning_rate: Some(0.05),
        sparsity_start_epoch: Some(0.5),
        schedule: Some(ByName(finegates_train::schedule::Shape::Cosine)),
        warmup_ratio: Some(0.1),
        evaluate_every: Some(ByName(Interval::Steps(4))),
        checkpoint_every: Some(ByName(Interval::Steps(3))),
        ..workshop.recipe()
    }
}

/// The same with a budget of two stops in place of the penalty.
fn budget(workshop: &Workshop, budget: &str) -> PartialRecipe {
    PartialRecipe {
        kurtosis: None,
        sparsity_start_epoch: None,
        budget: Some(ByName(budget.parse().unwrap())),
        ..busy(workshop)
    }
}

fn with_method(method: Method, recipe: PartialRecipe) -> PartialRecipe {
    PartialRecipe { method: Some(ByName(method)), ..recipe }
}

#[test]
fn one_thread_and_two_give_the_same_bits() {
    let workshop = Workshop::new("bert", 300, true);
    // Wide enough, with enough tokens a pass, that every operation is worth several tasks.
    workshop.enlarge_model();
    let paper = |method: Method| (method.to_string(), with_method(method, busy(&workshop)));
    let recipes = [Method::Gates, Method::BitFit, Method::Full].map(paper);
    for (what, recipe) in recipes.into_iter().chain([("budget".to_owned(), budget(&workshop, "params=0.8,0.4"))]) {
        let results = [1, 2].map(|threads| {
            let name = format!("{what}-{threads}");
            let sizes = PartialRecipe { batch_size: Some(64), epochs: Some(2.0), ..recipe.clone() };
            workshop.run(PartialRecipe { threads: Some(threads), ..sizes }, &name, Mode::New).unwrap();
            workshop.result(&name)
        });
        assert_same(&results[1], &results[0], &what);
    }
}

#[test]
fn layers_that_run_again_give_the_same_bits() {
    let workshop = Workshop::new("bert", 60, true);
    let paper = |method: Method| (method.to_string(), with_method(method, busy(&workshop)));
    let recipes = [Method::Gates, Method::Full].map(paper);
    for (what, recipe) in recipes.into_iter().chain([("budget".to_owned(), budget(&workshop, "params=0.8,0.4"))]) {
        let results = [false, true].map(|recompute| {
            let name = format!("{what}-{recompute}");
            workshop.run(PartialRecipe { recompute: Some(recompute), ..recipe.clone() }, &name, Mode::New).unwrap();
            workshop.result(&name)
        });
        assert_same(&results[1], &results[0], &what);
    }
    // A run may go on either way.
    let stop = |event: &Event<'_>| matches!(event, Event::Step(record) if record.step == 4);
    workshop.run_until(busy(&workshop), "part", Mode::New, stop).unwrap();
    workshop.run(PartialRecipe { recompute: Some(true), ..PartialRecipe::default() }, "part", Mode::Resume).unwrap();
    assert_same(&workshop.result("part"), &workshop.result("gates-false"), "resumed");
}

#[test]
fn another_seed_gives_other_bits() {
    let workshop = Workshop::new("bert", 50, true);
    workshop.run(busy(&workshop), "a", Mode::New).unwrap();
    workshop.run(PartialRecipe { seed: Some(7), ..busy(&workshop) }, "b", Mode::New).unwrap();
    let adapter = |name: &str| workshop.result(name).remove("adapter/adapter_model.safetensors").unwrap();
    assert!(adapter("a") != adapter("b"));
}

#[test]
fn stopping_and_resuming_changes_nothing() {
    let workshop = Workshop::new("bert", 50, true);
    let paper = |method: Method| (method.to_string(), with_method(method, busy(&workshop)));
    let recipes = [Method::Gates, Method::Full].map(paper);
    let budgets = ["params=0.8,0.4", "latency=0.97@2x8"].map(|text| (text.to_owned(), budget(&workshop, text)));
    for (method, recipe) in recipes.into_iter().chain(budgets) {
        let whole = format!("{method}-whole");
        let summary = workshop.run(recipe.clone(), &whole, Mode::New).unwrap();
        assert_eq!((summary.ending, summary.step, summary.total_steps), (Ending::Finished, 15, 15));
        for stop in [1, 4, 5, 11, 14] {
            let name = format!("{method}-{stop}");
            let stopped = workshop
                .run_until(
                    recipe.clone(),
                    &name,
                    Mode::New,
                    |event| matches!(event, Event::Step(record) if record.step == stop),
                )
                .unwrap();
            assert_eq!((stopped.ending, stopped.step), (Ending::Interrupted, stop));
            let resumed = workshop.run(PartialRecipe::default(), &name, Mode::Resume).unwrap();
            assert_eq!(resumed.ending, Ending::Finished);
            assert_same(&workshop.result(&name), &workshop.result(&whole), &name);
            assert_eq!(resumed.best, summary.best);
        }
    }
}

#[test]
fn stopping_within_an_evaluation_makes_it_again() {
    let workshop = Workshop::new("bert", 80, true);
    let recipe = PartialRecipe { evaluation_batch_size: Some(8), ..busy(&workshop) };
    workshop.run(recipe.clone(), "whole", Mode::New).unwrap();
    let stopped = workshop
        .run_until(recipe, "part", Mode::New, |event| matches!(event, Event::Evaluating { done: 16, .. }))
        .unwrap();
    assert_eq!((stopped.ending, stopped.step), (Ending::Interrupted, 4));
    assert!(workshop.journal("part").iter().all(|record| record["kind"] == "step"));
    workshop.run(PartialRecipe::default(), "part", Mode::Resume).unwrap();
    assert_same(&workshop.result("part"), &workshop.result("whole"), "resumed");
}

#[test]
fn a_copy_of_the_folder_at_any_moment_resumes_to_the_same_bits() {
    let workshop = Workshop::new("bert", 40, true);
    for (whole, recipe) in [("paper", busy(&workshop)), ("budget", budget(&workshop, "params=0.8,0.4"))] {
        let recipe = PartialRecipe { epochs: Some(2.0), ..recipe };
        let copies = std::sync::Mutex::new(Vec::new());
        let summary = workshop
            .run_until(recipe, whole, Mode::New, |event| {
                if !matches!(event, Event::Evaluating { .. } | Event::Note(_) | Event::Ended(_)) {
                    let mut copies = copies.lock().unwrap();
                    let name = format!("{whole}-copy-{}", copies.len());
                    workshop.copy(whole, &name);
                    copies.push(name);
                }
                false
            })
            .unwrap();
        let copies = copies.into_inner().unwrap();
        assert!(copies.len() > 10);
        let expected = workshop.result(whole);
        assert_eq!(expected.contains_key("stops/params-0.4/adapter_model.safetensors"), whole == "budget");
        for name in copies {
            let resumed = workshop.run(PartialRecipe::default(), &name, Mode::Resume).unwrap();
            assert_same(&workshop.result(&name), &expected, &name);
            assert_eq!(resumed.stops, summary.stops, "{name}");
        }
    }
}

#[test]
fn a_resumed_run_counts_times_by_the_table_it_began_with() {
    let workshop = Workshop::new("bert", 40, true);
    let recipe = budget(&workshop, "latency=0.97@2x8");
    let stop = |event: &Event<'_>| matches!(event, Event::Step(record) if record.step == 5);
    workshop.run_until(recipe, "run", Mode::New, stop).unwrap();
    let table = workshop.path("run/latency.json");
    let text = std::fs::read_to_string(&table).unwrap();
    for broken in [
        None,
        Some(""),
        Some("{}"),
        Some(&*text.replace("\"granularity\": 32", "\"granularity\": 4611686018427387904")),
    ] {
        match broken {
            Some(text) => std::fs::write(&table, text).unwrap(),
            None => std::fs::remove_file(&table).unwrap(),
        }
        let refused = workshop.run(PartialRecipe::default(), "run", Mode::Resume);
        assert!(matches!(refused, Err(Error::LatencyTable { .. })), "{broken:?}: {refused:?}");
    }
    std::fs::write(&table, text).unwrap();
    workshop.run(PartialRecipe::default(), "run", Mode::Resume).unwrap();
}

/// Writes a run's state anew with another text and first importance.
fn rewrite_state(workshop: &Workshop, run: &str, text: &dyn Fn(String) -> String, importance: Option<f32>) {
    let path = workshop.path(run).join("state/state.safetensors");
    let file = TensorFile::open_file(&path).unwrap();
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let tensors: Vec<(String, Vec<f32>)> = names
        .into_iter()
        .map(|name| {
            let length = file.shape(&name).unwrap()[0];
            let mut data = file.read(&name, &[length]).unwrap();
            if let Some(importance) = importance.filter(|_| name == "closing/importance") {
                data[0] = importance;
            }
            (name, data)
        })
        .collect();
    let tensors: Vec<_> =
        tensors.iter().map(|(name, data)| TensorToWrite::f32(name.as_str(), vec![data.len()], data)).collect();
    let metadata = file.metadata().iter().map(|(key, found)| (key.clone(), text(found.clone()))).collect();
    write_tensors(&path, &tensors, &metadata).unwrap();
}

#[test]
fn a_state_of_format_version_2_is_resumed() {
    let workshop = Workshop::new("bert", 40, true);
    workshop.run(busy(&workshop), "whole", Mode::New).unwrap();
    let stop = |event: &Event<'_>| matches!(event, Event::Step(record) if record.step == 5);
    workshop.run_until(busy(&workshop), "run", Mode::New, stop).unwrap();
    let older = |text: String| {
        assert!(text.contains("\"format_version\":3") && text.contains("\"stops\":[],"), "{text}");
        text.replace("\"format_version\":3", "\"format_version\":2").replace("\"stops\":[],", "")
    };
    rewrite_state(&workshop, "run", &older, None);
    workshop.run(PartialRecipe::default(), "run", Mode::Resume).unwrap();
    assert_same(&workshop.result("run"), &workshop.result("whole"), "resumed");
}

#[test]
fn a_state_with_stops_or_importance_that_cannot_be_is_refused() {
    let workshop = Workshop::new("bert", 40, true);
    workshop.run(budget(&workshop, "params=0.8,0.4"), "run", Mode::New).unwrap();
    let refuses = |text: &dyn Fn(String) -> String, importance: f32, words: &str| {
        workshop.copy("run", "broken");
        rewrite_state(&workshop, "broken", text, Some(importance));
        let refused = workshop.run(PartialRecipe::default(), "broken", Mode::Resume).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
        std::fs::remove_dir_all(workshop.path("broken")).unwrap();
    };
    let elsewhere = |text: String| text.replace("params-0.8", "/elsewhere");
    refuses(&elsewhere, 1.0, "expected params-0.8, params-0.4, found /elsewhere, params-0.4");
    refuses(&|text| text, f32::NAN, "closing/importance");
    refuses(&|text| text, -1.0, "closing/importance");
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let workshop = Workshop::new("bert", 20, true);
    let recipe = PartialRecipe { epochs: Some(1.0), ..busy(&workshop) };
    workshop.run(recipe, "run", Mode::New).unwrap();
    let result = || {
        let mut result = workshop.result("run");
        result.insert("summary.json".to_owned(), std::fs::read(workshop.path("run/summary.json")).unwrap());
        result
    };
    let before = result();
    let summary = workshop.run(PartialRecipe::default(), "run", Mode::Resume).unwrap();
    assert_eq!(summary.ending, Ending::Finished);
    assert!(summary.last.is_some());
    assert_same(&result(), &before, "resumed");
}

const FOLDER_VARIABLE: &str = "FINEGATES_TEST_RUN";

/// Not a test of its own: what the next one starts as a process and kills.
#[test]
fn child_process_trains() {
    let Ok(folder) = std::env::var(FOLDER_VARIABLE) else { return };
    let folder = std::path::PathBuf::from(folder);
    let resume = folder.join("recipe.toml").is_file();
    let recipe = PartialRecipe::read(&folder.with_extension("toml")).unwrap();
    let options = finegates_train::RunOptions {
        mode: if resume { Mode::Resume } else { Mode::Overwrite },
        folder,
        fetch: finegates_checkpoint::source::FetchOptions::default(),
        latency_tables: None,
    };
    let recipe = if resume { PartialRecipe::default() } else { recipe };
    let stop = std::sync::atomic::AtomicBool::new(false);
    finegates_train::run(recipe, &options, &mut |_: &Event<'_>| {}, &stop).unwrap();
}

#[test]
fn a_run_killed_again_and_again_ends_with_the_same_bits() {
    let workshop = Workshop::new("bert", 120, true);
    let recipe =
        PartialRecipe { epochs: Some(8.0), checkpoint_every: Some(ByName(Interval::Steps(2))), ..busy(&workshop) };
    workshop.run(recipe.clone(), "whole", Mode::New).unwrap();
    std::fs::write(workshop.path("killed.toml"), recipe.resolve().unwrap().to_toml().unwrap()).unwrap();
    let mut kills = 0;
    for attempt in 0u64.. {
        assert!(attempt < 200, "no progress in 200 attempts");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_process_trains", "--nocapture"])
            .env(FOLDER_VARIABLE, workshop.path("killed"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Later and later, so that the run gets on even on a slow machine; odd lengths, so that every moment has its turn.
        std::thread::sleep(Duration::from_millis(30 + attempt * 37 % 90 + attempt * 5));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert_same(&workshop.result("killed"), &workshop.result("whole"), &format!("after {kills} kills"));
}

#[test]
fn a_run_resumes_only_with_its_own_recipe_data_and_model() {
    let workshop = Workshop::new("bert", 40, true);
    let recipe = busy(&workshop);
    let stop = |event: &Event<'_>| matches!(event, Event::Step(record) if record.step == 2);
    workshop.run_until(recipe.clone(), "run", Mode::New, stop).unwrap();
    let refused = |recipe: PartialRecipe, mode| workshop.run(recipe, "run", mode).unwrap_err().to_string();
    let changed = PartialRecipe { seed: Some(1), ..PartialRecipe::default() };
    assert!(refused(changed, Mode::Resume).contains("these settings differ: seed: was 42, is now 1"));
    assert!(refused(recipe.clone(), Mode::New).contains("not empty; go on with --resume"));
    let data = std::fs::read_to_string(workshop.path("train.tsv")).unwrap();
    std::fs::write(workshop.path("train.tsv"), data.replacen("film", "plot", 1)).unwrap();
    assert!(refused(PartialRecipe::default(), Mode::Resume).contains("the data changed since the run began"));
    std::fs::write(workshop.path("train.tsv"), data).unwrap();
    let weights = workshop.path("model/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, other).unwrap();
    assert!(refused(PartialRecipe::default(), Mode::Resume).contains("the base model changed since the run began"));
    std::fs::write(&weights, bytes).unwrap();
    let vocabulary = workshop.path("model/vocab.txt");
    let words = std::fs::read_to_string(&vocabulary).unwrap();
    let mut swapped: Vec<&str> = words.lines().collect();
    swapped[95..].reverse();
    std::fs::write(&vocabulary, swapped.join("\n")).unwrap();
    assert!(refused(PartialRecipe::default(), Mode::Resume).contains("the base model changed since the run began"));
    std::fs::write(&vocabulary, words).unwrap();
    // The same settings given again, and another number of threads, are no change.
    let again = PartialRecipe { threads: Some(1), ..recipe };
    assert_eq!(workshop.run(again, "run", Mode::Resume).unwrap().ending, Ending::Finished);
    let none = workshop.run(PartialRecipe::default(), "nowhere", Mode::Resume).unwrap_err().to_string();
    assert!(none.contains("no run to resume"), "{none}");
}

#[test]
fn a_broken_state_is_an_error_that_says_so() {
    let workshop = Workshop::new("bert", 20, true);
    let stop = |event: &Event<'_>| matches!(event, Event::Step(record) if record.step == 1);
    workshop.run_until(busy(&workshop), "run", Mode::New, stop).unwrap();
    let path = workshop.path("run/state/state.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for wrong in [&bytes[..bytes.len() / 2], b"", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"] {
        std::fs::write(&path, wrong).unwrap();
        let error = workshop.run(PartialRecipe::default(), "run", Mode::Resume).unwrap_err().to_string();
        assert!(error.contains("state.safetensors"), "{error}");
    }
    std::fs::copy(workshop.path("model/model.safetensors"), &path).unwrap();
    let error = workshop.run(PartialRecipe::default(), "run", Mode::Resume).unwrap_err().to_string();
    assert!(error.contains("it is no state of a run"), "{error}");
}

#[test]
fn overwriting_starts_anew_and_leaves_other_files() {
    let workshop = Workshop::new("bert", 20, true);
    let recipe = PartialRecipe { epochs: Some(1.0), task: Some(GlueTask::Sst2), ..busy(&workshop) };
    workshop.run(recipe.clone(), "run", Mode::New).unwrap();
    let before = workshop.result("run");
    std::fs::write(workshop.path("run/notes.txt"), "mine").unwrap();
    workshop.run(recipe, "run", Mode::Overwrite).unwrap();
    assert_same(&workshop.result("run"), &before, "overwritten");
    assert!(workshop.path("run/notes.txt").is_file());
}
