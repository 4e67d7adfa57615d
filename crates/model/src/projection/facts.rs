//! What a projection is and has: names, sizes, weights, gates.

use std::sync::Arc;

use finegates_kernels::matrix::{PackedMatrix, Precision};

use super::{Kept, Projection};
use crate::gate::{GateState, Gates};
use crate::parameter::Parameter;

impl Projection {
    /// Module path in the checkpoint, e.g. `bert.encoder.layer.0.attention.self.query`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Rows before any removal.
    pub fn out_features(&self) -> usize {
        self.original.0
    }

    /// Columns before any removal.
    pub fn in_features(&self) -> usize {
        self.original.1
    }

    /// Original indices of the rows and columns that are left, or `None` for a whole projection.
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// The plain weight, `[out, in]` (or what is left of it), if it was asked to stay readable.
    pub fn weight(&self) -> Option<&[f32]> {
        (self.weight.value.len() == self.weight.shape.iter().product::<usize>()).then_some(&self.weight.value)
    }

    /// The packed weight; whole while no gate is closed.
    pub(crate) fn packed(&self) -> &Arc<PackedMatrix> {
        &self.forward_packed.matrix
    }

    /// The bias, one a row.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(|bias| bias.value.as_slice())
    }

    /// The bias as a parameter, for adapters.
    pub fn bias_parameter(&self) -> Option<&Parameter> {
        self.bias.as_ref()
    }

    /// The bias as a parameter, for adapters; [`Projection::changed`] must follow a write.
    pub fn bias_parameter_mut(&mut self) -> Option<&mut Parameter> {
        self.bias.as_mut()
    }

    /// The weight as a parameter.
    pub fn weight_parameter(&self) -> &Parameter {
        &self.weight
    }

    /// The weight as a parameter; [`Projection::changed`] must follow a write.
    pub fn weight_parameter_mut(&mut self) -> &mut Parameter {
        &mut self.weight
    }

    /// Sums of the squares of the weights in each row and in each column of a projection that is whole.
    ///
    /// # Panics
    /// If rows were left out of the pack already.
    pub fn square_sums(&self) -> (Vec<f64>, Vec<f64>) {
        assert!(self.forward_packed.kept.is_none(), "the sums of a whole projection");
        self.forward_packed.matrix.square_sums()
    }

    /// The gates, if the projection has any.
    pub fn gates(&self) -> Option<&Gates> {
        self.gates.as_ref()
    }

    /// The gates, mutably.
    pub fn gates_mut(&mut self) -> Option<&mut Gates> {
        self.gates.as_mut()
    }

    /// Evaluation values of the gates; all ones without gates.
    pub fn gate_state(&self) -> GateState {
        let (rows, columns) = match &self.gates {
            Some(gates) => (gates.rows.evaluation_values(), gates.columns.evaluation_values()),
            None => (vec![1.0; self.original.0], vec![1.0; self.original.1]),
        };
        GateState { path: self.path.clone(), rows, columns }
    }

    /// Width of the output of [`Projection::forward`].
    pub fn output_width(&self) -> usize {
        match &self.kept {
            Some(kept) => kept.row_places.as_ref().map_or(kept.rows.len(), |places| places.width),
            None => self.original.0,
        }
    }

    /// Width of the input of [`Projection::forward`].
    pub fn input_width(&self) -> usize {
        match &self.kept {
            Some(kept) => kept.column_places.as_ref().map_or(kept.columns.len(), |places| places.width),
            None => self.original.1,
        }
    }

    /// Multiply-adds of one token.
    pub fn multiply_adds(&self) -> usize {
        self.weight.shape.iter().product()
    }

    /// Weights between a row and a column that take part in a product: those of open gates, or all that are left.
    pub fn open_weights(&self) -> usize {
        match &self.gates {
            Some(gates) => gates.rows.open().len() * gates.columns.open().len(),
            None => self.multiply_adds(),
        }
    }

    /// What the packed weight is held in.
    pub fn precision(&self) -> Precision {
        self.forward_packed.matrix.precision()
    }
}
