//! Feed-forward block without its norm and residual: `down(activation(up x))`, or `down(activation(gate x) · up x)` (SwiGLU).

use finegates_kernels::activation as kernels;
use finegates_kernels::matrix::{self, Activation};

use crate::attention::{Scratch, resized, zeroed};
use crate::projection::Projection;

/// The feed-forward block of one layer.
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// `[F, D]`, in blocks whose interior is gated.
    pub gate: Option<Projection>,
    /// `[F, D]`.
    pub up: Projection,
    /// `[D, F]`.
    pub down: Projection,
    /// Activation of the interior, or of its gate; maps 0 to 0.
    pub activation: Activation,
}

/// What the backward pass of the block needs; also the block's working memory.
#[derive(Debug, Default, Clone)]
pub struct FeedForwardSaved {
    gate: Vec<f32>,
    inner: Vec<f32>,
    /// Made again for the backward pass.
    pub(crate) activated: Vec<f32>,
    /// Output of the down projection, `[T, D]`, when training.
    pub(crate) output: Vec<f32>,
}

impl FeedForwardSaved {
    /// Input of the down projection, `[T, F]`.
    pub fn activated(&self) -> &[f32] {
        &self.activated
    }

    pub(crate) fn buffers(&self) -> [&Vec<f32>; 4] {
        [&self.gate, &self.inner, &self.activated, &self.output]
    }

    /// Exchanges what is kept from the forward pass to the backward pass.
    pub(crate) fn exchange_kept(&mut self, other: &mut Self) {
        std::mem::swap(&mut self.gate, &mut other.gate);
        std::mem::swap(&mut self.inner, &mut other.inner);
        std::mem::swap(&mut self.output, &mut other.output);
    }
}

impl FeedForward {
    /// Fills the input of the down projection from `x` `[T, D]`.
    pub fn inner(&self, x: &[f32], rows: usize, training: bool, saved: &mut FeedForwardSaved) {
        let length = rows * self.up.output_width();
        match &self.gate {
            None if training => {
                resized(&mut saved.inner, length);
                self.up.forward(x, rows, &mut saved.inner, Activation::None);
                self.activate(saved);
            }
            None => {
                resized(&mut saved.activated, length);
                self.up.forward(x, rows, &mut saved.activated, self.activation);
            }
            Some(gate) => {
                resized(&mut saved.gate, length);
                resized(&mut saved.inner, length);
                let FeedForwardSaved { gate: gated, inner, .. } = saved;
                matrix::together(
                    rows,
                    || gate.forward(x, rows, gated, Activation::None),
                    || self.up.forward(x, rows, inner, Activation::None),
                );
                self.activate(saved);
            }
        }
    }

    /// Makes the input of the down projection from the outputs of gate and up.
    pub(crate) fn activate(&self, saved: &mut FeedForwardSaved) {
        let FeedForwardSaved { gate, inner, activated, .. } = saved;
        resized(activated, inner.len());
        match &self.gate {
            None => kernels::activate(self.activation, inner, activated),
            Some(_) => kernels::gated(self.activation, gate, inner, activated),
        }
    }

    /// Adds to `d_x` `[T, D]` from the gradient of the down projection's output, and gathers the parameters' gradients.
    pub fn backward(
        &mut self,
        x: &[f32],
        rows: usize,
        saved: &FeedForwardSaved,
        d_output: &[f32],
        d_x: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let Scratch { b: d_inner, c: d_pair, product, .. } = scratch;
        let length = rows * self.up.output_width();
        zeroed(d_inner, length);
        self.down.backward(&saved.activated, &saved.output, rows, d_output, Some(d_inner), product);
        match &mut self.gate {
            None => {
                kernels::activate_backward(self.activation, &saved.inner, d_inner);
                self.up.backward(x, &saved.inner, rows, d_inner, Some(d_x), product);
            }
            Some(gate) => {
                resized(d_pair, 2 * length);
                let (d_gate, d_up) = d_pair.split_at_mut(length);
                kernels::gated_backward(self.activation, &saved.gate, &saved.inner, d_inner, d_gate, d_up);
                gate.backward(x, &saved.gate, rows, d_gate, Some(d_x), product);
                self.up.backward(x, &saved.inner, rows, d_up, Some(d_x), product);
            }
        }
    }

    /// Gate (where there is one), up, down: the order of the wiring.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    /// Gate (where there is one), up, down: the order of the wiring.
    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.gate.iter_mut().chain([&mut self.up, &mut self.down])
    }
}
