//! The loop: prompts are read, then every sequence gets a token a step until it ends by itself. Sequences run together, as many
//! as there are slots, and a prompt takes the place of one that ended; what each becomes does not depend on the others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use finegates_checkpoint::Tokenizer;

use super::sampling::{Sampler, SamplingSettings};
use super::stop::{StopMatcher, StopStrings};
use super::stream::TextStream;
use crate::error::Error;

/// A prompt that takes a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start<'a> {
    /// The slot, free until now; less than [`GenerationSettings::sequences`].
    pub slot: usize,
    /// The prompt, at least one token.
    pub ids: &'a [u32],
}

/// The last token of a sequence, which its slot has not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// The sequence's slot.
    pub slot: usize,
    /// The token.
    pub id: u32,
}

/// A model that tells what may come next: what the loop needs of a decoder with its key/value cache.
///
/// A row of logits must depend on its own sequence alone, whatever runs beside it.
pub trait NextLogits {
    /// `V`, the columns of a row of logits. Ids are less than that.
    fn vocabulary(&self) -> usize;

    /// The most tokens of a sequence that the model may have read, its prompt included; what it says after the last of them
    /// is one token more.
    fn max_length(&self) -> usize;

    /// Reads whole prompts, each into its slot, and writes the logits after each prompt's last token to `logits`,
    /// `[prompts, V]`.
    ///
    /// # Errors
    /// When the model cannot run; the loop gives up then.
    fn start(&mut self, prompts: &[Start<'_>], logits: &mut [f32]) -> Result<(), Error>;

    /// Reads one token a sequence, in the order of the slots, and writes the logits after each to `logits`, `[tokens, V]`. Slots
    /// that are not named keep what they hold.
    ///
    /// # Errors
    /// As [`NextLogits::start`].
    fn step(&mut self, tokens: &[Last], logits: &mut [f32]) -> Result<(), Error>;

    /// Frees a slot whose sequence has ended.
    fn end(&mut self, _slot: usize) {}
}

/// How text is generated.
#[derive(Clone, Debug)]
pub struct GenerationSettings {
    /// How the next token is chosen.
    pub sampling: SamplingSettings,
    /// The most tokens a sequence gets beyond its prompt.
    pub max_new_tokens: usize,
    /// The tokens that end a text; they are not part of it.
    pub end_ids: Vec<u32>,
    /// The strings that end a text; they are not part of it.
    pub stop: StopStrings,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// The text goes on where the prompt ends, so that a space between them belongs to it; false for an answer in a chat.
    pub continues_prompt: bool,
    /// The most sequences that run together.
    pub sequences: usize,
    /// The most tokens of prompts that are read together; a longer prompt is read alone.
    pub prompt_tokens: usize,
}

impl Default for GenerationSettings {
    fn default() -> GenerationSettings {
        GenerationSettings {
            sampling: SamplingSettings::default(),
            max_new_tokens: 256,
            end_ids: Vec::new(),
            stop: StopStrings::default(),
            skip_special_tokens: true,
            continues_prompt: true,
            sequences: 8,
            prompt_tokens: 2048,
        }
    }
}

/// A prompt to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The prompt's token ids.
    pub ids: &'a [u32],
    /// The seed of its draws: the same prompt and seed give the same text, whatever runs beside it.
    pub seed: u64,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model chose one of the tokens that end a text.
    End {
        /// The token.
        id: u32,
    },
    /// A stop string appeared.
    Stop {
        /// Its index among the stop strings.
        index: usize,
    },
    /// As many tokens were made as was asked for.
    Length,
    /// The model has no room for more.
    Full,
    /// The observer wanted no more.
    Interrupted,
}

/// What became of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens; one that ended the text is not among them, those that spell a stop string are.
    pub ids: Vec<u32>,
    /// Their text, without the stop string that ended it; empty without a tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

/// What a generation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Tokens of prompts that were read.
    pub prefill_tokens: usize,
    /// Time in the model for them. It yields the first new token of each sequence.
    pub prefill: Duration,
    /// Tokens that were read one a step, all sequences together: the new ones but the last of each.
    pub decode_tokens: usize,
    /// Time in the model for them.
    pub decode: Duration,
    /// Time for choosing tokens and making text of them.
    pub choosing: Duration,
}

impl Timing {
    /// Tokens of prompts a second in the model, if any were read.
    pub fn prefill_rate(&self) -> Option<f64> {
        rate(self.prefill_tokens, self.prefill)
    }

