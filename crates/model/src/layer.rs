//! One layer: attention then feed-forward, each adding to the residual stream, with the norms after the sums (encoders)
//! or before the blocks (decoders).

use finegates_kernels::dropout::{Dropout, dropout};
use finegates_kernels::matrix::Activation;
use finegates_kernels::reduce;

use crate::attention::{Attention, AttentionSaved, Pass, Scratch, resized};
use crate::feed_forward::{FeedForward, FeedForwardSaved};
use crate::norm::{Norm, NormSaved, RmsNorm};
use crate::parameter::{Parameter, ParameterMut};
use crate::projection::Projection;

/// One layer of a stack.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Self-attention block.
    pub attention: Attention,
    /// Feed-forward block.
    pub feed_forward: FeedForward,
    /// The norms, and where they stand.
    pub norms: LayerNorms,
}

/// The norms of a layer.
// There are a few dozen of them in a model.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub enum LayerNorms {
    /// `norm(x + dropout(block x))`: BERT and its relatives.
    After {
        /// Norm of the sum with attention's output.
        attention: Norm,
        /// Norm of the sum with the feed-forward block's output.
        feed_forward: Norm,
        /// Dropout rates of the two blocks' outputs.
        dropouts: [f32; 2],
    },
    /// `x + block(norm x)`: Llama and its relatives.
    Before {
        /// Norm of attention's input.
        attention: RmsNorm,
        /// Norm of the feed-forward block's input.
        feed_forward: RmsNorm,
    },
}

/// What the backward pass of one layer needs; also its working memory.
///
/// Input, and outputs of projections and attention, are kept from forward to backward; what norms, sums and activations
/// make of them is made again, in buffers that all layers share.
#[derive(Debug, Default, Clone)]
pub struct LayerSaved {
    pub(crate) input: Vec<f32>,
    /// Made again.
    middle: Vec<f32>,
    /// Of each block, what the norm made of its input, or the sum that the norm takes. Made again.
    beside: [Vec<f32>; 2],
    /// Made again.
    norms: [NormSaved; 2],
    pub(crate) attention: AttentionSaved,
    feed_forward: FeedForwardSaved,
}

impl LayerSaved {
    /// Exchanges what is kept from the forward pass to the backward pass; with `recompute` that is the input alone.
    pub(crate) fn exchange_kept(&mut self, other: &mut Self, recompute: bool) {
        std::mem::swap(&mut self.input, &mut other.input);
        if !recompute {
            self.attention.exchange_kept(&mut other.attention);
            self.feed_forward.exchange_kept(&mut other.feed_forward);
        }
    }

    /// Bytes that are held.
    pub(crate) fn size_bytes(&self) -> usize {
        let own = [&self.input, &self.middle, &self.beside[0], &self.beside[1]];
        let all = own.into_iter().chain(self.attention.buffers()).chain(self.feed_forward.buffers());
        4 * all.map(Vec::capacity).sum::<usize>()
    }

    /// What the projections of a layer took in, in the order of the wiring.
    pub(crate) fn inputs(&self, layer: &Layer) -> impl Iterator<Item = &[f32]> {
        let (attention, feed_forward): (&[f32], &[f32]) = match layer.norms {
            LayerNorms::After { .. } => (&self.input, &self.middle),
            LayerNorms::Before { .. } => (&self.beside[0], &self.beside[1]),
        };
        let into = if layer.feed_forward.gate.is_some() { 2 } else { 1 };
        [attention; 3]
            .into_iter()
            .chain([self.attention.context()])
            .chain(std::iter::repeat_n(feed_forward, into))
            .chain([self.feed_forward.activated()])
    }
}

impl Layer {
    /// `out` `[T, D]` from the input laid into `saved`.
    pub fn forward(&self, index: usize, pass: &Pass<'_>, saved: &mut LayerSaved, out: &mut [f32]) {
        self.forward_with(index, pass, saved, out, |attention, x, saved| attention.context(x, index, pass, saved));
    }

