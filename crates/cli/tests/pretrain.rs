//! `finegates pretrain` through the real binary, up to text from what it left.
#![allow(clippy::unwrap_used)]

mod program;

use std::path::Path;

use program::run;

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 64}"#;

fn prepared(folder: &Path) -> impl Fn(&str) -> String {
    let sentence = |number: usize| {
        let (good, bad) = (["good", "great", "fine"][number % 3], ["bad", "dull", "awful"][number % 3]);
        format!("the film was {good} and the plot was not {bad}. ")
    };
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    std::fs::write(folder.join("text.txt"), (0..200).map(sentence).collect::<String>()).unwrap();
    std::fs::write(folder.join("held.txt"), (5..15).map(sentence).collect::<String>()).unwrap();
    let folder = folder.to_owned();
    move |name: &str| folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_model_is_pretrained_with_gates_compressed_and_speaks() {
    let folder = tempfile::tempdir().unwrap();
    let path = prepared(folder.path());
    let (config, text, held) = (path("config.json"), path("text.txt"), path("held.txt"));
    let (out, compact) = (path("run"), path("compact"));
    let start = [
        "pretrain",
        "--config",
        &config,
        "--train-tokenizer",
        "300",
        "--corpus",
        &text,
        "--validation",
        &held,
        "--tokens-per-sequence",
        "32",
        "--batch-size",
        "4",
        "--json",
        "--output",
        &out,
    ];
    let gates =
        ["--target-sparsity", "0.6", "--sparsity-weight", "20", "--gate-learning-rate", "0.1", "--penalty-from", "10"];
    let outcome = run(&[&start[..], &gates, &["--max-steps", "60"]].concat()).exits(0).json();
    assert_eq!(outcome["step"], 60);
    assert!(outcome["gates"]["removed"].as_f64().unwrap() > 0.05, "{outcome}");
    let recipe = std::fs::read_to_string(path("run/recipe.toml")).unwrap();
    for line in ["method = \"gated-full\"", "sparsity_start_step = 10", "schedule = \"cosine\"", "weight_decay = 0.1"] {
        assert!(recipe.lines().any(|found| found == line), "{line}:\n{recipe}");
    }
    // The law: what is written is read back and compared; the models then say the same.
    let report = run(&["compress", &out, "--output", &compact, "--checkpoint", "last", "--json"]).exits(0).json();
    assert!(report["verification"]["sequences"].as_u64().unwrap() > 0, "{report}");
    assert!(report["removed_with_liveness"].as_u64().unwrap() > 0, "{report}");
    let perplexity = |model: &str| {
        let which: &[&str] = if model == out { &["--checkpoint", "last"] } else { &[] };
        let found = run(&[&["perplexity", model, &held, "--json"], which].concat()).exits(0).json();
        found["perplexity"].as_f64().unwrap_or_else(|| panic!("{found}"))
    };
    let (gated, small) = (perplexity(&out), perplexity(&compact));
    assert!((gated / small - 1.0).abs() < 1e-3 && gated < 60.0, "{gated} {small}");
    let last = ["generate", &out, "the film", "-n", "4", "--greedy", "--checkpoint", "last"];
    let said = run(&last).exits(0).stdout;
    assert_eq!(said, run(&["generate", &compact, "the film", "-n", "4", "--greedy"]).exits(0).stdout);
    // It is what `inspect` says it is, and a run as any other to resume.
    run(&["inspect", &out]).exits(0);
    run(&["pretrain", "--resume", &out]).exits(0);
}

#[test]
fn the_same_start_serves_runs_of_other_methods() {
    let folder = tempfile::tempdir().unwrap();
    let path = prepared(folder.path());
    let (config, text, held) = (path("config.json"), path("text.txt"), path("held.txt"));
    let (dense, small) = (path("dense"), path("small"));
    let settings = ["--corpus", &text, "--validation", &held, "--tokens-per-sequence", "32", "--batch-size", "4"];
    let start = ["pretrain", "--config", &config, "--train-tokenizer", "300", "--max-steps", "12", "--output", &dense];
    run(&[&start[..], &settings].concat()).exits(0);
    let recipe = path("dense/recipe.toml");
    run(&["pretrain", "--recipe", &recipe, "--budget", "params=0.7", "--output", &small]).exits(0).says("kept");
    let held_perplexity = run(&["perplexity", &path("small/compact/params-0.7"), &held, "--json"]).exits(0).json();
    assert!(held_perplexity["perplexity"].as_f64().unwrap() > 1.0);
    let of = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    let (whole, gated) = (of("dense/recipe.toml"), of("small/recipe.toml"));
    for line in ["weight_learning_rate = 0.003", "learning_rate_floor = 0.1", "beta2 = 0.95"] {
        assert!(whole.contains(line) && gated.contains(line), "{line}");
    }
    assert!(gated.contains("method = \"gated-full\"") && gated.contains("dense/initial"), "{gated}");
}

#[test]
fn what_cannot_be_begun_is_said_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = prepared(folder.path());
    let (config, text, held, out) = (path("config.json"), path("text.txt"), path("held.txt"), path("run"));
    let base = ["pretrain", "--output", &out, "--corpus", &text, "--validation", &held];
    let refused = |more: &[&str], words: &str| run(&[&base[..], more].concat()).exits(2).complains(words);
    refused(&[], "--config: not given");
    refused(&["--config", "llama-9m"], "--train-tokenizer");
    refused(&["--config", "llama-8m", "--train-tokenizer", "300"], "expected one of llama-9m");
    let small = path("small.json");
    std::fs::write(&small, CONFIG.replace("320", "280")).unwrap();
    refused(&["--config", &small, "--train-tokenizer", "400", "--tokens-per-sequence", "32"], "found 280");
    refused(&["--config", &config, "--train-tokenizer", "300", "--method", "gates"], "expected full or gated-full");
    refused(
        &["--config", &config, "--train-tokenizer", "300", "--method", "full", "--budget", "params=0.5"],
        "no gates",
    );
    refused(&["--config", &config, "--train-tokenizer", "300", "--tokens-per-sequence", "1"], "at least 2");
    assert!(!Path::new(&path("run/initial")).exists());
    run(&["pretrain", "--output", &out, "--config", "llama-9m"]).exits(2).complains("--corpus: not given");
}