    /// Tokens a second in the model after the prompts, if there were any.
    pub fn decode_rate(&self) -> Option<f64> {
        rate(self.decode_tokens, self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

/// All that came of a list of prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// One for each request, in their order.
    pub outputs: Vec<Generated>,
    /// What it took.
    pub timing: Timing,
}

/// Someone who watches texts grow.
pub trait Observer {
    /// A piece of a request's text that is final; never empty. The pieces together are its text.
    fn text(&mut self, _request: usize, _piece: &str) {}

    /// A request is done.
    fn finished(&mut self, _request: usize, _generated: &Generated) {}

    /// Asked before every step: whether all texts shall end where they are.
    fn interrupted(&mut self) -> bool {
        false
    }
}

/// Nobody watches.
impl Observer for () {}

/// Generates text with one tokenizer and one set of settings.
#[derive(Debug)]
pub struct Generator<'a> {
    tokenizer: Option<&'a Tokenizer>,
    settings: &'a GenerationSettings,
}

/// A sequence that runs.
struct Sequence<'a> {
    request: usize,
    slot: usize,
    prompt_tokens: usize,
    sampler: Sampler,
    stream: Option<TextStream<'a>>,
    matcher: StopMatcher<'a>,
    ids: Vec<u32>,
    text: String,
}

