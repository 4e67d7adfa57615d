//! Feed-forward block of a post-norm encoder: `norm(x + dropout(down(activation(up x))))`.

use finegates_kernels::activation as kernels;
use finegates_kernels::dropout::dropout;
use finegates_kernels::matrix::Activation;

use crate::attention::{Pass, Scratch, residual_norm, zeroed};
use crate::norm::{Norm, NormSaved};
use crate::projection::Projection;

/// The feed-forward block of one layer.
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// `[F, D]`.
    pub up: Projection,
    /// `[D, F]`.
    pub down: Projection,
    /// Norm of the sum with the residual.
    pub norm: Norm,
    /// Activation between the two; maps 0 to 0.
    pub activation: Activation,
    /// Dropout rate of the block's output.
    pub hidden_dropout: f32,
}

/// What the backward pass of the block needs; also the block's working memory.
#[derive(Debug, Default, Clone)]
pub struct FeedForwardSaved {
    inner: Vec<f32>,
    activated: Vec<f32>,
    output: Vec<f32>,
    sum: Vec<f32>,
    norm: NormSaved,
}

impl FeedForwardSaved {
    /// Input of the down projection, `[T, F]`.
    pub fn activated(&self) -> &[f32] {
        &self.activated
    }
}

impl FeedForward {
    /// `out` `[T, D]` from `x` `[T, D]`.
    pub fn forward(&self, x: &[f32], layer: usize, pass: &Pass<'_>, saved: &mut FeedForwardSaved, out: &mut [f32]) {
        let rows = pass.rows();
        saved.activated.resize(rows * self.up.output_width(), 0.0);
        if pass.training {
            saved.inner.resize(rows * self.up.output_width(), 0.0);
            self.up.forward(x, rows, &mut saved.inner, Activation::None);
            kernels::activate(self.activation, &saved.inner, &mut saved.activated);
        } else {
            self.up.forward(x, rows, &mut saved.activated, self.activation);
        }
        residual_norm(
            &self.down,
            &saved.activated,
            x,
            pass,
            pass.dropout(self.hidden_dropout, layer, 2),
            &self.norm,
            &mut saved.output,
            &mut saved.sum,
            &mut saved.norm,
            out,
        );
    }

    /// `d_x` (overwritten, `[T, D]`) from `d_out`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &mut self,
        x: &[f32],
        layer: usize,
        pass: &Pass<'_>,
        saved: &FeedForwardSaved,
        d_out: &[f32],
        d_x: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let rows = pass.rows();
        let Scratch { a: d_sum, b: d_inner, product, .. } = scratch;
        d_sum.resize(rows * self.down.output_width(), 0.0);
        self.norm.backward(&saved.sum, &saved.norm, d_out, d_sum);
        d_x.copy_from_slice(d_sum);
        if let Some(mask) = pass.dropout(self.hidden_dropout, layer, 2) {
            dropout(d_sum, &mask);
        }
        zeroed(d_inner, rows * self.up.output_width());
        self.down.backward(&saved.activated, &saved.output, rows, d_sum, Some(d_inner), product);
        kernels::activate_backward(self.activation, &saved.inner, d_inner);
        self.up.backward(x, &saved.inner, rows, d_inner, Some(d_x), product);
    }
}
