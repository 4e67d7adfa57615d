//! Heads: what turns the stack's output into logits. A classifier on the first token (encoders) or on the last real one
//! (decoders), or the next token's logits (`language.rs`).

use finegates_kernels::dropout::{Dropout, dropout};
use finegates_kernels::matrix::Activation;
use finegates_kernels::{activation, random};

use crate::attention::{resized, zeroed};
use crate::batch::Batch;
use crate::language::LanguageHead;
use crate::parameter::ParameterMut;
use crate::projection::Projection;

/// The head of a model.
// There is one of it in a model.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub enum Head {
    /// Dense, activation, output on the first token's state.
    FirstToken(FirstTokenHead),
    /// One projection of the last real token's state.
    LastToken(LastTokenHead),
    /// The next token.
    Language(LanguageHead),
}

/// The classifier of an encoder.
#[derive(Debug, Clone)]
pub struct FirstTokenHead {
    /// `[D, D]`: BERT's pooler, RoBERTa's and MPNet's `classifier.dense`, DistilBERT's `pre_classifier`.
    pub dense: Projection,
    /// Activation after `dense`.
    pub activation: Activation,
    /// `[C, D]`.
    pub output: Projection,
    /// Whether the dropout also acts on the first token's state (RoBERTa, MPNet).
    pub dropout_before: bool,
    /// Dropout rate.
    pub dropout: f32,
}

/// The classifier of a decoder, as transformers' `…ForSequenceClassification`.
#[derive(Debug, Clone)]
pub struct LastTokenHead {
    /// `[C, D]`, without a bias.
    pub output: Projection,
    /// A token that is not a real one where it ends a sequence.
    pub padding_id: Option<u32>,
}

/// What the backward pass of the head needs; also its working memory.
#[derive(Debug, Default, Clone)]
pub struct HeadSaved {
    selected: Vec<f32>,
    dense: Vec<f32>,
    activated: Vec<f32>,
    d_activated: Vec<f32>,
    d_selected: Vec<f32>,
    product: Vec<f32>,
}

impl Head {
    /// `C`, or `V` of a language head.
    pub fn outputs(&self) -> usize {
        self.output().out_features()
    }

    /// The last projection.
    pub fn output(&self) -> &Projection {
        match self {
            Self::FirstToken(head) => &head.output,
            Self::LastToken(head) => &head.output,
            Self::Language(head) => &head.output,
        }
    }

    /// Logits of each sequence, `[S, C]`, from the stack's output `[T, D]`.
    pub fn forward(&self, states: &[f32], batch: &Batch, key: Option<u64>, saved: &mut HeadSaved) -> Vec<f32> {
        let (sequences, width) = (batch.sequences(), self.input_width());
        saved.selected.clear();
        for sequence in 0..sequences {
            let token = self.token(batch, sequence);
            saved.selected.extend_from_slice(&states[token * width..(token + 1) * width]);
        }
        let mut logits = vec![0.0; sequences * self.outputs()];
        match self {
            Self::FirstToken(head) => head.forward(sequences, key, saved, &mut logits),
            Self::LastToken(LastTokenHead { output, .. }) | Self::Language(LanguageHead { output, .. }) => {
                output.forward(&saved.selected, sequences, &mut logits, Activation::None);
            }
        }
        logits
    }

    /// Adds the gradient of the selected tokens' states to `d_states` `[T, D]`, from `d_logits` `[S, C]`.
    pub fn backward(
        &mut self,
        batch: &Batch,
        key: Option<u64>,
        saved: &mut HeadSaved,
        d_logits: &[f32],
        d_states: &mut [f32],
    ) {
        let sequences = batch.sequences();
        zeroed(&mut saved.d_selected, saved.selected.len());
        match self {
            Self::FirstToken(head) => head.backward(sequences, key, saved, d_logits),
            Self::LastToken(LastTokenHead { output, .. }) | Self::Language(LanguageHead { output, .. }) => {
                let HeadSaved { selected, d_selected, product, .. } = saved;
                output.backward(selected, &[], sequences, d_logits, Some(d_selected), product);
            }
        }
        let width = self.input_width();
        for (sequence, d_selected) in saved.d_selected.chunks_exact(width).enumerate() {
            let token = self.token(batch, sequence);
            d_states[token * width..(token + 1) * width].copy_from_slice(d_selected);
        }
    }

