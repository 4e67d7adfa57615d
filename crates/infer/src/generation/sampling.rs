//! From one row of logits to the next token: repetition penalty, temperature, top-k, top-p, min-p in transformers' order,
//! then the likeliest token or a draw. A draw is a pure function of the seed, the number of tokens drawn before and the
//! logits.

use finegates_checkpoint::GenerationConfig;
use finegates_kernels::random;

use super::candidates::Candidates;
use crate::error::Error;

/// How the next token is chosen. The default is transformers': the likeliest one; and where tokens are drawn, from
/// the 50 likeliest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingSettings {
    /// Draw tokens by their probabilities; otherwise take the likeliest (the first of equals), and of the settings
    /// below only [`SamplingSettings::repetition_penalty`] counts.
    pub sample: bool,
    /// What scores are divided by; above 0. Below 1 likely tokens become likelier.
    pub temperature: f32,
    /// Draw from so many of the likeliest tokens, and those as likely as the last of them; 0 for no limit.
    pub top_k: usize,
    /// Draw from the fewest of the likeliest tokens that have this probability together; from 0 to 1, 1 for all.
    pub top_p: f32,
    /// Draw from tokens at least this likely, relative to the likeliest; from 0 to 1, 0 for all.
    pub min_p: f32,
    /// Scores of tokens that the prompt or the text has already are divided by this if positive, multiplied if negative (Keskar
    /// et al., 2019); above 0, 1 for none.
    pub repetition_penalty: f32,
}

impl Default for SamplingSettings {
    fn default() -> SamplingSettings {
        SamplingSettings { sample: false, temperature: 1.0, top_k: 50, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// What a user asks for beside what a model's `generation_config.json` says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingChanges {
    /// Whether tokens are drawn. Without it they are if the model's file says so or one of the settings is given
    /// that only drawing knows.
    pub sample: Option<bool>,
    /// As [`SamplingSettings::temperature`].
    pub temperature: Option<f32>,
    /// As [`SamplingSettings::top_k`].
    pub top_k: Option<usize>,
    /// As [`SamplingSettings::top_p`].
    pub top_p: Option<f32>,
    /// As [`SamplingSettings::min_p`].
    pub min_p: Option<f32>,
    /// As [`SamplingSettings::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
}

impl SamplingSettings {
    /// The settings of a model's file, transformers' defaults where it is silent, and a user's changes over both.
    ///
    /// # Errors
    /// As [`SamplingSettings::check`]; and when changes ask for the likeliest token and for a way of drawing.
    pub fn resolve(config: &GenerationConfig, changes: &SamplingChanges) -> Result<SamplingSettings, Error> {
        let default = SamplingSettings::default();
        let drawing = [
            ("temperature", changes.temperature.map(|value| value.to_string())),
            ("top_k", changes.top_k.map(|value| value.to_string())),
            ("top_p", changes.top_p.map(|value| value.to_string())),
            ("min_p", changes.min_p.map(|value| value.to_string())),
        ];
        let drawing = drawing.into_iter().find_map(|(setting, value)| Some((setting, value?)));
        if let (Some(false), Some((setting, found))) = (changes.sample, &drawing) {
            let expected = "nothing where the likeliest token is always taken".to_owned();
            return Err(Error::Setting { setting, expected, found: found.clone() });
        }
        let settings = SamplingSettings {
            sample: changes.sample.unwrap_or(drawing.is_some() || config.sample.unwrap_or(default.sample)),
            temperature: changes.temperature.or(config.temperature).unwrap_or(default.temperature),
            top_k: changes.top_k.or(config.top_k).unwrap_or(default.top_k),
            top_p: changes.top_p.or(config.top_p).unwrap_or(default.top_p),
            min_p: changes.min_p.or(config.min_p).unwrap_or(default.min_p),
            repetition_penalty: changes
                .repetition_penalty
                .or(config.repetition_penalty)
                .unwrap_or(default.repetition_penalty),
        };
        settings.check()?;
        Ok(settings)
    }

    /// Checks that tokens can be chosen so. The temperature counts only where tokens are drawn: files of models that do not
    /// draw have 0 there.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first setting out of range.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |setting: &'static str, expected: &str, found: f32| {
            Err(Error::Setting { setting, expected: expected.to_owned(), found: found.to_string() })
        };
        let positive = |number: f32| number > 0.0 && number.is_finite();
        if self.sample && !positive(self.temperature) {
            let expected = "a number above 0 (for the likeliest token each time, do not draw: no temperature)";
            return wrong("temperature", expected, self.temperature);
        }
        for (setting, share) in [("top_p", self.top_p), ("min_p", self.min_p)] {
            if !(0.0..=1.0).contains(&share) {
                return wrong(setting, "a number from 0 to 1", share);
            }
        }
        if !positive(self.repetition_penalty) {
            return wrong("repetition_penalty", "a number above 0 (1 for none)", self.repetition_penalty);
        }
        Ok(())
    }
}

