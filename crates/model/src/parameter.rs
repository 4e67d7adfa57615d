//! A vector of numbers that may train: its value, its gradient, and the group whose learning rate it follows.

/// Which learning rate and weight decay a parameter follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// θ of a row or column gate vector.
    Gate,
    /// Bias of a gated projection.
    Bias,
    /// Weights and biases of the task head.
    Head,
    /// Weight of a projection (full fine-tuning).
    Weight,
    /// Scale and shift of a norm (full fine-tuning).
    Norm,
    /// Embedding tables (full fine-tuning).
    Embedding,
}

/// A named tensor of the model; its gradient is empty while it is frozen.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Name as in the checkpoint of the family's sequence classification class.
    pub name: String,
    /// Learning rate group.
    pub group: Group,
    /// Shape; `value` holds its product.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub value: Vec<f32>,
    /// Gradient of the same length, or empty when frozen.
    pub gradient: Vec<f32>,
}

impl Parameter {
    /// A frozen parameter.
    pub fn frozen(name: impl Into<String>, group: Group, shape: &[usize], value: Vec<f32>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), value.len());
        Self { name: name.into(), group, shape: shape.to_vec(), value, gradient: Vec::new() }
    }

    /// Makes room for a gradient, so that the optimiser sees the parameter.
    pub fn make_trainable(&mut self) {
        self.gradient = vec![0.0; self.value.len()];
    }

    /// Whether a gradient is kept.
    pub fn trainable(&self) -> bool {
        !self.gradient.is_empty()
    }

    /// Shows the parameter to `visit` if it trains.
    pub fn visit(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        self.visit_part(None, visit);
    }

    /// The same of one of which a step updates a part.
    pub(crate) fn visit_part(&mut self, awake: Option<Awake<'_>>, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        if self.trainable() {
            visit(ParameterMut {
                name: &self.name,
                group: self.group,
                value: &mut self.value,
                gradient: &mut self.gradient,
                awake,
            });
        }
    }
}

/// What an optimiser sees of a trainable parameter.
#[derive(Debug)]
pub struct ParameterMut<'a> {
    /// Name, unique in the model and stable between runs.
    pub name: &'a str,
    /// Learning rate group.
    pub group: Group,
    /// Values.
    pub value: &'a mut [f32],
    /// Gradient, as long as `value`.
    pub gradient: &'a mut [f32],
    /// What of it a step updates; none for all. Elsewhere the gradient is 0, and value and moments stay as they are.
    pub awake: Option<Awake<'a>>,
}

/// The part of a matrix that is not asleep: behind no gate that is closed and stays closed in every draw (`docs/pretrain.md`).
#[derive(Debug, Clone, Copy)]
pub struct Awake<'a> {
    /// Elements of a row.
    pub width: usize,
    /// The rows, ascending.
    pub rows: &'a [u32],
    /// 1 for each column that is awake, 0 for the others; none where all are.
    pub columns: Option<&'a [f32]>,
}
