//! The stack of layers, of encoders and decoders alike.

use crate::attention::{Pass, RelativeBias, Scratch, resized};
use crate::layer::{Layer, LayerSaved};
use crate::norm::{NormSaved, RmsNorm};
use crate::parameter::{Parameter, ParameterMut};
use crate::penalty::Penalty;
use crate::projection::Projection;
use crate::rotary::RotaryEmbedding;

/// What the backward pass of the whole stack needs; also working memory, reused from pass to pass.
#[derive(Debug, Default, Clone)]
pub struct StackSaved {
    /// What each layer keeps from the forward pass of a training step to the backward pass.
    layers: Vec<LayerSaved>,
    /// The layer that is at work in a training step, with what layers share.
    working: LayerSaved,
    /// Where every layer keeps nothing but its input, the one whose forward pass `working` holds.
    computed: Option<usize>,
    spare: Vec<f32>,
    scratch: Scratch,
    output: Vec<f32>,
    gradient: Vec<f32>,
    middle_gradient: Vec<f32>,
    /// Input of the last norm, in stacks that have one, and its statistics.
    last: Vec<f32>,
    last_norm: NormSaved,
}

impl StackSaved {
    /// Room for the stack's input, `[T, D]`, to be filled before [`Stack::forward`].
    pub fn input(&mut self, length: usize) -> &mut [f32] {
        let input = &mut self.first_layer().input;
        resized(input, length);
        input
    }

    /// The stack's output, `[T, D]`.
    pub fn output(&self) -> &[f32] {
        &self.output
    }

    /// Room for the gradient of the stack's output, zeroed; after the backward pass, the gradient of its input.
    pub fn gradient(&mut self) -> &mut Vec<f32> {
        &mut self.gradient
    }

    /// Output and gradient together.
    pub fn output_and_gradient(&mut self) -> (&[f32], &mut Vec<f32>) {
        (&self.output, &mut self.gradient)
    }

    /// Bytes that the layers keep from the forward pass to the backward pass.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.layers.iter().map(LayerSaved::size_bytes).sum()
    }

    /// Makes what lies in the first layer's input the output.
    pub(crate) fn take_output(&mut self) {
        std::mem::swap(&mut self.layers[0].input, &mut self.output);
    }

    pub(crate) fn first_layer(&mut self) -> &mut LayerSaved {
        if self.layers.is_empty() {
            self.layers.push(LayerSaved::default());
        }
        &mut self.layers[0]
    }
}

/// The stack of layers.
#[derive(Debug, Clone)]
pub struct Stack {
    /// Layers, first to last.
    pub layers: Vec<Layer>,
    /// Relative position bias of all layers, in families that have one.
    pub relative_bias: Option<RelativeBias>,
    /// Angles of queries and keys, in families that turn them.
    pub rotary: Option<RotaryEmbedding>,
    /// Norm after the last layer, in families that norm before their blocks.
    pub norm: Option<RmsNorm>,
    /// Whether a training step keeps nothing of a layer but its input, and runs it forward again for the backward pass.
    pub recompute: bool,
}

impl Stack {
    /// From the input laid into `saved` to [`StackSaved::output`].
    pub fn forward(&self, pass: &Pass<'_>, saved: &mut StackSaved) {
        let length = saved.layers[0].input.len();
        let slots = if pass.training { self.layers.len().max(1) } else { 1 };
        saved.layers.resize_with(slots, LayerSaved::default);
        if self.layers.is_empty() {
            saved.output.clone_from(&saved.layers[0].input);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            resized(&mut saved.output, length);
            if pass.training {
                let StackSaved { layers, working, output, .. } = &mut *saved;
                working.exchange_kept(&mut layers[index], self.recompute);
                layer.forward(index, pass, working, output);
                working.exchange_kept(&mut layers[index], self.recompute);
            } else {
                layer.forward(index, pass, &mut saved.layers[0], &mut saved.output);
            }
            if index + 1 < self.layers.len() {
                let next = if pass.training { index + 1 } else { 0 };
                std::mem::swap(&mut saved.layers[next].input, &mut saved.output);
            }
        }
        saved.computed = self.layers.len().checked_sub(1).filter(|_| pass.training && self.recompute);
        self.finish(pass.training, saved);
    }

