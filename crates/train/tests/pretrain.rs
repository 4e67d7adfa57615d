//! Pretraining: fresh models, weights and gates that train together, runs that are taken up, and what is refused.
#![allow(clippy::unwrap_used)]

mod support;

use finegates_checkpoint::{Adapter, Checkpoint, Config};
use finegates_data::CorpusOptions;
use finegates_model::Method;
use finegates_train::by_name::ByName;
use finegates_train::schedule::Interval;
use finegates_train::{Ending, Event, Initial, Mode, PartialRecipe, Silent, TokenizerSource};
use support::{Workshop, assert_same};

/// A workshop with a corpus and a fresh model in `start/initial`.
fn library() -> Workshop {
    let workshop = Workshop::new("llama3", 2, false);
    let sentence = |number: usize| {
        let (good, bad) = (["good", "great", "fine"][number % 3], ["bad", "dull", "awful"][number % 3]);
        format!("the film was {good} and the plot was not {bad}. ")
    };
    let text = |from: usize, to: usize| (from..to).map(sentence).collect::<String>();
    std::fs::write(workshop.path("text.txt"), text(0, 120)).unwrap();
    std::fs::write(workshop.path("heldout.txt"), text(7, 12)).unwrap();
    initial(&workshop, "model").prepare(&workshop.path("start"), Mode::New, &mut Silent).unwrap();
    workshop
}

fn initial(workshop: &Workshop, config: &str) -> Initial {
    Initial {
        config: workshop.path(config).to_str().unwrap().to_owned(),
        tokenizer: None,
        corpus: CorpusOptions::new(vec![workshop.path("text.txt")]),
        seed: 7,
    }
}

fn recipe(workshop: &Workshop, method: Method) -> PartialRecipe {
    PartialRecipe {
        model: Some(workshop.path("start/initial").to_str().unwrap().to_owned()),
        method: Some(ByName(method)),
        corpus: Some(vec![workshop.path("text.txt")]),
        validation: Some(vec![workshop.path("heldout.txt")]),
        tokens: Some(16 * 4 * 60),
        tokens_per_sequence: Some(16),
        shuffle_window: Some(8),
        batch_size: Some(2),
        gradient_accumulation: Some(2),
        weight_learning_rate: Some(0.02),
        head_learning_rate: Some(0.02),
        bias_learning_rate: Some(0.02),
        weight_decay: Some(0.1),
        evaluate_every: Some(ByName(Interval::Steps(12))),
        checkpoint_every: Some(ByName(Interval::Steps(5))),
        ..PartialRecipe::default()
    }
}

fn paper(workshop: &Workshop) -> PartialRecipe {
    PartialRecipe {
        target_sparsity: Some(0.6),
        sparsity_weight: Some(20.0),
        sparsity_start_step: Some(11),
        gate_learning_rate: Some(0.15),
        ..recipe(workshop, Method::GatedFull)
    }
}

fn budget(workshop: &Workshop) -> PartialRecipe {
    PartialRecipe { budget: Some(ByName("params=0.8,0.4".parse().unwrap())), ..recipe(workshop, Method::GatedFull) }
}

#[test]
fn fresh_weights_learn_the_text_with_gates_and_without() {
    let workshop = library();
    for (name, recipe) in
        [("dense", recipe(&workshop, Method::Full)), ("paper", paper(&workshop)), ("budget", budget(&workshop))]
    {
        let summary = workshop.run(recipe, name, Mode::New).unwrap();
        let journal = workshop.journal(name);
        let steps: Vec<_> = journal.iter().filter(|record| record["kind"] == "step").collect();
        let loss = |at: usize| steps[at]["task_loss"].as_f64().unwrap();
        // Even among 96 tokens at the start.
        assert!((loss(0) - 96f64.ln()).abs() < 0.3, "{name}: {}", loss(0));
        assert!(loss(59) < 0.5 * loss(0), "{name}: {} to {}", loss(0), loss(59));
        let removed = summary.gates.map(|gates| gates.removed);
        match name {
            "dense" => assert_eq!(removed, None),
            "budget" => assert!((summary.stops[1].left - 0.4).abs() < 0.04, "{:?}", summary.stops),
            _ => {
                assert!(removed.unwrap() > 0.1, "{removed:?}");
                for step in &steps {
                    let penalty = step["penalty"].as_f64().unwrap();
                    assert_eq!(penalty > 0.0, step["step"].as_u64().unwrap() >= 11, "{step}");
                }
            }
        }
    }
}

#[test]
fn a_run_with_gates_leaves_whole_models_with_their_gates() {
    let workshop = library();
    workshop.run(budget(&workshop), "run", Mode::New).unwrap();
    for part in ["run/model", "run/best", "run/stops/params-0.8", "run/stops/params-0.4"] {
        let checkpoint = Checkpoint::open(&workshop.path(part)).unwrap();
        assert!(checkpoint.config.is_language_model(), "{part}");
        let start = Checkpoint::open(&workshop.path("start/initial")).unwrap();
        let name = "model.layers.0.self_attn.q_proj.weight";
        let shape = checkpoint.tensors.shape(name).unwrap().to_vec();
        assert_ne!(checkpoint.read(name, &shape).unwrap(), start.read(name, &shape).unwrap(), "{part}");
        let adapter = Adapter::read(&workshop.path(part)).unwrap();
        assert_eq!(adapter.config.base_model_name_or_path, None, "{part}");
        assert_eq!(adapter.gated_modules().count(), 14, "{part}");
    }
}

