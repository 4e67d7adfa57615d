//! What the program says when something is wrong, and when help is asked for.
#![allow(clippy::unwrap_used)]

mod program;

use program::{Place, headless, run, run_with_input, tiny};

/// Runs, expects exit status 2, one `error:` and all of these words in it.
#[track_caller]
fn refuses(arguments: &[&str], words: &[&str]) {
    let refused = run(arguments).exits(2);
    assert_eq!(refused.stdout, "", "nothing on standard output");
    assert_eq!(refused.stderr.matches("error: ").count(), 1, "one error:\n{}", refused.stderr);
    for word in words {
        refused.complains(word);
    }
}

#[test]
fn every_command_has_help_with_examples() {
    for name in ["train", "compress", "eval", "predict", "inspect", "bench", "quickstart", "import", "completions"] {
        let help = run(&[name, "--help"]).exits(0);
        help.says("Usage: finegates");
        help.says("finegates ");
        assert!(help.stdout.contains("Examples:"), "{name}");
        assert!(help.stdout.contains("--threads"), "{name}");
        assert!(help.stdout.contains("--json"), "{name}");
        let longest = help.stdout.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(longest <= 100, "{name}: {longest} columns");
    }
    run(&["--help"]).exits(0).says("FINEGATES_CACHE");
    run(&["--version"]).exits(0).says(env!("CARGO_PKG_VERSION"));
    run(&[]).exits(2).complains("Usage:");
    run(&["trian"]).exits(2).complains("train");
}

#[test]
fn completions_are_there_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        run(&["completions", shell]).exits(0).says("quickstart");
    }
}

#[test]
fn a_model_that_is_none_is_refused_by_name() {
    let place = Place::new();
    refuses(&["inspect", &place.name("nowhere")], &["nowhere", "no such folder"]);
    refuses(&["eval", &place.name("")], &["not a model", "config.json", "an empty folder"]);
    let file = place.write("model.txt", "x");
    refuses(&["inspect", &file], &["model.txt", "found a file"]);
    std::fs::create_dir(place.path("half")).unwrap();
    place.write("half/config.json", "{\"model_type\": \"bert\"");
    refuses(&["inspect", &place.name("half")], &["config.json", "JSON"]);
    place.write("half/config.json", "{\"model_type\": \"gpt2\"}");
    refuses(&["inspect", &place.name("half")], &["config.json", "model_type", "gpt2"]);
    std::fs::create_dir(place.path("run")).unwrap();
    place.write("run/recipe.toml", "model = \"x\"\n");
    refuses(&["predict", &place.name("run")], &["no saved model yet", "--resume"]);
}

#[test]
fn a_model_without_a_head_has_no_answers() {
    let place = Place::with_data(4);
    let model = headless(&place);
    refuses(&["predict", &model], &["no task head", "classifier.weight", "finegates train"]);
    refuses(&["eval", &model, "--data", &place.name("dev.csv")], &["no task head"]);
    refuses(&["eval", &model], &["--data", "no run"]);
}

