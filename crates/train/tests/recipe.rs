//! Recipes: defaults, layers, what is written and read back, what is refused.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use finegates_data::GlueTask;
use finegates_model::{GateSettings, Method, Penalty};
use finegates_train::by_name::ByName;
use finegates_train::recipe::{Objective, PartialRecipe, Recipe, RecipeError, SETTINGS};
use finegates_train::schedule::{Interval, Shape};

fn minimal() -> PartialRecipe {
    PartialRecipe {
        model: Some("org/model".to_owned()),
        data: Some(PathBuf::from("/data")),
        ..PartialRecipe::default()
    }
}

fn parse(text: &str) -> Result<PartialRecipe, RecipeError> {
    PartialRecipe::from_toml(text, Path::new("recipe.toml"))
}

/// With the objective of the paper.
fn paper() -> PartialRecipe {
    PartialRecipe { objective: Some(ByName(Objective::Paper)), ..minimal() }
}

#[test]
fn the_defaults_close_by_a_budget() {
    let recipe = minimal().resolve().unwrap();
    assert_eq!(*recipe.method, Method::Gates);
    assert_eq!(recipe.objective, Some(ByName(Objective::Budget)));
    assert_eq!(recipe.closings().unwrap().budget.to_string(), "params=0.6");
    assert_eq!((recipe.penalty(), recipe.gate_settings()), (None, GateSettings::Direct));
    assert_eq!((recipe.gate_learning_rate, recipe.head_learning_rate, *recipe.schedule), (5e-3, 5e-4, Shape::Linear));
}

#[test]
fn the_papers_objective_has_the_papers_defaults() {
    let recipe = paper().resolve().unwrap();
    assert_eq!(*recipe.method, Method::Gates);
    assert_eq!(recipe.closings(), None);
    let papers = Penalty { target_sparsity: 0.4, weight: 50.0, kurtosis: false, temperature: 100.0 };
    assert_eq!(recipe.penalty(), Some(papers));
    assert_eq!((recipe.gate_learning_rate, recipe.head_learning_rate, *recipe.schedule), (1e-3, 1e-3, Shape::Constant));
    assert_eq!((recipe.batch_size, recipe.max_length, recipe.best_metric.as_str()), (16, 512, "accuracy"));
    let papers = GateSettings::Stochastic { init_mean: 1.0, init_std: 0.1, noise_std: 0.1 };
    assert_eq!(recipe.gate_settings(), papers);
    assert_eq!(recipe.warmup_ratio, 0.0);
}

#[test]
fn a_setting_of_the_paper_means_the_papers_objective() {
    let said = |text: &str| parse(&format!("model = \"m\"\ndata = \"/d\"\n{text}")).unwrap();
    let objective = |partial: PartialRecipe| partial.resolve().unwrap().objective.map(|objective| objective.0);
    assert_eq!(objective(said("")), Some(Objective::Budget));
    assert_eq!(objective(said("target_sparsity = 0.3")), Some(Objective::Paper));
    assert_eq!(objective(said("budget = \"macs=0.5\"")), Some(Objective::Budget));
    assert_eq!(objective(said("method = \"bitfit\"\ntarget_sparsity = 0.3")), None);
    let refused = |text: &str| said(text).resolve().unwrap_err().to_string();
    assert_eq!(
        refused("budget = \"params=0.5\"\nsparsity_weight = 1.0"),
        "budget: belongs to --objective budget, but this run has --objective paper; leave one of the two out"
    );
    assert!(refused("objective = \"budget\"\nkurtosis = true").starts_with("kurtosis: belongs to --objective paper"));
    // Flags change the objective of a recipe, whose settings of the other one are then forgotten.
    let over = |flags: &str, file: &str| parse(flags).unwrap().over(said(file)).resolve().unwrap();
    let budget = over("budget = \"params=0.5\"", "objective = \"paper\"\ntarget_sparsity = 0.3\nsparsity_weight = 1.0");
    assert_eq!((budget.penalty(), budget.closings().unwrap().budget.to_string()), (None, "params=0.5".to_owned()));
    let paper = over("objective = \"paper\"", "budget = \"params=0.5\"\nadapt_ratio = 0.5");
    assert_eq!((paper.budget, paper.target_sparsity), (None, Some(0.4)));
    // So does another method, with the rates that were the first one's.
    let bitfit = over("method = \"bitfit\"", "budget = \"params=0.5\"\nhead_learning_rate = 0.0005");
    assert_eq!((bitfit.budget, bitfit.head_learning_rate), (None, 1e-3));
    assert_eq!(
        refused("method = \"bitfit\"\nbudget = \"params=0.5\""),
        "budget: method bitfit has no gates to close; leave one of the two out"
    );
    let kept = over("seed = 1", "budget = \"params=0.5\"\nadapt_ratio = 0.5");
    assert_eq!(kept.adapt_ratio, Some(0.5));
}

