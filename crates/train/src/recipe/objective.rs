//! What closes gates, and which settings belong to it: those of one objective are never mixed with those of another.

use std::fmt;
use std::str::FromStr;

use finegates_model::{GateSettings, Method, Penalty};

use crate::budget::Budget;
use crate::by_name::ByName;
use crate::recipe::{PartialRecipe, Recipe, RecipeError};

/// What closes gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// As many units as a budget asks for, the least important to the task first.
    Budget,
    /// The sparsity penalty of the paper (METHOD.md §3) on stochastic gates.
    Paper,
}

impl Objective {
    fn other(self) -> Objective {
        match self {
            Objective::Budget => Objective::Paper,
            Objective::Paper => Objective::Budget,
        }
    }
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(name: &str) -> Result<Objective, String> {
        match name {
            "budget" => Ok(Objective::Budget),
            "paper" => Ok(Objective::Paper),
            other => Err(format!("expected budget or paper, found {other:?}")),
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Objective::Budget => "budget",
            Objective::Paper => "paper",
        })
    }
}

/// What the order of closing follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// The running mean of `(ω ∂L/∂ω)²`.
    Gradient,
    /// The sum of the squares of a unit's weights in the checkpoint.
    Magnitude,
    /// Chance.
    Random,
}

impl FromStr for Importance {
    type Err = String;

    fn from_str(name: &str) -> Result<Importance, String> {
        match name {
            "gradient" => Ok(Importance::Gradient),
            "magnitude" => Ok(Importance::Magnitude),
            "random" => Ok(Importance::Random),
            other => Err(format!("expected gradient, magnitude or random, found {other:?}")),
        }
    }
}

impl fmt::Display for Importance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Importance::Gradient => "gradient",
            Importance::Magnitude => "magnitude",
            Importance::Random => "random",
        })
    }
}

/// Settings of the objective `budget` in a run that has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Closings {
    /// What is to be left.
    pub budget: Budget,
    /// Share of all steps before the first closing.
    pub adapt_ratio: f64,
    /// Share of each stop's steps after its last closing.
    pub settle_ratio: f64,
    /// What closes first.
    pub importance: Importance,
    /// How much of the running mean of importance is kept at a step.
    pub importance_decay: f64,
}

/// Applies a macro to a recipe and the settings of an objective.
macro_rules! each {
    ($recipe:expr, paper, $apply:ident) => {
        $apply!($recipe, target_sparsity sparsity_weight sparsity_start_epoch sparsity_start_step kurtosis kurtosis_temperature gate_init_mean gate_init_std gate_noise_std)
    };
    ($recipe:expr, budget, $apply:ident) => {
        $apply!($recipe, budget adapt_ratio settle_ratio importance importance_decay)
    };
}

macro_rules! first_given {
    ($recipe:expr, $($name:ident)+) => { [$($recipe.$name.is_some().then_some(stringify!($name))),+].into_iter().flatten().next() };
}

macro_rules! clear {
    ($recipe:expr, $($name:ident)+) => {{ $($recipe.$name = None;)+ }};
}

