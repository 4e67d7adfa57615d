//! The language head: logits of the next token over the vocabulary, a few rows of tokens at a time, for those of a whole
//! batch are larger than everything else together.

use finegates_kernels::loss;
use finegates_kernels::matrix::Activation;

use crate::attention::resized;
use crate::projection::Projection;

/// Tokens whose logits exist at the same time.
const ROWS: usize = 128;

/// Most logits that exist at the same time, and most tokens, where the weight trains: its gradient is read and written once for
/// those tokens together.
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

/// Working memory of the head.
#[derive(Debug, Default, Clone)]
pub struct LanguageScratch {
    logits: Vec<f32>,
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

    /// The sum of the losses; adds `factor` times its gradient to `d_states` `[T, D]` and to the weight's where it trains.
    ///
    /// # Panics
    /// As [`LanguageHead::losses`].
    pub fn loss_and_backward(
        &mut self,
        states: &[f32],
        targets: &[u32],
        factor: f32,
        d_states: &mut [f32],
        scratch: &mut LanguageScratch,
    ) -> f64 {
        let (width, vocabulary) = (self.output.input_width(), self.output.out_features());
        let LanguageScratch { logits, product, losses } = scratch;
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
            loss::token_cross_entropy(logits, targets, vocabulary, factor, losses);
            total += losses.iter().sum::<f64>();
            self.output.backward(states, &[], targets.len(), logits, Some(&mut d_states[range]), product);
        }
        total
    }
}
