//! Runs on a corpus: perplexity falls, budgets are met, the same bits whether interrupted or not, and what is refused.
#![allow(clippy::unwrap_used)]

mod support;

use finegates_checkpoint::Adapter;
use finegates_model::Method;
use finegates_train::by_name::ByName;
use finegates_train::schedule::Interval;
use finegates_train::{Ending, Error, Event, Mode, PartialRecipe};
use support::{Workshop, assert_same};

/// A workshop with a folder of text in two files and a validation text.
fn library(family: &str) -> Workshop {
    let workshop = Workshop::new(family, 2, false);
    std::fs::create_dir(workshop.path("texts")).unwrap();
    let sentence = |number: usize| {
        let (good, bad) = (["good", "great", "fine"][number % 3], ["bad", "dull", "awful"][number % 3]);
        format!("the film was {good} and the plot was not {bad}. ")
    };
    let text = |from: usize, to: usize| (from..to).map(sentence).collect::<String>();
    std::fs::write(workshop.path("texts/a.txt"), text(0, 60)).unwrap();
    let lines: Vec<String> =
        (0..20).map(|line| serde_json::json!({"text": text(line, line + 4)}).to_string()).collect();
    std::fs::write(workshop.path("texts/b.jsonl"), lines.join("\n")).unwrap();
    std::fs::write(workshop.path("heldout.txt"), text(7, 12)).unwrap();
    workshop
}

fn recipe(workshop: &Workshop) -> PartialRecipe {
    PartialRecipe {
        model: Some(workshop.path("model").to_str().unwrap().to_owned()),
        corpus: Some(vec![workshop.path("texts")]),
        validation: Some(vec![workshop.path("heldout.txt")]),
        tokens: Some(16 * 4 * 20),
        tokens_per_sequence: Some(16),
        shuffle_window: Some(8),
        batch_size: Some(2),
        gradient_accumulation: Some(2),
        budget: Some(ByName("params=0.8,0.4".parse().unwrap())),
        evaluate_every: Some(ByName(Interval::Steps(6))),
        checkpoint_every: Some(ByName(Interval::Steps(4))),
        ..PartialRecipe::default()
    }
}

#[test]
fn a_decoder_is_sparsified_to_its_budget_without_a_task() {
    for family in ["llama", "llama3", "mistral", "qwen2"] {
        let workshop = library(family);
        let summary = workshop.run(recipe(&workshop), "run", Mode::New).unwrap();
        assert_eq!((summary.ending, summary.step, summary.total_steps), (Ending::Finished, 20, 20), "{family}");
        let left: Vec<f64> = summary.stops.iter().map(|stop| stop.left).collect();
        assert!((left[0] - 0.8).abs() < 0.04 && (left[1] - 0.4).abs() < 0.04, "{family}: {left:?}");
        assert_eq!(summary.best_metric, "perplexity");
        let last = summary.last.unwrap();
        assert!((last.metrics["perplexity"].ln() - last.loss).abs() < 1e-9, "{family}");
        let adapter = Adapter::read(&workshop.path("run/stops/params-0.4")).unwrap();
        assert_eq!(adapter.config.task_type.as_deref(), Some("CAUSAL_LM"));
        let heads = ["score", "lm_head", "embed"];
        assert!(adapter.tensors.keys().all(|name| heads.iter().all(|head| !name.contains(head))), "{family}");
    }
}

#[test]
fn everything_trains_and_learns_the_text() {
    let workshop = library("llama3");
    let recipe = PartialRecipe {
        method: Some(ByName(Method::Full)),
        budget: None,
        weight_learning_rate: Some(0.02),
        head_learning_rate: Some(0.02),
        bias_learning_rate: Some(0.02),
        tokens: Some(16 * 4 * 60),
        ..recipe(&workshop)
    };
    let summary = workshop.run(recipe, "run", Mode::New).unwrap();
    let first = workshop.journal("run").into_iter().find(|record| record["kind"] == "evaluation").unwrap();
    let last = summary.last.unwrap().loss;
    assert!(last < 0.6 * first["loss"].as_f64().unwrap(), "{first} to {last}");
}

#[test]
fn a_run_taught_by_the_dense_model_is_another_and_goes_on_to_the_same_bits() {
    let workshop = library("qwen2");
    let taught = PartialRecipe { distillation: Some(0.5), distillation_temperature: Some(2.0), ..recipe(&workshop) };
    let whole = workshop.run(taught.clone(), "whole", Mode::New).unwrap();
    assert!((whole.stops[1].left - 0.4).abs() < 0.04);
    let untaught = workshop.run(recipe(&workshop), "untaught", Mode::New).unwrap();
    assert_ne!(whole.last.unwrap().loss, untaught.last.unwrap().loss);
    let at = |event: &Event<'_>| matches!(event, Event::Step(record) if record.step == 7);
    workshop.run_until(taught, "part", Mode::New, at).unwrap();
    workshop.run(PartialRecipe::default(), "part", Mode::Resume).unwrap();
    assert_same(&workshop.result("part"), &workshop.result("whole"), "taught");
    let full = PartialRecipe {
        method: Some(ByName(Method::Full)),
        budget: None,
        distillation: Some(0.5),
        ..recipe(&workshop)
    };
    let refused = workshop.run(full, "full", Mode::New);
    assert!(matches!(refused, Err(Error::Recipe(_))), "{refused:?}");
}

