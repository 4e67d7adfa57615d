//! Embeddings: word, position and (where the family has them) segment rows added, normed and dropped out.

use finegates_kernels::dropout::{Dropout, dropout};
use finegates_kernels::embedding as kernels;

use crate::batch::Batch;
use crate::error::Error;
use crate::norm::{Norm, NormSaved};
use crate::parameter::{Parameter, ParameterMut};

/// How a family numbers positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// 0, 1, 2 …
    FromZero,
    /// `p + 1, p + 2, …` where `p` is this padding id; a padding token inside the text keeps position `p` and does
    /// not count, as in RoBERTa.
    AfterPadding(u32),
}

impl Positions {
    /// The longest sequence that a table of `rows` positions allows.
    pub fn longest(self, rows: usize) -> usize {
        match self {
            Self::FromZero => rows,
            Self::AfterPadding(padding) => rows.saturating_sub(padding as usize + 1),
        }
    }

    fn fill(self, batch: &Batch, ids: &mut Vec<u32>) {
        ids.clear();
        for bounds in batch.offsets.windows(2) {
            let tokens = &batch.tokens[bounds[0]..bounds[1]];
            match self {
                Self::FromZero => ids.extend(0..tokens.len() as u32),
                Self::AfterPadding(padding) => {
                    let mut position = padding;
                    ids.extend(tokens.iter().map(|&token| {
                        if token == padding {
                            return padding;
                        }
                        position += 1;
                        position
                    }));
                }
            }
        }
    }
}

/// The embedding tables and their norm.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// `[V, D]`.
    pub word: Parameter,
    /// `[positions, D]`.
    pub position: Parameter,
    /// `[segments, D]`, in families that have segments.
    pub segment: Option<Parameter>,
    /// Norm of the sum.
    pub norm: Norm,
    /// Numbering of positions.
    pub positions: Positions,
    /// The word row that gets no gradient, as `padding_idx` in PyTorch.
    pub padding_id: u32,
    /// Dropout rate after the norm.
    pub dropout: f32,
}

/// What the backward pass of the embeddings needs.
#[derive(Debug, Default, Clone)]
pub struct EmbeddingSaved {
    sum: Vec<f32>,
    norm: NormSaved,
    positions: Vec<u32>,
}

impl Embeddings {
    /// `D`.
    pub fn width(&self) -> usize {
        self.word.shape[1]
    }

    /// The longest sequence that the position table allows.
    pub fn longest(&self) -> usize {
        self.positions.longest(self.position.shape[0])
    }

    /// Checks every id against its table.
    ///
    /// # Errors
    /// An id outside its table, or a sequence that is empty or too long.
    pub fn check(&self, batch: &Batch) -> Result<(), Error> {
        let (vocabulary, limit) = (self.word.shape[0], self.longest());
        for (sequence, bounds) in batch.offsets.windows(2).enumerate() {
            let range = bounds[0]..bounds[1];
            if range.is_empty() || range.len() > limit {
                return Err(Error::Length { sequence, length: range.len(), limit });
            }
            if let Some(&token) = batch.tokens[range.clone()].iter().find(|&&token| token as usize >= vocabulary) {
                return Err(Error::Token { token, sequence, vocabulary });
            }
            if let Some(table) = &self.segment {
                let segments = table.shape[0];
                if let Some(&segment) = batch.segments[range].iter().find(|&&id| id as usize >= segments) {
                    return Err(Error::Segment { segment, sequence, segments });
                }
            }
        }
        Ok(())
    }

    /// `out` `[T, D]` of a checked batch.
    pub fn forward(
        &self,
        batch: &Batch,
        saved: &mut EmbeddingSaved,
        key: Option<u64>,
        training: bool,
        out: &mut [f32],
    ) {
        let width = self.width();
        saved.sum.clear();
        saved.sum.resize(batch.tokens_count() * width, 0.0);
        self.positions.fill(batch, &mut saved.positions);
        kernels::gather_add(&self.word.value, width, &batch.tokens, &mut saved.sum);
        kernels::gather_add(&self.position.value, width, &saved.positions, &mut saved.sum);
        if let Some(segment) = &self.segment {
            kernels::gather_add(&segment.value, width, &batch.segments, &mut saved.sum);
        }
        self.norm.forward(&saved.sum, out, training.then_some(&mut saved.norm));
        if let Some(key) = key {
            dropout(out, &Dropout { rate: self.dropout, key });
        }
    }

    /// Whether any table trains, so that a gradient is wanted at all.
    pub fn trainable(&self) -> bool {
        self.word.trainable()
    }

    /// Adds the tables' gradients from `d_out` `[T, D]`, which is overwritten.
    pub fn backward(
        &mut self,
        batch: &Batch,
        saved: &EmbeddingSaved,
        key: Option<u64>,
        d_out: &mut [f32],
        d_sum: &mut [f32],
    ) {
        if let Some(key) = key {
            dropout(d_out, &Dropout { rate: self.dropout, key });
        }
        self.norm.backward(&saved.sum, &saved.norm, d_out, d_sum);
        let width = self.width();
        kernels::scatter_add(d_sum, width, &batch.tokens, &mut self.word.gradient);
        clear_row(&mut self.word.gradient, width, self.padding_id);
        kernels::scatter_add(d_sum, width, &saved.positions, &mut self.position.gradient);
        if let Positions::AfterPadding(padding) = self.positions {
            clear_row(&mut self.position.gradient, width, padding);
        }
        if let Some(segment) = &mut self.segment {
            kernels::scatter_add(d_sum, width, &batch.segments, &mut segment.gradient);
        }
    }

    /// Every parameter in a fixed order.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [Some(&self.word), Some(&self.position), self.segment.as_ref(), Some(&self.norm.gamma), Some(&self.norm.beta)]
            .into_iter()
            .flatten()
    }

    /// Makes the tables and the norm train.
    pub fn make_trainable(&mut self) {
        self.word.make_trainable();
        self.position.make_trainable();
        self.segment.iter_mut().for_each(Parameter::make_trainable);
        self.norm.gamma.make_trainable();
        self.norm.beta.make_trainable();
    }

    /// Shows every trainable parameter in a fixed order.
    pub fn visit(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        self.word.visit(visit);
        self.position.visit(visit);
        self.segment.iter_mut().for_each(|segment| segment.visit(visit));
        self.norm.visit(visit);
    }
}

fn clear_row(table: &mut [f32], width: usize, row: u32) {
    let start = row as usize * width;
    if let Some(row) = table.get_mut(start..start + width) {
        row.fill(0.0);
    }
}