    /// Puts everything that the backward pass of a layer needs into the working memory, to the bits it had in the forward
    /// pass. [`LayerSaved::exchange_kept`] must follow.
    fn recall(&self, index: usize, pass: &Pass<'_>, saved: &mut StackSaved) {
        let StackSaved { layers, working, computed, spare, .. } = saved;
        working.exchange_kept(&mut layers[index], self.recompute);
        resized(spare, working.input.len());
        if !self.recompute {
            self.layers[index].remake(index, pass, working, spare);
        } else if *computed != Some(index) {
            self.layers[index].forward(index, pass, working, spare);
            *computed = Some(index);
        }
    }

    /// The last norm, where there is one.
    pub(crate) fn finish(&self, training: bool, saved: &mut StackSaved) {
        let Some(norm) = &self.norm else { return };
        let StackSaved { output, last, last_norm, .. } = saved;
        std::mem::swap(output, last);
        resized(output, last.len());
        norm.forward(last, output, training.then_some(last_norm));
    }

    /// From the gradient of the output, laid into `saved`, back to that of the input (if it is wanted).
    pub fn backward(&mut self, pass: &Pass<'_>, saved: &mut StackSaved, input_gradient: bool) {
        let StackSaved { gradient, middle_gradient, last, last_norm, .. } = &mut *saved;
        resized(middle_gradient, gradient.len());
        if let Some(norm) = &mut self.norm {
            middle_gradient.fill(0.0);
            norm.backward(last, last_norm, gradient, middle_gradient);
            std::mem::swap(gradient, middle_gradient);
        }
        let wants_bias = self.relative_bias.as_ref().is_some_and(|bias| bias.weight.trainable());
        let mut d_bias = pass.position_bias.filter(|_| wants_bias).map(|(table, _)| vec![0.0; table.len()]);
        for index in (0..self.layers.len()).rev() {
            self.recall(index, pass, saved);
            let StackSaved { layers, working, scratch, gradient, middle_gradient, .. } = &mut *saved;
            let (layer, wanted) = (&mut self.layers[index], index > 0 || input_gradient);
            layer.backward(index, pass, working, gradient, middle_gradient, wanted, d_bias.as_deref_mut(), scratch);
            working.exchange_kept(&mut layers[index], self.recompute);
        }
        if let (Some(bias), Some(d_bias), Some((_, longest))) = (&mut self.relative_bias, d_bias, pass.position_bias) {
            bias.backward(longest, &d_bias);
        }
        self.projections_mut().for_each(Projection::finish_backward);
    }

    /// The sparsity penalty of the last forward pass, `pass`; adds `scale` times its gradient to the gates'.
    pub fn penalty(&mut self, penalty: &Penalty, pass: &Pass<'_>, saved: &mut StackSaved, scale: f32) -> f64 {
        let gated = self.projections().filter(|projection| projection.gates().is_some()).count();
        if gated == 0 {
            return 0.0;
        }
        let factor = scale * penalty.weight / gated as f32 / 2.0;
        let (mut distance, rows) = (0.0, pass.rows());
        for index in 0..self.layers.len() {
            // Only the weights by kurtosis ask for the inputs.
            if penalty.kurtosis {
                self.recall(index, pass, saved);
            }
            let StackSaved { layers, working, .. } = &mut *saved;
            let layer = &mut self.layers[index];
            let inputs: Vec<&[f32]> = working.inputs(layer).collect();
            for (projection, input) in layer.projections_mut().zip(inputs) {
                distance += projection.penalty(penalty, input, rows, factor);
            }
            if penalty.kurtosis {
                working.exchange_kept(&mut layers[index], self.recompute);
            }
        }
        f64::from(penalty.weight) * distance / (2.0 * gated as f64)
    }

    /// Every gateable projection, in the order of the wiring.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.layers.iter().flat_map(Layer::projections)
    }

    /// Every gateable projection, in the order of the wiring.
    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.layers.iter_mut().flat_map(Layer::projections_mut)
    }

    /// The parameters of every norm, layer by layer.
    pub fn norm_parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.layers.iter().flat_map(Layer::norm_parameters).chain(self.norm.iter().map(|norm| &norm.gamma))
    }

    /// Shows every trainable parameter in a fixed order.
    pub fn visit(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        if let Some(bias) = &mut self.relative_bias {
            bias.weight.visit(visit);
        }
        self.layers.iter_mut().for_each(|layer| layer.visit(visit));
        if let Some(norm) = &mut self.norm {
            norm.gamma.visit(visit);
        }
    }
}