impl PartialRecipe {
    /// The first setting given that belongs to an objective alone.
    fn first_of(&self, objective: Objective) -> Option<&'static str> {
        match objective {
            Objective::Budget => each!(self, budget, first_given),
            Objective::Paper => each!(self, paper, first_given),
        }
    }

    fn clear_objective(&mut self, objective: Objective) {
        match objective {
            Objective::Budget => each!(self, budget, clear),
            Objective::Paper => each!(self, paper, clear),
        }
    }

    /// The objective that the settings name or belong to; none if they say nothing of it.
    pub fn said_objective(&self) -> Option<Objective> {
        let belongs = |objective| self.first_of(objective).map(|_| objective);
        let said = self.objective.map(|objective| objective.0);
        said.or_else(|| belongs(Objective::Paper)).or_else(|| belongs(Objective::Budget))
    }

    /// Forgets the settings of another objective than this one, and the settings whose defaults follow from the objective.
    pub(super) fn keep_objective(&mut self, objective: Objective) {
        let other = objective.other();
        if self.said_objective() == Some(other) {
            self.clear_objective(other);
            self.objective = None;
            self.clear_rates();
        }
    }

    /// Forgets what belongs to another method than this one, and the settings whose defaults follow from the method.
    pub(super) fn keep_method(&mut self, method: Method) {
        if self.method.map_or(Method::Gates, |method| method.0) != method {
            self.clear_objective(Objective::Budget);
            self.clear_objective(Objective::Paper);
            self.objective = None;
            self.clear_rates();
        }
    }

    fn clear_rates(&mut self) {
        self.gate_learning_rate = None;
        self.bias_learning_rate = None;
        self.head_learning_rate = None;
        self.weight_learning_rate = None;
        self.schedule = None;
        self.warmup_ratio = None;
    }

    /// Settles the objective and its settings; a method without gates has none.
    pub(super) fn settle_objective(&mut self) -> Result<(), RecipeError> {
        if let Some(method) = self.method.filter(|method| !method.has_gates()) {
            if let Some(name) = self.first_of(Objective::Budget) {
                return Err(RecipeError::NoGates { name, method: method.0 });
            }
            // Recipes of earlier versions list the paper's settings whatever the method is.
            self.clear_objective(Objective::Paper);
            self.objective = None;
            return Ok(());
        }
        let objective = self.said_objective().unwrap_or(Objective::Budget);
        let other = objective.other();
        if let Some(name) = self.first_of(other) {
            return Err(RecipeError::OtherObjective { name, objective, other });
        }
        self.objective = Some(ByName(objective));
        match objective {
            Objective::Budget => {
                self.budget.get_or_insert_default();
                self.adapt_ratio.get_or_insert(0.15);
                self.settle_ratio.get_or_insert(0.4);
                self.importance.get_or_insert(ByName(Importance::Gradient));
                let learned = self.importance.is_none_or(|importance| importance.0 == Importance::Gradient);
                if !learned && self.importance_decay.is_some_and(|decay| decay != 0.99) {
                    let expected = "none beside --importance magnitude or random, which learn nothing";
                    let found = self.importance_decay.map(|decay| decay.to_string()).unwrap_or_default();
                    return Err(RecipeError::OutOfRange { name: "importance_decay", expected, found });
                }
                self.importance_decay.get_or_insert(0.99);
            }
            Objective::Paper => {
                self.target_sparsity.get_or_insert(0.4);
                self.sparsity_weight.get_or_insert(50.0);
                self.sparsity_start_epoch.get_or_insert(0.0);
                self.kurtosis.get_or_insert(false);
                self.kurtosis_temperature.get_or_insert(100.0);
                self.gate_init_mean.get_or_insert(1.0);
                self.gate_init_std.get_or_insert(0.1);
                self.gate_noise_std.get_or_insert(0.1);
            }
        }
        Ok(())
    }
}

impl Recipe {
    /// What kind of gates the run has and how they start.
    pub fn gate_settings(&self) -> GateSettings {
        match (self.gate_init_mean, self.gate_init_std, self.gate_noise_std) {
            (Some(mean), Some(std), Some(noise)) => {
                GateSettings::Stochastic { init_mean: mean as f32, init_std: std as f32, noise_std: noise as f32 }
            }
            _ => GateSettings::Direct,
        }
    }

    /// The paper's penalty; none in runs with another objective or without gates.
    pub fn penalty(&self) -> Option<Penalty> {
        Some(Penalty {
            target_sparsity: self.target_sparsity? as f32,
            weight: self.sparsity_weight? as f32,
            kurtosis: self.kurtosis?,
            temperature: self.kurtosis_temperature? as f32,
        })
    }

    /// What closes by a budget; none in runs with another objective or without gates.
    pub fn closings(&self) -> Option<Closings> {
        Some(Closings {
            budget: self.budget.as_ref()?.0.clone(),
            adapt_ratio: self.adapt_ratio?,
            settle_ratio: self.settle_ratio?,
            importance: self.importance?.0,
            importance_decay: self.importance_decay?,
        })
    }
}