#[test]
fn training_says_what_is_missing_or_wrong() {
    let place = Place::with_data(20);
    let (model, train, dev, output) = (tiny("bert"), place.name("train.csv"), place.name("dev.csv"), place.name("run"));
    refuses(&["train", "--output", &output], &["model", "--model"]);
    refuses(&["train", "--model", &model], &["--output"]);
    refuses(&["train", "--model", &model, "--output", &output], &["data", "--train FILE"]);
    let base = ["train", "--model", &model, "--train", &train, "--validation", &dev, "--output", &output];
    let with = |more: &[&'static str]| base.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>();
    refuses(&with(&["--target-sparsity", "1.5"]), &["target_sparsity", "from 0 to 1", "1.5"]);
    refuses(&with(&["--label", "mood"]), &["train.csv", "no column \"mood\"", "sentence"]);
    refuses(&with(&["--best-metric", "bleu"]), &["best_metric", "accuracy", "bleu"]);
    refuses(&with(&["--method", "lora"]), &["--method", "gates, bitfit, full or gated-full"]);
    refuses(&with(&["--threads", "0"]), &["--threads", "1..=1024"]);
    refuses(&["train", "--resume", &output], &["no run to resume"]);
    assert!(!place.path("run").exists(), "nothing was written");

    run(&with(&["--epochs", "1"])).exits(0);
    refuses(&with(&["--epochs", "1"]), &["not empty", "--resume", "--overwrite"]);
    run(&with(&["--epochs", "1", "--overwrite"])).exits(0);
    refuses(&["train", "--resume", &output, "--seed", "3"], &["seed: was 42, is now 3"]);
    let recipe = place.write("recipe.toml", "target_sparsty = 0.3\n");
    refuses(
        &["train", "--recipe", &recipe, "--output", &output],
        &["recipe.toml", "target_sparsty", "target_sparsity"],
    );
}

#[test]
fn broken_rows_are_named_with_file_and_line() {
    let place = Place::with_data(20);
    let broken = place.write("broken.csv", "sentence,label\ngood,positive\nbad\ndull,negative\nfine,positive\n");
    let (model, dev, output) = (tiny("bert"), place.name("dev.csv"), place.name("run"));
    let base =
        ["train", "--model", &model, "--train", &broken, "--validation", &dev, "--output", &output, "--epochs", "1"];
    refuses(&base, &["broken.csv:3", "expected 2 columns, found 1", "--skip-bad-rows"]);
    let skipped = run(&[&base[..], &["--skip-bad-rows"]].concat()).exits(0);
    skipped.complains("1 broken row");
    refuses(&["eval", &output, "--data", &broken], &["broken.csv:3"]);
    run(&["eval", &output, "--data", &broken, "--skip-bad-rows"]).exits(0).complains("1 broken row");

    let stopped = run(&["predict", &output, &broken]).exits(2);
    stopped.complains("broken.csv:3");
    assert_eq!(stopped.stdout.lines().count(), 1, "what came before is answered");
    let skipped = run(&["predict", &output, &broken, "--skip-bad-rows", "--with-text"]).exits(0);
    skipped.complains("broken.csv:3");
    assert_eq!(skipped.stdout.lines().count(), 3);
    skipped.says("\"line\":5,\"text\":\"fine\"");
    let input = "{\"text\": \"good\"}\nnot json\n";
    let refused = run_with_input(&["predict", &output, "--format", "jsonl"], input).exits(2);
    refused.complains("standard input:2");
    refuses(&["predict", &output, "--text", "sentence"], &["--text", "--format"]);
    refuses(&["predict", &output, "--max-length", "4000"], &["maximum length", "40", "4000"]);
}

#[test]
fn compress_keeps_what_is_there() {
    let place = Place::with_data(40);
    let (model, train, dev) = (tiny("bert"), place.name("train.csv"), place.name("dev.csv"));
    let (output, compact) = (place.name("run"), place.name("compact"));
    run(&["train", "--model", &model, "--train", &train, "--validation", &dev, "--output", &output, "--epochs", "1"])
        .exits(0);
    refuses(&["compress", &model, "--output", &compact], &["checkpoint without gates", "finegates train"]);
    std::fs::create_dir(place.path("compact")).unwrap();
    place.write("compact/precious", "x");
    refuses(&["compress", &output, "--output", &compact], &["compact", "not empty", "--overwrite"]);
    let anyway =
        |folder: &str| refuses(&["compress", &output, "--output", folder, "--overwrite"], &["other than a compact"]);
    anyway(&compact);
    anyway(&output);
    assert!(place.path("compact/precious").exists() && place.path("run/recipe.toml").exists());
    std::fs::remove_file(place.path("compact/precious")).unwrap();
    run(&["compress", &output, "--output", &compact]).exits(0);
    run(&["compress", &output, "--output", &compact, "--overwrite", "--probe", &dev]).exits(0);
    refuses(&["compress", &compact, "--output", &place.name("more")], &["compact already"]);
    refuses(
        &["train", "--model", &compact, "--train", &train, "--validation", &dev, "--output", &place.name("more")],
        &["compact"],
    );
}

#[test]
fn numbers_that_cannot_be_true_are_refused() {
    let place = Place::with_data(40);
    let (model, train, dev) = (tiny("bert"), place.name("train.csv"), place.name("dev.csv"));
    let (output, compact) = (place.name("run"), place.name("compact"));
    run(&["train", "--model", &model, "--train", &train, "--validation", &dev, "--output", &output, "--epochs", "1"])
        .exits(0);
    run(&["compress", &output, "--output", &compact]).exits(0);
    run(&["inspect", &output, "--base", &model]).exits(0);
    refuses(&["inspect", &output, "--base", &tiny("distilbert")], &["adapter_model.safetensors", "another model"]);
    let report = std::fs::read_to_string(place.path("compact/compression.json")).unwrap();
    for (from, to) in [
        ("\"gated_parameters\": ", "\"gated_parameters\": 1"),
        ("\"live_rows\": ", "\"live_rows\": 9"),
        ("\"open_columns\": ", "\"open_columns\": 18446744073709551"),
    ] {
        assert!(report.contains(from));
        place.write("compact/compression.json", &report.replacen(from, to, 1));
        refuses(&["inspect", &compact], &["compression.json"]);
    }
    std::fs::remove_file(place.path("compact/compression.json")).unwrap();
    run(&["inspect", &compact]).exits(0).says("compression.json is missing");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::with_data(20);
    let (model, train, dev, output) = (tiny("bert"), place.name("train.csv"), place.name("dev.csv"), place.name("run"));
    run(&["train", "--model", &model, "--train", &train, "--validation", &dev, "--output", &output, "--epochs", "1"])
        .exits(0);
    let mut child = program::piped(&["predict", &output]);
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    for _ in 0..10_000 {
        if std::io::Write::write_all(&mut stdin, b"the film was good\n").is_err() {
            break;
        }
    }
    drop(stdin);
    let ended = program::ran(child.wait_with_output().unwrap()).exits(0);
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_slow_source_is_answered_line_by_line() {
    let place = Place::with_data(20);
    let (model, train, dev, output) = (tiny("bert"), place.name("train.csv"), place.name("dev.csv"), place.name("run"));
    run(&["train", "--model", &model, "--train", &train, "--validation", &dev, "--output", &output, "--epochs", "1"])
        .exits(0);
    let mut child = program::piped(&["predict", &output]);
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    for line in 1..4 {
        std::io::Write::write_all(&mut stdin, b"the film was good\n").unwrap();
        let mut answer = String::new();
        std::io::BufRead::read_line(&mut stdout, &mut answer).unwrap();
        assert!(answer.starts_with(&format!("{{\"line\":{line},")), "{answer}");
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_authors_adapter_is_read_without_its_base() {
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/fixtures/peft-finegates-roberta-base-mrpc");
    let Some(folder) = fixture.to_str().filter(|_| fixture.is_dir()) else {
        let required = std::env::var_os("FINEGATES_REQUIRE_SHARED").is_some_and(|value| value == "1");
        assert!(!required, "FINEGATES_REQUIRE_SHARED is set and {} is missing", fixture.display());
        eprintln!("skipped: the authors' adapter is not there");
        return;
    };
    let inspected = run(&["inspect", folder, "--json"]).exits(0).json();
    assert_eq!(inspected["gated_parameters"], 84_934_656);
    assert_eq!(inspected["removed_by_gates"], 760_484);
    assert!(inspected["removed_with_liveness"].as_u64().unwrap() >= 760_484);
    assert_eq!(inspected["base_model"], "roberta-base");
    refuses(&["eval", folder, "--data", "x.csv"], &["base model", "roberta-base", "--base"]);
}