/// Chooses the tokens of one sequence, one after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    settings: SamplingSettings,
    key: u64,
    /// Tokens chosen so far.
    chosen: u64,
    seen: Seen,
    candidates: Candidates,
}

/// The distinct ids of a sequence, kept only where there is a penalty for repeating them.
#[derive(Clone, Debug, Default)]
struct Seen {
    ids: Vec<u32>,
    bits: Vec<u64>,
}

impl Seen {
    fn add(&mut self, id: u32) {
        let (word, bit) = (id as usize / 64, 1 << (id % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit == 0 {
            self.bits[word] |= bit;
            self.ids.push(id);
        }
    }
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`. Sequences with the same seed and the same logits get the same tokens.
    ///
    /// # Errors
    /// As [`SamplingSettings::check`].
    pub fn new(settings: &SamplingSettings, seed: u64, prompt: &[u32]) -> Result<Sampler, Error> {
        settings.check()?;
        let mut seen = Seen::default();
        if settings.repetition_penalty != 1.0 {
            prompt.iter().for_each(|&id| seen.add(id));
        }
        let key = random::derive(seed, "tokens");
        Ok(Sampler { settings: *settings, key, chosen: 0, seen, candidates: Candidates::default() })
    }

    /// The next token, which counts as part of the sequence from now on. The logits `[V]` are changed in place.
    ///
    /// # Errors
    /// What the logits are, in words, when they are no distribution: NaN or infinite ones, none, or all of them minus infinity.
    pub fn next(&mut self, logits: &mut [f32]) -> Result<u32, &'static str> {
        let id = self.choose(logits)?;
        self.chosen += 1;
        if self.settings.repetition_penalty != 1.0 {
            self.seen.add(id);
        }
        Ok(id)
    }

    /// The tokens that may come next, with their scores after the penalty and the temperature, in the order of their ids. Nothing
    /// is chosen. Without drawing it is the one that would be taken.
    ///
    /// # Errors
    /// As [`Sampler::next`].
    pub fn candidates(&mut self, logits: &mut [f32]) -> Result<Vec<(u32, f32)>, &'static str> {
        if let Some(id) = self.narrow(logits)? {
            return Ok(vec![(id, logits[id as usize])]);
        }
        Ok(self.candidates.ids.iter().copied().zip(self.candidates.scores.iter().copied()).collect())
    }

    fn choose(&mut self, logits: &mut [f32]) -> Result<u32, &'static str> {
        match self.narrow(logits)? {
            Some(id) => Ok(id),
            None => Ok(self.candidates.draw(random::uniform(self.key, self.chosen))),
        }
    }

    /// Penalty and temperature on the logits, then the candidates, unless there is only one token to take.
    fn narrow(&mut self, logits: &mut [f32]) -> Result<Option<u32>, &'static str> {
        let penalty = self.settings.repetition_penalty;
        for &id in &self.seen.ids {
            // Ids beyond the output are none that the model can repeat.
            if let Some(score) = logits.get_mut(id as usize) {
                *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
            }
        }
        let likeliest = largest(logits)?;
        if !self.settings.sample {
            return Ok(Some(likeliest));
        }
        let temperature = self.settings.temperature;
        let maximum = logits[likeliest as usize] / temperature;
        if !maximum.is_finite() {
            // So cold that the scores leave the range of numbers.
            return Ok(Some(likeliest));
        }
        if temperature != 1.0 {
            logits.iter_mut().for_each(|score| *score /= temperature);
        }
        self.candidates.select(logits, maximum, &self.settings);
        Ok(None)
    }
}

/// The first of the largest scores, if they are a distribution's.
fn largest(scores: &[f32]) -> Result<u32, &'static str> {
    let (mut maximum, mut unfit) = (f32::NEG_INFINITY, false);
    for &score in scores {
        unfit |= score.is_nan() || score == f32::INFINITY;
        maximum = if score > maximum { score } else { maximum };
    }
    if unfit {
        return Err("not finite");
    }
    match scores.iter().position(|&score| score == maximum) {
        Some(index) if maximum > f32::NEG_INFINITY => Ok(index as u32),
        Some(_) => Err("all minus infinity"),
        None => Err("none"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn drawing() -> SamplingSettings {
        SamplingSettings { sample: true, ..SamplingSettings::default() }
    }

    fn logits(count: usize) -> Vec<f32> {
        (0..count).map(|index| (index * 7919 % 1009) as f32 * 0.00625 - 3.0).collect()
    }

    #[test]
    fn tokens_are_drawn_as_often_as_their_probabilities_say() {
        let scores = [0.0f32, 1.0, 2.0, -1.0, 0.5];
        let settings = SamplingSettings { temperature: 0.7, ..drawing() };
        let mut sampler = Sampler::new(&settings, 11, &[]).unwrap();
        let mut counts = [0.0f64; 5];
        let draws = 40_000;
        for _ in 0..draws {
            counts[sampler.next(&mut scores.clone()).unwrap() as usize] += 1.0;
        }
        let weights = scores.map(|score| f64::from(score / 0.7).exp());
        let total: f64 = weights.iter().sum();
        let expected = weights.map(|weight| weight / total * f64::from(draws));
        let distance: f64 = counts.iter().zip(expected).map(|(&count, mean)| (count - mean).powi(2) / mean).sum();
        // The 99.99th percentile of chi squared with 4 degrees of freedom.
        assert!(distance < 23.5, "{counts:?} {expected:?} {distance}");
    }

    #[test]
    fn a_seed_means_the_same_tokens_on_every_machine() {
        let run = |seed: u64| -> Vec<u32> {
            let settings = SamplingSettings { temperature: 1.5, top_p: 0.95, repetition_penalty: 1.1, ..drawing() };
            let mut sampler = Sampler::new(&settings, seed, &[3, 5]).unwrap();
            (0..12).map(|_| sampler.next(&mut logits(300)).unwrap()).collect()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert_eq!(run(1), PINNED);
    }

    /// What the first release drew; a change of it changes everybody's texts.
    const PINNED: [u32; 12] = [119, 66, 33, 278, 225, 119, 277, 7, 297, 86, 60, 60];

    #[test]
    fn the_likeliest_is_the_first_of_equals_and_cold_drawing_comes_to_it() {
        let scores = [0.5, 2.0, -1.0, 2.0];
        let mut greedy = Sampler::new(&SamplingSettings::default(), 0, &[]).unwrap();
        assert_eq!(greedy.next(&mut scores.clone()).unwrap(), 1);
        for temperature in [1e-3, 1e-30, f32::MIN_POSITIVE, 1e-45] {
            let mut cold = Sampler::new(&SamplingSettings { temperature, ..drawing() }, 0, &[]).unwrap();
            let found = cold.next(&mut [0.5, 2.0, -1.0, 1.0]).unwrap();
            assert_eq!(found, 1, "{temperature}");
        }
        let mut one = Sampler::new(&SamplingSettings { top_k: 1, ..drawing() }, 0, &[]).unwrap();
        assert_eq!(one.next(&mut [0.5, 2.0, -1.0, 1.0]).unwrap(), 1);
        let mut none_left = Sampler::new(&SamplingSettings { top_p: 0.0, ..drawing() }, 0, &[]).unwrap();
        assert_eq!(none_left.next(&mut [0.5, 2.0, -1.0, 1.0]).unwrap(), 1);
    }

    #[test]
    fn repeated_tokens_are_penalised_once_however_often_they_came() {
        let settings = SamplingSettings { repetition_penalty: 2.0, ..SamplingSettings::default() };
        let mut sampler = Sampler::new(&settings, 0, &[1, 1, 1, 2, 900]).unwrap();
        let mut scores = [1.5, 2.0, -1.0, 0.0];
        assert_eq!(sampler.next(&mut scores).unwrap(), 0);
        assert_eq!(scores, [1.5, 1.0, -2.0, 0.0]);
        assert_eq!(sampler.next(&mut [1.5, 2.0, -1.0, 0.8]).unwrap(), 1, "token 0 is one of them now");
    }

    #[test]
    fn logits_that_are_no_distribution_are_refused() {
        for settings in [SamplingSettings::default(), drawing()] {
            let mut sampler = Sampler::new(&settings, 0, &[]).unwrap();
            assert_eq!(sampler.next(&mut [0.0, f32::NAN]), Err("not finite"));
            assert_eq!(sampler.next(&mut [0.0, f32::INFINITY]), Err("not finite"));
            assert_eq!(sampler.next(&mut [f32::NEG_INFINITY; 3]), Err("all minus infinity"));
            assert_eq!(sampler.next(&mut []), Err("none"));
            assert_eq!(sampler.next(&mut [f32::NEG_INFINITY, 0.0]), Ok(1));
        }
    }

    #[test]
    fn settings_come_from_the_file_and_the_user_and_are_checked() {
        let config = GenerationConfig::from_json(r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9}"#).unwrap();
        let resolve = |changes: SamplingChanges| SamplingSettings::resolve(&config, &changes);
        let none = SamplingChanges::default();
        let expected = SamplingSettings { temperature: 0.6, top_p: 0.9, ..drawing() };
        assert_eq!(resolve(none).unwrap(), expected);
        assert!(!resolve(SamplingChanges { sample: Some(false), ..none }).unwrap().sample);
        let silent = GenerationConfig::default();
        assert_eq!(SamplingSettings::resolve(&silent, &none).unwrap(), SamplingSettings::default());
        let top = SamplingChanges { top_k: Some(0), ..none };
        assert_eq!(SamplingSettings::resolve(&silent, &top).unwrap(), SamplingSettings { top_k: 0, ..drawing() });
        // A file may say 0 where nothing is drawn; a user who asks for it is told.
        let cold = GenerationConfig::from_json(r#"{"temperature": 0.0}"#).unwrap();
        assert!(SamplingSettings::resolve(&cold, &none).is_ok());
        for (changes, message) in [
            (SamplingChanges { temperature: Some(0.0), ..none }, "temperature: expected a number above 0"),
            (SamplingChanges { temperature: Some(f32::NAN), ..none }, "temperature: expected a number above 0"),
            (SamplingChanges { top_p: Some(1.5), ..none }, "top_p: expected a number from 0 to 1, found 1.5"),
            (SamplingChanges { min_p: Some(-0.1), ..none }, "min_p: expected a number from 0 to 1, found -0.1"),
            (
                SamplingChanges { repetition_penalty: Some(0.0), ..none },
                "repetition_penalty: expected a number above 0",
            ),
            (SamplingChanges { sample: Some(false), top_k: Some(5), ..none }, "top_k: expected nothing"),
        ] {
            let error = resolve(changes).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
