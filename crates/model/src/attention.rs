//! Self-attention block of a post-norm encoder: `norm(x + dropout(output(attention(query x, key x, value x))))`.

use finegates_kernels::attention::{self as kernels, Head, Layout};
use finegates_kernels::dropout::{Dropout, dropout};
use finegates_kernels::matrix::Activation;
use finegates_kernels::random;

use crate::norm::{Norm, NormSaved};
use crate::parameter::Parameter;
use crate::projection::Projection;

/// Relative position bias shared by all layers (MPNet): one learned number a head and distance bucket.
#[derive(Debug, Clone)]
pub struct RelativeBias {
    /// `[buckets, H]`.
    pub weight: Parameter,
}

impl RelativeBias {
    /// Table `[H, 2·longest − 1]` of the bias at distance `j − i`, from the most negative on.
    pub fn table(&self, longest: usize) -> Vec<f32> {
        let (buckets, heads) = (self.weight.shape[0], self.weight.shape[1]);
        let width = 2 * longest - 1;
        let mut table = vec![0.0; heads * width];
        for (column, bucket) in distance_buckets(longest, buckets).enumerate() {
            for head in 0..heads {
                table[head * width + column] = self.weight.value[bucket * heads + head];
            }
        }
        table
    }

    /// Adds the gradient of a table to that of the weight.
    pub fn backward(&mut self, longest: usize, d_table: &[f32]) {
        let (buckets, heads) = (self.weight.shape[0], self.weight.shape[1]);
        let width = 2 * longest - 1;
        for (column, bucket) in distance_buckets(longest, buckets).enumerate() {
            for head in 0..heads {
                self.weight.gradient[bucket * heads + head] += d_table[head * width + column];
            }
        }
    }
}

/// Bucket of every distance `j − i` from `1 − longest` to `longest − 1`, as MPNet's `relative_position_bucket` with a
/// maximal distance of 128.
fn distance_buckets(longest: usize, buckets: usize) -> impl Iterator<Item = usize> {
    const MAX_DISTANCE: f64 = 128.0;
    let half = buckets / 2;
    let exact = half / 2;
    let span = longest as i64 - 1;
    (-span..=span).map(move |distance| {
        let (sign, distance) = (if distance > 0 { half } else { 0 }, distance.unsigned_abs() as usize);
        if distance < exact {
            return sign + distance;
        }
        // The logarithm is taken in f32 as there, so that borderline distances fall into the same bucket.
        let ratio = (distance as f32 / exact as f32).ln() / (MAX_DISTANCE / exact as f64).ln() as f32;
        sign + (exact + (ratio * (half - exact) as f32) as usize).min(half - 1)
    })
}

/// Facts of one pass that every layer's attention shares.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// Sequence offsets, `[S + 1]`.
    pub offsets: &'a [usize],
    /// Relative position bias table and its longest distance.
    pub position_bias: Option<(&'a [f32], usize)>,
    /// Key of this pass's dropout masks; `None` for no dropout.
    pub dropout_key: Option<u64>,
    /// Whether a backward pass will follow.
    pub training: bool,
}

impl Pass<'_> {
    /// `T`.
    pub fn rows(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// The dropout mask of one site in one layer.
    pub fn dropout(&self, rate: f32, layer: usize, site: u64) -> Option<Dropout> {
        let key = self.dropout_key.filter(|_| rate > 0.0)?;
        Some(Dropout { rate, key: random::mix(key, layer as u64 * 8 + site) })
    }
}

/// The attention block of one layer.
#[derive(Debug, Clone)]
pub struct Attention {
    /// `[H·E, D]`.
    pub query: Projection,
    /// `[H·E, D]`.
    pub key: Projection,
    /// `[H·E, D]`.
    pub value: Projection,
    /// `[D, H·E]`.
    pub output: Projection,
    /// Norm of the sum with the residual.
    pub norm: Norm,
    /// Live heads, with their columns in query/key and value space.
    pub heads: Vec<Head>,
    /// Factor on the scores, `1/√E` of the original head dimension.
    pub scale: f32,
    /// Dropout rate of the probabilities.
    pub attention_dropout: f32,
    /// Dropout rate of the block's output.
    pub hidden_dropout: f32,
}

/// What the backward pass of the block needs; also the block's working memory.
#[derive(Debug, Default, Clone)]
pub struct AttentionSaved {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    context: Vec<f32>,
    log_sum_exp: Vec<f32>,
    output: Vec<f32>,
    sum: Vec<f32>,
    norm: NormSaved,
}

impl AttentionSaved {
    /// Input of the output projection, `[T, H·E]`.
    pub fn context(&self) -> &[f32] {
        &self.context
    }
}

/// Buffers that one backward pass shares between layers.
#[derive(Debug, Default, Clone)]
pub struct Scratch {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
    pub(crate) c: Vec<f32>,
    pub(crate) d: Vec<f32>,
    pub(crate) product: Vec<f32>,
}

