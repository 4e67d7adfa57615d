//! Gates on the rows or columns of a projection: one vector of numbers that train, and the values of this step that follow
//! from them. Stochastic gates are the paper's (METHOD.md §2); direct gates are their values.

use finegates_checkpoint::adapter::GateForm;
use finegates_kernels::{gate as kernels, random, reduce};

use crate::parameter::{Group, Parameter};
use crate::wiring::Side;

/// What kind of gates a model gets for training, and how they start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GateSettings {
    /// `ω = clamp(tanh θ + ε + ½, 0, 1)` (METHOD.md §2).
    Stochastic {
        /// Mean of θ at the start.
        init_mean: f32,
        /// Standard deviation of θ at the start.
        init_std: f32,
        /// σ of the noise ε added at every training step.
        noise_std: f32,
    },
    /// ω itself trains, from 1 on and without bounds; whoever trains closes gates with [`Gate::close`].
    Direct,
}

impl Default for GateSettings {
    /// The paper's.
    fn default() -> Self {
        Self::Stochastic { init_mean: 1.0, init_std: 0.1, noise_std: 0.1 }
    }
}

/// What an open direct gate is set to where training has made it exactly 0.
const SMALLEST_OPEN: f32 = 1e-6;

/// How the values ω follow from the numbers that train.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Law {
    /// `ω = clamp(tanh θ + ε + ½, 0, 1)` with this σ of ε.
    Stochastic(f32),
    /// The numbers are ω; 0 is closed and stays closed.
    Direct,
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
    /// ω of the rows, `[out]`; stochastic gates in `[0, 1]`, direct ones anywhere.
    pub rows: Vec<f32>,
    /// ω of the columns, `[in]`, as those of the rows.
    pub columns: Vec<f32>,
}

/// One gate vector: the numbers that train, the noise of this step, and the values ω that follow from both.
#[derive(Debug, Clone)]
pub struct Gate {
    /// θ of stochastic gates, ω itself of direct ones; trainable.
    pub parameter: Parameter,
    /// Gradient of ω gathered by the backward pass of this step.
    pub d_values: Vec<f32>,
    law: Law,
    values: Vec<f32>,
    noise: Vec<f32>,
    open: Vec<u32>,
    open_values: Vec<f32>,
    possible: Vec<u32>,
    /// Of direct gates, those that are closed.
    closed: Vec<bool>,
    /// Where the weight behind the gates trains: 1 for each gate that is awake, 0 for one that is asleep; otherwise empty.
    awake: Vec<f32>,
}

impl Gate {
    /// A vector of stochastic gates with the given θ, drawn without noise.
    pub fn stochastic(name: String, theta: Vec<f32>, noise_std: f32, trainable: bool) -> Self {
        Self::new(name, theta, Law::Stochastic(noise_std), trainable)
    }

    /// A vector of direct gates with the given values; those that are 0 are closed.
    pub fn direct(name: String, values: Vec<f32>, trainable: bool) -> Self {
        Self::new(name, values, Law::Direct, trainable)
    }

    fn new(name: String, numbers: Vec<f32>, law: Law, trainable: bool) -> Self {
        let length = numbers.len();
        let mut parameter = Parameter::frozen(name, Group::Gate, &[length], numbers);
        if trainable {
            parameter.make_trainable();
        }
        let mut gate = Self {
            parameter,
            d_values: vec![0.0; if trainable { length } else { 0 }],
            law,
            values: vec![0.0; length],
            noise: Vec::new(),
            open: Vec::new(),
            open_values: Vec::new(),
            possible: Vec::new(),
            closed: vec![false; if law == Law::Direct { length } else { 0 }],
            awake: Vec::new(),
        };
        gate.adopt();
        gate.draw(&GateNoise::None);
        gate
    }

    /// Fresh gates on the `length` rows of a projection: open, and stochastic ones with `θ ~ N(init_mean, init_std²)` as a
    /// pure function of `seed` and their name.
    pub fn fresh_rows(path: &str, length: usize, settings: &GateSettings, seed: u64) -> Self {
        Self::fresh(path, Side::Row, length, settings, seed)
    }

    /// Fresh gates on the `length` columns of a projection, as [`Gate::fresh_rows`].
    pub fn fresh_columns(path: &str, length: usize, settings: &GateSettings, seed: u64) -> Self {
        Self::fresh(path, Side::Column, length, settings, seed)
    }

    fn fresh(path: &str, side: Side, length: usize, settings: &GateSettings, seed: u64) -> Self {
        match *settings {
            GateSettings::Stochastic { init_mean, init_std, noise_std } => {
                let name = gates_name(path, side, GateForm::Theta);
                let mut theta = vec![0.0; length];
                random::fill_normal(random::derive(seed, &name), init_mean, init_std, &mut theta);
                Self::stochastic(name, theta, noise_std, true)
            }
            GateSettings::Direct => Self::direct(gates_name(path, side, GateForm::Values), vec![1.0; length], true),
        }
    }

    /// Whether what is closed now may be open later.
    pub fn may_open_again(&self) -> bool {
        self.law != Law::Direct
    }

