//! A probe for verification when no text is at hand: sequences of token ids that are arbitrary but always the same.

use finegates_checkpoint::Checkpoint;
use finegates_model::{Batch, load};

use crate::Error;

/// Lengths of the sequences, as far as the position table allows: a single token, odd lengths, and a longer one.
const LENGTHS: [usize; 8] = [1, 2, 5, 9, 17, 33, 64, 128];

/// Token ids spread over the vocabulary of a checkpoint, in two segments where the family has them, in one batch.
///
/// Real text is the better probe, for its logits have the scale that matters; this one reaches every row of every
/// matrix just as well.
///
/// # Errors
/// A position table that is missing or of another shape.
pub fn synthetic_probe(checkpoint: &Checkpoint) -> Result<Vec<Batch>, Error> {
    let (config, longest) = (&checkpoint.config, load::longest(checkpoint)?);
    let mut batch = Batch::default();
    for (sequence, length) in LENGTHS.into_iter().filter(|&length| length <= longest).enumerate() {
        let token = |at: usize| {
            // Steps of a prime through the vocabulary, another start for every sequence.
            let id = ((sequence * 104_729 + at * 7_919 + 11) % config.vocabulary) as u32;
            // The padding id has a special embedding in some families and never stands inside a real sequence.
            if id == config.padding_id { (id + 1) % config.vocabulary as u32 } else { id }
        };
        let tokens: Vec<u32> = (0..length).map(token).collect();
        let second = |at: usize| u32::from(config.segments > 1 && at >= length.div_ceil(2));
        let segments: Vec<u32> = (0..length).map(second).collect();
        batch.push(&tokens, &segments);
    }
    Ok(vec![batch])
}