#[test]
fn stopping_in_mid_corpus_and_going_on_changes_nothing() {
    let workshop = library("llama");
    // The corpus ends and begins again within the run.
    let recipe = PartialRecipe { tokens: Some(16 * 4 * 40), ..recipe(&workshop) };
    let whole = workshop.run(recipe.clone(), "whole", Mode::New).unwrap();
    for stop in [1, 3, 6, 17, 29] {
        let name = format!("part-{stop}");
        let at = |event: &Event<'_>| matches!(event, Event::Step(record) if record.step == stop);
        let stopped = workshop.run_until(recipe.clone(), &name, Mode::New, at).unwrap();
        assert_eq!((stopped.ending, stopped.step), (Ending::Interrupted, stop));
        let resumed = workshop.run(PartialRecipe::default(), &name, Mode::Resume).unwrap();
        assert_eq!(resumed.step, whole.step);
        assert_same(&workshop.result(&name), &workshop.result("whole"), &name);
    }
}

#[test]
fn one_thread_and_two_give_the_same_bits() {
    let workshop = library("mistral");
    let results = [1, 2].map(|threads| {
        let recipe = PartialRecipe { threads: Some(threads), batch_size: Some(32), ..recipe(&workshop) };
        let name = format!("threads-{threads}");
        workshop.run(PartialRecipe { tokens: Some(16 * 64 * 8), ..recipe }, &name, Mode::New).unwrap();
        workshop.result(&name)
    });
    assert_same(&results[1], &results[0], "threads");
}

#[test]
fn a_corpus_that_changed_is_not_gone_on_with() {
    let workshop = library("llama");
    let at = |event: &Event<'_>| matches!(event, Event::Step(record) if record.step == 5);
    workshop.run_until(recipe(&workshop), "run", Mode::New, at).unwrap();
    std::fs::write(workshop.path("texts/c.txt"), "something else").unwrap();
    let error = workshop.run(PartialRecipe::default(), "run", Mode::Resume).unwrap_err();
    assert!(matches!(error, Error::InputChanged { what: "data", .. }), "{error}");
}

#[test]
fn what_has_no_meaning_on_a_corpus_is_refused() {
    let workshop = library("llama");
    let said = |change: &dyn Fn(&mut PartialRecipe)| {
        let mut recipe = recipe(&workshop);
        change(&mut recipe);
        workshop.run(recipe, "run", Mode::New).unwrap_err().to_string()
    };
    let error = said(&|recipe| recipe.epochs = Some(3.0));
    assert!(error.contains("epochs: only a run on labelled examples has it"), "{error}");
    let error = said(&|recipe| recipe.tokens_per_sequence = Some(41));
    assert!(error.contains("tokens_per_sequence: expected at most 40"), "{error}");
    let error = said(&|recipe| recipe.method = Some(ByName(Method::BitFit)));
    assert!(error.contains("method: expected gates or full"), "{error}");
    let error = said(&|recipe| recipe.perplexity_window = Some(41));
    assert!(error.contains("perplexity_window: expected at most 40 tokens, found 41"), "{error}");
    let error = said(&|recipe| recipe.perplexity_stride = Some(2048));
    assert!(error.contains("perplexity_stride: expected at most 40 tokens, found 2048"), "{error}");
    let error = said(&|recipe| recipe.max_steps = Some(3));
    assert!(error.contains("tokens: max_steps says how long the run is"), "{error}");
    let error = said(&|recipe| recipe.max_length = Some(8));
    assert!(error.contains("max_length: only a run on labelled examples has it"), "{error}");
    std::fs::write(workshop.path("short.txt"), "a").unwrap();
    let error = said(&|recipe| recipe.validation = Some(vec![workshop.path("short.txt")]));
    assert!(error.contains("validation: short: expected at least two tokens"), "{error}");
    assert!(!workshop.path("run/recipe.toml").exists(), "nothing was begun");
    let error = said(&|recipe| recipe.validation = None);
    assert!(error.contains("--validation"), "{error}");
    let error = said(&|recipe| recipe.best_metric = Some("accuracy".to_owned()));
    assert!(error.contains("best_metric: expected perplexity or loss"), "{error}");
    let error = said(&|recipe| recipe.corpus = None);
    assert!(error.contains("--corpus"), "{error}");
    let encoder = library("bert");
    let error = encoder.run(recipe(&encoder), "run", Mode::New).unwrap_err().to_string();
    assert!(error.contains("bert is an encoder"), "{error}");
}