impl Attention {
    fn layout<'a>(&'a self, layer: usize, pass: &Pass<'a>) -> Layout<'a> {
        Layout {
            offsets: pass.offsets,
            heads: &self.heads,
            query_key_stride: self.query.output_width(),
            value_stride: self.value.output_width(),
            scale: self.scale,
            position_bias: pass.position_bias,
            dropout: pass.dropout(self.attention_dropout, layer, 0),
        }
    }

    /// `out` `[T, D]` from `x` `[T, D]`.
    pub fn forward(&self, x: &[f32], layer: usize, pass: &Pass<'_>, saved: &mut AttentionSaved, out: &mut [f32]) {
        let rows = pass.rows();
        for (projection, buffer) in
            [(&self.query, &mut saved.query), (&self.key, &mut saved.key), (&self.value, &mut saved.value)]
        {
            buffer.resize(rows * projection.output_width(), 0.0);
            projection.forward(x, rows, buffer, Activation::None);
        }
        saved.context.resize(rows * self.value.output_width(), 0.0);
        saved.log_sum_exp.resize(rows * self.heads.len(), 0.0);
        let layout = self.layout(layer, pass);
        let log_sum_exp = pass.training.then_some(&mut saved.log_sum_exp[..]);
        kernels::attention_forward(&layout, &saved.query, &saved.key, &saved.value, &mut saved.context, log_sum_exp);
        residual_norm(
            &self.output,
            &saved.context,
            x,
            pass,
            pass.dropout(self.hidden_dropout, layer, 1),
            &self.norm,
            &mut saved.output,
            &mut saved.sum,
            &mut saved.norm,
            out,
        );
    }

    /// `d_x` (overwritten, `[T, D]`) from `d_out`, or only the gradients of the parameters when the input needs none.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &mut self,
        x: &[f32],
        layer: usize,
        pass: &Pass<'_>,
        saved: &AttentionSaved,
        d_out: &[f32],
        d_x: Option<&mut [f32]>,
        d_bias: Option<&mut [f32]>,
        scratch: &mut Scratch,
    ) {
        let rows = pass.rows();
        let Scratch { a: d_sum, b: d_context, c: d_query_key, d: d_value, product } = scratch;
        let width = self.output.output_width();
        d_sum.resize(rows * width, 0.0);
        self.norm.backward(&saved.sum, &saved.norm, d_out, d_sum);
        let mut d_x = d_x;
        if let Some(d_x) = d_x.as_deref_mut() {
            d_x.copy_from_slice(d_sum);
        }
        if let Some(mask) = pass.dropout(self.hidden_dropout, layer, 1) {
            dropout(d_sum, &mask);
        }
        zeroed(d_context, rows * self.value.output_width());
        self.output.backward(&saved.context, &saved.output, rows, d_sum, Some(d_context), product);
        let query_width = self.query.output_width();
        d_query_key.resize(2 * rows * query_width, 0.0);
        d_value.resize(rows * self.value.output_width(), 0.0);
        let (d_query, d_key) = d_query_key.split_at_mut(rows * query_width);
        kernels::attention_backward(
            &self.layout(layer, pass),
            &saved.query,
            &saved.key,
            &saved.value,
            &saved.context,
            d_context,
            &saved.log_sum_exp,
            d_query,
            d_key,
            d_value,
            d_bias,
        );
        self.query.backward(x, &saved.query, rows, d_query, d_x.as_deref_mut(), product);
        self.key.backward(x, &saved.key, rows, d_key, d_x.as_deref_mut(), product);
        self.value.backward(x, &saved.value, rows, d_value, d_x, product);
    }
}

pub(crate) fn zeroed(buffer: &mut Vec<f32>, length: usize) {
    buffer.clear();
    buffer.resize(length, 0.0);
}

/// `out = norm(residual + dropout(projection(x)))`, keeping the projection's output and the sum when training.
#[allow(clippy::too_many_arguments)]
pub(crate) fn residual_norm(
    projection: &Projection,
    x: &[f32],
    residual: &[f32],
    pass: &Pass<'_>,
    mask: Option<Dropout>,
    norm: &Norm,
    output: &mut Vec<f32>,
    sum: &mut Vec<f32>,
    norm_saved: &mut NormSaved,
    out: &mut [f32],
) {
    let rows = pass.rows();
    let length = rows * projection.output_width();
    sum.resize(length, 0.0);
    if pass.training {
        output.resize(length, 0.0);
        projection.forward(x, rows, output, Activation::None);
        sum.copy_from_slice(output);
        if let Some(mask) = mask {
            dropout(sum, &mask);
        }
        norm.add_forward(sum, residual, out, Some(norm_saved));
    } else {
        projection.forward(x, rows, sum, Activation::None);
        norm.add_forward(sum, residual, out, None);
    }
}
