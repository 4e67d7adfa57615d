//! What runs leave behind: models that can be loaded and judge as recorded, journals, summaries; and what training does.
#![allow(clippy::unwrap_used)]

mod support;

use finegates_checkpoint::{Adapter, Checkpoint, Config, Tokenizer};
use finegates_data::{Dataset, GlueTask};
use finegates_model::{LoadOptions, Method, Model};
use finegates_train::by_name::ByName;
use finegates_train::encoded::Encoded;
use finegates_train::evaluation::{Yardstick, evaluate};
use finegates_train::metrics::Metric;
use finegates_train::recipe::Objective;
use finegates_train::schedule::Interval;
use finegates_train::{Ending, Error, Mode, PartialRecipe};
use support::Workshop;

fn quick(workshop: &Workshop) -> PartialRecipe {
    PartialRecipe {
        epochs: Some(2.0),
        gate_learning_rate: Some(0.02),
        head_learning_rate: Some(0.02),
        ..workshop.recipe()
    }
}

#[test]
fn a_task_is_learned_and_kept_while_gates_close() {
    let workshop = Workshop::new("bert", 200, false);
    // The tiny model is random: nothing is learned by gates alone, so everything is trained first.
    let recipe = PartialRecipe {
        method: Some(ByName(Method::Full)),
        epochs: Some(12.0),
        weight_learning_rate: Some(0.003),
        bias_learning_rate: Some(0.003),
        head_learning_rate: Some(0.003),
        ..workshop.recipe()
    };
    let full = workshop.run(recipe, "full", Mode::New).unwrap();
    assert!(full.best.as_ref().unwrap().score.unwrap() > 0.85, "{full:?}");
    assert_eq!(full.gates, None);
    let recipe = PartialRecipe {
        model: Some(workshop.path("full/best").to_str().unwrap().to_owned()),
        epochs: Some(12.0),
        gate_learning_rate: Some(0.01),
        target_sparsity: Some(0.2),
        sparsity_weight: Some(1.0),
        best_min_removed: Some(0.05),
        ..workshop.recipe()
    };
    let gates = workshop.run(recipe, "gates", Mode::New).unwrap();
    let best = gates.best.unwrap();
    assert!(best.eligible && best.removed >= 0.05 && best.score.unwrap() > 0.85, "{best:?}");
    let shares = gates.gates.unwrap();
    assert!((shares.open + shares.fractional + shares.closed - 1.0).abs() < 1e-12, "{shares:?}");
}

#[test]
fn the_best_adapter_judges_as_recorded() {
    let workshop = Workshop::new("roberta", 60, true);
    // Three classes, so that the checkpoint's own head fits.
    let rows = |name: &str| {
        let text = std::fs::read_to_string(workshop.path(name)).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for line in lines.iter_mut().skip(1).step_by(5) {
            *line = format!("{}\t2", line.split('\t').next().unwrap());
        }
        std::fs::write(workshop.path(name), lines.join("\n")).unwrap();
    };
    rows("train.tsv");
    rows("dev.tsv");
    for method in [Method::Gates, Method::BitFit, Method::Full] {
        let name = method.to_string();
        let recipe = PartialRecipe { method: Some(ByName(method)), ..quick(&workshop) };
        let summary = workshop.run(recipe.clone(), &name, Mode::New).unwrap();
        let folder = workshop.path(&name).join("best");
        let config = Config::read(&folder).unwrap();
        assert_eq!(config.labels, ["0", "1", "2"]);
        let model = if method == Method::Full {
            Model::load(&Checkpoint::open(&folder).unwrap(), &LoadOptions::default()).unwrap().0
        } else {
            let checkpoint = Checkpoint::open(&workshop.path("model")).unwrap();
            let options = LoadOptions { labels: Some(3), ..LoadOptions::default() };
            let (mut model, _) = Model::load(&checkpoint, &options).unwrap();
            model.apply_adapter(&Adapter::read(&folder).unwrap()).unwrap();
            model
        };
        let dataset = Dataset::load(&recipe.resolve().unwrap().dataset_options()).unwrap();
        let tokenizer = Tokenizer::open(&folder, &config).unwrap();
        let split = Encoded::new(&dataset.validation[0], &tokenizer, 32).unwrap();
        let metrics = Metric::of(None, &dataset.labels);
        let scores =
            evaluate(&model, &split, Yardstick { metrics, positive: 1 }, 32, &mut |_, _| true).unwrap().unwrap();
        let best = summary.best.unwrap();
        assert_eq!(Some(scores.metrics[0].1), best.score, "{method}");
        assert!((scores.loss - best.metrics["loss"].unwrap()).abs() < 1e-5, "{method}: {} {best:?}", scores.loss);
    }
}