#[test]
fn defaults_follow_method_and_task() {
    let full = PartialRecipe { method: Some(ByName(Method::Full)), task: Some(GlueTask::Stsb), ..minimal() };
    let recipe = full.resolve().unwrap();
    assert_eq!((recipe.bias_learning_rate, *recipe.schedule), (2e-5, Shape::Linear));
    assert_eq!(*recipe.checkpoint_every, Interval::Epochs(1.0));
    assert!(recipe.regression);
    assert_eq!(recipe.best_metric, "pearson");
    let cola = PartialRecipe { task: Some(GlueTask::Cola), ..minimal() };
    assert_eq!(cola.resolve().unwrap().best_metric, "matthews");
}

#[test]
fn every_stated_default_is_the_real_one() {
    let table = |partial: PartialRecipe| -> toml::Table {
        toml::from_str(&partial.resolve().unwrap().to_toml().unwrap()).unwrap()
    };
    let mut values = table(paper());
    let corpus = PartialRecipe { data: None, train: None, corpus: Some(vec![PathBuf::from("/texts")]), ..minimal() };
    values.extend(table(corpus));
    values.extend(table(minimal()));
    for setting in &SETTINGS {
        let Some((_, stated)) = setting.description.split_once("[default: ") else { continue };
        let stated = stated.trim_end_matches(']').split(';').next().unwrap();
        // Of the model, or of another setting.
        if stated.contains(", or ") || stated.starts_with("half") {
            continue;
        }
        if stated.starts_with("found") || stated.starts_with("only for") || stated.starts_with("the task") {
            continue;
        }
        let equal = match &values[setting.name] {
            toml::Value::String(value) => value == stated,
            toml::Value::Boolean(value) => value.to_string() == stated,
            toml::Value::Integer(value) => value.to_string() == stated,
            toml::Value::Float(value) => *value == stated.parse::<f64>().unwrap(),
            other => panic!("{}: {other}", setting.name),
        };
        assert!(equal, "{}: stated {stated}, is {}", setting.name, values[setting.name]);
    }
}

#[test]
fn a_written_recipe_reads_back_the_same() {
    let partial = PartialRecipe {
        task: Some(GlueTask::Mnli),
        train: Some(PathBuf::from("/a/train \"1\".csv")),
        validation: Some(vec![PathBuf::from("/a/b.csv"), PathBuf::from("/a/c.csv")]),
        budget: Some(ByName("latency=3ms,2ms@1x32".parse().unwrap())),
        learning_rate_floor: Some(0.1),
        evaluate_every: Some(ByName(Interval::Epochs(0.25))),
        text_pair: Some("second".to_owned()),
        warmup_steps: Some(7),
        threads: Some(2),
        ..minimal()
    };
    let recipe = partial.resolve().unwrap();
    let text = recipe.to_toml().unwrap();
    let read: Recipe = parse(&text).unwrap().resolve().unwrap();
    assert_eq!(read, recipe);
    assert_eq!(read.to_toml().unwrap(), text);
    assert!(text.contains("# Share of all steps before the first gate closes [default: 0.15]\nadapt_ratio = 0.15\n"));
    assert!(text.contains("budget = \"latency=3ms,2ms@1x32\"\n# ") && text.contains("# target_sparsity is not set\n"));
    let paper = PartialRecipe { kurtosis: Some(true), ..minimal() }.resolve().unwrap();
    assert_eq!(parse(&paper.to_toml().unwrap()).unwrap().resolve().unwrap(), paper);
    assert!(text.contains("# max_steps is not set\n"));
}

#[test]
fn flags_win_over_the_recipe() {
    let file = parse("model = \"m\"\ndata = \"/d\"\nseed = 1\nepochs = 2.5\nevaluate_every = \"50 steps\"").unwrap();
    let flags = PartialRecipe { seed: Some(9), ..PartialRecipe::default() };
    let recipe = flags.over(file).resolve().unwrap();
    assert_eq!((recipe.seed, recipe.epochs, *recipe.evaluate_every), (9, 2.5, Interval::Steps(50)));
}

