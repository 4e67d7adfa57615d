//! A linear layer of any kind: dense, gated (METHOD.md §1) or compact; the waist through which every family computes.
//!
//! `y = ω_r ⊙ (W (ω_c ⊙ x) + b)`. Weights are packed once in each direction that is needed; rows and columns that are
//! closed in a step are left out of the products of that step, forward and backward.

mod facts;

use std::sync::Arc;

use finegates_kernels::matrix::{self, Activation, Input, Output, PackedMatrix, Precision, Side};
use finegates_kernels::{gate as kernels, reduce};

use crate::gate::{Gate, GateNoise, Gates};
use crate::heads::Places;
use crate::packed::Packed;
use crate::parameter::{Awake, Parameter, ParameterMut};
use crate::penalty::Penalty;

/// What a projection must be able to do, decided once when the model is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// A backward pass will be asked for.
    pub backward: bool,
    /// The plain weight stays readable after packing. Without it, in f32 as well, the packed one is all there is.
    pub plain_weight: bool,
    /// The weight trains.
    pub weight_gradient: bool,
    /// The bias trains.
    pub bias_gradient: bool,
    /// What the packed weight is held in, where it does not train.
    pub precision: Precision,
}

/// Where the rows and columns of a compact projection belong.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Original index of each row, ascending.
    pub rows: Vec<u32>,
    /// Original index of each column, ascending.
    pub columns: Vec<u32>,
    /// Where each row lies in the output and how wide that is; none where they stand side by side.
    pub row_places: Option<Places>,
    /// Where each column lies in the input and how wide that is; none where they stand side by side.
    pub column_places: Option<Places>,
}

/// A linear layer `[in] → [out]`.
#[derive(Debug, Clone)]
pub struct Projection {
    path: String,
    original: (usize, usize),
    weight: Parameter,
    bias: Option<Parameter>,
    gates: Option<Gates>,
    kept: Option<Kept>,
    needs: Needs,
    /// The whole weight, where it has no plain form but gates may open again.
    source: Option<Arc<PackedMatrix>>,
    forward_packed: Packed,
    backward_packed: Option<Packed>,
    /// Row gate values and biases in the order of `forward_packed`, renewed at every draw.
    row_scale: Vec<f32>,
    row_bias: Vec<f32>,
    /// Kurtosis of each column of the frozen weight, made when first asked for.
    column_kurtosis: Option<Vec<f32>>,
}

impl Projection {
    /// A dense projection from its weight `[out, in]` and bias `[out]`.
    pub fn dense(path: &str, weight: Parameter, bias: Option<Parameter>, needs: Needs) -> Self {
        let (out_features, in_features) = (weight.shape[0], weight.shape[1]);
        let precision = if needs.weight_gradient { Precision::F32 } else { needs.precision };
        let packed = PackedMatrix::rows_in(precision, &weight.value, out_features, in_features, None);
        Self::of_packed(path, weight, packed, bias, needs)
    }

    /// A dense projection that owns nothing but a packed copy of somebody else's weight, which does not train.
    pub fn copy_of(path: &str, weight: &Parameter, needs: Needs) -> Self {
        let (out_features, in_features) = (weight.shape[0], weight.shape[1]);
        let packed = PackedMatrix::rows_in(needs.precision, &weight.value, out_features, in_features, None);
        let name = format!("{path}.weight");
        let empty = Parameter { name, shape: weight.shape.clone(), value: Vec::new(), gradient: Vec::new(), ..*weight };
        Self::of_packed(path, empty, packed, None, needs)
    }

    fn of_packed(
        path: &str,
        mut weight: Parameter,
        packed: PackedMatrix,
        mut bias: Option<Parameter>,
        needs: Needs,
    ) -> Self {
        let (out_features, in_features) = (weight.shape[0], weight.shape[1]);
        if needs.weight_gradient {
            weight.make_trainable();
        } else if !needs.plain_weight {
            weight.value = Vec::new();
        }
        let backward_packed = needs.backward.then(|| Packed::whole(packed.transposed(None)));
        let forward_packed = Packed::whole(packed);
        if needs.bias_gradient {
            bias.iter_mut().for_each(Parameter::make_trainable);
        }
        Self {
            path: path.to_owned(),
            original: (out_features, in_features),
            weight,
            bias,
            gates: None,
            kept: None,
            needs,
            source: None,
            forward_packed,
            backward_packed,
            row_scale: Vec::new(),
            row_bias: Vec::new(),
            column_kurtosis: None,
        }
    }

