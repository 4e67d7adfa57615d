//! From a checkpoint and data to a smaller model that answers, through the real binary.
#![allow(clippy::unwrap_used)]

mod program;

use program::{Place, headless, run, run_with_input, tiny};
use serde_json::Value;

/// A run with gates that move fast enough to close some in a few steps.
fn train(place: &Place, model: &str, epochs: &str, more: &[&str]) -> program::Ran {
    let (train, dev, runs) = (place.name("train.csv"), place.name("dev.csv"), place.name("run"));
    let mut arguments = vec![
        "train",
        "--model",
        model,
        "--train",
        &train,
        "--validation",
        &dev,
        "--output",
        &runs,
        "--epochs",
        epochs,
        "--gate-learning-rate",
        "0.1",
        "--max-length",
        "12",
    ];
    if !more.contains(&"--method") {
        arguments.extend(["--target-sparsity", "0.5"]);
    }
    arguments.extend(more);
    run(&arguments)
}

#[test]
fn a_run_is_trained_compressed_judged_and_asked() {
    let place = Place::with_data(200);
    let (runs, compact, dev) = (place.name("run"), place.name("compact"), place.name("dev.csv"));
    let base = headless(&place);
    let trained = train(&place, &base, "4", &[]).exits(0);
    trained.says("finished");
    trained.says("best so far");
    trained.says(&format!("finegates compress {runs}"));
    trained.complains("initialised classifier.weight");

    let inspected = run(&["inspect", &runs, "--json"]).exits(0).json();
    let integer = |value: &Value, name: &str| value[name].as_u64().unwrap_or_else(|| panic!("{name}: {value}"));
    assert_eq!(integer(&inspected, "gated_parameters"), 2 * (4 * 16 * 16 + 2 * 16 * 28));
    let by_gates = integer(&inspected, "removed_by_gates");
    let with_liveness = integer(&inspected, "removed_with_liveness");
    assert!(0 < by_gates && by_gates <= with_liveness, "{inspected}");
    assert_eq!(inspected["labels"], serde_json::json!(["negative", "positive"]));

    let compressed = run(&["compress", &runs, "--output", &compact, "--json"]).exits(0).json();
    assert_eq!(integer(&compressed, "removed_with_liveness"), with_liveness);
    assert!(integer(&compressed["parameters"], "after") < integer(&compressed["parameters"], "before"));
    let inspected = run(&["inspect", &compact, "--json"]).exits(0).json();
    assert_eq!(inspected["kind"], "compact");
    assert_eq!(integer(&inspected, "removed_by_gates"), by_gates);
    assert_eq!(integer(&inspected, "removed_with_liveness"), with_liveness);

    let of_run = run(&["eval", &runs, "--json"]).exits(0).json();
    let of_compact = run(&["eval", &compact, "--data", &dev, "--json"]).exits(0).json();
    assert_eq!(of_run["splits"][0]["metrics"], of_compact["splits"][0]["metrics"]);
    assert_eq!(of_run["maximum_length"], 12);
    assert_eq!(of_compact["maximum_length"], 12, "the compact model reads texts as the run did");
    let difference = of_run["splits"][0]["loss"].as_f64().unwrap() - of_compact["splits"][0]["loss"].as_f64().unwrap();
    assert!(difference.abs() < 1e-4, "{difference}");

    let answers = |model: &str| run(&["predict", model, &dev]).exits(0).stdout;
    let labels = |answers: &str| -> Vec<(u64, String)> {
        let object = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        let rows = answers.lines().map(object);
        rows.map(|row| (row["line"].as_u64().unwrap(), row["label"].as_str().unwrap().to_owned())).collect()
    };
    let (of_run, of_compact) = (labels(&answers(&runs)), labels(&answers(&compact)));
    assert_eq!(of_run, of_compact);
    assert_eq!(of_run.iter().map(|(line, _)| *line).collect::<Vec<_>>(), (2..=41).collect::<Vec<_>>());

    let long = place.write("long.txt", &"the film was good and the cast was great and the plot was fine\n".repeat(5));
    let timed = run(&["bench", &base, &compact, "--data", &long, "--rounds", "2", "--json"]).exits(0);
    timed.complains("cut to 12 tokens, for every model");
    for model in timed.json()["models"].as_array().unwrap() {
        assert_eq!(integer(model, "tokens"), 5 * 12, "a model that reads less would look faster");
    }
    let timed = run(&["bench", &runs, &compact, &base, "--batch", "2", "--length", "5", "--rounds", "3", "--json"]);
    let timed = timed.exits(0);
    timed.complains("has no task head");
    assert_eq!(timed.json()["models"].as_array().unwrap().len(), 3);
    assert_eq!(timed.json()["models"][0]["times_ms"].as_array().unwrap().len(), 3);
    run(&["bench", &runs, &compact, "--data", &dev, "--rounds", "2", "--with-tokenizer"]).exits(0).says("40 texts");
}