    /// Makes gates sleep that practically never open in a draw: they stay closed in every draw of the same θ, so that what
    /// lies behind them need not be computed, updated or packed. `docs/pretrain.md` has the rule. [`Gate::draw`] must follow.
    pub fn let_sleep(&mut self) {
        self.awake = vec![1.0; self.parameter.value.len()];
    }

    /// 1 for each gate that is awake and 0 for the others, if any is asleep.
    pub fn awake(&self) -> Option<&[f32]> {
        (self.possible.len() < self.awake.len()).then_some(&self.awake)
    }

    /// Closes a direct gate for good. [`Gate::draw`] must follow.
    ///
    /// # Panics
    /// If the gates are stochastic, or there is no such gate.
    pub fn close(&mut self, index: usize) {
        assert_eq!(self.law, Law::Direct, "only direct gates are closed from outside");
        self.closed[index] = true;
        self.parameter.value[index] = 0.0;
    }

    /// Takes numbers that were saved: of direct gates, those that are 0 are closed and the others open.
    pub fn adopt(&mut self) {
        for (closed, value) in self.closed.iter_mut().zip(&self.parameter.value) {
            *closed = *value == 0.0;
        }
    }

    /// Follows a step of training: what is closed stays at 0. An open gate that came to be 0 is moved away from it, for nothing
    /// but [`Gate::close`] closes.
    pub fn changed(&mut self) {
        for (closed, value) in self.closed.iter_mut().zip(&mut self.parameter.value) {
            if *closed {
                *value = 0.0;
            } else if *value == 0.0 {
                *value = SMALLEST_OPEN;
            }
        }
    }

    /// Sets this step's noise, which direct gates have none of, and with it the values.
    pub fn draw(&mut self, noise: &GateNoise<'_>) {
        let length = self.parameter.value.len();
        self.noise.clear();
        let mut reach = 0.0;
        match self.law {
            Law::Direct => self.values.copy_from_slice(&self.parameter.value),
            Law::Stochastic(noise_std) => {
                match noise {
                    GateNoise::None => {}
                    GateNoise::Key(key) => {
                        self.noise.resize(length, 0.0);
                        random::fill_normal(
                            random::derive(*key, &self.parameter.name),
                            0.0,
                            noise_std,
                            &mut self.noise,
                        );
                    }
                    GateNoise::Given(given) => self.noise = given(&self.parameter.name, length),
                }
                // A gate three noise deviations below the threshold practically never opens in a draw.
                reach = if self.noise.is_empty() { 0.0 } else { 3.0 * noise_std };
                if reach > 0.0 && !self.awake.is_empty() {
                    kernels::gate_values(&self.parameter.value, Some(&vec![reach; length]), &mut self.values);
                    for (noise, _) in self.noise.iter_mut().zip(&self.values).filter(|(_, most)| **most == 0.0) {
                        // And where gates sleep, never.
                        *noise = noise.min(0.0);
                    }
                    for (awake, most) in self.awake.iter_mut().zip(&self.values) {
                        *awake = f32::from(u8::from(*most != 0.0));
                    }
                }
                let drawn = (!self.noise.is_empty()).then_some(self.noise.as_slice());
                kernels::gate_values(&self.parameter.value, drawn, &mut self.values);
            }
        }
        if reach == 0.0 {
            for (awake, value) in self.awake.iter_mut().zip(&self.values) {
                *awake = f32::from(u8::from(*value != 0.0));
            }
        }
        self.open.clear();
        self.open_values.clear();
        self.possible.clear();
        for (index, (&value, &theta)) in self.values.iter().zip(&self.parameter.value).enumerate() {
            if value != 0.0 {
                self.open.push(index as u32);
                self.open_values.push(value);
            }
            let possible = match self.awake.get(index) {
                Some(&awake) => awake != 0.0,
                None => value != 0.0 || (reach > 0.0 && theta.tanh() + 0.5 + reach > 0.0),
            };
            if possible {
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
        if self.law == Law::Direct {
            return self.parameter.value.clone();
        }
        let mut values = vec![0.0; self.parameter.value.len()];
        kernels::gate_values(&self.parameter.value, None, &mut values);
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

    /// Turns the gathered gradient of ω into that of the numbers that train, and clears it.
    pub fn finish_backward(&mut self) {
        let noise = (!self.noise.is_empty()).then_some(self.noise.as_slice());
        let Parameter { value, gradient, .. } = &mut self.parameter;
        match self.law {
            Law::Stochastic(_) => kernels::gate_backward(value, noise, &self.d_values, gradient),
            Law::Direct => reduce::add(&self.d_values, gradient),
        }
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

impl Gates {
    /// The gates of the rows or of the columns.
    pub fn side(&self, side: Side) -> &Gate {
        match side {
            Side::Row => &self.rows,
            Side::Column => &self.columns,
        }
    }

    /// The gates of the rows or of the columns.
    pub fn side_mut(&mut self, side: Side) -> &mut Gate {
        match side {
            Side::Row => &mut self.rows,
            Side::Column => &mut self.columns,
        }
    }
}

/// The name of a projection's vector of gates, as adapters have it.
pub fn gates_name(path: &str, side: Side, form: GateForm) -> String {
    let suffix = match side {
        Side::Row => form.rows_suffix(),
        Side::Column => form.columns_suffix(),
    };
    format!("{path}{suffix}")
}