    /// As [`Layer::forward`]; `context` fills the input of attention's output projection from attention's input.
    pub(crate) fn forward_with(
        &self,
        index: usize,
        pass: &Pass<'_>,
        saved: &mut LayerSaved,
        out: &mut [f32],
        context: impl FnOnce(&Attention, &[f32], &mut AttentionSaved),
    ) {
        let LayerSaved { input, middle, beside, norms, attention, feed_forward } = saved;
        let rows = pass.rows();
        resized(middle, input.len());
        let [first, second] = beside;
        let [first_norm, second_norm] = norms;
        match &self.norms {
            LayerNorms::After { attention: norm, feed_forward: last_norm, dropouts } => {
                context(&self.attention, input, attention);
                let AttentionSaved { context, output, .. } = attention;
                let end = BlockEnd { projection: &self.attention.output, x: context, residual: input, pass };
                end.add_norm(norm, pass.dropout(dropouts[0], index, 1), output, first, first_norm, middle);
                self.feed_forward.inner(middle, rows, pass.training, feed_forward);
                let FeedForwardSaved { activated, output, .. } = feed_forward;
                let end = BlockEnd { projection: &self.feed_forward.down, x: activated, residual: middle, pass };
                end.add_norm(last_norm, pass.dropout(dropouts[1], index, 2), output, second, second_norm, out);
            }
            LayerNorms::Before { attention: norm, feed_forward: second_rms } => {
                resized(first, input.len());
                norm.forward(input, first, pass.training.then_some(first_norm));
                context(&self.attention, first, attention);
                let AttentionSaved { context, output, .. } = attention;
                let end = BlockEnd { projection: &self.attention.output, x: context, residual: input, pass };
                end.add(output, middle);
                resized(second, input.len());
                second_rms.forward(middle, second, pass.training.then_some(second_norm));
                self.feed_forward.inner(second, rows, pass.training, feed_forward);
                let FeedForwardSaved { activated, output, .. } = feed_forward;
                let end = BlockEnd { projection: &self.feed_forward.down, x: activated, residual: middle, pass };
                end.add(output, out);
            }
        }
    }

    /// Makes again what the backward pass needs and is not kept, to the same bits; `spare` `[T, D]` is overwritten.
    pub(crate) fn remake(&self, index: usize, pass: &Pass<'_>, saved: &mut LayerSaved, spare: &mut [f32]) {
        let LayerSaved { input, middle, beside, norms, attention, feed_forward } = saved;
        resized(middle, input.len());
        let [first, second] = beside;
        let [first_norm, second_norm] = norms;
        match &self.norms {
            LayerNorms::After { attention: norm, feed_forward: last_norm, dropouts } => {
                let mask = pass.dropout(dropouts[0], index, 1);
                sum_norm(norm, mask, &attention.output, input, first, first_norm, middle);
                self.feed_forward.activate(feed_forward);
                let mask = pass.dropout(dropouts[1], index, 2);
                sum_norm(last_norm, mask, &feed_forward.output, middle, second, second_norm, spare);
            }
            LayerNorms::Before { attention: norm, feed_forward: second_rms } => {
                resized(first, input.len());
                norm.forward(input, first, Some(first_norm));
                middle.copy_from_slice(input);
                reduce::add(&attention.output, middle);
                resized(second, input.len());
                second_rms.forward(middle, second, Some(second_norm));
                self.feed_forward.activate(feed_forward);
            }
        }
    }

