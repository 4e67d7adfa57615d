//! A model with its input, ready to be timed: a classifier on texts or tokens, or a language model that reads prompts and
//! goes on token by token.

use std::time::{Duration, Instant};

use anyhow::bail;
use finegates_infer::generation::{Decoder, Last, NextLogits, Start};
use finegates_infer::{Artifact, Encoded, Engine, Loading, Options, Text};
use finegates_kernels::random;
use finegates_model::{Model, Task};

use crate::commands::model::Pair;
use crate::cpu_time;

/// A model with its input.
pub struct Runner {
    pub name: String,
    pub kind: String,
    pub work: Work,
}

/// What is timed.
// There are a few of them, each beside a whole model.
#[allow(clippy::large_enum_variant)]
pub enum Work {
    /// The answers to texts.
    Texts { engine: Engine, encoded: Vec<Encoded> },
    /// Reading prompts, then `steps` tokens for each.
    Language { model: Model, prompts: Vec<Vec<u32>>, steps: usize },
}

/// What one turn of a model took.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    pub elapsed: Duration,
    /// Time of all threads, where the system tells it.
    pub cpu: Option<Duration>,
    /// Of a language model: reading the prompts, and all that follows.
    pub parts: Option<(Duration, Duration)>,
}

/// How many random tokens are read.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub sequences: usize,
    pub length: usize,
}

impl Runner {
    /// A classifier with what it answers.
    pub fn of_texts(name: &str, engine: Engine, encoded: Vec<Encoded>) -> Runner {
        let kind = engine.artifact().kind.to_string();
        Runner { name: name.to_owned(), kind, work: Work::Texts { engine, encoded } }
    }

    /// A classifier that will be given texts, or answers sequences of random tokens in one batch.
    pub fn classifier(
        name: &str,
        artifact: Artifact,
        options: &Options<'_>,
        shape: Option<Shape>,
    ) -> anyhow::Result<Runner> {
        let Some(shape) = shape else {
            return Ok(Runner::of_texts(name, Engine::from_artifact(artifact, options)?, Vec::new()));
        };
        let batch_tokens = options.batch_tokens.or(Some(usize::MAX));
        let engine = Engine::without_tokenizer(artifact, &Options { batch_tokens, ..options.clone() })?;
        fits(name, shape.length, 0, engine.maximum_length())?;
        let as_encoded = |ids: Vec<u32>| Encoded { segments: vec![0; ids.len()], ids, truncated: false };
        let encoded = random_tokens(engine.model(), shape).into_iter().map(as_encoded).collect();
        Ok(Runner::of_texts(name, engine, encoded))
    }

    /// A language model that reads random prompts and then as many random tokens, one a step.
    pub fn language(
        name: &str,
        artifact: &Artifact,
        options: &Options<'_>,
        shape: Shape,
        steps: usize,
    ) -> anyhow::Result<Runner> {
        let checkpoint = artifact.open_checkpoint(&options.fetch)?;
        if artifact.task(&checkpoint)? == Some(Task::Classify) {
            bail!("{name}: is a classifier and predicts no next token; leave --generate out to time its answers");
        }
        let loading = Loading { task: Task::Language, precision: options.precision };
        let (model, _) = artifact.load_model(&checkpoint, &loading)?;
        fits(name, shape.length, steps, model.max_length())?;
        let prompts = random_tokens(&model, shape);
        let kind = artifact.kind.to_string();
        Ok(Runner { name: name.to_owned(), kind, work: Work::Language { model, prompts, steps } })
    }

    /// Sequences of the input.
    pub fn sequences(&self) -> usize {
        match &self.work {
            Work::Texts { encoded, .. } => encoded.len(),
            Work::Language { prompts, .. } => prompts.len(),
        }
    }

    /// Tokens of each sequence of the input.
    pub fn lengths(&self) -> Vec<usize> {
        match &self.work {
            Work::Texts { encoded, .. } => encoded.iter().map(|one| one.ids.len()).collect(),
            Work::Language { prompts, .. } => prompts.iter().map(Vec::len).collect(),
        }
    }

    /// Tokens of the input.
    pub fn tokens(&self) -> usize {
        self.lengths().iter().sum()
    }

    /// The model itself.
    pub fn model(&self) -> &Model {
        match &self.work {
            Work::Texts { engine, .. } => engine.model(),
            Work::Language { model, .. } => model,
        }
    }

    /// Runs once; with `texts`, turning them into tokens is part of it.
    pub fn time(&self, texts: Option<&[Pair]>) -> anyhow::Result<Turn> {
        let (cpu, start) = (cpu_time::spent(), Instant::now());
        let parts = match &self.work {
            Work::Texts { engine, encoded } => {
                let fresh = texts.map(|texts| encode(engine, texts)).transpose()?;
                std::hint::black_box(engine.logits_of(fresh.as_ref().unwrap_or(encoded))?);
                None
            }
            Work::Language { model, prompts, steps } => Some(generate(model, prompts, *steps)?),
        };
        let elapsed = start.elapsed();
        let cpu = cpu_time::spent().zip(cpu).map(|(after, before)| after.saturating_sub(before));
        Ok(Turn { elapsed, cpu, parts })
    }
}

/// Reads prompts and then `steps` tokens a prompt: how long either took. Which tokens does not matter, so none is chosen.
fn generate(model: &Model, prompts: &[Vec<u32>], steps: usize) -> anyhow::Result<(Duration, Duration)> {
    let started = Instant::now();
    let mut decoder = Decoder::new(model);
    let starts: Vec<Start<'_>> = prompts.iter().enumerate().map(|(slot, ids)| Start { slot, ids }).collect();
    let mut logits = vec![0.0; prompts.len() * decoder.vocabulary()];
    decoder.start(&starts, &mut logits)?;
    let read = started.elapsed();
    for step in 0..steps {
        let last = |(slot, ids): (usize, &Vec<u32>)| Last { slot, id: ids[step % ids.len()] };
        let tokens: Vec<Last> = prompts.iter().enumerate().map(last).collect();
        decoder.step(&tokens, &mut logits)?;
    }
    std::hint::black_box(&logits);
    Ok((read, started.elapsed().saturating_sub(read)))
}

/// Texts as an engine reads them.
pub fn encode(engine: &Engine, texts: &[Pair]) -> anyhow::Result<Vec<Encoded>> {
    let texts: Vec<Text<'_>> = texts.iter().map(|(text, pair)| Text { text, pair: pair.as_deref() }).collect();
    Ok(engine.encode(&texts)?)
}

/// Refuses more tokens than a model takes.
fn fits(name: &str, length: usize, steps: usize, longest: usize) -> anyhow::Result<()> {
    if length > longest {
        bail!("{name}: --length: expected 1 to {longest} tokens, which is what this model takes, found {length}");
    }
    if steps > longest - length {
        let left = longest - length;
        bail!("{name}: --generate: expected at most {left}, for this model takes {longest} tokens, found {steps}");
    }
    Ok(())
}

/// Sequences of arbitrary token ids, the same for every model of one vocabulary.
fn random_tokens(model: &Model, shape: Shape) -> Vec<Vec<u32>> {
    let config = model.config();
    let (vocabulary, padding) = (config.vocabulary as u64, config.padding_id);
    let token = |sequence: usize, at: usize| {
        let id = u32::try_from(random::mix(sequence as u64, at as u64) % vocabulary).unwrap_or(0);
        if id == padding { (id + 1) % u32::try_from(vocabulary).unwrap_or(u32::MAX) } else { id }
    };
    (0..shape.sequences).map(|sequence| (0..shape.length).map(|at| token(sequence, at)).collect()).collect()
}