#[test]
fn overwriting_leaves_the_old_run_whole_until_the_new_one_can_begin() {
    let folder = tempfile::tempdir().unwrap();
    let path = prepared(folder.path());
    let (config, text, held, out) = (path("config.json"), path("text.txt"), path("held.txt"), path("run"));
    let settings = ["--corpus", &text, "--tokens-per-sequence", "32", "--batch-size", "4", "--max-steps", "6"];
    let start = ["pretrain", "--config", &config, "--train-tokenizer", "300", "--output", &out];
    let begin = |more: &[&str]| run(&[&start[..], &settings, more].concat());
    begin(&["--validation", &held]).exits(0);
    let weights = || std::fs::read(path("run/initial/model.safetensors")).unwrap();
    let first = weights();
    begin(&["--validation", &path("none.txt"), "--overwrite", "--seed", "7"]).exits(2).complains("none.txt");
    assert_eq!(weights(), first, "what the old run began with");
    run(&["pretrain", "--resume", &out]).exits(0);
    // A folder that only has the name is somebody's.
    std::fs::create_dir(path("run/initial-9")).unwrap();
    std::fs::write(path("run/initial-9/mine.txt"), "mine").unwrap();
    begin(&["--validation", &held, "--overwrite", "--seed", "7"]).exits(0);
    assert!(Path::new(&path("run/initial-9/mine.txt")).is_file());
    let recipe = std::fs::read_to_string(path("run/recipe.toml")).unwrap();
    let model = recipe.lines().find_map(|line| line.strip_prefix("model = ")).unwrap().trim_matches('"').to_owned();
    assert!(Path::new(&model).join("initial.json").is_file(), "{model}");
    assert!(!Path::new(&path("run/initial/initial.json")).exists(), "the old run's start is gone: {model}");
    run(&["pretrain", "--resume", &out]).exits(0);
}
