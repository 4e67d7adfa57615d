//! A split as token ids, held end to end, and the order in which an epoch goes through it.

use finegates_checkpoint::Tokenizer;
use finegates_data::{Label, Split};
use finegates_kernels::random;
use finegates_model::Batch;

use crate::error::Error;

/// How many examples are encoded at a time.
const CHUNK: usize = 4096;
/// How many steps' worth of examples are sorted by length together.
const BUCKET_STEPS: usize = 50;

/// What a model is to predict for a run of examples.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Numbers of classes.
    Classes(Vec<u32>),
    /// Numbers.
    Values(Vec<f32>),
    /// The next token of each token.
    Tokens(Vec<u32>),
}

impl Targets {
    /// The targets of the examples at `indices`.
    pub fn gather(&self, indices: &[u32]) -> Targets {
        match self {
            Targets::Classes(classes) => Targets::Classes(indices.iter().map(|&i| classes[i as usize]).collect()),
            Targets::Values(values) => Targets::Values(indices.iter().map(|&i| values[i as usize]).collect()),
            Targets::Tokens(tokens) => Targets::Tokens(indices.iter().map(|&i| tokens[i as usize]).collect()),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Targets::Classes(classes) => classes.len(),
            Targets::Values(values) => values.len(),
            Targets::Tokens(tokens) => tokens.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A split as token ids.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The split's name.
    pub name: String,
    /// What is to be predicted.
    pub targets: Targets,
    /// How many examples were cut to the longest length allowed.
    pub truncated: usize,
    tokens: Vec<u32>,
    segments: Vec<u32>,
    offsets: Vec<usize>,
}

impl Encoded {
    /// Encodes all examples, on all threads.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn new(split: &Split, tokenizer: &Tokenizer, max_length: usize) -> Result<Encoded, Error> {
        let mut encoded = Encoded {
            name: split.name.clone(),
            targets: targets(split),
            truncated: 0,
            tokens: Vec::new(),
            segments: Vec::new(),
            offsets: vec![0],
        };
        for chunk in split.examples.chunks(CHUNK) {
            let texts: Vec<_> = chunk.iter().map(|example| (example.text.as_str(), example.pair.as_deref())).collect();
            for encoding in tokenizer.encode_batch(&texts, max_length)? {
                encoded.tokens.extend_from_slice(&encoding.ids);
                encoded.segments.extend_from_slice(&encoding.segments);
                encoded.offsets.push(encoded.tokens.len());
                encoded.truncated += usize::from(encoding.truncated);
            }
        }
        Ok(encoded)
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The length of an example in tokens.
    pub fn length(&self, index: u32) -> usize {
        self.offsets[index as usize + 1] - self.offsets[index as usize]
    }

    /// How many tokens a token attends to on average: `Σ length² / Σ length`.
    pub fn attended(&self) -> f64 {
        let squares: f64 = (0..self.len() as u32).map(|index| (self.length(index) as f64).powi(2)).sum();
        squares / self.tokens.len().max(1) as f64
    }

    /// The examples at `indices` as a ragged batch, into memory that is used again.
    pub fn batch(&self, indices: &[u32], batch: &mut Batch) {
        batch.clear();
        for &index in indices {
            let range = self.offsets[index as usize]..self.offsets[index as usize + 1];
            batch.push(&self.tokens[range.clone()], &self.segments[range]);
        }
    }

    /// All examples, those of equal lengths together, the longest first.
    pub fn by_length(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len()).map(|index| index as u32).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(self.length(index)));
        order
    }

    /// The order of an epoch: a permutation that is a function of `key`. With bucketing, batches of similar lengths, themselves in
    /// random order; the last, short batch stays last.
    pub fn epoch_order(&self, key: u64, batch_size: usize, bucketing: bool) -> Vec<u32> {
        let mut order = random::permutation(key, self.len());
        if !bucketing {
            return order;
        }
        for bucket in order.chunks_mut(batch_size.saturating_mul(BUCKET_STEPS)) {
            bucket.sort_by_key(|&index| self.length(index));
        }
        let whole = self.len() / batch_size;
        let batches = random::permutation(random::derive(key, "batches"), whole);
        let mut shuffled = Vec::with_capacity(order.len());
        for batch in batches {
            shuffled.extend_from_slice(&order[batch as usize * batch_size..][..batch_size]);
        }
        shuffled.extend_from_slice(&order[whole * batch_size..]);
        shuffled
    }
}

fn targets(split: &Split) -> Targets {
    let classes: Option<Vec<u32>> = split
        .examples
        .iter()
        .map(|example| match example.label {
            Label::Class(class) => Some(class),
            Label::Value(_) => None,
        })
        .collect();
    match classes {
        Some(classes) => Targets::Classes(classes),
        None => Targets::Values(
            split
                .examples
                .iter()
                .map(|example| match example.label {
                    Label::Class(class) => class as f32,
                    Label::Value(value) => value,
                })
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_lengths(lengths: &[usize]) -> Encoded {
        let mut offsets = vec![0];
        offsets.extend(lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        let tokens = vec![7; lengths.iter().sum()];
        let targets = Targets::Classes(vec![0; lengths.len()]);
        Encoded { name: String::new(), targets, truncated: 0, segments: vec![0; tokens.len()], tokens, offsets }
    }

    #[test]
    fn every_example_is_in_an_epoch_once() {
        let lengths: Vec<usize> = (0..103).map(|index| 1 + index * 37 % 29).collect();
        let encoded = of_lengths(&lengths);
        for bucketing in [false, true] {
            let mut order = encoded.epoch_order(5, 8, bucketing);
            assert_ne!(order, encoded.epoch_order(6, 8, bucketing));
            assert_eq!(order, encoded.epoch_order(5, 8, bucketing));
            order.sort_unstable();
            assert_eq!(order, (0..103).collect::<Vec<u32>>());
        }
    }

    #[test]
    fn bucketed_batches_have_similar_lengths() {
        let lengths: Vec<usize> = (0..400).map(|index| 1 + index * 7919 % 100).collect();
        let encoded = of_lengths(&lengths);
        let order = encoded.epoch_order(1, 8, true);
        for batch in order.chunks_exact(8) {
            let longest = batch.iter().map(|&index| encoded.length(index)).max();
            let shortest = batch.iter().map(|&index| encoded.length(index)).min();
            assert!(longest.zip(shortest).is_some_and(|(long, short)| long - short <= 3));
        }
    }
}