    /// A compact projection: what removal left of an `original` `(out, in)` one.
    pub fn compact(
        path: &str,
        weight: Parameter,
        bias: Option<Parameter>,
        original: (usize, usize),
        kept: Kept,
        needs: Needs,
    ) -> Self {
        let mut projection = Self::dense(path, weight, bias, Needs { backward: false, ..needs });
        projection.original = original;
        projection.kept = Some(kept);
        projection
    }

    /// Says where the rows of a compact projection lie in its output.
    pub(crate) fn place_rows(&mut self, places: Places) {
        self.kept.as_mut().expect("a compact projection").row_places = places.unless_side_by_side();
    }

    /// Says where the columns of a compact projection lie in its input.
    pub(crate) fn place_columns(&mut self, places: Places) {
        self.kept.as_mut().expect("a compact projection").column_places = places.unless_side_by_side();
    }

    /// Adds a bias that never trains; [`Projection::changed`] must follow.
    pub(crate) fn set_bias(&mut self, bias: Parameter) {
        self.bias = Some(bias);
    }

    /// Puts gates on the rows and columns.
    ///
    /// # Panics
    /// If a gate vector's length differs from the projection's rows or columns, or the projection is compact.
    pub fn set_gates(&mut self, mut gates: Gates) {
        assert!(self.kept.is_none(), "a compact projection takes no gates");
        if self.needs.weight_gradient {
            for gate in [&mut gates.rows, &mut gates.columns] {
                gate.let_sleep();
                gate.draw(&GateNoise::None);
            }
        }
        assert_eq!((gates.rows.values().len(), gates.columns.values().len()), self.original);
        let trained = gates.rows.parameter.trainable();
        let may_open_again = trained && (gates.rows.may_open_again() || gates.columns.may_open_again());
        self.source = (may_open_again && self.weight().is_none()).then(|| Arc::clone(&self.forward_packed.matrix));
        self.gates = Some(gates);
        self.follow_gates();
    }

    /// Whether gates that are closed may be opened: the whole weight is still there.
    pub(crate) fn may_reopen(&self) -> bool {
        self.weight().is_some() || self.source.is_some()
    }

    /// Draws the gates of a step and follows them.
    pub fn draw_gates(&mut self, noise: &GateNoise<'_>) {
        if let Some(gates) = &mut self.gates {
            gates.rows.draw(noise);
            gates.columns.draw(noise);
            self.follow_gates();
        }
    }

    /// Follows changed values of weight or bias (after an optimiser step or a load).
    pub fn changed(&mut self) {
        if self.needs.weight_gradient {
            self.repack();
            self.column_kurtosis = None;
        }
        if let Some(gates) = &mut self.gates {
            gates.rows.changed();
            gates.columns.changed();
        }
        self.follow_gates();
    }

    /// Takes gates whose numbers were saved: those that are 0 are closed. [`Projection::changed`] must follow.
    pub fn adopt_gates(&mut self) {
        if let Some(gates) = &mut self.gates {
            gates.rows.adopt();
            gates.columns.adopt();
        }
    }

    /// Packs the weight anew, as much of it as is packed; needed after its values were replaced.
    pub fn repack(&mut self) {
        let (rows, columns) = (self.weight.shape[0], self.weight.shape[1]);
        let weight = &self.weight.value;
        self.forward_packed.refill(|matrix, kept| matrix.refill_rows(weight, rows, columns, kept));
        if let Some(packed) = &mut self.backward_packed {
            packed.refill(|matrix, kept| matrix.refill_columns(weight, rows, columns, kept));
        }
    }

    fn follow_gates(&mut self) {
        let Some(gates) = &self.gates else { return };
        let (rows, columns) = self.original;
        let (weight, source) = (&self.weight.value, self.source.as_deref());
        let precision = self.forward_packed.matrix.precision();
        let known = source.is_some() || weight.len() == rows * columns;
        let of_rows = |kept: Option<&[u32]>| match source {
            Some(source) => source.repack(kept),
            None => PackedMatrix::rows_in(precision, weight, rows, columns, kept),
        };
        let of_columns = |kept: Option<&[u32]>| match source {
            Some(source) => source.transposed(kept),
            None => PackedMatrix::columns_in(precision, weight, rows, columns, kept),
        };
        self.forward_packed.follow(&gates.rows, known.then_some(of_rows));
        if let Some(packed) = &mut self.backward_packed {
            packed.follow(&gates.columns, known.then_some(of_columns));
        }
        select(gates.rows.values(), self.forward_packed.kept.as_deref(), &mut self.row_scale);
        if let Some(bias) = &self.bias {
            select(&bias.value, self.forward_packed.kept.as_deref(), &mut self.row_bias);
        }
    }