#[test]
fn a_budget_leaves_a_compact_model_at_every_stop_and_their_curve() {
    let place = Place::with_data(120);
    let (train, dev, runs) = (place.name("train.csv"), place.name("dev.csv"), place.name("run"));
    let model = tiny("bert");
    let arguments =
        ["train", "--model", &model, "--train", &train, "--validation", &dev, "--output", &runs, "--epochs", "4"];
    let with =
        |budget: &str, more: &[&str]| run(&[&arguments[..], &["--budget", budget, "--threads", "1"], more].concat());
    with("params=0.4,0.8", &[]).exits(2).complains("expected every amount to be below the one before it");
    with("params=0.8", &["--target-sparsity", "0.5"]).exits(2).complains("belongs to --objective");
    with("params=0.8", &["--method", "bitfit"]).exits(2).complains("method bitfit has no gates");
    assert!(!place.path("run").exists());

    let trained = with("params=0.8,0.4", &[]).exits(0);
    trained.says("stops/params-0.8: ");
    trained.says("curve.json");
    let curve: Value = serde_json::from_str(&std::fs::read_to_string(place.path("run/curve.json")).unwrap()).unwrap();
    let points = curve["points"].as_array().unwrap();
    assert_eq!((points.len(), &curve["metric"]), (2, &Value::from("accuracy")));
    assert!(std::fs::read_to_string(place.path("run/curve.svg")).unwrap().starts_with("<svg"));
    for (point, budget) in points.iter().zip(["0.8", "0.4"]) {
        let left = 1.0 - point["removed"].as_f64().unwrap();
        let asked: f64 = budget.parse().unwrap();
        // A unit of this model is a thirtieth of it.
        assert!(left <= asked && left > asked - 0.04, "{point}");
        let compact = point["compact"].as_str().unwrap();
        let judged = run(&["eval", compact, "--data", &dev, "--json"]).exits(0).json();
        let kept = run(&["eval", &runs, "--checkpoint", &format!("params-{budget}"), "--json"]).exits(0).json();
        assert_eq!(judged["splits"][0]["metrics"], kept["splits"][0]["metrics"]);
        assert_eq!(judged["splits"][0]["metrics"]["accuracy"], point["score"]);
        let inspected = run(&["inspect", compact, "--json"]).exits(0).json();
        assert_eq!(
            inspected["removed_by_gates"], inspected["removed_with_liveness"],
            "units leave nothing to liveness"
        );
    }
    run(&["eval", &runs, "--checkpoint", "params-0.5"]).exits(2).complains("params-0.4, params-0.8");
    run(&["inspect", &runs]).exits(0).says("budget params=0.8,0.4");
    // Resuming a finished run changes nothing and says the same.
    run(&["train", "--resume", &runs]).exits(0).says("params-0.8: accuracy");
}

#[test]
fn every_family_goes_the_whole_path() {
    for family in ["roberta", "xlm-roberta", "distilbert", "mpnet"] {
        let place = Place::with_data(60);
        train(&place, &tiny(family), "1", &[]).exits(0);
        let (runs, compact) = (place.name("run"), place.name("compact"));
        run(&["compress", &runs, "--output", &compact]).exits(0).says("logits differ by at most");
        let answers = run_with_input(&["predict", &compact], "the film was good\n\nthe plot was bad").exits(0);
        assert_eq!(answers.stdout.lines().count(), 3, "{family}: an empty line is a text too");
    }
}