    /// Follows parameter values that were written.
    pub fn changed(&mut self) {
        self.projections_mut().for_each(Projection::changed);
    }

    /// Shows every trainable parameter in a fixed order.
    pub fn visit(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        match self {
            // The tied weight is the embeddings'.
            Self::Language(head) if head.tied => {}
            _ => self.projections_mut().for_each(|projection| projection.visit(visit)),
        }
    }

    /// The projections of the head, first to last.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        let dense = match self {
            Self::FirstToken(head) => Some(&head.dense),
            _ => None,
        };
        dense.into_iter().chain([self.output()])
    }

    /// The projections of the head, first to last.
    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let (dense, output) = match self {
            Self::FirstToken(head) => (Some(&mut head.dense), &mut head.output),
            Self::LastToken(head) => (None, &mut head.output),
            Self::Language(head) => (None, &mut head.output),
        };
        dense.into_iter().chain([output])
    }

    fn input_width(&self) -> usize {
        match self {
            Self::FirstToken(head) => head.dense.input_width(),
            _ => self.output().input_width(),
        }
    }

    /// The token of a sequence whose state is read.
    fn token(&self, batch: &Batch, sequence: usize) -> usize {
        let range = batch.offsets[sequence]..batch.offsets[sequence + 1];
        match self {
            Self::FirstToken(_) => range.start,
            Self::Language(_) => range.end - 1,
            // Of a sequence of nothing but padding transformers reads the first token.
            Self::LastToken(head) => {
                let real = |token: &usize| Some(batch.tokens[*token]) != head.padding_id;
                range.clone().rev().find(real).unwrap_or(range.start)
            }
        }
    }
}

impl FirstTokenHead {
    fn mask(&self, key: Option<u64>, site: u64) -> Option<Dropout> {
        let key = key.filter(|_| self.dropout > 0.0)?;
        Some(Dropout { rate: self.dropout, key: random::mix(key, u64::MAX - site) })
    }

    fn forward(&self, sequences: usize, key: Option<u64>, saved: &mut HeadSaved, logits: &mut [f32]) {
        if let Some(mask) = self.mask(key, 0).filter(|_| self.dropout_before) {
            dropout(&mut saved.selected, &mask);
        }
        resized(&mut saved.dense, sequences * self.dense.output_width());
        self.dense.forward(&saved.selected, sequences, &mut saved.dense, Activation::None);
        resized(&mut saved.activated, saved.dense.len());
        activation::activate(self.activation, &saved.dense, &mut saved.activated);
        if let Some(mask) = self.mask(key, 1) {
            dropout(&mut saved.activated, &mask);
        }
        self.output.forward(&saved.activated, sequences, logits, Activation::None);
    }

    fn backward(&mut self, sequences: usize, key: Option<u64>, saved: &mut HeadSaved, d_logits: &[f32]) {
        let masks = [self.mask(key, 0).filter(|_| self.dropout_before), self.mask(key, 1)];
        let HeadSaved { selected, dense, activated, d_activated, d_selected, product } = saved;
        zeroed(d_activated, activated.len());
        self.output.backward(activated, &[], sequences, d_logits, Some(d_activated), product);
        if let Some(mask) = masks[1] {
            dropout(d_activated, &mask);
        }
        activation::activate_backward(self.activation, dense, d_activated);
        self.dense.backward(selected, &[], sequences, d_activated, Some(d_selected), product);
        if let Some(mask) = masks[0] {
            dropout(d_selected, &mask);
        }
    }
}