    /// `out = activation(y)` for `rows` tokens.
    ///
    /// # Shapes
    /// `x` is `[rows, input_width]`, `out` `[rows, output_width]`. The activation must map 0 to 0.
    pub fn forward(&self, x: &[f32], rows: usize, out: &mut [f32], activation: Activation) {
        let (input_width, output_width) = (self.input_width(), self.output_width());
        let packed = &self.forward_packed;
        let kept = self.kept.as_ref();
        let (gather, scatter) = match kept {
            Some(kept) => (
                kept.column_places.as_ref().map(|places| places.places.as_slice()),
                kept.row_places.as_ref().map(|places| places.places.as_slice()),
            ),
            None => (None, packed.kept.as_deref()),
        };
        let mut input = Input { data: x, rows, stride: input_width, columns: gather, scale: None };
        let mut depth = None;
        let (mut bias, mut scale) = (self.bias(), None);
        if let Some(gates) = &self.gates {
            if gates.columns.open().len() < input_width {
                input.columns = Some(gates.columns.open());
                depth = Some(gates.columns.open());
            }
            input.scale = Some(gates.columns.open_values());
            scale = Some(self.row_scale.as_slice());
            bias = self.bias.as_ref().map(|_| self.row_bias.as_slice());
        }
        if scatter.is_some() {
            out.fill(0.0);
        }
        let mut output =
            Output { data: out, stride: output_width, columns: scatter, bias, scale, activation, add: false };
        matrix::multiply(&input, &packed.matrix, depth, &mut output);
    }

    /// Adds the gradients of one use: of gates, bias and weight to their own, and of the input to `d_x`.
    ///
    /// # Shapes
    /// `x` `[rows, in]` and `y` `[rows, out]` are the input and output of [`Projection::forward`] without activation,
    /// `d_y` `[rows, out]`, `d_x` `[rows, in]` or `None` where the input needs no gradient, `scratch` anything.
    ///
    /// # Panics
    /// If the projection was not loaded for training, or is compact.
    pub fn backward(
        &mut self,
        x: &[f32],
        y: &[f32],
        rows: usize,
        d_y: &[f32],
        d_x: Option<&mut [f32]>,
        scratch: &mut Vec<f32>,
    ) {
        let (out_features, in_features) = self.original;
        let packed = self.backward_packed.as_ref().expect("loaded for training");
        let row_values = self.gates.as_ref().map(|gates| gates.rows.values());
        if let Some(bias) = self.bias.as_mut().filter(|bias| bias.trainable()) {
            reduce::column_sum(d_y, rows, out_features, out_features, row_values, &mut bias.gradient);
        }
        if self.weight.trainable() {
            // dW = (ω_r ⊙ d_y) (ω_c ⊙ x)ᵀ, and 0 where either gate is closed.
            let gates = self.gates.as_ref();
            let d_outputs = side(d_y, out_features, gates.map(|gates| &gates.rows));
            let inputs = side(x, in_features, gates.map(|gates| &gates.columns));
            matrix::multiply_transposed(&d_outputs, &inputs, rows, &mut self.weight.gradient);
        }
        let Some(gates) = self.gates.as_mut().filter(|gates| gates.rows.parameter.trainable()) else {
            if let Some(d_x) = d_x {
                let input = Input { data: d_y, rows, stride: out_features, columns: None, scale: None };
                let mut output = Output {
                    data: d_x,
                    stride: in_features,
                    columns: None,
                    bias: None,
                    scale: None,
                    activation: Activation::None,
                    add: true,
                };
                matrix::multiply(&input, &packed.matrix, None, &mut output);
            }
            return;
        };
        scratch.clear();
        scratch.resize(out_features, 0.0);
        reduce::column_dot(d_y, y, rows, out_features, out_features, scratch);
        gates.rows.add_output_products(scratch);
        // The gradient of the gated input, zero at closed columns.
        scratch.clear();
        scratch.resize(rows * in_features, 0.0);
        let open_rows = (gates.rows.open().len() < out_features).then_some(gates.rows.open());
        let input =
            Input { data: d_y, rows, stride: out_features, columns: open_rows, scale: Some(gates.rows.open_values()) };
        let mut output = Output {
            data: scratch,
            stride: in_features,
            columns: packed.kept.as_deref(),
            bias: None,
            scale: None,
            activation: Activation::None,
            add: false,
        };
        matrix::multiply(&input, &packed.matrix, open_rows, &mut output);
        reduce::column_dot(x, scratch, rows, in_features, in_features, &mut gates.columns.d_values);
        if let Some(d_x) = d_x {
            reduce::add_scaled_columns(scratch, Some(gates.columns.values()), d_x, in_features);
        }
    }