    /// From the gradient of the layer's output to that of its input, in place; without `wanted` only the parameters'
    /// gradients are gathered.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &mut self,
        index: usize,
        pass: &Pass<'_>,
        saved: &LayerSaved,
        gradient: &mut [f32],
        middle_gradient: &mut [f32],
        wanted: bool,
        d_bias: Option<&mut [f32]>,
        scratch: &mut Scratch,
    ) {
        let LayerSaved { input, middle, beside, norms, attention, feed_forward } = saved;
        let rows = pass.rows();
        let mut d_block = std::mem::take(&mut scratch.a);
        resized(&mut d_block, gradient.len());
        match &mut self.norms {
            LayerNorms::After { attention: norm, feed_forward: last_norm, dropouts } => {
                last_norm.backward(&beside[1], &norms[1], gradient, &mut d_block);
                middle_gradient.copy_from_slice(&d_block);
                if let Some(mask) = pass.dropout(dropouts[1], index, 2) {
                    dropout(&mut d_block, &mask);
                }
                self.feed_forward.backward(middle, rows, feed_forward, &d_block, middle_gradient, scratch);
                norm.backward(&beside[0], &norms[0], middle_gradient, &mut d_block);
                let d_input = wanted.then(|| {
                    gradient.copy_from_slice(&d_block);
                    gradient
                });
                if let Some(mask) = pass.dropout(dropouts[0], index, 1) {
                    dropout(&mut d_block, &mask);
                }
                self.attention.backward(input, index, pass, attention, &d_block, d_input, d_bias, scratch);
            }
            LayerNorms::Before { attention: norm, feed_forward: second_rms } => {
                d_block.fill(0.0);
                self.feed_forward.backward(&beside[1], rows, feed_forward, gradient, &mut d_block, scratch);
                middle_gradient.copy_from_slice(gradient);
                second_rms.backward(middle, &norms[1], &d_block, middle_gradient);
                d_block.fill(0.0);
                let d_first = (wanted || norm.gamma.trainable()).then_some(d_block.as_mut_slice());
                let some = d_first.is_some();
                self.attention.backward(&beside[0], index, pass, attention, middle_gradient, d_first, d_bias, scratch);
                if some {
                    gradient.copy_from_slice(middle_gradient);
                    norm.backward(input, &norms[0], &d_block, gradient);
                }
            }
        }
        scratch.a = d_block;
    }

    /// Query, key, value, attention output, gate (where there is one), up, down: the order of the wiring.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.attention.projections().chain(self.feed_forward.projections())
    }

    /// Query, key, value, attention output, gate (where there is one), up, down: the order of the wiring.
    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.attention.projections_mut().chain(self.feed_forward.projections_mut())
    }

    /// The norms' parameters, attention's first.
    pub fn norm_parameters(&self) -> impl Iterator<Item = &Parameter> {
        let parameters = match &self.norms {
            LayerNorms::After { attention: a, feed_forward: f, .. } => vec![&a.gamma, &a.beta, &f.gamma, &f.beta],
            LayerNorms::Before { attention: a, feed_forward: f } => vec![&a.gamma, &f.gamma],
        };
        parameters.into_iter()
    }

    /// Shows every trainable parameter in a fixed order.
    pub fn visit(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        self.projections_mut().for_each(|projection| projection.visit(visit));
        match &mut self.norms {
            LayerNorms::After { attention, feed_forward, .. } => {
                attention.visit(visit);
                feed_forward.visit(visit);
            }
            LayerNorms::Before { attention, feed_forward } => {
                attention.gamma.visit(visit);
                feed_forward.gamma.visit(visit);
            }
        }
    }
}

/// The end of a block: its last projection, and the residual stream that it adds to.
pub(crate) struct BlockEnd<'a> {
    pub(crate) projection: &'a Projection,
    pub(crate) x: &'a [f32],
    pub(crate) residual: &'a [f32],
    pub(crate) pass: &'a Pass<'a>,
}

impl BlockEnd<'_> {
    /// `out = residual + projection(x)`, keeping the projection's output when training.
    pub(crate) fn add(&self, output: &mut Vec<f32>, out: &mut [f32]) {
        if self.pass.training {
            resized(output, out.len());
            self.projection.forward(self.x, self.pass.rows(), output, Activation::None);
            out.copy_from_slice(self.residual);
            reduce::add(output, out);
        } else {
            self.projection.forward(self.x, self.pass.rows(), out, Activation::None);
            reduce::add(self.residual, out);
        }
    }

    /// `out = norm(residual + dropout(projection(x)))`, keeping the projection's output and the sum when training.
    fn add_norm(
        &self,
        norm: &Norm,
        mask: Option<Dropout>,
        output: &mut Vec<f32>,
        sum: &mut Vec<f32>,
        norm_saved: &mut NormSaved,
        out: &mut [f32],
    ) {
        let rows = self.pass.rows();
        let length = rows * self.projection.output_width();
        if self.pass.training {
            resized(output, length);
            self.projection.forward(self.x, rows, output, Activation::None);
            sum_norm(norm, mask, output, self.residual, sum, norm_saved, out);
        } else {
            resized(sum, length);
            self.projection.forward(self.x, rows, sum, Activation::None);
            norm.add_forward(sum, self.residual, out, None);
        }
    }
}

/// `out = norm(sum)` of `sum = residual + dropout(output)`, keeping the sum.
fn sum_norm(
    norm: &Norm,
    mask: Option<Dropout>,
    output: &[f32],
    residual: &[f32],
    sum: &mut Vec<f32>,
    norm_saved: &mut NormSaved,
    out: &mut [f32],
) {
    resized(sum, output.len());
    sum.copy_from_slice(output);
    if let Some(mask) = mask {
        dropout(sum, &mask);
    }
    norm.add_forward(sum, residual, out, Some(norm_saved));
}
