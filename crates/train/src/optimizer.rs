//! AdamW over a model's parameters: each with its own moments, by name, and with the learning rate and decay of its group.

use std::collections::BTreeMap;

use finegates_kernels::optimizer::{AdamW, adamw_step};
use finegates_kernels::reduce;
use finegates_model::{Group, Model};
use serde::Serialize;

use crate::recipe::Recipe;

/// The learning rates of the groups.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LearningRates {
    /// Of gates.
    pub gate: f64,
    /// Of the biases of gated layers.
    pub bias: f64,
    /// Of the head.
    pub head: f64,
    /// Of everything else.
    pub weight: f64,
}

impl LearningRates {
    /// The rates at their peaks.
    pub fn of(recipe: &Recipe) -> LearningRates {
        LearningRates {
            gate: recipe.gate_learning_rate,
            bias: recipe.bias_learning_rate,
            head: recipe.head_learning_rate,
            weight: recipe.weight_learning_rate,
        }
    }

    /// All rates times `share`.
    pub fn scaled(self, share: f64) -> LearningRates {
        let LearningRates { gate, bias, head, weight } = self;
        LearningRates { gate: gate * share, bias: bias * share, head: head * share, weight: weight * share }
    }

    fn of_group(&self, group: Group) -> f64 {
        match group {
            Group::Gate => self.gate,
            Group::Bias => self.bias,
            Group::Head => self.head,
            Group::Weight | Group::Norm | Group::Embedding => self.weight,
        }
    }
}

/// Which parameters decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// Weight matrices and embeddings, also the head's; no gate, bias or norm.
    Matrices,
    /// Everything but gates, as `torch.optim.AdamW` does with one parameter group for the rest.
    AllButGates,
}

impl Decay {
    fn applies(self, name: &str, group: Group) -> bool {
        match (self, group) {
            (_, Group::Gate) => false,
            (Decay::AllButGates, _) => true,
            (Decay::Matrices, Group::Bias | Group::Norm) => false,
            (Decay::Matrices, Group::Head | Group::Weight | Group::Embedding) => !name.ends_with(".bias"),
        }
    }
}

/// AdamW's settings besides the learning rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Decay of the gradient's mean.
    pub beta1: f64,
    /// Decay of the gradient's square.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Whom it applies to.
    pub decay: Decay,
    /// Longest gradient; 0 for any.
    pub clip_norm: f64,
}

impl OptimizerSettings {
    /// The recipe's.
    pub fn of(recipe: &Recipe) -> OptimizerSettings {
        OptimizerSettings {
            beta1: recipe.beta1,
            beta2: recipe.beta2,
            epsilon: recipe.epsilon,
            weight_decay: recipe.weight_decay,
            decay: Decay::Matrices,
            clip_norm: recipe.clip_norm,
        }
    }
}

/// The moments of one parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

/// AdamW with its state.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// How it is set.
    pub settings: OptimizerSettings,
    /// How many steps it has made.
    pub steps: u64,
    /// The moments of each parameter, by name.
    pub moments: BTreeMap<String, Moments>,
}

impl Optimizer {
    /// Begins with moments of zero.
    pub fn new(settings: OptimizerSettings) -> Optimizer {
        Optimizer { settings, steps: 0, moments: BTreeMap::new() }
    }

    /// The length of the gradient over all parameters; not finite if any part of it is not.
    pub fn gradient_norm(model: &mut Model) -> f64 {
        let mut sum = 0.0;
        model.parameters(&mut |parameter| sum += reduce::squared_norm(parameter.gradient));
        sum.sqrt()
    }

    /// Makes one step with a gradient of this length, scaled down if it is too long, and sets the gradients to zero.
    pub fn step(&mut self, model: &mut Model, rates: &LearningRates, gradient_norm: f64) {
        self.steps += 1;
        let settings = self.settings;
        // As `torch.nn.utils.clip_grad_norm_`.
        let scale = settings.clip_norm / (gradient_norm + 1e-6);
        let scale = (settings.clip_norm > 0.0 && scale < 1.0).then_some(scale as f32);
        let (steps, moments) = (self.steps, &mut self.moments);
        model.parameters(&mut |parameter| {
            if let Some(scale) = scale {
                parameter.gradient.iter_mut().for_each(|gradient| *gradient *= scale);
            }
            let length = parameter.value.len();
            if !moments.contains_key(parameter.name) {
                let zero = Moments { first: vec![0.0; length], second: vec![0.0; length] };
                moments.insert(parameter.name.to_owned(), zero);
            }
            let Some(Moments { first, second }) = moments.get_mut(parameter.name) else { return };
            let decays = settings.decay.applies(parameter.name, parameter.group);
            let adamw = AdamW {
                beta1: settings.beta1,
                beta2: settings.beta2,
                eps: settings.epsilon,
                weight_decay: if decays { settings.weight_decay } else { 0.0 },
                learning_rate: rates.of_group(parameter.group),
                step: steps,
            };
            adamw_step(&adamw, parameter.value, parameter.gradient, first, second);
            parameter.gradient.fill(0.0);
        });
        model.parameters_changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_biases_and_norms_never_decay() {
        let applies = |name, group| Decay::Matrices.applies(name, group);
        assert!(!applies("a.finegates_rows", Group::Gate));
        assert!(!applies("a.bias", Group::Bias));
        assert!(!applies("classifier.bias", Group::Head));
        assert!(!applies("LayerNorm.weight", Group::Norm));
        assert!(applies("classifier.weight", Group::Head));
        assert!(applies("word_embeddings.weight", Group::Embedding));
        assert!(applies("query.weight", Group::Weight));
        assert!(!applies("query.bias", Group::Weight));
        assert!(!Decay::AllButGates.applies("a.finegates_rows", Group::Gate));
        assert!(Decay::AllButGates.applies("classifier.bias", Group::Head));
    }
}
