//! The loop on a model that is a function of the tokens it has read.
#![allow(clippy::result_large_err, clippy::unwrap_used)]

use std::collections::BTreeMap;

use finegates_infer::Error;
use finegates_infer::generation::{
    Finish, Generated, Generation, GenerationSettings, Generator, Last, NextLogits, Observer, Request,
    SamplingSettings, Start, StopStrings,
};

mod support;

/// Logits that depend on every token of the sequence, and what was asked of the model.
struct Fake {
    vocabulary: usize,
    max_length: usize,
    slots: BTreeMap<usize, Vec<u32>>,
    calls: Vec<(&'static str, usize)>,
    most_running: usize,
    broken_after: Option<usize>,
}

impl Fake {
    fn new(vocabulary: usize) -> Fake {
        let (slots, calls) = (BTreeMap::new(), Vec::new());
        Fake { vocabulary, max_length: 64, slots, calls, most_running: 0, broken_after: None }
    }

    fn write(&self, slot: usize, row: &mut [f32]) {
        let ids = &self.slots[&slot];
        let mut state = 17u64;
        for &id in ids {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(id) + 1);
        }
        for (column, logit) in row.iter_mut().enumerate() {
            let mixed = (state ^ column as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *logit = (mixed >> 40) as f32 / (1 << 24) as f32 * 6.0;
        }
        if self.broken_after.is_some_and(|length| ids.len() >= length) {
            row[3] = f32::NAN;
        }
    }
}

impl NextLogits for Fake {
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn max_length(&self) -> usize {
        self.max_length
    }

    fn start(&mut self, prompts: &[Start<'_>], logits: &mut [f32]) -> Result<(), Error> {
        self.calls.push(("start", prompts.iter().map(|prompt| prompt.ids.len()).sum()));
        assert_eq!(logits.len(), prompts.len() * self.vocabulary);
        for (prompt, row) in prompts.iter().zip(logits.chunks_exact_mut(self.vocabulary)) {
            assert!(self.slots.insert(prompt.slot, prompt.ids.to_vec()).is_none(), "the slot is free");
            self.write(prompt.slot, row);
        }
        self.most_running = self.most_running.max(self.slots.len());
        Ok(())
    }

    fn step(&mut self, tokens: &[Last], logits: &mut [f32]) -> Result<(), Error> {
        self.calls.push(("step", tokens.len()));
        assert_eq!(logits.len(), tokens.len() * self.vocabulary);
        assert_eq!(tokens.len(), self.slots.len(), "every sequence that runs gets its token");
        assert!(tokens.is_sorted_by_key(|token| token.slot));
        for (token, row) in tokens.iter().zip(logits.chunks_exact_mut(self.vocabulary)) {
            let ids = self.slots.get_mut(&token.slot).unwrap();
            ids.push(token.id);
            assert!(ids.len() <= self.max_length);
            self.write(token.slot, row);
        }
        Ok(())
    }

    fn end(&mut self, slot: usize) {
        self.slots.remove(&slot).unwrap();
    }
}

#[derive(Default)]
struct Watcher {
    texts: BTreeMap<usize, String>,
    finished: Vec<(usize, Generated)>,
    steps_left: Option<usize>,
}

impl Observer for Watcher {
    fn text(&mut self, request: usize, piece: &str) {
        assert!(!piece.is_empty());
        self.texts.entry(request).or_default().push_str(piece);
    }

    fn finished(&mut self, request: usize, generated: &Generated) {
        self.finished.push((request, generated.clone()));
    }