#[test]
fn dense_and_full_runs_are_used_like_any_other() {
    let place = Place::with_data(60);
    train(&place, &tiny("bert"), "2", &["--method", "bitfit"]).exits(0).says("finegates eval");
    let (runs, compact) = (place.name("run"), place.name("compact"));
    run(&["eval", &runs]).exits(0).says("accuracy");
    run(&["inspect", &runs]).exits(0).says("without gates");
    run(&["compress", &runs, "--output", &compact]).exits(0).says("no gates, so nothing could be removed");

    let place = Place::with_data(60);
    train(&place, &tiny("distilbert"), "2", &["--method", "full"]).exits(0);
    let (runs, compact) = (place.name("run"), place.name("compact"));
    run(&["eval", &runs]).exits(0).says("accuracy");
    run(&["inspect", &runs, "--json"]).exits(0);
    let refused = run(&["compress", &runs, "--output", &compact]).exits(2);
    refused.complains("trained with method full");
    assert!(!place.path("compact").exists());
    // The best model of a full run is a checkpoint of its own.
    let best = place.name("run/best");
    run(&["predict", &best, &place.name("dev.csv")]).exits(0);
}

#[test]
fn numbers_are_predicted_where_labels_are_numbers() {
    let place = Place::new();
    let rows: String = (0..60).map(|row| format!("the film was good\tthe plot was bad\t{}.5\n", row % 5)).collect();
    let data = place.write("all.tsv", &format!("first\tsecond\tscore\n{rows}"));
    let (model, runs) = (tiny("bert"), place.name("run"));
    let trained = run(&[
        "train",
        "--model",
        &model,
        "--train",
        &data,
        "--validation-fraction",
        "0.2",
        "--text",
        "first",
        "--text-pair",
        "second",
        "--regression",
        "--epochs",
        "1",
        "--output",
        &runs,
        "--json",
    ]);
    let trained = trained.exits(0).json();
    assert_eq!(trained["best_metric"], "pearson");
    let judged = run(&["eval", &runs, "--data", &data, "--json"]).exits(0).json();
    assert!(judged["splits"][0]["majority"].is_null());
    let answers = run(&["predict", &runs, &data, "--text", "first", "--text-pair", "second"]).exits(0);
    let first: Value = serde_json::from_str(answers.stdout.lines().next().unwrap()).unwrap();
    assert!(first["value"].is_number(), "{first}");
    let table = ["predict", &runs, &data, "--text", "first", "--text-pair", "second", "--output-format", "tsv"];
    assert!(run(&table).exits(0).stdout.starts_with("line\tvalue\n2\t"));
}

#[test]
fn flags_win_over_the_recipe_and_the_recipe_over_defaults() {
    let place = Place::with_data(40);
    train(&place, &tiny("bert"), "2", &["--seed", "7"]).exits(0);
    let recipe = place.name("run/recipe.toml");
    let again = place.name("again");
    run(&["train", "--recipe", &recipe, "--epochs", "1", "--output", &again]).exits(0);
    let text = std::fs::read_to_string(place.path("again/recipe.toml")).unwrap();
    assert!(text.contains("\nseed = 7\n"), "{text}");
    assert!(text.contains("\nepochs = 1.0\n"), "{text}");
    assert!(text.contains("\nmax_length = 12\n"), "{text}");
}

#[test]
fn a_run_can_be_found_when_its_base_has_moved() {
    let place = Place::with_data(40);
    let moved = place.path("base");
    std::fs::create_dir(&moved).unwrap();
    for entry in std::fs::read_dir(tiny("bert")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, moved.join(path.file_name().unwrap())).unwrap();
    }
    let (model, train, dev, runs) =
        (place.name("base"), place.name("train.csv"), place.name("dev.csv"), place.name("run"));
    let arguments =
        ["train", "--model", &model, "--train", &train, "--validation", &dev, "--output", &runs, "--epochs", "1"];
    run(&arguments).exits(0);
    std::fs::rename(&moved, place.path("elsewhere")).unwrap();
    run(&["eval", &runs]).exits(2).complains("--base");
    run(&["eval", &runs, "--base", &place.name("elsewhere")]).exits(0);
    run(&["compress", &runs, "--base", &place.name("elsewhere"), "--output", &place.name("compact")]).exits(0);
    run(&["inspect", &runs]).exits(0);
}
