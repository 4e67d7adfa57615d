//! A ragged batch: token ids of several sequences end to end, with offsets instead of padding.

/// Sequences of token ids laid end to end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `[T]`.
    pub tokens: Vec<u32>,
    /// Segment (token type) ids, `[T]`.
    pub segments: Vec<u32>,
    /// Where each sequence begins, `[S + 1]`: the first is 0 and the last `T`; empty for an empty batch.
    pub offsets: Vec<usize>,
}

impl Batch {
    /// Lays the given sequences (ids and segment ids of equal length) end to end.
    ///
    /// # Panics
    /// If the ids and segment ids of a sequence differ in length.
    pub fn new<'a>(sequences: impl IntoIterator<Item = (&'a [u32], &'a [u32])>) -> Self {
        let mut batch = Self::default();
        for (tokens, segments) in sequences {
            batch.push(tokens, segments);
        }
        batch
    }

    /// Adds one sequence.
    ///
    /// # Panics
    /// If `tokens` and `segments` differ in length.
    pub fn push(&mut self, tokens: &[u32], segments: &[u32]) {
        assert_eq!(tokens.len(), segments.len(), "one segment id a token");
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.tokens.extend_from_slice(tokens);
        self.segments.extend_from_slice(segments);
        self.offsets.push(self.tokens.len());
    }

    /// Forgets all sequences and keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.segments.clear();
        self.offsets.clear();
    }

    /// `S`, the number of sequences.
    pub fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// `T`, the number of tokens.
    pub fn tokens_count(&self) -> usize {
        self.tokens.len()
    }

    /// The longest sequence's length.
    pub fn longest(&self) -> usize {
        self.offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_bracket_every_sequence() {
        let batch = Batch::new([(&[1, 2, 3][..], &[0, 0, 1][..]), (&[4][..], &[0][..])]);
        assert_eq!(batch.offsets, [0, 3, 4]);
        assert_eq!((batch.sequences(), batch.tokens_count(), batch.longest()), (2, 4, 3));
        assert_eq!(Batch::default().sequences(), 0);
    }
}
