//! Timing through the real binary: what is counted, language models, rounds on request, the machine alone.
#![allow(clippy::unwrap_used)]

mod program;

use std::path::Path;

use program::{Place, piped, ran, run, run_with_input, tiny};
use serde_json::Value;

/// A copy of the tiny Llama checkpoint that says it predicts the next token.
fn language_model(place: &Place) -> String {
    let folder = place.path("llama");
    std::fs::create_dir(&folder).unwrap();
    let source = tiny("llama");
    for name in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new(&source).join(name), folder.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(Path::new(&source).join("config.json")).unwrap();
    assert!(config.contains("LlamaForSequenceClassification"));
    std::fs::write(folder.join("config.json"), config.replace("LlamaForSequenceClassification", "LlamaForCausalLM"))
        .unwrap();
    folder.to_str().unwrap().to_owned()
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("{name}: {value}"))
}

/// Multiply-adds a token of the tiny Llama's layers.
const LAYERS: f64 = 2.0 * (2.0 * 32.0 * 32.0 + 2.0 * 32.0 * 16.0 + 3.0 * 32.0 * 48.0);
/// Of its output embedding.
const HEAD: f64 = 96.0 * 32.0;

#[test]
fn the_machine_alone_is_measured() {
    let machine = run(&["bench", "--json", "--threads", "2"]).exits(0).json();
    assert_eq!(machine["threads"], 2);
    let peaks = &machine["peaks"];
    for rate in [number(peaks, "gflops"), number(peaks, "gflops_one_thread")] {
        assert!(rate.is_finite() && rate > 0.1, "{peaks}");
    }
    let instructions = machine["instruction_set"].as_str().unwrap();
    assert_eq!(instructions.contains("for bf16"), peaks.get("bf16").is_some(), "{instructions}: {peaks}");
    assert!(number(&peaks["memory"], "gb_per_second") > 0.01, "{peaks}");
    run(&["bench"]).exits(0).says("GB/s read measured");
    run(&["bench", "--generate", "3"]).exits(2).complains("no model to time");
}

#[test]
fn what_is_computed_is_counted_and_set_against_the_peak() {
    let timed = run(&["bench", &tiny("bert"), "--batch", "3", "--length", "7", "--rounds", "3", "--json"]);
    let timed = timed.exits(0).json();
    let model = &timed["models"][0];
    let (layers, pairs, head) = (2 * (4 * 16 * 16 + 2 * 16 * 28), 2 * 4 * 8, 16 * 16 + 2 * 16);
    let counted = 21 * layers + 3 * 49 * pairs + 3 * head;
    assert_eq!(model["multiply_adds"], counted);
    let gflops = 2.0 * f64::from(counted) / number(model, "median_ms") / 1e6;
    assert!((number(model, "gflops") / gflops - 1.0).abs() < 1e-9, "{model}");
    let share = gflops / number(&timed["peaks"], "gflops");
    assert!((number(model, "share_of_peak") / share - 1.0).abs() < 1e-9, "{model}");
    assert!(model.get("language").is_none(), "{model}");
    #[cfg(unix)]
    assert!(number(model, "cpu_ms") > 0.0, "{model}");
}

#[test]
fn language_models_are_timed_as_such_by_themselves() {
    let place = Place::new();
    let model = language_model(&place);
    let shape = ["--batch", "2", "--length", "8", "--generate", "4", "--rounds", "3", "--warm-up", "1"];
    for (precision, bytes) in [("f32", 4.0), ("bf16", 2.0)] {
        let timed = run(&[&["bench", &model, "--json", "--precision", precision], &shape[..]].concat()).exits(0).json();
        let peaks = &timed["peaks"];
        let peak = if precision == "bf16" { peaks.get("bf16").unwrap_or(peaks) } else { peaks };
        assert_eq!(number(&timed["models"][0], "peak_gflops"), number(peak, "gflops"), "{peaks}");
        let timed = &timed["models"][0];
        assert_eq!(number(timed, "multiply_adds"), 16.0 * LAYERS + 2.0 * (36.0 * 2.0 * 4.0 * 16.0 + HEAD));
        let language = &timed["language"];
        assert_eq!(number(language, "step_bytes"), bytes * (LAYERS + HEAD));
        assert_eq!(language["steps"], 4);
        let (prefill, step) = (number(language, "prefill_ms"), number(language, "step_ms"));
        assert!(prefill > 0.0 && step > 0.0);
        assert!((number(language, "prefill_tokens_per_second") * prefill / 16e3 - 1.0).abs() < 1e-9);
        assert!((number(language, "decode_tokens_per_second") * step / 2e3 - 1.0).abs() < 1e-9);
        let share = number(language, "gb_per_second") / number(language, "measured_gb_per_second");
        assert!((number(language, "share_of_bandwidth") / share - 1.0).abs() < 1e-9);
    }
    let timed = run(&[&["bench", &model, &model], &shape[..]].concat()).exits(0);
    timed.says("then 4 tokens for each");
    timed.says("2 sequences of 8 random tokens");
    let prefill =
        run(&["bench", &model, "--length", "8", "--generate", "0", "--rounds", "2", "--json"]).exits(0).json();
    assert!(prefill["models"][0]["language"].get("step_ms").is_none(), "{prefill}");
    // Beside a classifier it is timed as one, as any checkpoint.
    let beside = run(&["bench", &tiny("llama"), &model, "--length", "8", "--rounds", "2", "--json"]).exits(0).json();
    assert!(beside["models"][1].get("language").is_none());
    assert_eq!(beside["models"][0]["multiply_adds"], beside["models"][1]["multiply_adds"]);
}

