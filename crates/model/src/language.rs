//! The language head: logits of the next token over the vocabulary, a few rows of tokens at a time, for those of a whole
//! batch are larger than everything else together.

use finegates_kernels::matrix::Activation;
use finegates_kernels::{loss, reduce};

use crate::attention::resized;
use crate::model::Model;
use crate::projection::Projection;

/// Tokens whose logits exist at the same time.
const ROWS: usize = 128;

/// Most logits that exist at the same time beyond those of [`ROWS`] tokens, and most tokens, where the weight trains: its gradient is read
/// and written once for those tokens together. A teacher's are there as well.
const TRAINING_LOGITS: usize = 8 << 20;
const TRAINING_ROWS: usize = 512;

/// A target that is not to be predicted.
pub const NO_TARGET: u32 = loss::IGNORED;

/// The output embedding of a decoder.
#[derive(Debug, Clone)]
pub struct LanguageHead {
    /// `[V, D]`, without a bias.
    pub output: Projection,
    /// Whether its weight is the input embedding's.
    pub tied: bool,
}

/// What a model learns from another one beside the text (G. Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015):
/// the loss is `(1 − share) · −log p(target) + share · τ² KL(p_teacher ‖ p)`, both distributions at the temperature `τ`.
#[derive(Clone, Copy, Debug)]
pub struct Distillation<'a> {
    /// A language model over the same vocabulary, at evaluation.
    pub teacher: &'a Model,
    /// The divergence's share of the loss, 0 to 1.
    pub share: f32,
    /// `τ`, above 0.
    pub temperature: f32,
}

/// What the teacher says of a batch.
pub(crate) struct Lesson<'a> {
    pub head: &'a LanguageHead,
    /// Its stack's output `[T, D]`, `D` its own.
    pub states: &'a [f32],
    pub share: f32,
    pub temperature: f32,
}

/// Working memory of the head.
#[derive(Debug, Default, Clone)]
pub struct LanguageScratch {
    logits: Vec<f32>,
    student: Vec<f32>,
    teacher: Vec<f32>,
    divergences: Vec<f64>,
    product: Vec<f32>,
    losses: Vec<f64>,
}

impl LanguageHead {
    /// `−log p(target)` of each token, `[T]`, from the stack's output `[T, D]`; 0 where there is [`NO_TARGET`].
    ///
    /// # Panics
    /// If there is not one target a token, or one is not below `V`.
    pub fn losses(&self, states: &[f32], targets: &[u32], scratch: &mut LanguageScratch) -> Vec<f64> {
        let (width, vocabulary) = (self.output.input_width(), self.output.out_features());
        let LanguageScratch { logits, .. } = scratch;
        let mut losses = vec![0.0; targets.len()];
        for (chunk, targets) in targets.chunks(ROWS).enumerate() {
            let first = chunk * ROWS;
            logits.resize(targets.len() * vocabulary, 0.0);
            let states = &states[first * width..(first + targets.len()) * width];
            self.output.forward(states, targets.len(), logits, Activation::None);
            loss::token_losses(logits, targets, vocabulary, &mut losses[first..first + targets.len()]);
        }
        losses
    }

    /// The sum of the losses, with a teacher's share in them; adds `factor` times its gradient to `d_states` `[T, D]` and to the
    /// weight's where it trains.
    ///
    /// # Panics
    /// As [`LanguageHead::losses`].
    pub(crate) fn loss_and_backward(
        &mut self,
        states: &[f32],
        targets: &[u32],
        factor: f32,
        lesson: Option<&Lesson<'_>>,
        d_states: &mut [f32],
        scratch: &mut LanguageScratch,
    ) -> f64 {
        let (width, vocabulary) = (self.output.input_width(), self.output.out_features());
        let share = lesson.map_or(0.0, |lesson| lesson.share);
        let LanguageScratch { logits, student, teacher, divergences, product, losses } = scratch;
        let mut total = 0.0;
        let rows = match self.output.weight_parameter().trainable() {
            true => (TRAINING_LOGITS / vocabulary.max(1)).clamp(ROWS, TRAINING_ROWS),
            false => ROWS,
        };
        for (chunk, targets) in targets.chunks(rows).enumerate() {
            let range = chunk * rows * width..(chunk * rows + targets.len()) * width;
            resized(logits, targets.len() * vocabulary);
            losses.resize(targets.len(), 0.0);
            let states = &states[range.clone()];
            self.output.forward(states, targets.len(), logits, Activation::None);
            if lesson.is_some() {
                student.clone_from(logits);
            }
            loss::token_cross_entropy(logits, targets, vocabulary, factor * (1.0 - share), losses);
            total += f64::from(1.0 - share) * losses.iter().sum::<f64>();
            if let Some(lesson) = lesson {
                let width = lesson.head.output.input_width();
                let states = &lesson.states[chunk * rows * width..][..targets.len() * width];
                teacher.resize(targets.len() * vocabulary, 0.0);
                divergences.resize(targets.len(), 0.0);
                lesson.head.output.forward(states, targets.len(), teacher, Activation::None);
                let (temperature, factor) = (lesson.temperature, factor * share);
                loss::token_distillation(student, teacher, targets, vocabulary, temperature, factor, divergences);
                reduce::add(student, logits);
                total += f64::from(share) * divergences.iter().sum::<f64>();
            }
            self.output.backward(states, &[], targets.len(), logits, Some(&mut d_states[range]), product);
        }
        total
    }
}
