//! What training changed, as named tensors in PEFT's layout, taken from a model and put back into one.

use std::collections::BTreeMap;

use finegates_checkpoint::adapter::{Adapter, GateForm};
use finegates_checkpoint::tensors::Tensor;

use crate::error::Error;
use crate::family::LANGUAGE_HEAD;
use crate::gate::{Gate, GateNoise, Gates, gates_name};
use crate::head::Head;
use crate::load::Task;
use crate::model::Model;
use crate::parameter::{Group, Parameter};
use crate::projection::Projection;
use crate::wiring::Side;

impl Model {
    /// Gates, biases of the gateable projections that train, and the head: names without PEFT's prefix.
    pub fn adapter_tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        let mut insert = |parameter: &Parameter| {
            let tensor = Tensor { shape: parameter.shape.clone(), data: parameter.value.clone() };
            tensors.insert(parameter.name.clone(), tensor);
        };
        for projection in self.projections() {
            if let Some(gates) = projection.gates() {
                insert(&gates.rows.parameter);
                insert(&gates.columns.parameter);
            }
            projection.bias_parameter().filter(|bias| bias.trainable()).into_iter().for_each(&mut insert);
        }
        // A language head is the base model's, and stays as it is.
        for projection in self.head.projections().filter(|_| self.task() == Task::Classify) {
            insert(projection.weight_parameter());
            projection.bias_parameter().into_iter().for_each(&mut insert);
        }
        tensors
    }

    /// Every parameter of the model by name: a whole checkpoint, for full fine-tuning.
    ///
    /// Weights that were given up after packing are missing: only where everything trains are all there.
    pub fn all_tensors(&self) -> BTreeMap<String, Tensor> {
        self.all_parameters()
            .filter(|parameter| parameter.value.len() == parameter.shape.iter().product::<usize>())
            .map(|parameter| {
                (parameter.name.clone(), Tensor { shape: parameter.shape.clone(), data: parameter.value.clone() })
            })
            .collect()
    }

    /// Puts an adapter's gates, biases and head into the model; gates and biases are made where there were none.
    ///
    /// The gates stand at their evaluation values afterwards. Projections that the adapter does not name stay as they
    /// are: an adapter may gate some modules only.
    ///
    /// # Errors
    /// A tensor whose module the model lacks, or whose shape differs. The model is then unusable and to be dropped.
    pub fn apply_adapter(&mut self, adapter: &Adapter) -> Result<(), Error> {
        let mut applying = Applying::new(adapter, self.config().compact.is_some(), self.task())?;
        let mut biased = Vec::new();
        for (index, projection) in self.stack.projections_mut().enumerate() {
            if applying.projection(projection)? {
                biased.push(index);
            }
        }
        self.wiring.give_biases(&biased);
        applying.head(&mut self.head)?;
        applying.finish()?;
        self.draw_gates(&GateNoise::None);
        Ok(())
    }
}

/// An adapter on its way into a model, part by part.
pub(crate) struct Applying<'a> {
    /// What no part has taken yet.
    left: BTreeMap<&'a str, &'a Tensor>,
    /// A name that gates of this model may have.
    example: String,
}

impl<'a> Applying<'a> {
    /// Begins with a model that is compact or not, with a head for the task.
    pub(crate) fn new(adapter: &'a Adapter, compact: bool, task: Task) -> Result<Self, Error> {
        if compact {
            return Err(Error::Unsupported(
                "a compact model takes no adapter: name the base model that the adapter was trained on".to_owned(),
            ));
        }
        let head = adapter.tensors.keys().find(|name| task == Task::Language && name.starts_with(LANGUAGE_HEAD));
        if let Some(name) = head {
            let name: String = name.chars().take(120).collect();
            let reason = "adapters that replace the output embedding of a language model are not supported";
            return Err(Error::Unsupported(format!("{name}: {reason}")));
        }
        let left = adapter.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        Ok(Self { left, example: String::new() })
    }