#[test]
fn a_decoder_learns_to_classify() {
    for (family, method) in [("llama", Method::Gates), ("mistral", Method::BitFit), ("qwen2", Method::Full)] {
        let workshop = Workshop::new(family, 200, false);
        let recipe = PartialRecipe {
            method: Some(ByName(method)),
            epochs: Some(12.0),
            gate_learning_rate: Some(0.02),
            bias_learning_rate: Some(0.02),
            head_learning_rate: Some(0.02),
            weight_learning_rate: Some(0.01),
            budget: (method == Method::Gates).then(|| ByName("params=0.7".parse().unwrap())),
            ..workshop.recipe()
        };
        workshop.run(recipe, "run", Mode::New).unwrap();
        // Random frozen layers carry little to the last token; what can be learned from it shows in the loss.
        let steps = workshop.journal("run").into_iter().filter(|record| record["kind"] == "step");
        let losses: Vec<f64> = steps.map(|record| record["task_loss"].as_f64().unwrap()).collect();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..50]), mean(&losses[losses.len() - 50..]));
        assert!(last < 0.9 * first, "{family} {method}: {first} to {last}");
    }
}

/// The data that a step failed on are those it is made with again.
#[test]
fn a_step_that_fails_is_made_again_with_the_same_sequences() {
    let workshop = library("llama");
    let broken = PartialRecipe { gate_learning_rate: Some(1e30), clip_norm: Some(0.0), ..recipe(&workshop) };
    let error = workshop.run(broken, "run", Mode::New).unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
    let (standing, _) = finegates_train::state::read(&workshop.path("run/state/state.safetensors")).unwrap();
    let place = standing.corpus.unwrap();
    assert!(standing.step > 0, "it learned something first");
    // Four sequences a step, eight to a run of shuffled ones; none of those that the failed step read.
    assert_eq!(8 * place.run + place.taken, 4 * standing.step);
    let again = workshop.run(PartialRecipe::default(), "run", Mode::Resume).unwrap_err();
    assert_eq!(again.to_string(), error.to_string());
}

#[test]
fn texts_of_one_name_are_told_apart() {
    let workshop = library("llama");
    std::fs::create_dir(workshop.path("other")).unwrap();
    std::fs::write(workshop.path("other/heldout.txt"), "the plot was dull and the film was not good. ").unwrap();
    let texts = [workshop.path("heldout.txt"), workshop.path("other/heldout.txt")];
    let recipe = PartialRecipe { validation: Some(texts.to_vec()), ..recipe(&workshop) };
    let metrics = workshop.run(recipe, "run", Mode::New).unwrap().last.unwrap().metrics;
    assert_ne!(metrics["heldout_perplexity"], metrics["heldout-2_perplexity"]);
}

/// Both halves of a batch, one after the other, give the gradients of the whole, the padding row's of a tied table included.
#[test]
fn accumulated_passes_give_the_gradients_of_one() {
    use finegates_checkpoint::Checkpoint;
    use finegates_model::{Batch, GateSettings, LoadOptions, Model, Purpose, Task};
    let workshop = library("llama");
    let checkpoint = Checkpoint::open(&workshop.path("model")).unwrap();
    let purpose = Purpose::Training { method: Method::Full, gates: GateSettings::default() };
    let options = LoadOptions { task: Task::Language, purpose, ..LoadOptions::default() };
    // Token 3 is the padding token.
    let sequences = [[10_u32, 3, 20, 21], [3, 30, 3, 31]];
    let gradients = |parts: &[&[[u32; 4]]]| {
        let mut model = Model::load(&checkpoint, &options).unwrap().0;
        model.zero_gradients();
        for part in parts {
            let batch = Batch::new(part.iter().map(|tokens| (&tokens[..], &[0; 4][..])));
            let next = |tokens: &[u32; 4]| [tokens[1], tokens[2], tokens[3], finegates_model::language::NO_TARGET];
            let targets: Vec<u32> = part.iter().flat_map(next).collect();
            model.language_pass(&batch, &targets, 1.0 / 6.0, None, None).unwrap();
        }
        let mut table = Vec::new();
        model.parameters(&mut |parameter| {
            if parameter.name.contains("embed_tokens") {
                table = parameter.gradient.to_vec();
            }
        });
        table
    };
    let whole = gradients(&[&sequences]);
    let parts = gradients(&[&sequences[..1], &sequences[1..]]);
    let worst = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-6, "{worst}");
    assert!(whole[3 * 32..4 * 32].iter().any(|&value| value != 0.0), "the head gives the padding row a gradient");
}
