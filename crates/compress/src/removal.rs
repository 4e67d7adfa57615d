//! Accounting of removal: how many weights the gates close, and how many more fall to liveness. Integers throughout.
//!
//! Biases, norms, embeddings and the head are not counted here: nothing of them is gated by itself.

use std::collections::BTreeMap;

use finegates_model::GateState;
use finegates_model::wiring::{Role, Wiring};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::liveness::{OpenSets, liveness};

/// How many gates are open, in between, and closed at evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateCounts {
    /// Gates at 1 or above.
    pub open: u64,
    /// Gates below 1 that are not 0.
    pub fractional: u64,
    /// Gates at 0.
    pub closed: u64,
}

impl GateCounts {
    /// Counts evaluation values ω.
    pub fn of(values: &[f32]) -> GateCounts {
        let closed = values.iter().filter(|&&value| !is_open(value)).count() as u64;
        let open = values.iter().filter(|&&value| value >= 1.0).count() as u64;
        GateCounts { open, fractional: values.len() as u64 - open - closed, closed }
    }

    /// All gates.
    pub fn total(&self) -> u64 {
        self.open + self.fractional + self.closed
    }

    fn add(&mut self, other: &GateCounts) {
        self.open += other.open;
        self.fractional += other.fractional;
        self.closed += other.closed;
    }
}

/// A gate value that lets something through.
fn is_open(value: f32) -> bool {
    value != 0.0
}

/// What is removed in one projection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectionRemoval {
    /// Module path.
    pub path: String,
    /// Layer, from 0.
    pub layer: usize,
    /// Whether it has gates of its own. Without, it can still lose what its partners no longer need.
    pub gated: bool,
    /// Rows (outputs) of the original weight.
    pub rows: usize,
    /// Columns (inputs) of the original weight.
    pub columns: usize,
    /// Rows whose gate is not 0.
    pub open_rows: usize,
    /// Columns whose gate is not 0.
    pub open_columns: usize,
    /// Rows left after liveness.
    pub live_rows: usize,
    /// Columns left after liveness.
    pub live_columns: usize,
    /// Its row gates.
    pub row_gates: GateCounts,
    /// Its column gates.
    pub column_gates: GateCounts,
}

impl ProjectionRemoval {
    /// Weights before.
    pub fn parameters(&self) -> u64 {
        self.rows as u64 * self.columns as u64
    }

    /// Weights between an open row and an open column.
    pub fn open_parameters(&self) -> u64 {
        self.open_rows as u64 * self.open_columns as u64
    }

    /// Weights between a live row and a live column.
    pub fn live_parameters(&self) -> u64 {
        self.live_rows as u64 * self.live_columns as u64
    }
}

/// Sums over several projections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Weights of gated projections, Σ out·in.
    pub gated_parameters: u64,
    /// Of these, those in a closed row or column: Σ (out·in − open rows·open columns).
    pub removed_by_gates: u64,
    /// Of these, those in a dead row or column: Σ (out·in − live rows·live columns).
    pub removed_with_liveness: u64,
    /// Multiply-adds a token of all projections, gated or not, before.
    pub multiply_adds_before: u64,
    /// Multiply-adds a token of all projections after removal.
    pub multiply_adds_after: u64,
    /// Row and column gates.
    pub gates: GateCounts,
}

impl Totals {
    /// Share of the gated weights that is removed, liveness included; 0 without any.
    pub fn share_removed(&self) -> f64 {
        self.removed_with_liveness as f64 / self.gated_parameters.max(1) as f64
    }

    fn add(&mut self, projection: &ProjectionRemoval) {
        let parameters = projection.parameters();
        if projection.gated {
            self.gated_parameters += parameters;
            self.removed_by_gates += parameters - projection.open_parameters();
            self.removed_with_liveness += parameters - projection.live_parameters();
        }
        self.multiply_adds_before += parameters;
        self.multiply_adds_after += projection.live_parameters();
        self.gates.add(&projection.row_gates);
        self.gates.add(&projection.column_gates);
    }
}

/// The sums of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRemoval {
    /// Layer, from 0.
    pub layer: usize,
    /// Its sums.
    #[serde(flatten)]
    pub totals: Totals,
}

/// Most rows or columns of a projection that is believed: their products then add up without overflow.
const SIZE_LIMIT: usize = 1 << 24;

/// What removal takes away: in all, per layer and per projection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Sums over everything.
    #[serde(flatten)]
    pub totals: Totals,
    /// Sums per layer, ascending.
    pub layers: Vec<LayerRemoval>,
    /// Every projection, in the wiring's order.
    pub projections: Vec<ProjectionRemoval>,
}

impl Removal {
    /// Applies liveness to the gates' evaluation values and counts. Projections without gates count as open.
    ///
    /// # Errors
    /// As [`open_sets`].
    pub fn measure(wiring: &Wiring, gates: &[GateState]) -> Result<Removal, Error> {
        let open = open_sets(wiring, gates)?;
        Removal::count(wiring, gates, &open, &liveness(wiring, &open))
    }

