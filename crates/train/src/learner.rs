//! A model and its optimizer: the passes that make up one step of training (METHOD.md §3), without any notion of data sets or files.

use finegates_kernels::loss;
use finegates_model::language::{Distillation, NO_TARGET};
use finegates_model::{Batch, GateNoise, Model, Penalty};

use crate::encoded::Targets;
use crate::error::{Error, StateLeft};
use crate::optimizer::{LearningRates, Optimizer};

/// One forward and backward pass of a step.
pub struct PassInput<'a> {
    /// The sequences.
    pub batch: &'a Batch,
    /// What is to be predicted for them.
    pub targets: &'a Targets,
    /// This pass's draw of the gates.
    pub noise: GateNoise<'a>,
    /// What the dropout masks follow from; none for no dropout.
    pub dropout_key: Option<u64>,
    /// The penalty, if it counts.
    pub penalty: Option<&'a Penalty>,
    /// Whom a language model learns from beside the text.
    pub distillation: Option<Distillation<'a>>,
    /// The pass's share of the step.
    pub share: f64,
}

/// What [`Error::NotFinite`] calls a parameter that a step has made infinite.
pub const UPDATED: &str = "updated parameter";

/// The losses of one pass, or a step's as the mean of its passes'.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Mean cross entropy or squared error, with a teacher's share in it.
    pub task: f64,
    /// The sparsity penalty, weight included.
    pub penalty: f64,
}

/// A model in training.
pub struct Learner {
    /// The model.
    pub model: Model,
    /// The optimizer.
    pub optimizer: Optimizer,
    d_logits: Vec<f32>,
}

impl Learner {
    /// Puts both together.
    pub fn new(model: Model, optimizer: Optimizer) -> Learner {
        Learner { model, optimizer, d_logits: Vec::new() }
    }

    /// Runs a pass and adds its share of the gradients.
    ///
    /// # Errors
    /// A batch the model cannot take; [`Error::NotFinite`] for a loss that is no number, in which case the gradients are to be dropped.
    ///
    /// # Panics
    /// If targets and sequences differ in number, or a class is not one of the model's.
    pub fn pass(&mut self, input: &PassInput<'_>) -> Result<Losses, Error> {
        self.model.draw_gates(&input.noise);
        let share = input.share as f32;
        let task = match input.targets {
            Targets::Tokens(targets) => {
                let count = targets.iter().filter(|&&target| target != NO_TARGET).count().max(1) as f64;
                let factor = (input.share / count) as f32;
                let distillation = input.distillation.as_ref();
                self.model.language_pass(input.batch, targets, factor, input.dropout_key, distillation)? / count
            }
            targets => {
                let logits = self.model.forward_training(input.batch, input.dropout_key)?;
                self.d_logits.resize(logits.len(), 0.0);
                let task = task_loss(&logits, self.model.classes(), targets, Some((&mut self.d_logits, share)));
                self.check("loss", task)?;
                self.model.backward(&self.d_logits);
                task
            }
        };
        self.check("loss", task)?;
        let penalty = match input.penalty {
            Some(penalty) => self.model.penalty(penalty, share),
            None => 0.0,
        };
        self.check("penalty", penalty)?;
        Ok(Losses { task, penalty })
    }

    /// Ends a step: one move of the optimizer along the gradients gathered. Returns their length.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the gradients are not; the parameters are then as they were, and the gradients dropped. The same if
    /// a parameter is not after the step ([`UPDATED`]); the model is of no use then.
    pub fn update(&mut self, rates: &LearningRates) -> Result<f64, Error> {
        self.update_and_show(rates, |_| {})
    }

    /// As [`Learner::update`]; shows the model with its gradients, which are finite, before they are used up.
    ///
    /// # Errors
    /// As [`Learner::update`].
    pub fn update_and_show(&mut self, rates: &LearningRates, show: impl FnOnce(&Model)) -> Result<f64, Error> {
        let norm = Optimizer::gradient_norm(&mut self.model);
        self.check("gradient", norm)?;
        show(&self.model);
        match self.optimizer.step(&mut self.model, rates, norm) {
            None => Ok(norm),
            Some(value) => Err(Error::NotFinite {
                step: self.optimizer.steps,
                what: UPDATED,
                value: f64::from(value),
                left: StateLeft::Untouched,
            }),
        }
    }

    fn check(&mut self, what: &'static str, value: f64) -> Result<(), Error> {
        if value.is_finite() {
            return Ok(());
        }
        self.model.zero_gradients();
        Err(Error::NotFinite { step: self.optimizer.steps + 1, what, value, left: StateLeft::Untouched })
    }
}

/// Mean cross entropy, or mean squared error of numbers; writes `share` times the gradient if asked to.
///
/// # Panics
/// If the targets are tokens.
pub fn task_loss(logits: &[f32], classes: usize, targets: &Targets, gradient: Option<(&mut [f32], f32)>) -> f64 {
    let (d_logits, share) = gradient.map_or((None, 1.0), |(d_logits, share)| (Some(d_logits), share));
    match targets {
        Targets::Classes(labels) => loss::cross_entropy(logits, labels, classes, d_logits, share),
        Targets::Values(values) => loss::mean_squared_error(logits, values, d_logits, share),
        Targets::Tokens(_) => panic!("the loss of tokens is the language head's"),
    }
}