    /// Puts in gates and bias of a projection; says whether it got a bias where it had none.
    pub(crate) fn projection(&mut self, projection: &mut Projection) -> Result<bool, Error> {
        if self.example.is_empty() {
            self.example = gates_name(projection.path(), Side::Row, GateForm::Theta);
        }
        apply_gates(projection, &mut self.left)?;
        let name = format!("{}.bias", projection.path());
        let missing = projection.bias_parameter().is_none() && self.left.contains_key(name.as_str());
        if missing {
            let zeros = vec![0.0; projection.out_features()];
            projection.set_bias(Parameter::frozen(name, Group::Bias, &[zeros.len()], zeros));
        }
        if let Some(bias) = projection.bias_parameter_mut() {
            replace(bias, &mut self.left)?;
        }
        projection.changed();
        Ok(missing)
    }

    /// Puts in the head.
    pub(crate) fn head(&mut self, head: &mut Head) -> Result<(), Error> {
        for projection in head.projections_mut() {
            let replaced = replace(projection.weight_parameter_mut(), &mut self.left)?;
            if let Some(bias) = projection.bias_parameter_mut() {
                replace(bias, &mut self.left)?;
            }
            if replaced {
                projection.repack();
            }
        }
        Ok(())
    }

    /// Refuses what no part has taken.
    pub(crate) fn finish(self) -> Result<(), Error> {
        let Some(name) = self.left.keys().next() else { return Ok(()) };
        // A hostile name may be as long as its file.
        let name: String = name.chars().take(120).collect();
        Err(Error::AdapterName { name, example: self.example })
    }
}

fn apply_gates(projection: &mut Projection, left: &mut BTreeMap<&str, &Tensor>) -> Result<(), Error> {
    let may_reopen = projection.may_reopen();
    if let Some(gates) = projection.gates_mut() {
        if !may_reopen {
            return Err(Error::Unsupported("the model has an adapter already; load it anew for another".to_owned()));
        }
        replace(&mut gates.rows.parameter, left)?;
        replace(&mut gates.columns.parameter, left)?;
        projection.adopt_gates();
        return Ok(());
    }
    let path = projection.path();
    let names = |form| [Side::Row, Side::Column].map(|side| gates_name(path, side, form));
    let named = |form| names(form).iter().any(|name| left.contains_key(name.as_str()));
    let Some(form) = [GateForm::Values, GateForm::Theta].into_iter().find(|&form| named(form)) else { return Ok(()) };
    // A side without gates is open throughout: ω = 1, and θ = 1 gives ω = clamp(tanh 1 + ½) = 1.
    let lengths = [projection.out_features(), projection.in_features()];
    let mut vectors = names(form).into_iter().zip(lengths).map(|(name, length)| {
        let mut numbers = Parameter::frozen(name, Group::Gate, &[length], vec![1.0; length]);
        replace(&mut numbers, left)?;
        let Parameter { name, value, .. } = numbers;
        Ok::<_, Error>(match form {
            GateForm::Values => Gate::direct(name, value, false),
            GateForm::Theta => Gate::stochastic(name, value, 0.0, false),
        })
    });
    let mut next = || vectors.next().expect("two sides");
    let gates = Gates { rows: next()?, columns: next()? };
    projection.set_gates(gates);
    Ok(())
}

/// Replaces the parameter's values where the adapter has them.
fn replace(parameter: &mut Parameter, left: &mut BTreeMap<&str, &Tensor>) -> Result<bool, Error> {
    let Some(tensor) = left.remove(parameter.name.as_str()) else { return Ok(false) };
    if tensor.shape != parameter.shape || tensor.data.len() != parameter.value.len() {
        return Err(Error::AdapterShape {
            name: parameter.name.clone(),
            expected: parameter.shape.iter().product(),
            found: tensor.data.len(),
        });
    }
    parameter.value.copy_from_slice(&tensor.data);
    Ok(true)
}