impl<'a> Generator<'a> {
    /// Checks the settings. Without a tokenizer there are ids but no text.
    ///
    /// # Errors
    /// [`Error::Setting`] for a setting out of range, or stop strings without a tokenizer.
    pub fn new(tokenizer: Option<&'a Tokenizer>, settings: &'a GenerationSettings) -> Result<Generator<'a>, Error> {
        settings.sampling.check()?;
        let counts = [
            ("max_new_tokens", settings.max_new_tokens),
            ("sequences", settings.sequences),
            ("prompt_tokens", settings.prompt_tokens),
        ];
        for (setting, count) in counts {
            if count == 0 {
                return Err(Error::Setting { setting, expected: "at least 1".to_owned(), found: "0".to_owned() });
            }
        }
        if tokenizer.is_none() && !settings.stop.strings().is_empty() {
            let expected = "none, for without a tokenizer there is no text".to_owned();
            let found = settings.stop.strings().len().to_string();
            return Err(Error::Setting { setting: "stop strings", expected, found });
        }
        Ok(Generator { tokenizer, settings })
    }

    /// Goes on from every prompt until its text ends. Everything about the prompts is checked before the model runs.
    ///
    /// # Errors
    /// [`Error::Prompt`] for a prompt that is empty, too long or has an id the model does not know; [`Error::Logits`] for logits
    /// that are not finite; whatever the model or the tokenizer reports.
    pub fn generate<M: NextLogits + ?Sized>(
        &self,
        model: &mut M,
        requests: &[Request<'_>],
        observer: &mut dyn Observer,
    ) -> Result<Generation, Error> {
        check_requests(model, requests)?;
        let vocabulary = model.vocabulary();
        let mut outputs: Vec<Option<Generated>> = requests.iter().map(|_| None).collect();
        let mut timing = Timing::default();
        let mut waiting: VecDeque<usize> = (0..requests.len()).collect();
        // Slots in descending order, so that the lowest is taken first.
        let mut free: Vec<usize> = (0..self.settings.sequences.min(requests.len())).rev().collect();
        let mut running: Vec<Sequence<'_>> = Vec::new();
        let mut logits = Vec::new();
        loop {
            if observer.interrupted() {
                for sequence in running.drain(..) {
                    model.end(sequence.slot);
                    let request = sequence.request;
                    outputs[request] = Some(self.close(sequence, Finish::Interrupted, observer)?);
                }
                for request in waiting.drain(..) {
                    let never = Generated { ids: Vec::new(), text: String::new(), finish: Finish::Interrupted };
                    observer.finished(request, &never);
                    outputs[request] = Some(never);
                }
                break;
            }
            // Prompts first: a slot that is free is time lost.
            let admitted = self.admit(requests, &mut waiting, &mut free);
            let (range, from_prompts) = if admitted.is_empty() {
                if running.is_empty() {
                    break;
                }
                let tokens: Vec<Last> = running.iter().map(Sequence::last).collect();
                logits.resize(tokens.len() * vocabulary, 0.0);
                let started = Instant::now();
                model.step(&tokens, &mut logits)?;
                timing.decode += started.elapsed();
                timing.decode_tokens += tokens.len();
                (0..running.len(), false)
            } else {
                let prompts: Vec<Start<'_>> =
                    admitted.iter().map(|&(request, slot)| Start { slot, ids: requests[request].ids }).collect();
                logits.resize(prompts.len() * vocabulary, 0.0);
                let started = Instant::now();
                model.start(&prompts, &mut logits)?;
                timing.prefill += started.elapsed();
                timing.prefill_tokens += prompts.iter().map(|prompt| prompt.ids.len()).sum::<usize>();
                let first = running.len();
                for (request, slot) in admitted {
                    running.push(self.open(request, slot, &requests[request])?);
                }
                (first..running.len(), true)
            };
            let started = Instant::now();
            let mut ended = Vec::new();
            for (place, row) in range.zip(logits.chunks_exact_mut(vocabulary)) {
                if let Some(finish) = self.advance(&mut running[place], row, model.max_length(), observer)? {
                    ended.push((place, finish));
                }
            }
            // From the back, so that places stay what they were.
            for (place, finish) in ended.into_iter().rev() {
                let sequence = running.remove(place);
                model.end(sequence.slot);
                free.push(sequence.slot);
                let request = sequence.request;
                outputs[request] = Some(self.close(sequence, finish, observer)?);
            }
            free.sort_unstable_by(|a, b| b.cmp(a));
            if from_prompts {
                running.sort_unstable_by_key(|sequence| sequence.slot);
            }
            timing.choosing += started.elapsed();
        }
        // None is missing: the loop ends when all are done.
        Ok(Generation { outputs: outputs.into_iter().flatten().collect(), timing })
    }

    /// The requests that are read next, each with its slot.
    fn admit(
        &self,
        requests: &[Request<'_>],
        waiting: &mut VecDeque<usize>,
        free: &mut Vec<usize>,
    ) -> Vec<(usize, usize)> {
        let (mut admitted, mut tokens) = (Vec::new(), 0);
        while let (Some(&request), Some(&slot)) = (waiting.front(), free.last()) {
            tokens += requests[request].ids.len();
            if tokens > self.settings.prompt_tokens && !admitted.is_empty() {
                break;
            }
            admitted.push((request, slot));
            waiting.pop_front();
            free.pop();
        }
        admitted
    }

    fn open(&self, request: usize, slot: usize, Request { ids, seed }: &Request<'_>) -> Result<Sequence<'a>, Error> {
        let skip = self.settings.skip_special_tokens;
        let stream = self.tokenizer.map(|tokenizer| match self.settings.continues_prompt {
            true => TextStream::continuing(tokenizer, skip),
            false => TextStream::new(tokenizer, skip),
        });
        Ok(Sequence {
            request,
            slot,
            prompt_tokens: ids.len(),
            sampler: Sampler::new(&self.settings.sampling, *seed, ids)?,
            stream,
            matcher: StopMatcher::new(&self.settings.stop),
            ids: Vec::new(),
            text: String::new(),
        })
    }

    /// Chooses the next token of a sequence, and says whether that ends it.
    fn advance(
        &self,
        sequence: &mut Sequence<'a>,
        logits: &mut [f32],
        max_length: usize,
        observer: &mut dyn Observer,
    ) -> Result<Option<Finish>, Error> {
        let chosen = sequence.sampler.next(logits);
        let (request, position) = (sequence.request, sequence.ids.len());
        let id = chosen.map_err(|found| Error::Logits { request, position, found })?;
        if self.settings.end_ids.contains(&id) {
            return Ok(Some(Finish::End { id }));
        }
        sequence.ids.push(id);
        if let Some(stream) = &mut sequence.stream {
            let piece = stream.push(id)?;
            sequence.show(&piece, observer);
        }
        let room = sequence.prompt_tokens + sequence.ids.len() < max_length;
        Ok(match sequence.matcher.found() {
            Some(index) => Some(Finish::Stop { index }),
            None if sequence.ids.len() >= self.settings.max_new_tokens => Some(Finish::Length),
            None => (!room).then_some(Finish::Full),
        })
    }

    /// Hands out what was held back of a sequence's text.
    fn close(
        &self,
        mut sequence: Sequence<'a>,
        finish: Finish,
        observer: &mut dyn Observer,
    ) -> Result<Generated, Error> {
        let rest = match sequence.stream.take() {
            Some(stream) => stream.finish()?,
            None => String::new(),
        };
        let already = sequence.matcher.found();
        sequence.show(&rest, observer);
        // What was held back may hold a stop string, or complete one.
        let finish = match sequence.matcher.found() {
            Some(index) if already.is_none() => Finish::Stop { index },
            _ => finish,
        };
        let held = std::mem::replace(&mut sequence.matcher, StopMatcher::new(&self.settings.stop)).finish();
        sequence.append(&held, observer);
        let generated = Generated { ids: sequence.ids, text: sequence.text, finish };
        observer.finished(sequence.request, &generated);
        Ok(generated)
    }
}

impl Sequence<'_> {
    fn last(&self) -> Last {
        Last { slot: self.slot, id: self.ids.last().copied().unwrap_or_default() }
    }

    /// Takes a piece of decoded text past the stop strings.
    fn show(&mut self, piece: &str, observer: &mut dyn Observer) {
        let certain = self.matcher.push(piece);
        self.append(&certain, observer);
    }

    fn append(&mut self, text: &str, observer: &mut dyn Observer) {
        if !text.is_empty() {
            self.text.push_str(text);
            observer.text(self.request, text);
        }
    }
}

fn check_requests<M: NextLogits + ?Sized>(model: &M, requests: &[Request<'_>]) -> Result<(), Error> {
    let (vocabulary, most) = (model.vocabulary(), model.max_length());
    for (request, Request { ids, .. }) in requests.iter().enumerate() {
        let wrong = |reason: String| Err(Error::Prompt { request, reason });
        if ids.is_empty() {
            return wrong("expected at least one token, found none; begin with the text's first token".to_owned());
        }
        if ids.len() > most {
            return wrong(format!("expected at most {most} tokens, found {}; shorten it", ids.len()));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return wrong(format!("expected ids less than the model's vocab_size {vocabulary}, found {id}"));
        }
    }
    Ok(())
}