    /// Counts what [`open_sets`] and [`liveness`] found for these gates.
    ///
    /// # Errors
    /// If a gate names a projection that the wiring lacks, or one twice.
    pub fn count(wiring: &Wiring, gates: &[GateState], open: &[OpenSets], live: &[OpenSets]) -> Result<Removal, Error> {
        let states = by_projection(wiring, gates)?;
        let projections = wiring.projections.iter().enumerate().map(|(index, place)| {
            let counts = |values: fn(&GateState) -> &[f32]| {
                states[index].map(|state| GateCounts::of(values(state))).unwrap_or_default()
            };
            ProjectionRemoval {
                path: place.path.clone(),
                layer: place.layer,
                gated: states[index].is_some(),
                rows: place.rows,
                columns: place.columns,
                open_rows: open[index].open_rows(),
                open_columns: open[index].open_columns(),
                live_rows: live[index].open_rows(),
                live_columns: live[index].open_columns(),
                row_gates: counts(|state| &state.rows),
                column_gates: counts(|state| &state.columns),
            }
        });
        Ok(Removal::sum(projections.collect()))
    }

    /// Whether numbers that come from a file can be true: nothing grows by removal, and the sums are those of the projections.
    ///
    /// # Errors
    /// What cannot be true, in words.
    pub fn check(&self) -> Result<(), String> {
        for projection in &self.projections {
            let sides = [
                ("rows", projection.rows, projection.open_rows, projection.live_rows, &projection.row_gates),
                (
                    "columns",
                    projection.columns,
                    projection.open_columns,
                    projection.live_columns,
                    &projection.column_gates,
                ),
            ];
            for (side, size, open, live, gates) in sides {
                let wrong = |what: &str| Err(format!("projections.{}: {what}", projection.path));
                if size > SIZE_LIMIT {
                    return wrong(&format!("{side}: expected at most {SIZE_LIMIT}, found {size}"));
                }
                if live > open || open > size {
                    return wrong(&format!("{live} live of {open} open of {size} {side}"));
                }
                let counts = [gates.open, gates.fractional, gates.closed];
                if counts.iter().any(|&count| count > size as u64) || ![0, size as u64].contains(&gates.total()) {
                    return wrong(&format!("{counts:?} gates open, fractional and closed on {size} {side}"));
                }
            }
        }
        match Removal::sum(self.projections.clone()) == *self {
            true => Ok(()),
            false => Err("the sums are not those of the projections".to_owned()),
        }
    }

    /// Sums up projections.
    pub fn sum(projections: Vec<ProjectionRemoval>) -> Removal {
        let mut totals = Totals::default();
        let mut layers = BTreeMap::<usize, Totals>::new();
        for projection in &projections {
            totals.add(projection);
            layers.entry(projection.layer).or_default().add(projection);
        }
        let layers = layers.into_iter().map(|(layer, totals)| LayerRemoval { layer, totals }).collect();
        Removal { totals, layers, projections }
    }
}

/// The gates of each projection, in the wiring's order.
fn by_projection<'a>(wiring: &Wiring, gates: &'a [GateState]) -> Result<Vec<Option<&'a GateState>>, Error> {
    let mut left: BTreeMap<&str, &GateState> = BTreeMap::new();
    for state in gates {
        if left.insert(&state.path, state).is_some() {
            return Err(Error::GateTwice { path: state.path.clone() });
        }
    }
    let places = wiring.projections.iter();
    let states = places.map(|place| left.remove(place.path.as_str())).collect();
    match left.keys().next() {
        Some(path) => Err(Error::UnknownGate { path: (*path).to_owned() }),
        None => Ok(states),
    }
}

/// Which rows and columns the gates leave open. Projections without gates are open throughout.
///
/// # Errors
/// If a gate names a projection that the wiring lacks, or has another length than its rows or columns.
pub fn open_sets(wiring: &Wiring, gates: &[GateState]) -> Result<Vec<OpenSets>, Error> {
    let states = by_projection(wiring, gates)?;
    let places = wiring.projections.iter().zip(states);
    let sets = places.map(|(place, state)| {
        let Some(state) = state else { return Ok(OpenSets::all(place.rows, place.columns)) };
        let flags = |side, values: &[f32], expected| {
            let (path, found) = (place.path.clone(), values.len());
            match found == expected {
                true => Ok(values.iter().map(|&value| is_open(value)).collect()),
                false => Err(Error::GateLength { path, side, expected, found }),
            }
        };
        Ok(OpenSets {
            rows: flags("rows", &state.rows, place.rows)?,
            columns: flags("columns", &state.columns, place.columns)?,
        })
    });
    sets.collect()
}

/// Modules whose place is not known, so that nothing but their own gates is counted for them.
pub fn unknown_modules(wiring: &Wiring) -> Vec<&str> {
    let unknown = wiring.projections.iter().filter(|place| place.role == Role::Unknown);
    unknown.map(|place| place.path.as_str()).collect()
}
