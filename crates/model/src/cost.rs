//! What a pass costs by count: multiply-adds, and bytes of weights that a step of decoding reads. To set times against what
//! a machine can do; nothing is measured here.

use finegates_kernels::attention::Mask;
use finegates_kernels::matrix::Precision;

use crate::attention::Attention;
use crate::model::Model;
use crate::projection::Projection;

impl Model {
    /// Multiply-adds of an evaluation of sequences of these lengths: each token in every projection, each pair of tokens that see
    /// each other in the scores and sums of attention, and each sequence in the head. Rows and columns that are closed do not
    /// count, nor do norms, activations and softmax; dimensions of a head count until they are removed.
    pub fn multiply_adds(&self, lengths: &[usize]) -> u64 {
        let tokens: u64 = lengths.iter().map(|&length| length as u64).sum();
        let weights: u64 = self.projections().map(|projection| projection.open_weights() as u64).sum();
        let head: u64 = self.head.projections().map(|projection| projection.open_weights() as u64).sum();
        let attention = self.stack.layers.iter().map(|layer| layer.attention.pair_multiply_adds(lengths));
        tokens * weights + attention.sum::<u64>() + lengths.len() as u64 * head
    }

    /// What the weights of projections are held in: bf16 as soon as one is.
    pub fn precision(&self) -> Precision {
        let narrow = self.projections().any(|projection| projection.precision() == Precision::Bf16);
        if narrow { Precision::Bf16 } else { Precision::F32 }
    }

    /// Bytes of weights that are read to make the next token, of one sequence or of several together: those of every projection
    /// and of the head that take part, as they are held. Keys, values, norms and the one row of the embedding are not counted.
    pub fn step_bytes(&self) -> u64 {
        let bytes = |projection: &Projection| (projection.open_weights() * projection.precision().bytes()) as u64;
        self.projections().chain(self.head.projections()).map(bytes).sum()
    }
}

impl Attention {
    /// Multiply-adds of scores and of the weighted sums of values.
    fn pair_multiply_adds(&self, lengths: &[usize]) -> u64 {
        let width: u64 = self.heads.heads.iter().map(|head| (head.query.1 + head.value.1) as u64).sum();
        width * lengths.iter().map(|&length| pairs(self.mask, length as u64)).sum::<u64>()
    }
}

/// Pairs of a token and one it sees.
fn pairs(mask: Mask, length: u64) -> u64 {
    match mask {
        Mask::Full => length * length,
        Mask::Causal { window: None } => length * (length + 1) / 2,
        Mask::Causal { window: Some(window) } => {
            let whole = length.min(window as u64);
            whole * (whole + 1) / 2 + (length - whole) * whole
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use finegates_checkpoint::Checkpoint;
    use finegates_kernels::matrix::Precision;

    use super::*;
    use crate::load::{LoadOptions, Task};

    fn tiny(family: &str, task: Task, precision: Precision) -> Model {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(family);
        let options = LoadOptions { task, precision, ..LoadOptions::default() };
        Model::load(&Checkpoint::open(&folder).unwrap(), &options).unwrap().0
    }

    #[test]
    fn pairs_are_those_that_a_loop_counts() {
        for length in 0..9 {
            assert_eq!(pairs(Mask::Full, length), length * length);
            for window in [None, Some(1), Some(3), Some(8), Some(20)] {
                let seen = |at: u64| window.map_or(at + 1, |window: usize| (at + 1).min(window as u64));
                let counted: u64 = (0..length).map(seen).sum();
                assert_eq!(pairs(Mask::Causal { window }, length), counted, "{length} {window:?}");
            }
        }
    }

    #[test]
    fn an_encoder_costs_its_projections_its_pairs_and_its_head() {
        let model = tiny("bert", Task::Classify, Precision::F32);
        // Two layers of four 16 × 16 and two 16 × 28 projections; four heads of 4; a pooler and two classes.
        let a_token = 2 * (4 * 16 * 16 + 2 * 16 * 28);
        let a_pair = 2 * 4 * (4 + 4);
        let head = 16 * 16 + 2 * 16;
        assert_eq!(model.multiply_adds(&[3, 5]), 8 * a_token + (9 + 25) * a_pair + 2 * head);
        assert_eq!(model.multiply_adds(&[]), 0);
    }

    #[test]
    fn a_decoder_reads_its_projections_and_its_output_embedding() {
        // Two layers of hidden 32, interior 48, four query heads and two of keys and values, of 8; 96 tokens.
        let layers = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48);
        for (precision, bytes) in [(Precision::F32, 4), (Precision::Bf16, 2)] {
            let model = tiny("llama", Task::Language, precision);
            assert_eq!(model.step_bytes(), bytes * (layers + 96 * 32));
            assert_eq!(model.multiply_adds(&[4]), 4 * layers + 2 * 10 * 4 * (8 + 8) + 96 * 32);
        }
    }
}