#[test]
fn data_named_by_flags_replace_the_recipes_as_a_whole() {
    let file = parse("model = \"m\"\ntrain = \"/d/train.csv\"\nvalidation_fraction = 0.1\ntext = \"t\"").unwrap();
    let flags = PartialRecipe { data: Some(PathBuf::from("/other")), ..PartialRecipe::default() };
    let recipe = flags.over(file).resolve().unwrap();
    assert_eq!((recipe.train, recipe.validation_fraction), (None, None));
    assert_eq!((recipe.data, recipe.text.as_deref()), (Some(PathBuf::from("/other")), Some("t")));
}

#[test]
fn mistakes_are_named() {
    let message = |text: &str| parse(text).unwrap_err().to_string();
    assert_eq!(
        message("target-sparcity = 1"),
        "recipe.toml: target-sparcity: no such setting; did you mean target_sparsity?"
    );
    let wrong = message("epochs = \"many\"");
    assert!(wrong.contains("recipe.toml") && wrong.contains("line 1") && wrong.contains("epochs"), "{wrong}");
    let wrong = message("schedule = \"zigzag\"");
    assert!(wrong.contains("expected constant, linear or cosine, found \"zigzag\""), "{wrong}");
    assert!(message("task = \"imdb\"").contains("cola"));
    assert!(message("= 1").contains("line 1"));
    let refused = |partial: PartialRecipe| partial.resolve().unwrap_err().to_string();
    assert_eq!(refused(PartialRecipe::default()), "model: not given; pass --model, or set it in the recipe");
    let sparsity = PartialRecipe { target_sparsity: Some(1.5), ..minimal() };
    assert_eq!(refused(sparsity), "target_sparsity: expected a share from 0 to 1, found 1.5");
    let nan = PartialRecipe { sparsity_weight: Some(f64::NAN), ..minimal() };
    assert_eq!(refused(nan), "sparsity_weight: expected 0 or a number above it, found NaN");
    let metric = PartialRecipe { best_metric: Some("pearson".to_owned()), ..minimal() };
    assert_eq!(refused(metric), "best_metric: expected accuracy, f1, macro_f1, matthews or loss, found pearson");
    let batch = PartialRecipe { batch_size: Some(0), ..minimal() };
    assert_eq!(refused(batch), "batch_size: expected at least 1, found 0");
}

#[test]
fn differences_are_told_by_name() {
    let recipe = minimal().resolve().unwrap();
    let partial = PartialRecipe { seed: Some(42), epochs: Some(3.0), max_steps: Some(5), ..PartialRecipe::default() };
    let differences = partial.differences(&recipe).unwrap();
    assert_eq!(differences, ["epochs: was 10.0, is now 3.0", "max_steps: was not set, is now 5"]);
}

#[test]
fn the_same_paths_given_again_are_no_difference() {
    let given = PartialRecipe {
        model: Some("tests".to_owned()),
        data: None,
        train: Some(PathBuf::from("data/train.tsv")),
        validation: Some(vec![PathBuf::from("dev.tsv")]),
        ..PartialRecipe::default()
    };
    let recipe = given.clone().resolve().unwrap();
    assert!(recipe.train.as_ref().unwrap().is_absolute() && Path::new(&recipe.model).is_absolute());
    assert_eq!(given.differences(&recipe).unwrap(), Vec::<String>::new());
}

#[test]
fn the_largest_numbers_are_kept_and_larger_ones_refused_by_name() {
    const LARGEST: u64 = i64::MAX as u64;
    let with = |seed, steps, size| PartialRecipe {
        seed: Some(seed),
        max_steps: Some(steps),
        warmup_steps: Some(steps),
        batch_size: Some(size),
        max_train_rows: Some(size),
        ..minimal()
    };
    let recipe = with(LARGEST, LARGEST, LARGEST as usize).resolve().unwrap();
    let read: Recipe = parse(&recipe.to_toml().unwrap()).unwrap().resolve().unwrap();
    assert_eq!(read, recipe);
    assert_eq!((read.seed, read.max_steps), (LARGEST, Some(LARGEST)));
    let refused = |partial: PartialRecipe| partial.resolve().unwrap_err().to_string();
    let seed = "seed: expected at most 9223372036854775807, found 9223372036854775808";
    assert_eq!(refused(with(LARGEST + 1, 1, 1)), seed);
    assert!(refused(with(1, u64::MAX, 1)).starts_with("warmup_steps: expected at most 9223372036854775807"));
    assert!(refused(with(1, 1, usize::MAX)).starts_with("max_train_rows: expected at most 9223372036854775807"));
    // A setting given to a resumed run passes no check before it is compared.
    let resolved = minimal().resolve().unwrap();
    assert_eq!(with(LARGEST + 1, 1, 1).differences(&resolved).unwrap_err().to_string(), seed);
}

