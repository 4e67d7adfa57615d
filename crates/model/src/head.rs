//! Sequence classification head on the first token: dense, activation, output, with the family's dropouts.

use finegates_kernels::dropout::{Dropout, dropout};
use finegates_kernels::matrix::Activation;
use finegates_kernels::{activation, random};

use crate::parameter::ParameterMut;
use crate::projection::Projection;

/// The head of one family's sequence classification class.
#[derive(Debug, Clone)]
pub struct Head {
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

/// What the backward pass of the head needs; also its working memory.
#[derive(Debug, Default, Clone)]
pub struct HeadSaved {
    first: Vec<f32>,
    dense: Vec<f32>,
    activated: Vec<f32>,
    d_activated: Vec<f32>,
    d_first: Vec<f32>,
    product: Vec<f32>,
}

impl Head {
    fn mask(&self, key: Option<u64>, site: u64) -> Option<Dropout> {
        let key = key.filter(|_| self.dropout > 0.0)?;
        Some(Dropout { rate: self.dropout, key: random::mix(key, u64::MAX - site) })
    }

    /// Logits `[S, C]` from the encoder's output `[T, D]`.
    pub fn forward(&self, states: &[f32], offsets: &[usize], key: Option<u64>, saved: &mut HeadSaved) -> Vec<f32> {
        let (width, sequences) = (self.dense.input_width(), offsets.len().saturating_sub(1));
        saved.first.clear();
        for &start in &offsets[..sequences] {
            saved.first.extend_from_slice(&states[start * width..(start + 1) * width]);
        }
        if let Some(mask) = self.mask(key, 0).filter(|_| self.dropout_before) {
            dropout(&mut saved.first, &mask);
        }
        saved.dense.resize(sequences * self.dense.output_width(), 0.0);
        self.dense.forward(&saved.first, sequences, &mut saved.dense, Activation::None);
        saved.activated.resize(saved.dense.len(), 0.0);
        activation::activate(self.activation, &saved.dense, &mut saved.activated);
        if let Some(mask) = self.mask(key, 1) {
            dropout(&mut saved.activated, &mask);
        }
        let mut logits = vec![0.0; sequences * self.output.output_width()];
        self.output.forward(&saved.activated, sequences, &mut logits, Activation::None);
        logits
    }

    /// Adds the gradient of the first tokens' states to `d_states` `[T, D]`, from `d_logits` `[S, C]`.
    pub fn backward(
        &mut self,
        offsets: &[usize],
        key: Option<u64>,
        saved: &mut HeadSaved,
        d_logits: &[f32],
        d_states: &mut [f32],
    ) {
        let sequences = offsets.len().saturating_sub(1);
        let masks = [self.mask(key, 0).filter(|_| self.dropout_before), self.mask(key, 1)];
        let HeadSaved { first, dense, activated, d_activated, d_first, product } = saved;
        crate::attention::zeroed(d_activated, activated.len());
        self.output.backward(activated, &[], sequences, d_logits, Some(d_activated), product);
        if let Some(mask) = masks[1] {
            dropout(d_activated, &mask);
        }
        activation::activate_backward(self.activation, dense, d_activated);
        crate::attention::zeroed(d_first, first.len());
        self.dense.backward(first, &[], sequences, d_activated, Some(d_first), product);
        if let Some(mask) = masks[0] {
            dropout(d_first, &mask);
        }
        let width = self.dense.input_width();
        for (&start, d_first) in offsets.iter().zip(d_first.chunks_exact(width)) {
            d_states[start * width..(start + 1) * width].copy_from_slice(d_first);
        }
    }

    /// Shows every trainable parameter in a fixed order.
    pub fn visit(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        self.dense.visit(visit);
        self.output.visit(visit);
    }
}
