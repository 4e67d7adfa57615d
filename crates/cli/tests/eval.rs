//! What `eval` makes of labels, folders and tasks, through the real binary.
#![allow(clippy::unwrap_used)]

mod program;

use program::{Place, run, tiny};
use serde_json::Value;

const WORDS: [&str; 5] = ["good", "bad", "great", "dull", "fine"];

/// Pairs of sentences; a pair has class `0` of two if its first word is a kind one.
fn pairs(rows: usize, column: &str, label: impl Fn(usize) -> String) -> String {
    let row = |row: usize| {
        let (first, second) = (WORDS[row * 7 % 5], WORDS[row * 3 % 5]);
        let label = label(usize::from(matches!(first, "bad" | "dull")));
        format!("the film was {first} {row}\tthe plot was {second}\t{label}\n")
    };
    format!("sentence1\tsentence2\t{column}\n{}", (0..rows).map(row).collect::<String>())
}

/// The tiny BERT checkpoint under these labels; with its head turned round, as if trained with the classes in that order.
fn relabelled(place: &Place, name: &str, labels: [&str; 2], turned: bool) -> String {
    let (from, to) = (std::path::PathBuf::from(tiny("bert")), place.path(name));
    std::fs::create_dir(&to).unwrap();
    for file in ["vocab.txt", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["id2label"] = serde_json::json!({"0": labels[0], "1": labels[1]});
    config["label2id"] = serde_json::json!({labels[0]: 0, labels[1]: 1});
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, view)| {
            let mut data = view.data().to_vec();
            if turned && name.starts_with("classifier.") {
                let half = data.len() / 2;
                data.rotate_left(half);
            }
            (name.to_owned(), view.dtype(), view.shape().to_vec(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(to.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    place.name(name)
}

/// The numbers of the one data set that was judged on, without times and names.
#[track_caller]
fn numbers(arguments: &[&str]) -> (Value, Value, Value) {
    let report = run(&[arguments, &["--json"]].concat()).exits(0).json();
    let split = &report["splits"][0];
    (split["metrics"].clone(), split["loss"].clone(), split["majority"].clone())
}

#[test]
fn a_run_is_judged_alike_on_its_own_data_and_on_the_same_file_named() {
    let place = Place::new();
    let data = place.write("dev.tsv", &pairs(50, "label", |class| class.to_string()));
    let named = ["entailment", "not_entailment"];
    let shouted = place.write("shouted.tsv", &pairs(50, "label", |class| named[class].to_uppercase()));
    let base = relabelled(&place, "base", ["not_entailment", "entailment"], false);
    let (runs, compact) = (place.name("run"), place.name("compact"));
    let train = ["train", "--model", &base, "--task", "rte", "--train", &data, "--validation", &data];
    run(&[&train[..], &["--epochs", "4", "--head-learning-rate", "0.05", "--output", &runs]].concat()).exits(0);
    let own = numbers(&["eval", &runs]);
    assert_ne!(own.0["accuracy"], 0.5, "or a swap would not show");
    assert_eq!(numbers(&["eval", &runs, "--data", &data]), own);
    assert_eq!(numbers(&["eval", &runs, "--data", &data, "--task", "rte"]), own);
    run(&["compress", &runs, "--output", &compact]).exits(0);
    let metrics = |more: &[&str]| numbers(&[&["eval", &compact, "--data"], more].concat()).0;
    assert_eq!(metrics(&[&data, "--task", "rte"]), own.0);
    assert_eq!(metrics(&[&shouted, "--task", "rte"])["accuracy"], own.0["accuracy"]);
    assert_eq!(metrics(&[&shouted])["accuracy"], own.0["accuracy"]);
    // Without a task nothing says what 0 is; the model's own numbers are taken and shown.
    let guessed = run(&["eval", &compact, "--data", &data]).exits(0);
    guessed.complains("dev: labels are numbers without names; 0 is not_entailment, 1 is entailment");
}

#[test]
fn the_order_of_a_models_classes_changes_no_number() {
    let place = Place::new();
    let data = place.write("dev.tsv", &pairs(60, "label", |class| class.to_string()));
    let usual = relabelled(&place, "usual", ["not_equivalent", "equivalent"], false);
    let turned = relabelled(&place, "turned", ["Equivalent", "NOT_equivalent"], true);
    let nameless = relabelled(&place, "nameless", ["LABEL_0", "LABEL_1"], false);
    let judged = |model: &str| numbers(&["eval", model, "--task", "mrpc", "--data", &data]);
    let expected = judged(&usual);
    assert!(expected.0["f1"].is_number(), "{}", expected.0);
    assert_eq!(judged(&turned), expected);
    assert_eq!(judged(&nameless), expected);
}

#[test]
fn labels_and_tasks_that_do_not_fit_are_refused() {
    let place = Place::new();
    let data = place.write("dev.tsv", &pairs(10, "score", |class| class.to_string()));
    let model = relabelled(&place, "model", ["spam", "ham"], false);
    let refused = run(&["eval", &model, "--data", &data, "--task", "rte", "--label", "score"]).exits(2);
    for word in ["dev.tsv", "the task rte", "\"spam\", \"ham\"", "\"entailment\", \"not_entailment\""] {
        refused.complains(word);
    }
    let refused = run(&["eval", &model, "--data", &data, "--task", "stsb"]).exits(2);
    refused.complains("the task stsb predicts a number, but the model tells the classes \"spam\", \"ham\"");

    let numbers = place.name("numbers");
    let train = ["train", "--model", &model, "--train", &data, "--validation", &data, "--regression", "--epochs", "1"];
    run(&[&train[..], &["--output", &numbers]].concat()).exits(0);
    let refused = run(&["eval", &numbers, "--data", &data, "--task", "rte"]).exits(2);
    refused.complains("the task rte predicts classes, but the model gives a number");
}

#[test]
fn a_folder_needs_only_its_validation_files() {
    let place = Place::with_data(40);
    std::fs::create_dir(place.path("only")).unwrap();
    std::fs::copy(place.path("dev.csv"), place.path("only/dev.csv")).unwrap();
    let (model, runs, train, dev) = (tiny("bert"), place.name("run"), place.name("train.csv"), place.name("dev.csv"));
    let arguments = ["train", "--model", &model, "--train", &train, "--validation", &dev, "--output", &runs];
    run(&[&arguments[..], &["--epochs", "1"]].concat()).exits(0);
    assert_eq!(numbers(&["eval", &runs, "--data", &place.name("only")]), numbers(&["eval", &runs]));
    std::fs::copy(place.path("dev.csv"), place.path("only/validation.csv")).unwrap();
    let refused = run(&["eval", &runs, "--data", &place.name("only")]).exits(2);
    refused.complains("several files for validation");
    refused.complains("name one with --data");
    let none = run(&["eval", &runs, "--data", &place.name("run/best")]).exits(2);
    none.complains("no file for validation");
}

#[test]
fn a_model_of_numbers_reads_the_numbers_of_a_folder() {
    let place = Place::new();
    let data = place.write("dev.tsv", &pairs(30, "score", |class| format!("{class}.25")));
    let (model, runs) = (tiny("bert"), place.name("run"));
    let train = ["train", "--model", &model, "--train", &data, "--validation", &data, "--regression", "--epochs", "1"];
    run(&[&train[..], &["--output", &runs]].concat()).exits(0);
    let folder = place.name("");
    assert_eq!(numbers(&["eval", &runs, "--data", &folder]), numbers(&["eval", &runs]));
}
