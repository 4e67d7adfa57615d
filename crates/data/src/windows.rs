//! The windows in which perplexity is measured on a long text, as in the guide of Hugging Face's transformers ("Perplexity
//! of fixed-length models"): a window slides over the tokens, and each scores only the tokens that no window before it had.

use std::ops::Range;

use crate::error::Error;

/// One run of the model, and which of its tokens count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens the model sees.
    pub tokens: Range<usize>,
    /// The first token whose probability counts, as a place in the text; all behind it in the window count too. It lies behind
    /// the window's first token, for which there is no prediction.
    pub first_scored: usize,
}

impl Window {
    /// The tokens whose probabilities count.
    pub fn scored(&self) -> Range<usize> {
        self.first_scored..self.tokens.end
    }
}

/// The windows over a text.
///
/// The first one scores all of its tokens but the first; with `stride` less than `window`, the later ones score those behind
/// the end of the window before, so that every token but the very first is scored exactly once. With `stride` equal to
/// `window` nothing overlaps and no window's first token is scored, as in the guide.
///
/// The perplexity is `exp` of the mean of `-log p` over all scored tokens. The guide's own code is off from that by a little:
/// from the second window on it weights a window's mean by one token less than it scored. That vanishes in a long text with
/// strides of hundreds of tokens, but not with strides of a few; a comparison must weight alike.
///
/// # Example
/// ```
/// let windows: Vec<_> = finegates_data::Windows::new(10, 6, 3)?.map(|w| (w.tokens.clone(), w.scored())).collect();
/// assert_eq!(windows, [(0..6, 1..6), (3..9, 6..9), (6..10, 9..10)]);
/// # Ok::<(), finegates_data::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Windows {
    tokens: usize,
    window: usize,
    stride: usize,
    begin: usize,
    /// The end of the window before.
    covered: usize,
}

impl Windows {
    /// The windows over a text of so many tokens.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if `window` is less than 2, or `stride` is 0 or more than `window`, which would leave tokens out.
    pub fn new(tokens: usize, window: usize, stride: usize) -> Result<Windows, Error> {
        if window < 2 {
            let (expected, found) = ("at least 2 tokens", window.to_string());
            return Err(Error::OutOfRange { name: "window", expected, found });
        }
        if stride == 0 || stride > window {
            let found = format!("{stride} with a window of {window}");
            return Err(Error::OutOfRange { name: "stride", expected: "from 1 to the window's length", found });
        }
        Ok(Windows { tokens, window, stride, begin: 0, covered: 0 })
    }
}

impl Iterator for Windows {
    type Item = Window;

    fn next(&mut self) -> Option<Window> {
        if self.covered == self.tokens {
            return None;
        }
        let begin = self.begin;
        let end = self.tokens.min(begin.saturating_add(self.window));
        let first_scored = self.covered.max(begin + 1);
        self.begin = begin.saturating_add(self.stride);
        self.covered = end;
        // A text of one token, or the odd token behind the last of windows that do not overlap, has nothing to score.
        (first_scored < end).then_some(Window { tokens: begin..end, first_scored })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The guide's loop, word for word: which labels are left after masking and the shift by one.
    fn guide(seq_len: usize, max_length: usize, stride: usize) -> Vec<Window> {
        let mut windows = Vec::new();
        let mut prev_end_loc = 0;
        let mut begin_loc = 0;
        while begin_loc < seq_len {
            let end_loc = (begin_loc + max_length).min(seq_len);
            let trg_len = end_loc - prev_end_loc;
            let labels: Vec<bool> = (begin_loc..end_loc).map(|at| at + trg_len >= end_loc).collect();
            let shifted = labels.iter().skip(1).position(|&label| label);
            if let Some(first) = shifted {
                windows.push(Window { tokens: begin_loc..end_loc, first_scored: begin_loc + 1 + first });
            }
            prev_end_loc = end_loc;
            if end_loc == seq_len {
                break;
            }
            begin_loc += stride;
        }
        windows
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn windows_are_those_of_the_guide(tokens in 0_usize..400, window in 2_usize..70, stride in 1_usize..70) {
            let stride = stride.min(window);
            let found: Vec<Window> = Windows::new(tokens, window, stride).unwrap().collect();
            prop_assert_eq!(&found, &guide(tokens, window, stride));
        }

        #[test]
        fn every_token_but_the_first_is_scored_once(tokens in 0_usize..400, window in 2_usize..70, stride in 1_usize..70) {
            let stride = stride.min(window - 1);
            let mut scored = Vec::new();
            for window_at in Windows::new(tokens, window, stride).unwrap() {
                prop_assert!(window_at.tokens.len() <= window && window_at.tokens.end <= tokens);
                prop_assert!(window_at.first_scored > window_at.tokens.start);
                scored.extend(window_at.scored());
            }
            prop_assert_eq!(scored, (1..tokens).collect::<Vec<_>>());
        }
    }

    #[test]
    fn windows_side_by_side_leave_out_their_first_token() {
        let scored: Vec<usize> = Windows::new(9, 4, 4).unwrap().flat_map(|window| window.scored()).collect();
        assert_eq!(scored, [1, 2, 3, 5, 6, 7]);
    }

    #[test]
    fn windows_that_leave_tokens_out_are_refused() {
        for (window, stride) in [(1, 1), (4, 0), (4, 5)] {
            assert!(Windows::new(9, window, stride).is_err(), "{window} {stride}");
        }
        assert_eq!(Windows::new(0, 4, 2).unwrap().count() + Windows::new(1, 4, 2).unwrap().count(), 0);
    }
}
