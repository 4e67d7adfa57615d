//! Gates of an adapter, read and counted without its base model.

use finegates_checkpoint::adapter::{Adapter, GateForm};
use finegates_model::GateState;
use finegates_model::gate::Gate;
use finegates_model::wiring::Wiring;

use crate::Error;
use crate::removal::Removal;

/// The evaluation values of an adapter's gates, one state a gated module, by path.
///
/// # Errors
/// If there is no gate at all, or a module has gates on one side only.
pub fn adapter_gates(adapter: &Adapter) -> Result<Vec<GateState>, Error> {
    let states = adapter.gated_modules().map(|path| {
        let gates = adapter.gates(path).ok_or_else(|| Error::GateMissing { path: path.to_owned() })?;
        let evaluate = |numbers: &[f32]| match gates.form {
            GateForm::Theta => Gate::stochastic(path.to_owned(), numbers.to_vec(), 0.0, false).evaluation_values(),
            GateForm::Values => numbers.to_vec(),
        };
        Ok(GateState { path: path.to_owned(), rows: evaluate(gates.rows), columns: evaluate(gates.columns) })
    });
    let states: Vec<GateState> = states.collect::<Result<_, Error>>()?;
    if states.is_empty() { Err(Error::NoGates) } else { Ok(states) }
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