    fn interrupted(&mut self) -> bool {
        let left = self.steps_left.map(|left| left.saturating_sub(1));
        std::mem::replace(&mut self.steps_left, left) == Some(0)
    }
}

fn drawing() -> SamplingSettings {
    SamplingSettings { sample: true, temperature: 0.9, repetition_penalty: 1.05, ..SamplingSettings::default() }
}

fn prompts(count: usize) -> Vec<Vec<u32>> {
    (0..count).map(|index| (0..1 + index * 5 % 11).map(|at| (2 + (index * 7 + at * 3) % 60) as u32).collect()).collect()
}

fn requests(prompts: &[Vec<u32>]) -> Vec<Request<'_>> {
    prompts.iter().enumerate().map(|(index, ids)| Request { ids, seed: index as u64 % 3 }).collect()
}

fn run(settings: &GenerationSettings, requests: &[Request<'_>], model: &mut Fake) -> (Generation, Watcher) {
    let tokenizer = support::byte_level();
    let mut watcher = Watcher::default();
    let generator = Generator::new(Some(&tokenizer), settings).unwrap();
    let generation = generator.generate(model, requests, &mut watcher).unwrap();
    assert!(model.slots.is_empty(), "every slot is freed");
    (generation, watcher)
}

fn settings() -> GenerationSettings {
    GenerationSettings {
        sampling: drawing(),
        max_new_tokens: 20,
        end_ids: vec![1, 40, 41],
        stop: StopStrings::new(vec!["#".into(), "ab".into()]).unwrap(),
        ..GenerationSettings::default()
    }
}

#[test]
fn a_text_does_not_depend_on_what_runs_beside_it() {
    let prompts = prompts(23);
    let requests = requests(&prompts);
    let (together, watcher) = run(&settings(), &requests, &mut Fake::new(90));
    let finishes: Vec<Finish> = together.outputs.iter().map(|output| output.finish).collect();
    assert!(finishes.contains(&Finish::Length) && finishes.iter().any(|finish| matches!(finish, Finish::End { .. })));
    assert!(finishes.contains(&Finish::Stop { index: 0 }), "{finishes:?}");
    for (index, output) in together.outputs.iter().enumerate() {
        assert_eq!(watcher.texts.get(&index).map_or("", |text| text), output.text, "what was shown is the text");
        assert!(output.ids.iter().all(|id| !settings().end_ids.contains(id)));
        assert!(!output.text.contains('#'));
    }
    assert_eq!(watcher.finished.len(), requests.len());
    for (sequences, prompt_tokens) in [(1, 2048), (2, 1), (3, 7), (23, 2048), (64, 10)] {
        let mut model = Fake::new(90);
        let settings = GenerationSettings { sequences, prompt_tokens, ..settings() };
        let (found, _) = run(&settings, &requests, &mut model);
        assert_eq!(found.outputs, together.outputs, "{sequences} {prompt_tokens}");
        assert!(model.most_running <= sequences);
        assert!(model.most_running == sequences.min(23) || prompt_tokens < 11, "{}", model.most_running);
        for &(_, tokens) in model.calls.iter().filter(|(call, _)| *call == "start") {
            assert!(tokens <= prompt_tokens.max(11), "{tokens}");
        }
        // The order of the prompts does not matter either.
        let reversed: Vec<Request<'_>> = requests.iter().rev().copied().collect();
        let (mut found, _) = run(&settings, &reversed, &mut Fake::new(90));
        found.outputs.reverse();
        assert_eq!(found.outputs, together.outputs);
    }
}

#[test]
fn a_text_is_what_choosing_token_by_token_gives() {
    let prompts = prompts(6);
    let settings = GenerationSettings { sampling: SamplingSettings::default(), ..settings() };
    let (generation, _) = run(&settings, &requests(&prompts), &mut Fake::new(90));
    let tokenizer = support::byte_level();
    for (prompt, output) in prompts.iter().zip(&generation.outputs) {
        let mut model = Fake::new(90);
        let mut ids = prompt.clone();
        let mut row = vec![0.0; 90];
        let finish = loop {
            model.slots.insert(0, ids.clone());
            model.write(0, &mut row);
            let next = (1..90).fold(0, |best, id| if row[id] > row[best] { id } else { best }) as u32;
            if settings.end_ids.contains(&next) {
                break Finish::End { id: next };
            }
            ids.push(next);
            let text = tokenizer.decode(&ids[prompt.len()..], true).unwrap();
            if let Some(index) = settings.stop.strings().iter().position(|stop| text.contains(stop.as_str())) {
                break Finish::Stop { index };
            }
            if ids.len() - prompt.len() == settings.max_new_tokens {
                break Finish::Length;
            }
        };
        assert_eq!((&output.ids[..], output.finish), (&ids[prompt.len()..], finish));
    }
}

#[test]
fn tokens_are_counted_where_they_are_read() {
    let prompts = prompts(9);
    let settings = GenerationSettings { sequences: 4, ..settings() };
    let mut model = Fake::new(90);
    let (generation, _) = run(&settings, &requests(&prompts), &mut model);
    let timing = generation.timing;
    assert_eq!(timing.prefill_tokens, prompts.iter().map(Vec::len).sum::<usize>());
    let steps: usize = model.calls.iter().filter(|(call, _)| *call == "step").map(|(_, count)| count).sum();
    assert_eq!(timing.decode_tokens, steps);
    // A token is read if another one is chosen after it: all but the last, and that too if an end follows.
    let read = |output: &Generated| output.ids.len() - usize::from(!matches!(output.finish, Finish::End { .. }));
    assert_eq!(steps, generation.outputs.iter().map(read).sum::<usize>());
    assert!(timing.prefill_rate().unwrap() > 0.0 && timing.decode_rate().unwrap() > 0.0);
    let (nothing, _) = run(&settings, &[], &mut Fake::new(90));
    assert_eq!((nothing.outputs.len(), nothing.timing.prefill_rate()), (0, None));
}

#[test]
fn a_sequence_ends_where_the_model_has_no_more_room() {
    let settings = GenerationSettings { end_ids: vec![], stop: StopStrings::default(), ..settings() };
    let prompts = [vec![5; 8], vec![5; 10], vec![6; 3]];
    let mut model = Fake { max_length: 10, ..Fake::new(90) };
    let (generation, _) = run(&settings, &requests(&prompts), &mut model);
    let lengths: Vec<usize> = generation.outputs.iter().map(|output| output.ids.len()).collect();
    assert_eq!(lengths, [2, 1, 7]);
    assert!(generation.outputs.iter().all(|output| output.finish == Finish::Full));
}

#[test]
fn an_interruption_keeps_what_is_there() {
    let settings = GenerationSettings { end_ids: vec![], stop: StopStrings::default(), sequences: 2, ..settings() };
    let prompts = prompts(4);
    let tokenizer = support::byte_level();
    let mut watcher = Watcher { steps_left: Some(4), ..Watcher::default() };
    let mut model = Fake::new(90);
    let generator = Generator::new(Some(&tokenizer), &settings).unwrap();
    let generation = generator.generate(&mut model, &requests(&prompts), &mut watcher).unwrap();
    let lengths: Vec<usize> = generation.outputs.iter().map(|output| output.ids.len()).collect();
    assert_eq!(lengths, [4, 4, 0, 0]);
    assert!(generation.outputs.iter().all(|output| output.finish == Finish::Interrupted));
    assert!(model.slots.is_empty());
    assert_eq!(watcher.texts[&0], generation.outputs[0].text);
    watcher.finished.sort_by_key(|(request, _)| *request);
    let told: Vec<(usize, Generated)> = generation.outputs.into_iter().enumerate().collect();
    assert_eq!(watcher.finished, told, "of those that were still waiting too");
}

#[test]
fn text_that_was_held_back_comes_at_the_end_and_may_still_stop_there() {
    // All bytes of a character but the last, then no more tokens; and a stop string that only the end completes.
    struct Script(Vec<u32>, usize);
    impl Script {
        fn write(&mut self, logits: &mut [f32]) {
            logits.fill(0.0);
            logits[self.0[self.1] as usize] = 9.0;
            self.1 += 1;
        }
    }
    impl NextLogits for Script {
        fn vocabulary(&self) -> usize {
            260
        }
        fn max_length(&self) -> usize {
            99
        }
        fn start(&mut self, _: &[Start<'_>], logits: &mut [f32]) -> Result<(), Error> {
            self.write(logits);
            Ok(())
        }
        fn step(&mut self, _: &[Last], logits: &mut [f32]) -> Result<(), Error> {
            self.write(logits);
            Ok(())
        }
    }
    let tokenizer = support::byte_level();
    let spell = |bytes: &[u8]| -> Vec<u32> { bytes.iter().map(|&byte| u32::from(byte) + 2).collect() };
    let play = |bytes: &[u8], stops: &[&str]| {
        let stop = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect()).unwrap();
        let settings = GenerationSettings { max_new_tokens: bytes.len(), stop, ..GenerationSettings::default() };
        let mut watcher = Watcher::default();
        let generator = Generator::new(Some(&tokenizer), &settings).unwrap();
        let request = [Request { ids: &[9], seed: 0 }];
        let mut generation = generator.generate(&mut Script(spell(bytes), 0), &request, &mut watcher).unwrap();
        let output = generation.outputs.remove(0);
        assert_eq!(watcher.texts.get(&0).map_or("", |text| text), output.text);
        (output.text, output.finish)
    };
    assert_eq!(play(b"ok\xe4\xb8", &[]), ("ok\u{fffd}".into(), Finish::Length));
    assert_eq!(play(b"ok STO", &["STOP"]), ("ok STO".into(), Finish::Length));
    assert_eq!(play(b"ok STOP", &["STOP"]), ("ok ".into(), Finish::Stop { index: 0 }));
    assert_eq!(play(b"ok STOP more", &["more", "STOP"]), ("ok ".into(), Finish::Stop { index: 1 }));
    assert_eq!(play(b"ok\xe4\xb8", &["k\u{fffd}"]), ("o".into(), Finish::Stop { index: 0 }));
}

#[test]
fn what_cannot_be_generated_is_refused_before_or_named() {
    let settings = settings();
    let tokenizer = support::byte_level();
    let generator = Generator::new(Some(&tokenizer), &settings).unwrap();
    let refusal = |ids: &[u32], model: &mut Fake| {
        let requests = [Request { ids: &[2], seed: 0 }, Request { ids, seed: 0 }];
        let error = generator.generate(model, &requests, &mut ()).unwrap_err().to_string();
        (error, model.calls.len())
    };
    let (error, calls) = refusal(&[], &mut Fake::new(90));
    assert!(error.starts_with("prompt 1: expected at least one token") && calls == 0, "{error}");
    let (error, calls) = refusal(&[3; 65], &mut Fake::new(90));
    assert!(error.starts_with("prompt 1: expected at most 64 tokens, found 65") && calls == 0, "{error}");
    let (error, calls) = refusal(&[3, 90], &mut Fake::new(90));
    assert!(error.contains("vocab_size 90, found 90") && calls == 0, "{error}");
    let mut broken = Fake { broken_after: Some(9), ..Fake::new(90) };
    let (error, _) = refusal(&[3; 9], &mut broken);
    assert_eq!(error, "prompt 1: the model's logits for new token 0 are not finite; did its training diverge?");
    for wrong in [
        GenerationSettings { max_new_tokens: 0, ..settings.clone() },
        GenerationSettings { sequences: 0, ..settings.clone() },
        GenerationSettings { prompt_tokens: 0, ..settings.clone() },
        GenerationSettings { sampling: SamplingSettings { temperature: 0.0, ..drawing() }, ..settings.clone() },
    ] {
        assert!(matches!(Generator::new(Some(&tokenizer), &wrong), Err(Error::Setting { .. })));
    }
    assert!(matches!(Generator::new(None, &settings), Err(Error::Setting { setting: "stop strings", .. })));
    let no_text = GenerationSettings { stop: StopStrings::default(), ..settings.clone() };
    let ids_only = Generator::new(None, &no_text).unwrap();
    let generation = ids_only.generate(&mut Fake::new(90), &[Request { ids: &[7], seed: 0 }], &mut ()).unwrap();
    assert!(generation.outputs[0].text.is_empty() && !generation.outputs[0].ids.is_empty());
}
