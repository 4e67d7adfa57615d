//! Gates of an adapter, read and counted without its base model.

use std::collections::BTreeMap;

use finegates_checkpoint::adapter::{Adapter, Tensor};
use finegates_model::GateState;
use finegates_model::gate::Gate;
use finegates_model::wiring::Wiring;

use crate::Error;
use crate::removal::Removal;

const ROWS: &str = ".finegates_rows";
const COLUMNS: &str = ".finegates_columns";

/// The evaluation values of an adapter's gates, one state a gated module, by path.
///
/// # Errors
/// If there is no gate at all, a module has gates on one side only, or a θ is not a finite vector.
pub fn adapter_gates(adapter: &Adapter) -> Result<Vec<GateState>, Error> {
    let mut modules: BTreeMap<&str, (Option<&Tensor>, Option<&Tensor>)> = BTreeMap::new();
    for (name, tensor) in &adapter.tensors {
        if let Some(path) = name.strip_suffix(ROWS) {
            modules.entry(path).or_default().0 = Some(tensor);
        } else if let Some(path) = name.strip_suffix(COLUMNS) {
            modules.entry(path).or_default().1 = Some(tensor);
        }
    }
    if modules.is_empty() {
        return Err(Error::NoGates);
    }
    let states = modules.into_iter().map(|(path, (rows, columns))| {
        Ok(GateState {
            path: path.to_owned(),
            rows: evaluate(path, ROWS, rows)?,
            columns: evaluate(path, COLUMNS, columns)?,
        })
    });
    states.collect()
}

fn evaluate(path: &str, suffix: &'static str, theta: Option<&Tensor>) -> Result<Vec<f32>, Error> {
    let name = format!("{path}{suffix}");
    let Some(theta) = theta else { return Err(Error::GateMissing { name }) };
    if theta.shape.len() != 1 {
        return Err(Error::GateShape { name, shape: theta.shape.clone() });
    }
    if let Some(index) = theta.data.iter().position(|value| !value.is_finite()) {
        return Err(Error::GateNotFinite { name, index });
    }
    Ok(Gate::new(name, theta.data.clone(), 0.0, false).evaluation_values())
}

/// What an adapter removes, counted from its gates alone: no base model is needed. With `head_dim` (the base's hidden
/// size over its heads) a head without values also drops its queries and keys; without, only a whole attention does.
///
/// # Errors
/// If the adapter has no gates, a gate lacks its other side, or the gates do not fit together.
pub fn adapter_removal(adapter: &Adapter, head_dim: Option<usize>) -> Result<(Wiring, Removal), Error> {
    let gates = adapter_gates(adapter)?;
    let modules: Vec<(&str, usize, usize)> =
        gates.iter().map(|state| (state.path.as_str(), state.rows.len(), state.columns.len())).collect();
    let wiring = Wiring::from_paths(&modules, head_dim)?;
    let removal = Removal::measure(&wiring, &gates)?;
    Ok((wiring, removal))
}
