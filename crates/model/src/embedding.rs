//! Embeddings: word and (where the family has them) position and segment rows added, normed and dropped out.

use std::sync::Arc;

use finegates_kernels::dropout::{Dropout, dropout};
use finegates_kernels::embedding as kernels;
use finegates_kernels::matrix::PackedMatrix;

use crate::batch::Batch;
use crate::error::Error;
use crate::norm::{Norm, NormSaved};
use crate::parameter::{Parameter, ParameterMut};

/// How a family numbers positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// There is no position table: queries and keys turn.
    None,
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
            Self::None | Self::FromZero => rows,
            Self::AfterPadding(padding) => rows.saturating_sub(padding as usize + 1),
        }
    }

    fn fill(self, batch: &Batch, ids: &mut Vec<u32>) {
        ids.clear();
        for bounds in batch.offsets.windows(2) {
            let tokens = &batch.tokens[bounds[0]..bounds[1]];
            match self {
                Self::None => {}
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

/// Where the word rows of a model are, so that a large vocabulary is in memory once.
#[derive(Debug, Clone, Default)]
pub enum WordTable {
    /// In the parameter itself, `f32`: where it trains, and in f32 runs.
    #[default]
    Plain,
    /// Rounded to bf16, `[V, D]`: in bf16 runs.
    Bf16(Vec<u16>),
    /// In the packed output embedding, which is the same table, in whatever that is held in.
    Packed(Arc<PackedMatrix>),
}

/// The embedding tables and their norm.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// `[V, D]`; without values of its own unless the table is plain.
    pub word: Parameter,
    /// Where the word rows are.
    pub table: WordTable,
    /// `[positions, D]`, in families that have one.
    pub position: Option<Parameter>,
    /// `[segments, D]`, in families that have segments.
    pub segment: Option<Parameter>,
    /// Norm of the sum, in families that have one.
    pub norm: Option<Norm>,
    /// Numbering of positions.
    pub positions: Positions,
    /// The longest sequence that the model takes.
    pub longest: usize,
    /// The word row that gets no gradient, as `padding_idx` in PyTorch.
    pub padding_id: Option<u32>,
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

    /// Gives the plain word table up for one rounded to bf16. It must not train.
    pub fn round_words(&mut self) {
        let plain = std::mem::take(&mut self.word.value);
        self.table = WordTable::Bf16(kernels::rounded_to_bf16(&plain));
    }

    /// Gives the plain word table up for the same one packed. It must not train.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn share_words(&mut self, packed: Arc<PackedMatrix>) {
        assert_eq!([packed.outputs(), packed.depth()], self.word.shape[..], "the same table");
        self.word.value = Vec::new();
        self.table = WordTable::Packed(packed);
    }

    /// Checks every id against its table.
    ///
    /// # Errors
    /// An id outside its table, or a sequence that is empty or too long.
    pub fn check(&self, batch: &Batch) -> Result<(), Error> {
        let (vocabulary, limit) = (self.word.shape[0], self.longest);
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
        let Some(norm) = &self.norm else {
            out.fill(0.0);
            self.gather(batch, &mut saved.positions, out);
            return;
        };
        saved.sum.clear();
        saved.sum.resize(batch.tokens_count() * width, 0.0);
        self.gather(batch, &mut saved.positions, &mut saved.sum);
        norm.forward(&saved.sum, out, training.then_some(&mut saved.norm));
        if let Some(key) = key {
            dropout(out, &Dropout { rate: self.dropout, key });
        }
    }

    /// Adds every token's rows to `sum` `[T, D]`.
    fn gather(&self, batch: &Batch, positions: &mut Vec<u32>, sum: &mut [f32]) {
        let width = self.width();
        match &self.table {
            WordTable::Plain => kernels::gather_add(&self.word.value, width, &batch.tokens, sum),
            WordTable::Bf16(table) => kernels::gather_add_bf16(table, width, &batch.tokens, sum),
            WordTable::Packed(table) => kernels::gather_add_packed(table, &batch.tokens, sum),
        }
        if let Some(position) = &self.position {
            self.positions.fill(batch, positions);
            kernels::gather_add(&position.value, width, positions, sum);
        }
        if let Some(segment) = &self.segment {
            kernels::gather_add(&segment.value, width, &batch.segments, sum);
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
        let d_sum = match &mut self.norm {
            Some(norm) => {
                norm.backward(&saved.sum, &saved.norm, d_out, d_sum);
                d_sum
            }
            None => d_out,
        };
        let width = self.width();
        if let Some(position) = &mut self.position {
            kernels::scatter_add(d_sum, width, &saved.positions, &mut position.gradient);
            if let Positions::AfterPadding(padding) = self.positions {
                clear_row(&mut position.gradient, width, padding);
            }
        }
        if let Some(segment) = &mut self.segment {
            kernels::scatter_add(d_sum, width, &batch.segments, &mut segment.gradient);
        }
        // Last, for the padding row gets nothing from here. A head that shares the table may give it something.
        for (row, _) in batch.tokens.iter().enumerate().filter(|(_, token)| Some(**token) == self.padding_id) {
            d_sum[row * width..(row + 1) * width].fill(0.0);
        }
        kernels::scatter_add(d_sum, width, &batch.tokens, &mut self.word.gradient);
    }

    /// Every parameter in a fixed order.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let norm = self.norm.iter().flat_map(|norm| [&norm.gamma, &norm.beta]);
        std::iter::once(&self.word).chain(&self.position).chain(&self.segment).chain(norm)
    }

    /// Makes the tables and the norm train.
    pub fn make_trainable(&mut self) {
        self.word.make_trainable();
        self.position.iter_mut().for_each(Parameter::make_trainable);
        self.segment.iter_mut().for_each(Parameter::make_trainable);
        if let Some(norm) = &mut self.norm {
            norm.gamma.make_trainable();
            norm.beta.make_trainable();
        }
    }

    /// Shows every trainable parameter in a fixed order.
    pub fn visit(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        self.word.visit(visit);
        self.position.iter_mut().for_each(|position| position.visit(visit));
        self.segment.iter_mut().for_each(|segment| segment.visit(visit));
        self.norm.iter_mut().for_each(|norm| norm.visit(visit));
    }
}

fn clear_row(table: &mut [f32], width: usize, row: u32) {
    let start = row as usize * width;
    if let Some(row) = table.get_mut(start..start + width) {
        row.fill(0.0);
    }
}
