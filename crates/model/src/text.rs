//! The loss of a language model on a long text, window by window: what perplexity is made of.

use std::ops::Range;

use crate::batch::Batch;
use crate::error::Error;
use crate::language::NO_TARGET;
use crate::model::Model;

/// Tokens of windows that are read together.
const BATCH_TOKENS: usize = 4096;

/// `−log p` summed over the tokens of a text that were scored.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TextLoss {
    /// The sum, in nats.
    pub total: f64,
    /// How many tokens were scored.
    pub tokens: usize,
}

impl TextLoss {
    /// The mean, whose exponential is the perplexity; NaN of nothing.
    pub fn mean(&self) -> f64 {
        self.total / self.tokens as f64
    }
}

impl Model {
    /// The loss on `tokens` in windows: ranges of tokens, and the first token of each that is scored. `progress` is told
    /// the tokens scored and all there are, and ends it, with nothing to show, by returning false.
    ///
    /// # Errors
    /// As [`Model::forward`].
    ///
    /// # Panics
    /// As [`Model::token_losses`]; if a window is not within the text, or scores its own first token.
    pub fn text_loss(
        &self,
        tokens: &[u32],
        windows: impl Iterator<Item = (Range<usize>, usize)>,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<TextLoss>, Error> {
        let mut found = TextLoss::default();
        let (mut batch, mut targets) = (Batch::default(), Vec::new());
        let mut windows = windows.peekable();
        while let Some((window, first)) = windows.next() {
            assert!(first > window.start, "the first token of a window is predicted by nothing");
            batch.push(&tokens[window.clone()], &vec![0; window.len()]);
            targets.extend(window.clone().map(|token| {
                let next = token + 1;
                if next >= first && next < window.end { tokens[next] } else { NO_TARGET }
            }));
            let fits = |next: &(Range<usize>, usize)| batch.tokens_count() + next.0.len() <= BATCH_TOKENS;
            if windows.peek().is_some_and(fits) {
                continue;
            }
            if !progress(found.tokens, tokens.len()) {
                return Ok(None);
            }
            found.total += self.token_losses(&batch, &targets)?.iter().sum::<f64>();
            found.tokens += targets.iter().filter(|&&target| target != NO_TARGET).count();
            batch.clear();
            targets.clear();
        }
        Ok(Some(found))
    }
}
