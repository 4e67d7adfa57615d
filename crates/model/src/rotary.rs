//! Rotary position embedding: which angles positions have under each of transformers' scalings, and the tables made of them.

use std::sync::{Arc, Mutex, PoisonError};

use finegates_checkpoint::config::{Rotary, RotaryScaling};
use finegates_kernels::rotary::RotaryTable;

/// Angles of a stack of layers, with a table that grows as longer texts come.
#[derive(Debug)]
pub struct RotaryEmbedding {
    rotary: Rotary,
    head_dim: usize,
    table: Mutex<Arc<RotaryTable>>,
}

/// The rows of a table that the tokens of a pass turn by.
#[derive(Debug, Clone)]
pub struct Turns {
    /// Cosines and sines, `[rows, E / 2]`.
    pub table: Arc<RotaryTable>,
    /// The row of each token, `[T]`.
    pub rows: Vec<u32>,
}

impl Clone for RotaryEmbedding {
    fn clone(&self) -> Self {
        Self::new(self.rotary.clone(), self.head_dim)
    }
}

impl RotaryEmbedding {
    /// For heads of `head_dim` dimensions.
    pub fn new(rotary: Rotary, head_dim: usize) -> Self {
        Self { rotary, head_dim, table: Mutex::new(Arc::new(RotaryTable::new(0, &[], 1.0))) }
    }

    /// How tokens turn: sequences of the given lengths, each from its first position on.
    pub fn turns(&self, sequences: impl Iterator<Item = (usize, usize)> + Clone) -> Turns {
        let stretched = |&(first, length): &(usize, usize)| match self.rotary.scaling {
            RotaryScaling::Dynamic { original, .. } => first + length > original,
            _ => false,
        };
        let longest = sequences.clone().filter(|s| !stretched(s)).map(|(first, length)| first + length).max();
        let mut table = match longest {
            Some(longest) => self.shared(longest),
            // Nothing of the common table is needed, and so nothing of it is copied.
            None => Arc::new(RotaryTable::default()),
        };
        let mut rows = Vec::new();
        for (first, length) in sequences {
            if stretched(&(first, length)) {
                // The angles of a text that is longer than those of pretraining depend on its length: rows of its own.
                let frequencies = self.inverse_frequencies(first + length);
                let own = RotaryTable::of_positions(first..first + length, &frequencies, 1.0);
                let table = Arc::make_mut(&mut table);
                table.pairs = own.pairs;
                let before = table.cos.len() / own.pairs.max(1);
                table.cos.extend_from_slice(&own.cos);
                table.sin.extend_from_slice(&own.sin);
                rows.extend((before..before + length).map(|row| row as u32));
            } else {
                rows.extend((first..first + length).map(|row| row as u32));
            }
        }
        Turns { table, rows }
    }

    /// The common table, for at least so many positions.
    fn shared(&self, positions: usize) -> Arc<RotaryTable> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs = self.head_dim / 2;
        if pairs > 0 && table.cos.len() < positions * pairs {
            let room = positions.next_power_of_two().max(64);
            *table = Arc::new(RotaryTable::new(room, &self.inverse_frequencies(0), 1.0));
        }
        Arc::clone(&table)
    }

    /// `θ^(−2i/E)` of every pair as transformers computes them (f32 powers), scaled for a text of `length` tokens.
    fn inverse_frequencies(&self, length: usize) -> Vec<f32> {
        let dimensions = self.head_dim as f32;
        let of_base = |theta: f32| -> Vec<f32> {
            (0..self.head_dim / 2).map(|pair| 1.0 / theta.powf((2 * pair) as f32 / dimensions)).collect()
        };
        let plain = of_base(self.rotary.theta);
        match self.rotary.scaling {
            RotaryScaling::None => plain,
            RotaryScaling::Linear { factor } => plain.into_iter().map(|frequency| frequency / factor).collect(),
            RotaryScaling::Dynamic { factor, original } => {
                if length <= original || self.head_dim <= 2 {
                    return plain;
                }
                let (factor, dimensions) = (f64::from(factor), self.head_dim as f64);
                let growth = factor * length as f64 / original as f64 - (factor - 1.0);
                of_base((f64::from(self.rotary.theta) * growth.powf(dimensions / (dimensions - 2.0))) as f32)
            }
            RotaryScaling::Llama3 { factor, low, high, original } => {
                let original = original as f32;
                plain
                    .into_iter()
                    .map(|frequency| {
                        let wavelength = 2.0 * std::f32::consts::PI / frequency;
                        if wavelength < original / high {
                            frequency
                        } else if wavelength > original / low {
                            frequency / factor
                        } else {
                            let smooth = (original / wavelength - low) / (high - low);
                            (1.0 - smooth) * frequency / factor + smooth * frequency
                        }
                    })
                    .collect()
            }
        }
    }
}