#[test]
fn runs_and_compact_models_of_language_are_timed_beside_their_base() {
    let place = Place::new();
    let model = language_model(&place);
    let corpus = place.write("corpus.txt", &"the film was good and the plot was bad\n\n".repeat(60));
    let (runs, compact) = (place.name("run"), place.name("compact"));
    let sparsify = ["sparsify", "--model", &model, "--corpus", &corpus, "--validation", &corpus, "--output", &runs];
    run(&[&sparsify[..], &["--tokens", "400", "--tokens-per-sequence", "16", "--budget", "params=0.7"]].concat())
        .exits(0);
    run(&["compress", &runs, "--output", &compact]).exits(0);
    let shape = ["--length", "8", "--generate", "2", "--rounds", "2", "--json"];
    let timed = run(&[&["bench", &model, &runs, &compact], &shape[..]].concat()).exits(0).json();
    let bytes = |index: usize| number(&timed["models"][index]["language"], "step_bytes");
    assert_eq!(bytes(0), 4.0 * (LAYERS + HEAD));
    assert!(bytes(1) < 0.8 * bytes(0), "closed gates are not counted: {timed}");
    assert_eq!(bytes(1), bytes(2), "units leave nothing to liveness");
    let multiply_adds = |index: usize| number(&timed["models"][index], "multiply_adds");
    assert!(multiply_adds(2) <= multiply_adds(1) && multiply_adds(1) < 0.8 * multiply_adds(0), "{timed}");
    run(&["bench", &runs, "--data", &corpus]).exits(2).complains("is a language model");
    run(&["bench", &tiny("llama"), &runs, "--length", "8"]).exits(2).complains("not beside classifiers");
}

#[test]
fn what_does_not_fit_a_model_is_refused_by_name() {
    let place = Place::new();
    let model = language_model(&place);
    run(&["bench", &model, "--length", "41"]).exits(2).complains("--length: expected 1 to 40 tokens");
    let refused = run(&["bench", &model, "--length", "30", "--generate", "11"]).exits(2);
    refused.complains("--generate: expected at most 10");
    run(&["bench", &tiny("llama"), "--generate", "2"]).exits(2).complains("is a classifier");
    run(&["bench", &model, "--on-request", "--rounds", "2"]).exits(2).complains("--rounds");
}

#[test]
fn rounds_on_request_are_answered_one_by_one() {
    use std::io::{BufRead, BufReader, Write};
    let arguments = ["bench", &tiny("bert"), &tiny("roberta"), "--length", "8", "--on-request", "--json"];
    let mut child = piped(&arguments);
    let (mut stdin, mut answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    let mut answer = || -> Value { serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap() };
    assert_eq!(answer()["ready"].as_array().unwrap().len(), 2);
    let mut times = Vec::new();
    for _ in 0..3 {
        writeln!(stdin, "again").unwrap();
        let round = answer();
        assert_eq!(round["models"].as_array().unwrap().len(), 2);
        times.push(number(&round["models"][1], "ms"));
    }
    drop(stdin);
    let summary = answer();
    assert_eq!(summary["rounds"], 3);
    let summed: Vec<f64> =
        summary["models"][1]["times_ms"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
    assert_eq!(summed, times, "the summary is of the rounds that were answered");
    ran(child.wait_with_output().unwrap()).exits(0);

    let place = Place::new();
    let model = language_model(&place);
    let spoken = run_with_input(&["bench", &model, "--length", "4", "--generate", "2", "--on-request"], "\n").exits(0);
    let round: Value = serde_json::from_str(spoken.stdout.lines().nth(1).unwrap()).unwrap();
    assert!(number(&round["models"][0], "prefill_ms") > 0.0 && number(&round["models"][0], "decode_ms") > 0.0);
    assert_eq!(run_with_input(&arguments, "").exits(0).stdout.lines().count(), 1, "no round, no summary");
}