#[test]
fn accumulated_passes_make_the_step_of_one_large_batch() {
    let workshop = Workshop::new("bert", 22, false);
    // 22 rows in steps of 8: the last step has 6, of which accumulation makes passes of 4 and 2.
    let recipe = |batch_size, accumulation| PartialRecipe {
        method: Some(ByName(Method::BitFit)),
        batch_size: Some(batch_size),
        gradient_accumulation: Some(accumulation),
        ..quick(&workshop)
    };
    workshop.run(recipe(8, 1), "large", Mode::New).unwrap();
    workshop.run(recipe(4, 2), "accumulated", Mode::New).unwrap();
    let (large, accumulated) = (workshop.journal("large"), workshop.journal("accumulated"));
    assert_eq!(large.len(), accumulated.len());
    for (large, accumulated) in large.iter().zip(&accumulated) {
        let loss = |record: &serde_json::Value| record["loss"].as_f64().unwrap();
        assert!((loss(large) - loss(accumulated)).abs() < 1e-4, "{large} {accumulated}");
    }
}

#[test]
fn the_penalty_counts_once_a_step_and_from_its_epoch_on() {
    let workshop = Workshop::new("bert", 24, false);
    let recipe = |accumulation| PartialRecipe {
        gradient_accumulation: Some(accumulation),
        batch_size: Some(12 / accumulation),
        epochs: Some(2.0),
        gate_noise_std: Some(0.0),
        sparsity_start_epoch: Some(0.5),
        ..workshop.recipe()
    };
    workshop.run(recipe(1), "one", Mode::New).unwrap();
    workshop.run(recipe(3), "three", Mode::New).unwrap();
    let penalties = |name: &str| {
        let steps = workshop.journal(name).into_iter().filter(|record| record["kind"] == "step");
        steps.map(|record| record["penalty"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let (one, three) = (penalties("one"), penalties("three"));
    assert_eq!((one[0], three[0]), (0.0, 0.0));
    assert!(one[1] > 1.0 && one.len() == 4, "{one:?}");
    for (one, three) in one.iter().zip(&three) {
        assert!((one - three).abs() < 1e-3, "{one} {three}");
    }
}

#[test]
fn regression_is_trained_and_judged_by_correlation() {
    let workshop = Workshop::new("xlm-roberta", 60, true);
    let recipe = PartialRecipe { regression: Some(true), ..quick(&workshop) };
    let summary = workshop.run(recipe, "run", Mode::New).unwrap();
    assert_eq!(summary.best_metric, "pearson");
    let last = summary.last.unwrap();
    assert!(last.metrics.contains_key("pearson") && last.metrics.contains_key("spearman"), "{last:?}");
    let config = Config::read(&workshop.path("run/adapter")).unwrap();
    assert_eq!(config.problem, Some(finegates_checkpoint::Problem::Regression));
}

#[test]
fn validation_sets_are_judged_apart() {
    let workshop = Workshop::new("bert", 40, true);
    workshop.write_rows("dev_mismatched.tsv", 20, 9);
    std::fs::rename(workshop.path("dev.tsv"), workshop.path("dev_matched.tsv")).unwrap();
    let recipe = PartialRecipe {
        train: None,
        validation: None,
        data: Some(workshop.folder.path().to_owned()),
        length_bucketing: Some(true),
        ..quick(&workshop)
    };
    let summary = workshop.run(recipe, "run", Mode::New).unwrap();
    let last = summary.last.unwrap();
    let names: Vec<_> = last.metrics.keys().map(String::as_str).collect();
    let expected = [
        "matched_accuracy",
        "matched_loss",
        "matched_macro_f1",
        "mismatched_accuracy",
        "mismatched_loss",
        "mismatched_macro_f1",
    ];
    assert_eq!(names, expected);
    assert_eq!(last.score, last.metrics["matched_accuracy"]);
}

#[test]
fn training_ends_early_when_it_gets_no_better() {
    let workshop = Workshop::new("bert", 40, true);
    let recipe = PartialRecipe {
        epochs: Some(50.0),
        early_stopping: Some(2),
        objective: Some(ByName(Objective::Paper)),
        ..Workshop::without_learning(quick(&workshop))
    };
    let summary = workshop.run(recipe, "run", Mode::New).unwrap();
    assert_eq!((summary.ending, summary.epoch), (Ending::EarlyStopped, 3.0));
    assert_eq!(summary.best.unwrap().epoch, 1.0);
    let again = workshop.run(PartialRecipe::default(), "run", Mode::Resume).unwrap();
    assert_eq!((again.ending, again.epoch), (Ending::EarlyStopped, 3.0));
}

#[test]
fn patience_does_not_run_out_before_enough_is_removed() {
    let workshop = Workshop::new("bert", 40, false);
    // Gates that the penalty closes, and nothing that could make the score any better.
    let recipe = PartialRecipe {
        epochs: Some(40.0),
        early_stopping: Some(1),
        best_min_removed: Some(0.3),
        target_sparsity: Some(0.9),
        gate_learning_rate: Some(0.02),
        bias_learning_rate: Some(0.0),
        head_learning_rate: Some(0.0),
        ..quick(&workshop)
    };
    let summary = workshop.run(recipe, "run", Mode::New).unwrap();
    let evaluations: Vec<_> =
        workshop.journal("run").into_iter().filter(|record| record["kind"] == "evaluation").collect();
    let short = |record: &serde_json::Value| record["gates"]["removed"].as_f64().unwrap() < 0.3;
    let waited = evaluations.iter().filter(|record| short(record) && record["best"] == false).count();
    assert!(waited >= 2, "evaluations that are no better come first: {evaluations:?}");
    assert_eq!(summary.ending, Ending::EarlyStopped);
    assert!(summary.best.unwrap().eligible);
}

#[test]
fn every_step_has_gate_noise_of_its_own() {
    let workshop = Workshop::new("bert", 16, false);
    // One batch again and again, nothing trains: only the noise can change the loss.
    let losses = |noise: f64, name: &str| {
        let recipe = PartialRecipe {
            batch_size: Some(16),
            epochs: Some(4.0),
            gate_init_mean: Some(0.2),
            gate_noise_std: Some(noise),
            ..Workshop::without_learning(workshop.recipe())
        };
        workshop.run(recipe, name, Mode::New).unwrap();
        let steps = workshop.journal(name).into_iter().filter(|record| record["kind"] == "step");
        steps.map(|record| record["task_loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let (calm, noisy) = (losses(0.0, "calm"), losses(0.1, "noisy"));
    assert!(calm.windows(2).all(|pair| (pair[0] - pair[1]).abs() < 1e-6), "{calm:?}");
    assert!(noisy.windows(2).all(|pair| (pair[0] - pair[1]).abs() > 1e-5), "{noisy:?}");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_loses_nothing() {
    let workshop = Workshop::new("bert", 40, true);
    let recipe = PartialRecipe {
        method: Some(ByName(Method::Full)),
        weight_learning_rate: Some(1e37),
        head_learning_rate: Some(1e37),
        bias_learning_rate: Some(1e37),
        weight_decay: Some(0.0),
        warmup_ratio: Some(0.0),
        ..quick(&workshop)
    };
    let error = workshop.run(recipe, "run", Mode::New).unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 2.., .. }), "{error}");
    assert!(error.to_string().contains("start another run with lower learning rates"), "{error}");
    assert!(workshop.path("run/state/state.safetensors").is_file());
}

#[test]
fn the_journal_has_every_step_and_the_summary_the_end() {
    let workshop = Workshop::new("distilbert", 30, true);
    let recipe = PartialRecipe {
        task: Some(GlueTask::Sst2),
        max_steps: Some(5),
        evaluate_every: Some(ByName(Interval::Steps(2))),
        ..quick(&workshop)
    };
    // The tiny DistilBERT has three classes; its head is made anew for two.
    workshop.run(recipe, "run", Mode::New).unwrap();
    let journal = workshop.journal("run");
    let kinds: Vec<_> =
        journal.iter().map(|record| (record["kind"].as_str().unwrap(), record["step"].as_u64().unwrap())).collect();
    let expected = [
        ("step", 1),
        ("step", 2),
        ("evaluation", 2),
        ("step", 3),
        ("step", 4),
        ("evaluation", 4),
        ("step", 5),
        ("evaluation", 5),
    ];
    assert_eq!(kinds, expected);
    for key in ["epoch", "loss", "task_loss", "penalty", "gradient_norm", "removed", "tokens", "sequences_per_second"] {
        assert!(journal[0][key].is_number(), "{key}");
    }
    assert_eq!(journal[0]["learning_rates"]["gate"], 0.02);
    assert!(journal[2]["gates"]["open"].is_number() && journal[2]["metrics"]["accuracy"].is_number());
    let summary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(workshop.path("run/summary.json")).unwrap()).unwrap();
    assert_eq!((summary["ending"].as_str(), summary["step"].as_u64()), (Some("finished"), Some(5)));
    let config = Config::read(&workshop.path("run/best")).unwrap();
    assert_eq!(config.labels, ["negative", "positive"]);
}

#[test]
fn a_folder_in_use_is_not_trained_in_twice() {
    let workshop = Workshop::new("bert", 20, true);
    std::fs::create_dir_all(workshop.path("run/state")).unwrap();
    let lock = std::fs::File::create(workshop.path("run/state/lock")).unwrap();
    lock.lock().unwrap();
    let error = workshop.run(quick(&workshop), "run", Mode::Overwrite).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
}

#[test]
fn a_start_that_failed_leaves_the_folder_free_and_a_run_does_not() {
    let workshop = Workshop::new("bert", 20, true);
    let wrong = PartialRecipe { max_length: Some(1), ..quick(&workshop) };
    let error = workshop.run(wrong, "run", Mode::New).unwrap_err().to_string();
    assert!(error.contains("maximal length"), "{error}");
    let recipe = PartialRecipe { max_steps: Some(1), ..quick(&workshop) };
    workshop.run(recipe.clone(), "run", Mode::New).unwrap();
    let error = workshop.run(recipe.clone(), "run", Mode::New).unwrap_err();
    assert!(matches!(error, Error::NotEmpty { .. }), "{error}");
    std::fs::create_dir(workshop.path("mine")).unwrap();
    std::fs::write(workshop.path("mine/recipe.toml"), "seed = 1").unwrap();
    let error = workshop.run(recipe, "mine", Mode::New).unwrap_err();
    assert!(matches!(error, Error::NotEmpty { .. }), "{error}");
}
