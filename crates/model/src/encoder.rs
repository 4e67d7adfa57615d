//! The stack of layers: attention then feed-forward, each adding to the residual stream and norming it.

use crate::attention::{Attention, AttentionSaved, Pass, RelativeBias, Scratch};
use crate::feed_forward::{FeedForward, FeedForwardSaved};
use crate::norm::Norm;
use crate::parameter::ParameterMut;
use crate::penalty::Penalty;
use crate::projection::Projection;

/// One encoder layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Self-attention block.
    pub attention: Attention,
    /// Feed-forward block.
    pub feed_forward: FeedForward,
}

/// What the backward pass of one layer needs.
#[derive(Debug, Default, Clone)]
struct LayerSaved {
    input: Vec<f32>,
    middle: Vec<f32>,
    attention: AttentionSaved,
    feed_forward: FeedForwardSaved,
}

/// What the backward pass of the whole stack needs; also working memory, reused from pass to pass.
#[derive(Debug, Default, Clone)]
pub struct EncoderSaved {
    layers: Vec<LayerSaved>,
    scratch: Scratch,
    output: Vec<f32>,
    gradient: Vec<f32>,
    middle_gradient: Vec<f32>,
}

impl EncoderSaved {
    /// Room for the stack's input, `[T, D]`, to be filled before [`Encoder::forward`].
    pub fn input(&mut self, length: usize) -> &mut [f32] {
        if self.layers.is_empty() {
            self.layers.push(LayerSaved::default());
        }
        let input = &mut self.layers[0].input;
        input.resize(length, 0.0);
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
}

/// The stack of layers.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// Layers, first to last.
    pub layers: Vec<Layer>,
    /// Relative position bias of all layers, in families that have one.
    pub relative_bias: Option<RelativeBias>,
}

impl Encoder {
    /// From the input laid into `saved` to [`EncoderSaved::output`].
    pub fn forward(&self, pass: &Pass<'_>, saved: &mut EncoderSaved) {
        let length = saved.layers[0].input.len();
        let slots = if pass.training { self.layers.len().max(1) } else { 1 };
        saved.layers.resize_with(slots, LayerSaved::default);
        if self.layers.is_empty() {
            saved.output.clone_from(&saved.layers[0].input);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let slot = if pass.training { index } else { 0 };
            let LayerSaved { input, middle, attention, feed_forward } = &mut saved.layers[slot];
            middle.resize(length, 0.0);
            saved.output.resize(length, 0.0);
            layer.attention.forward(input, index, pass, attention, middle);
            layer.feed_forward.forward(middle, index, pass, feed_forward, &mut saved.output);
            if index + 1 < self.layers.len() {
                let next = if pass.training { index + 1 } else { 0 };
                std::mem::swap(&mut saved.layers[next].input, &mut saved.output);
            }
        }
    }

    /// From the gradient of the output, laid into `saved`, back to that of the input (if it is wanted).
    pub fn backward(&mut self, pass: &Pass<'_>, saved: &mut EncoderSaved, input_gradient: bool) {
        let EncoderSaved { layers, scratch, gradient, middle_gradient, .. } = saved;
        middle_gradient.resize(gradient.len(), 0.0);
        let wants_bias = self.relative_bias.as_ref().is_some_and(|bias| bias.weight.trainable());
        let mut d_bias = pass.position_bias.filter(|_| wants_bias).map(|(table, _)| vec![0.0; table.len()]);
        for (index, (layer, slot)) in self.layers.iter_mut().zip(layers).enumerate().rev() {
            layer.feed_forward.backward(
                &slot.middle,
                index,
                pass,
                &slot.feed_forward,
                gradient,
                middle_gradient,
                scratch,
            );
            let d_input = (index > 0 || input_gradient).then_some(gradient.as_mut_slice());
            layer.attention.backward(
                &slot.input,
                index,
                pass,
                &slot.attention,
                middle_gradient,
                d_input,
                d_bias.as_deref_mut(),
                scratch,
            );
        }
        if let (Some(bias), Some(d_bias), Some((_, longest))) = (&mut self.relative_bias, d_bias, pass.position_bias) {
            bias.backward(longest, &d_bias);
        }
        self.projections_mut().for_each(Projection::finish_backward);
    }

    /// The sparsity penalty of the last forward pass; adds `scale` times its gradient to the gates'.
    pub fn penalty(&mut self, penalty: &Penalty, saved: &EncoderSaved, rows: usize, scale: f32) -> f64 {
        let gated = self.projections().filter(|projection| projection.gates().is_some()).count();
        if gated == 0 {
            return 0.0;
        }
        let factor = scale * penalty.weight / gated as f32 / 2.0;
        let mut distance = 0.0;
        for (layer, slot) in self.layers.iter_mut().zip(&saved.layers) {
            let inputs: [&[f32]; 6] = [
                &slot.input,
                &slot.input,
                &slot.input,
                slot.attention.context(),
                &slot.middle,
                slot.feed_forward.activated(),
            ];
            for (projection, input) in layer.projections_mut().zip(inputs) {
                distance += projection.penalty(penalty, input, rows, factor);
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

    /// Every norm, layer by layer.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        self.layers.iter().flat_map(|layer| [&layer.attention.norm, &layer.feed_forward.norm])
    }

    /// Shows every trainable parameter in a fixed order.
    pub fn visit(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        if let Some(bias) = &mut self.relative_bias {
            bias.weight.visit(visit);
        }
        for layer in &mut self.layers {
            layer.projections_mut().for_each(|projection| projection.visit(visit));
            layer.attention.norm.visit(visit);
            layer.feed_forward.norm.visit(visit);
        }
    }
}

impl Layer {
    /// Query, key, value, attention output, up, down: the order of the wiring.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        let (attention, feed_forward) = (&self.attention, &self.feed_forward);
        [&attention.query, &attention.key, &attention.value, &attention.output, &feed_forward.up, &feed_forward.down]
            .into_iter()
    }

    /// Query, key, value, attention output, up, down: the order of the wiring.
    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let (attention, feed_forward) = (&mut self.attention, &mut self.feed_forward);
        [
            &mut attention.query,
            &mut attention.key,
            &mut attention.value,
            &mut attention.output,
            &mut feed_forward.up,
            &mut feed_forward.down,
        ]
        .into_iter()
    }
}