#[cfg(unix)]
#[test]
fn paths_that_are_no_text_are_refused_by_name() {
    use std::os::unix::ffi::OsStringExt;
    let path = || PathBuf::from(std::ffi::OsString::from_vec(b"/d/\xff.csv".to_vec()));
    let refused = |partial: PartialRecipe| partial.resolve().unwrap_err().to_string();
    let train = PartialRecipe { train: Some(path()), ..minimal() };
    assert_eq!(refused(train), "train: expected a path in UTF-8, found other bytes");
    let validation = PartialRecipe { validation: Some(vec!["/d/a.csv".into(), path()]), ..minimal() };
    assert_eq!(refused(validation), "validation: expected a path in UTF-8, found other bytes");
}

#[test]
fn numbers_are_checked_as_they_are_computed_with() {
    let refused = |text: &str| {
        let partial = parse(text).unwrap().over(minimal());
        partial.resolve().map(|_| format!("{text} passed")).unwrap_or_else(|error| error.to_string())
    };
    for name in ["sparsity_weight", "gate_init_mean", "gate_init_std", "gate_noise_std", "kurtosis_temperature"] {
        let message = refused(&format!("{name} = 1e39"));
        assert!(message.starts_with(&format!("{name}: expected a number that 32 bits can hold")), "{message}");
    }
    assert!(refused("gate_noise_std = 1e38").starts_with("gate_noise_std: "));
    assert_eq!(
        refused("kurtosis_temperature = 1e-40"),
        "kurtosis_temperature: expected at least 1.2e-38, found 0.0000000000000000000000000000000000000001"
    );
    assert!(refused("epsilon = 1e-46").starts_with("epsilon: expected at least 1.2e-38"));
    assert!(refused("head_learning_rate = 1e39").starts_with("head_learning_rate: "));
}

#[test]
fn an_interval_of_nothing_is_refused_by_its_own_name() {
    let every = |evaluate, save| PartialRecipe {
        evaluate_every: Some(ByName(Interval::Steps(evaluate))),
        checkpoint_every: Some(ByName(Interval::Steps(save))),
        ..minimal()
    };
    let refused = |partial: PartialRecipe| partial.resolve().unwrap_err().to_string();
    assert_eq!(refused(every(0, 1)), "evaluate_every: expected an interval above 0, found 0 steps");
    assert_eq!(refused(every(1, 0)), "checkpoint_every: expected an interval above 0, found 0 steps");
}

#[cfg(feature = "clap")]
#[test]
fn every_setting_is_a_flag() {
    use clap::{Args, FromArgMatches};
    let command = PartialRecipe::augment_args(clap::Command::new("train"));
    let flags = [
        "train",
        "--model",
        "m",
        "--data",
        "/d",
        "--kurtosis",
        "--target-sparsity",
        "0.2",
        "--evaluate-every",
        "50 steps",
        "--validation",
        "a.csv",
        "--validation",
        "b.csv",
        "--method",
        "bitfit",
        "--task",
        "sst2",
        "--skip-bad-rows=false",
        "--gate-init-mean",
        "-0.5",
    ];
    let given = PartialRecipe::from_arg_matches(&command.clone().try_get_matches_from(flags).unwrap()).unwrap();
    assert_eq!((given.kurtosis, given.skip_bad_rows, given.target_sparsity), (Some(true), Some(false), Some(0.2)));
    assert_eq!((given.method, given.task), (Some(ByName(Method::BitFit)), Some(GlueTask::Sst2)));
    assert_eq!((given.validation.unwrap().len(), given.seed, given.gate_init_mean), (2, None, Some(-0.5)));
    for setting in &SETTINGS {
        let flag = command.get_arguments().find(|argument| argument.get_id() == setting.name);
        assert_eq!(flag.is_some(), setting.name != "threads", "{}", setting.name);
    }
}