    /// Turns gathered gate gradients into gradients of θ; once after the last use of a backward pass.
    pub fn finish_backward(&mut self) {
        if let Some(gates) = self.gates.as_mut().filter(|gates| gates.rows.parameter.trainable()) {
            gates.rows.finish_backward();
            gates.columns.finish_backward();
        }
    }

    /// Distances of the row and column gates from the target, for a layer with input `x` `[rows, in]`;
    /// `factor` times their gradient is added to θ's. 0 without gates.
    pub fn penalty(&mut self, penalty: &Penalty, x: &[f32], rows: usize, factor: f32) -> f64 {
        let (out_features, in_features) = self.original;
        let whole = if penalty.kurtosis { self.whole_weight() } else { Vec::new() };
        let weight = if whole.is_empty() { &self.weight.value } else { &whole };
        let Some(gates) = self.gates.as_mut() else { return 0.0 };
        if !penalty.kurtosis {
            return penalty.vector(&mut gates.rows, None, factor) + penalty.vector(&mut gates.columns, None, factor);
        }
        let mut mean = vec![0.0; in_features];
        reduce::column_mean(x, rows, in_features, in_features, &mut mean);
        let mut row_kurtosis = vec![0.0; out_features];
        kernels::row_column_kurtosis(weight, out_features, in_features, &mean, &mut row_kurtosis);
        // Kurtosis does not change with scale: that of a column of x̄ ⊙ W is that of the column of W, once for all.
        let columns = self.column_kurtosis.get_or_insert_with(|| {
            let mut kurtosis = vec![0.0; in_features];
            kernels::column_kurtosis(weight, out_features, in_features, &mut kurtosis);
            kurtosis
        });
        // A column that is 0 throughout has no kurtosis; the convention is a normal distribution's, 3.
        let columns: Vec<f32> =
            columns.iter().zip(&mean).map(|(&kurtosis, &mean)| if mean == 0.0 { 3.0 } else { kurtosis }).collect();
        penalty.vector(&mut gates.rows, Some(&row_kurtosis), factor)
            + penalty.vector(&mut gates.columns, Some(&columns), factor)
    }

    /// The weight unpacked, where it has no plain form; otherwise nothing.
    fn whole_weight(&self) -> Vec<f32> {
        let Some(source) = &self.source else { return Vec::new() };
        let (rows, columns) = self.original;
        let mut weight = vec![0.0; rows * columns];
        for (row, values) in weight.chunks_exact_mut(columns.max(1)).enumerate() {
            source.unpack_row(row, values);
        }
        weight
    }

    /// Shows every trainable parameter in a fixed order.
    pub fn visit(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        if let Some(gates) = &mut self.gates {
            gates.rows.parameter.visit(visit);
            gates.columns.parameter.visit(visit);
        }
        let (width, rows) = (self.original.1, self.original.0);
        let sleeping = self.gates.as_ref().filter(|_| self.needs.weight_gradient);
        let sleeping = sleeping.filter(|gates| gates.rows.awake().is_some() || gates.columns.awake().is_some());
        let awake = sleeping.map(|gates| Awake { width, rows: gates.rows.possible(), columns: gates.columns.awake() });
        self.weight.visit_part(awake, visit);
        let awake = sleeping.map(|gates| Awake { width: rows, rows: &[0], columns: gates.rows.awake() });
        self.bias.iter_mut().for_each(|bias| bias.visit_part(awake, visit));
    }
}

/// One side of a weight's gradient, as far as its gates are open.
fn side<'a>(data: &'a [f32], width: usize, gate: Option<&'a Gate>) -> Side<'a> {
    let open = gate.map(Gate::open).filter(|open| open.len() < width);
    Side { data, width, columns: open, scale: gate.map(Gate::open_values) }
}

/// `out = values[indices]`, or all of them.
fn select(values: &[f32], indices: Option<&[u32]>, out: &mut Vec<f32>) {
    out.clear();
    match indices {
        Some(indices) => out.extend(indices.iter().map(|&index| values[index as usize])),
        None => out.extend_from_slice(values),
    }
}
