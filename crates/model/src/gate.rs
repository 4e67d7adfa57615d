//! Stochastic gates on the rows or columns of a projection (METHOD.md §2): one vector of θ and this step's draw.

use finegates_kernels::{gate as kernels, random};

use crate::parameter::{Group, Parameter};

/// How new gates start and how they are drawn in training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateSettings {
    /// Mean of θ at the start.
    pub init_mean: f32,
    /// Standard deviation of θ at the start.
    pub init_std: f32,
    /// σ of the noise ε added at every training step.
    pub noise_std: f32,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self { init_mean: 1.0, init_std: 0.1, noise_std: 0.1 }
    }
}

/// Where a step's gate noise comes from.
pub enum GateNoise<'a> {
    /// No noise: the values of evaluation.
    None,
    /// `ε ~ N(0, σ²)` as a pure function of this key and the gate's name.
    Key(u64),
    /// `ε` itself, already scaled, by parameter name and length: for comparisons with other programs.
    Given(&'a dyn Fn(&str, usize) -> Vec<f32>),
}

/// Evaluation values of one projection's gates.
#[derive(Debug, Clone, PartialEq)]
pub struct GateState {
    /// Module path of the projection.
    pub path: String,
    /// ω of the rows, `[out]`, in `[0, 1]`.
    pub rows: Vec<f32>,
    /// ω of the columns, `[in]`, in `[0, 1]`.
    pub columns: Vec<f32>,
}

/// One gate vector: θ, the noise of this step, and the values ω that follow from both.
#[derive(Debug, Clone)]
pub struct Gate {
    /// θ, trainable.
    pub theta: Parameter,
    /// Gradient of ω gathered by the backward pass of this step.
    pub d_values: Vec<f32>,
    values: Vec<f32>,
    noise: Vec<f32>,
    noise_std: f32,
    open: Vec<u32>,
    open_values: Vec<f32>,
    possible: Vec<u32>,
}

impl Gate {
    /// A gate vector with the given θ, drawn without noise.
    pub fn new(name: String, theta: Vec<f32>, noise_std: f32, trainable: bool) -> Self {
        let length = theta.len();
        let mut theta = Parameter::frozen(name, Group::Gate, &[length], theta);
        if trainable {
            theta.make_trainable();
        }
        let mut gate = Self {
            theta,
            d_values: vec![0.0; if trainable { length } else { 0 }],
            values: vec![0.0; length],
            noise: Vec::new(),
            noise_std,
            open: Vec::new(),
            open_values: Vec::new(),
            possible: Vec::new(),
        };
        gate.draw(&GateNoise::None);
        gate
    }

    /// A fresh gate vector, `θ ~ N(init_mean, init_std²)` as a pure function of `seed` and `name`.
    pub fn fresh(name: String, length: usize, settings: &GateSettings, seed: u64) -> Self {
        let mut theta = vec![0.0; length];
        random::fill_normal(random::derive(seed, &name), settings.init_mean, settings.init_std, &mut theta);
        Self::new(name, theta, settings.noise_std, true)
    }

    /// Sets this step's noise and with it the values.
    pub fn draw(&mut self, noise: &GateNoise<'_>) {
        let length = self.theta.value.len();
        match noise {
            GateNoise::None => self.noise.clear(),
            GateNoise::Key(key) => {
                self.noise.resize(length, 0.0);
                random::fill_normal(random::derive(*key, &self.theta.name), 0.0, self.noise_std, &mut self.noise);
            }
            GateNoise::Given(given) => self.noise = given(&self.theta.name, length),
        }
        let drawn = (!self.noise.is_empty()).then_some(self.noise.as_slice());
        kernels::gate_values(&self.theta.value, drawn, &mut self.values);
        self.open.clear();
        self.open_values.clear();
        self.possible.clear();
        // A gate three noise deviations below the threshold practically never opens in a draw.
        let reach = if self.noise.is_empty() { 0.0 } else { 3.0 * self.noise_std };
        for (index, (&value, &theta)) in self.values.iter().zip(&self.theta.value).enumerate() {
            if value != 0.0 {
                self.open.push(index as u32);
                self.open_values.push(value);
            }
            if value != 0.0 || (reach > 0.0 && theta.tanh() + 0.5 + reach > 0.0) {
                self.possible.push(index as u32);
            }
        }
    }

    /// The noise of this step, if any.
    pub fn noise(&self) -> Option<&[f32]> {
        (!self.noise.is_empty()).then_some(self.noise.as_slice())
    }

    /// Values ω of this step, one a row or column.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Indices of the gates that are not 0 in this step, ascending.
    pub fn open(&self) -> &[u32] {
        &self.open
    }

    /// Values of the open gates, in the order of [`Gate::open`].
    pub fn open_values(&self) -> &[f32] {
        &self.open_values
    }

    /// Indices of the gates that are open in this step or may well open in a later draw of the same θ, ascending.
    pub fn possible(&self) -> &[u32] {
        &self.possible
    }

    /// Values at evaluation, whatever this step's noise is.
    pub fn evaluation_values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.theta.value.len()];
        kernels::gate_values(&self.theta.value, None, &mut values);
        values
    }

    /// Adds the gradient of the open gates' values from `products[i] = Σ_t d_y·y` of each output that a gate scales.
    ///
    /// `y = ω z`, so `Σ d_y z = (Σ d_y y) / ω`; a closed gate gets no gradient.
    pub fn add_output_products(&mut self, products: &[f32]) {
        for (&index, &value) in self.open.iter().zip(&self.open_values) {
            self.d_values[index as usize] += products[index as usize] / value;
        }
    }

    /// Turns the gathered gradient of ω into that of θ and clears it.
    pub fn finish_backward(&mut self) {
        let noise = (!self.noise.is_empty()).then_some(self.noise.as_slice());
        kernels::gate_backward(&self.theta.value, noise, &self.d_values, &mut self.theta.gradient);
        self.d_values.fill(0.0);
    }
}

/// Row and column gates of one projection.
#[derive(Debug, Clone)]
pub struct Gates {
    /// `ω_r`, one a row (output).
    pub rows: Gate,
    /// `ω_c`, one a column (input).
    pub columns: Gate,
}

/// Parameter name of a projection's row gates in PEFT's layout.
pub fn rows_name(path: &str) -> String {
    format!("{path}.finegates_rows")
}

/// Parameter name of a projection's column gates in PEFT's layout.
pub fn columns_name(path: &str) -> String {
    format!("{path}.finegates_columns")
}
