//! The sparsity penalty (METHOD.md §3), uniform or weighted by kurtosis, with its gradient.

use finegates_kernels::gate as kernels;

use crate::gate::Gate;

/// `λ · mean over gated layers of ½(|m_r − (1−s)| + |m_c − (1−s)|)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalty {
    /// `s`, the share of gates that should close.
    pub target_sparsity: f32,
    /// `λ`.
    pub weight: f32,
    /// Whether the means are weighted by `κ = softmax(−√Kurt / τ)` over the gates now open.
    pub kurtosis: bool,
    /// `τ` of the kurtosis weights.
    pub temperature: f32,
}

impl Default for Penalty {
    fn default() -> Self {
        Self { target_sparsity: 0.4, weight: 50.0, kurtosis: false, temperature: 100.0 }
    }
}

impl Penalty {
    /// `|m − (1−s)|` of one gate vector; adds `factor` times its gradient to the gradient of θ.
    ///
    /// The subgradient at `m = 1−s` is 0, as in PyTorch. `kurtosis` holds one value a gate, or is `None` for a plain mean.
    pub fn vector(&self, gate: &mut Gate, kurtosis: Option<&[f32]>, factor: f32) -> f64 {
        // A vector without open gates has no softmax over them: its weights are uniform, a plain mean.
        let weights = kurtosis.filter(|_| !gate.open().is_empty()).map(|kurtosis| {
            let open: Vec<bool> = gate.values().iter().map(|&value| value > 0.0).collect();
            let mut weights = vec![0.0; kurtosis.len()];
            kernels::softmax_of_kurtosis(kurtosis, &open, self.temperature, &mut weights);
            weights
        });
        let mean = kernels::penalty_vector(&gate.parameter.value, weights.as_deref());
        let distance = mean - f64::from(1.0 - self.target_sparsity);
        if distance != 0.0 {
            let factor = factor * distance.signum() as f32;
            kernels::penalty_backward(&gate.parameter.value, weights.as_deref(), factor, &mut gate.parameter.gradient);
        }
        distance.abs()
    }
}
