//! AdamW over a model's parameters: each with its own moments, by name, and with the learning rate and decay of its group.

use std::collections::BTreeMap;

use finegates_kernels::optimizer::{AdamW, Moved, Selected, adamw_step};
use finegates_kernels::reduce;
use finegates_model::{Awake, Group, Model};
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
        model.parameters(&mut |parameter| {
            sum += match parameter.awake {
                Some(awake) => reduce::squared_norm_of_rows(parameter.gradient, awake.width, awake.rows),
                None => reduce::squared_norm(parameter.gradient),
            }
        });
        sum.sqrt()
    }

    /// Makes one step with a gradient of this length, scaled down if it is too long, and sets the gradients to zero. Answers a value
    /// that became infinite or no number by it, if there is one; the model is of no use then.
    pub fn step(&mut self, model: &mut Model, rates: &LearningRates, gradient_norm: f64) -> Option<f32> {
        self.steps += 1;
        let mut broken = None;
        let settings = self.settings;
        // As `torch.nn.utils.clip_grad_norm_`.
        let scale = settings.clip_norm / (gradient_norm + 1e-6);
        let scale = (settings.clip_norm > 0.0 && scale < 1.0).then_some(scale as f32);
        let (steps, moments) = (self.steps, &mut self.moments);
        model.parameters(&mut |parameter| {
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
            let (value, gradient) = (&mut *parameter.value, parameter.gradient);
            let moved = Moved { value, gradient, first, second: &mut *second };
            let selected = parameter.awake.map(|awake| {
                let Awake { width, rows, columns } = awake;
                Selected { width, rows, columns }
            });
            let finite = adamw_step(&adamw, scale.unwrap_or(1.0), moved, selected.as_ref());
            // Squares of a gradient below this cannot overflow.
            let squares: &[f32] = if gradient_norm < 1e18 { &[] } else { second };
            let values: &[f32] = if finite { &[] } else { parameter.value };
            for values in [values, squares] {
                if broken.is_none() && !reduce::all_finite(values) {
                    broken = values.iter().copied().find(|value| !value.is_finite());
                }
            }
        });
        model.parameters_changed();
        broken
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use finegates_checkpoint::Checkpoint;
    use finegates_model::{GateSettings, LoadOptions, Method, Purpose};

    fn model() -> Model {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny/bert");
        let purpose = Purpose::Training { method: Method::Gates, gates: GateSettings::default() };
        let options = LoadOptions { purpose, ..LoadOptions::default() };
        Model::load(&Checkpoint::open(&folder).unwrap(), &options).unwrap().0
    }

    /// `g ← g · min(1, clip / (‖g‖ + 1e-6))` over all parameters together, seen in the moments of the first step:
    /// `m = (1 − β₁) g`, `v = (1 − β₂) g²`.
    #[test]
    fn gradients_are_clipped_as_clip_grad_norm_does() {
        let rates = LearningRates { gate: 1e-3, bias: 1e-3, head: 1e-3, weight: 1e-3 };
        for (clip_norm, size) in [(1.0, 0.3), (1.0, 1e-3), (0.0, 0.3), (7.5, 2.0)] {
            let mut model = model();
            let mut gradients: BTreeMap<String, Vec<f64>> = BTreeMap::new();
            model.parameters(&mut |parameter| {
                let key = finegates_kernels::random::derive(3, parameter.name);
                finegates_kernels::random::fill_normal(key, 0.0, size, parameter.gradient);
                gradients.insert(parameter.name.to_owned(), parameter.gradient.iter().map(|&g| f64::from(g)).collect());
            });
            let exact = gradients.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
            let norm = Optimizer::gradient_norm(&mut model);
            assert!((norm - exact).abs() < 1e-9 * exact, "{norm} {exact}");
            let settings = OptimizerSettings {
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.0,
                decay: Decay::Matrices,
                clip_norm,
            };
            let mut optimizer = Optimizer::new(settings);
            assert_eq!(optimizer.step(&mut model, &rates, norm), None);
            let factor = if clip_norm > 0.0 { (clip_norm / (exact + 1e-6)).min(1.0) } else { 1.0 };
            assert_eq!(factor < 1.0, clip_norm > 0.0 && size > 0.1, "{factor}");
            for (name, gradient) in &gradients {
                let Moments { first, second } = &optimizer.moments[name];
                for ((&first, &second), gradient) in first.iter().zip(second).zip(gradient) {
                    let gradient = gradient * factor;
                    let close =
                        |found: f32, expected: f64| (f64::from(found) - expected).abs() <= 1e-6 * expected.abs();
                    assert!(close(first, 0.1 * gradient) && close(second, 0.001 * gradient * gradient), "{name}");
                }
            }
        }
    }

    #[test]
    fn a_step_says_which_value_it_has_made_infinite() {
        let mut model = model();
        model.parameters(&mut |parameter| parameter.gradient.fill(1e-3));
        let settings = OptimizerSettings {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            decay: Decay::Matrices,
            clip_norm: 0.0,
        };
        let rates = LearningRates { gate: 1e-3, bias: 1e-3, head: 3e38, weight: 1e-3 };
        let found = Optimizer::new(settings).step(&mut model, &rates, 1.0);
        assert!(found.is_some_and(|value| !value.is_finite()), "{found:?}");
        // The square of a long gradient overflows in the moments.
        let mut model = self::model();
        model.parameters(&mut |parameter| parameter.gradient.fill(1e25));
        let norm = Optimizer::gradient_norm(&mut model);
        let rates = LearningRates { head: 1e-3, ..rates };
        assert_eq!(Optimizer::new(settings).step(&mut model, &rates, norm), Some(f32::INFINITY));
    }

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