#[test]
fn stopping_and_going_on_changes_nothing() {
    let workshop = library();
    for (kind, recipe) in [("paper", paper(&workshop)), ("budget", budget(&workshop))] {
        let recipe = PartialRecipe { tokens: Some(16 * 4 * 40), ..recipe };
        workshop.run(recipe.clone(), kind, Mode::New).unwrap();
        for stop in [3, 12, 26, 37] {
            let name = format!("{kind}-{stop}");
            let at = |event: &Event<'_>| matches!(event, Event::Step(record) if record.step == stop);
            let stopped = workshop.run_until(recipe.clone(), &name, Mode::New, at).unwrap();
            assert_eq!((stopped.ending, stopped.step), (Ending::Interrupted, stop));
            workshop.run(PartialRecipe::default(), &name, Mode::Resume).unwrap();
            assert_same(&workshop.result(&name), &workshop.result(kind), &name);
        }
    }
}

#[test]
fn threads_do_not_show_in_the_start_nor_in_the_run() {
    let workshop = library();
    let results = [1, 2].map(|threads| {
        let start = format!("start-{threads}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let trained = Initial { tokenizer: Some(TokenizerSource::Trained(280)), ..initial(&workshop, "small.json") };
        let mut config = Config::read(&workshop.path("model")).unwrap().raw;
        config.insert("vocab_size".to_owned(), 300.into());
        std::fs::write(workshop.path("small.json"), serde_json::Value::Object(config).to_string()).unwrap();
        let made = pool.install(|| trained.prepare(&workshop.path(&start), Mode::New, &mut Silent)).unwrap();
        let files: Vec<_> = ["config.json", "model.safetensors", "tokenizer.json"]
            .map(|file| std::fs::read(made.join(file)).unwrap())
            .into();
        let recipe = PartialRecipe {
            model: Some(made.to_str().unwrap().to_owned()),
            threads: Some(threads),
            batch_size: Some(32),
            gradient_accumulation: Some(1),
            tokens: Some(16 * 32 * 12),
            ..paper(&workshop)
        };
        let name = format!("threads-{threads}");
        workshop.run(recipe, &name, Mode::New).unwrap();
        (files, workshop.result(&name))
    });
    assert_eq!(results[0].0, results[1].0, "the start");
    assert_same(&results[1].1, &results[0].1, "threads");
}

#[test]
fn the_config_follows_the_tokenizer_where_it_may() {
    let workshop = library();
    let made = |initial: Initial, name: &str| initial.prepare(&workshop.path(name), Mode::New, &mut Silent);
    // A size has as many rows as the tokenizer entries, and its ids.
    let size = Initial { config: "llama-9m".to_owned(), ..initial(&workshop, "model") };
    let trained = Initial { tokenizer: Some(TokenizerSource::Trained(270)), ..size.clone() };
    let config = Config::read(&made(trained, "trained").unwrap()).unwrap();
    let decoder = config.decoder.unwrap();
    assert_eq!((config.hidden, config.feed_forward, config.layers, config.heads), (128, 352, 4, 4));
    assert_eq!((config.vocabulary, decoder.end_ids, decoder.begin_id), (270, vec![0], Some(0)));
    // A file keeps its vocabulary, and has to have room.
    let error = Initial { tokenizer: Some(TokenizerSource::Trained(270)), ..initial(&workshop, "model") };
    let error = made(error, "refused").unwrap_err().to_string();
    assert!(error.contains("vocab_size: expected at least 270") && error.contains("found 96"), "{error}");
    assert!(!workshop.path("refused/initial").exists() && !workshop.path("refused/.initial.new").exists());
    let error = made(size, "refused").unwrap_err().to_string();
    assert!(error.contains("--train-tokenizer"), "{error}");
    let unknown = Initial { config: "llama-10m".to_owned(), ..initial(&workshop, "model") };
    let error = made(unknown, "refused").unwrap_err().to_string();
    assert!(error.contains("expected one of llama-9m, llama-20m"), "{error}");
    std::fs::write(workshop.path("broken.json"), "[1]").unwrap();
    let error = made(initial(&workshop, "broken.json"), "refused").unwrap_err().to_string();
    assert!(error.contains("expected an object"), "{error}");
}

/// The start lies in the folder of the run, which stays one to begin in and to begin anew in.
#[test]
fn a_start_in_the_run_folder_is_no_obstacle() {
    let workshop = library();
    let begin = |mode| {
        let made = initial(&workshop, "model").prepare(&workshop.path("run"), mode, &mut Silent).unwrap();
        let recipe = PartialRecipe {
            model: Some(made.to_str().unwrap().to_owned()),
            tokens: Some(16 * 4 * 6),
            ..recipe(&workshop, Method::Full)
        };
        workshop.run(recipe, "run", mode).unwrap();
        workshop.result("run")
    };
    let first = begin(Mode::New);
    assert_same(&begin(Mode::Overwrite), &first, "again");
    let error = initial(&workshop, "model").prepare(&workshop.path("run"), Mode::New, &mut Silent).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    // Moved, it is still taken up.
    std::fs::rename(workshop.path("run"), workshop.path("moved")).unwrap();
    let summary = workshop.run(PartialRecipe::default(), "moved", Mode::Resume).unwrap();
    assert_eq!(summary.step, 6);
}
