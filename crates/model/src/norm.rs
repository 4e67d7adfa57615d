//! Norms with their parameters: layer norm (with a shift, alone or after adding a residual) and RMS norm.

use finegates_kernels::norm as kernels;

use crate::parameter::{Parameter, ParameterMut};

/// A layer norm over the last dimension.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Scale, `[D]`.
    pub gamma: Parameter,
    /// Shift, `[D]`.
    pub beta: Parameter,
    /// Added to the variance.
    pub eps: f32,
}

/// Row statistics that the backward pass needs.
#[derive(Debug, Default, Clone)]
pub struct NormSaved {
    mean: Vec<f32>,
    reciprocal_std: Vec<f32>,
}

impl Norm {
    /// `y = norm(x)`, `x` and `y` `[T, D]`.
    pub fn forward(&self, x: &[f32], y: &mut [f32], saved: Option<&mut NormSaved>) {
        let width = self.gamma.value.len();
        let saved = saved.map(|saved| saved.room(x.len() / width));
        kernels::layer_norm_forward(x, width, &self.gamma.value, &self.beta.value, self.eps, y, saved);
    }

    /// `x += residual; y = norm(x)`; the sum stays in `x` for the backward pass.
    pub fn add_forward(&self, x: &mut [f32], residual: &[f32], y: &mut [f32], saved: Option<&mut NormSaved>) {
        let width = self.gamma.value.len();
        let saved = saved.map(|saved| saved.room(x.len() / width));
        kernels::add_layer_norm_forward(x, residual, width, &self.gamma.value, &self.beta.value, self.eps, y, saved);
    }

    /// `d_x` (overwritten) from `d_y` and the norm's input `x`; gradients of scale and shift where they train.
    pub fn backward(&mut self, x: &[f32], saved: &NormSaved, d_y: &[f32], d_x: &mut [f32]) {
        let width = self.gamma.value.len();
        let (gamma, beta) = (&mut self.gamma, &mut self.beta);
        let gradients =
            (gamma.trainable() && beta.trainable()).then_some((&mut gamma.gradient[..], &mut beta.gradient[..]));
        kernels::layer_norm_backward(x, width, &gamma.value, &saved.mean, &saved.reciprocal_std, d_y, d_x, gradients);
    }

    /// Shows every trainable parameter in a fixed order.
    pub fn visit(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        self.gamma.visit(visit);
        self.beta.visit(visit);
    }
}

impl NormSaved {
    fn room(&mut self, rows: usize) -> (&mut [f32], &mut [f32]) {
        self.mean.resize(rows, 0.0);
        self.reciprocal_std.resize(rows, 0.0);
        (&mut self.mean, &mut self.reciprocal_std)
    }
}

/// An RMS norm over the last dimension: `y = γ x / √(mean(x²) + ε)` (B. Zhang, R. Sennrich, 2019).
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// Scale, `[D]`.
    pub gamma: Parameter,
    /// Added to the mean of the squares.
    pub eps: f32,
}

impl RmsNorm {
    /// `y = norm(x)`, `x` and `y` `[T, D]`.
    pub fn forward(&self, x: &[f32], y: &mut [f32], saved: Option<&mut NormSaved>) {
        let width = self.gamma.value.len();
        let saved = saved.map(|saved| saved.room(x.len() / width).1);
        kernels::rms_norm_forward(x, width, &self.gamma.value, self.eps, y, saved);
    }

    /// Adds to `d_x` from `d_y` and the norm's input `x`; the gradient of the scale where it trains.
    pub fn backward(&mut self, x: &[f32], saved: &NormSaved, d_y: &[f32], d_x: &mut [f32]) {
        let width = self.gamma.value.len();
        let Parameter { value, gradient, .. } = &mut self.gamma;
        let gradient = (!gradient.is_empty()).then_some(gradient.as_mut_slice());
        kernels::rms_norm_backward(x, width, value, &saved.reciprocal_std, d_y, d_x, gradient);
    }
}
