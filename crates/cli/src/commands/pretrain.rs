//! `finegates pretrain`: a model with fresh weights, and a run on a corpus in which all of them train, with gates or without.

use std::path::Path;

use clap::Args;
use finegates_checkpoint::source;
use finegates_model::Method;
use finegates_train::by_name::ByName;
use finegates_train::recipe::Objective;
use finegates_train::schedule::Shape;
use finegates_train::{Event, Initial, Mode, PartialRecipe, TokenizerSource};

use super::train::{self, TrainArguments};
use crate::arguments::Common;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  finegates pretrain --config llama-9m --train-tokenizer 16000 --corpus texts/ --validation held.txt \\
      --tokens 20000000 --output runs/dense
  finegates pretrain --config llama-9m --tokenizer HuggingFaceTB/SmolLM2-135M --corpus texts/ \\
      --validation held.txt --target-sparsity 0.4 --penalty-from 1000 --output runs/paper
  finegates pretrain --recipe runs/dense/recipe.toml --budget params=0.8,0.6 --output runs/small
  finegates pretrain --resume runs/dense
  finegates compress runs/paper --output models/paper
  finegates generate runs/small/compact/params-0.6 \"Once upon a time\"

--config takes the config.json of a llama, mistral or qwen2, a folder with one, or a size: llama-9m,
20m, 35m, 40m, 60m, 71m, 100m, 130m, 250m, 350m or 1b. Of a size the vocabulary follows from the
tokenizer; that of a file must have room for it. The fresh model is kept in the run folder, in
initial/. With --model in place of --config, training goes on from a model there is.

Every weight trains. With --gates, or any setting of an objective, there are gates on rows and
columns as well; what closes costs nothing in later steps. model/ and best/ are then whole models
with their gates beside them, which compress, perplexity and generate read as they are.";

/// Train a language model from fresh weights, with gates or without
#[derive(Args, Debug)]
pub struct PretrainArguments {
    /// Architecture: a config.json, a folder with one, or a size such as llama-9m
    #[arg(long, value_name = "FILE_OR_SIZE", help_heading = "Start", conflicts_with = "model")]
    config: Option<String>,
    /// Take the tokenizer of this model [default: the one beside config.json]
    #[arg(long, value_name = "MODEL", help_heading = "Start", conflicts_with = "model")]
    tokenizer: Option<String>,
    /// Train a tokenizer on the corpus, with so many entries
    #[arg(long, value_name = "ENTRIES", help_heading = "Start", conflicts_with_all = ["tokenizer", "model"])]
    train_tokenizer: Option<usize>,
    /// Train gates on rows and columns beside the weights: method gated-full
    #[arg(long, help_heading = "Start", conflicts_with_all = ["method", "resume"])]
    gates: bool,
    #[command(flatten)]
    run: TrainArguments,
}

/// The text below the options.
pub fn examples() -> &'static str {
    EXAMPLES
}

/// Runs the command.
pub fn run(arguments: &PretrainArguments, common: &Common) -> anyhow::Result<()> {
    let (folder, mode) = arguments.run.place()?;
    if mode == Mode::Resume {
        if arguments.config.is_some() {
            anyhow::bail!("--config: a run that is resumed has its model already; leave one of the two out");
        }
        return train::run(&arguments.run, common);
    }
    let mut given = arguments.run.settings.clone();
    let objective = given.said_objective();
    match (given.method, objective) {
        // Flags win over a recipe file, also by what they imply.
        (None, objective) if arguments.gates || objective.is_some() => given.method = Some(ByName(Method::GatedFull)),
        (Some(method), Some(objective)) if !method.has_gates() => anyhow::bail!(
            "settings of --objective {objective}: method {method} has no gates to close; leave one of the two out"
        ),
        _ => {}
    }
    let mut settings = with_defaults(given.over(arguments.run.recipe()?))?;
    if settings.corpus.is_none() {
        anyhow::bail!("--corpus: not given; name a text file, or a folder of them, to learn the next token from");
    }
    if let Some(config) = &arguments.config {
        settings.model = Some(initial_model(arguments, config, &settings, (&folder, mode), common)?);
    } else if settings.model.is_none() {
        anyhow::bail!("--config: not given; name a config.json or a size such as llama-9m, or a model with --model");
    }
    train::run_settings(settings, &folder, mode, common)
}

/// Makes the fresh model in the run folder.
fn initial_model(
    arguments: &PretrainArguments,
    config: &str,
    settings: &PartialRecipe,
    (folder, mode): (&Path, Mode),
    common: &Common,
) -> anyhow::Result<String> {
    // Everything that can be wrong with the settings is found before anything is made.
    let recipe = PartialRecipe { model: Some(config.to_owned()), ..settings.clone() }.resolve()?;
    let Some(corpus) = recipe.corpus_options() else { anyhow::bail!("--corpus: not given") };
    let tokenizer = match (&arguments.tokenizer, arguments.train_tokenizer) {
        (Some(model), _) => Some(TokenizerSource::Folder(source::resolve(model, &common.fetch())?)),
        (None, Some(entries)) => Some(TokenizerSource::Trained(entries)),
        (None, None) => None,
    };
    let initial = Initial { config: config.to_owned(), tokenizer, corpus, seed: recipe.seed };
    let mut said = |event: &Event<'_>| {
        if let Event::Note(text) = event {
            output::note(&format!("note: {text}"));
        }
    };
    let path = initial.prepare(folder, mode, &mut said)?;
    let path = path.into_os_string().into_string();
    path.map_err(|path| anyhow::anyhow!("--output: expected a path in UTF-8, found {}", path.display()))
}

/// What holds in pretraining where nobody says otherwise: METHOD.md §4, with the batches of one machine.
fn with_defaults(settings: PartialRecipe) -> anyhow::Result<PartialRecipe> {
    let objective = settings.said_objective();
    let implied = if objective.is_some() { Method::GatedFull } else { Method::Full };
    let method = settings.method.map_or(implied, |method| method.0);
    if !method.trains_everything() {
        anyhow::bail!("--method: expected full or gated-full, for fresh weights have to train, found {method}");
    }
    let paper = method.has_gates() && objective == Some(Objective::Paper);
    let defaults = PartialRecipe {
        method: Some(ByName(method)),
        objective: objective.filter(|_| method.has_gates()).map(ByName),
        gate_learning_rate: Some(0.01),
        bias_learning_rate: Some(0.003),
        head_learning_rate: Some(0.003),
        weight_learning_rate: Some(0.003),
        schedule: Some(ByName(Shape::Cosine)),
        warmup_ratio: Some(0.05),
        learning_rate_floor: Some(0.1),
        weight_decay: Some(0.1),
        beta2: Some(0.95),
        sparsity_weight: paper.then_some(100.0),
        sparsity_start_epoch: (paper && settings.sparsity_start_step.is_none()).then_some(0.1),
        ..PartialRecipe::default()
    };
    let settings = PartialRecipe { method: Some(ByName(method)), ..settings };
    Ok(settings.over(defaults))
}
