//! Self-attention without its norm and residual: `output(attention(query x, key x, value x))`, over all tokens of a
//! sequence or over those before, with grouped heads and rotary positions where a family has them.

use finegates_kernels::attention::{self as kernels, Layout, Mask};
use finegates_kernels::dropout::Dropout;
use finegates_kernels::matrix::{self, Activation};
use finegates_kernels::{random, rotary};

use crate::heads::Heads;
use crate::parameter::Parameter;
use crate::projection::Projection;
use crate::rotary::Turns;

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

/// Facts of one pass that every layer shares.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// Sequence offsets, `[S + 1]`.
    pub offsets: &'a [usize],
    /// Relative position bias table and its longest distance.
    pub position_bias: Option<(&'a [f32], usize)>,
    /// How queries and keys turn, in families where they do.
    pub turns: Option<&'a Turns>,
    /// Key of this pass's dropout masks; `None` for no dropout.
    pub dropout_key: Option<u64>,
    /// Whether a backward pass will follow.
    pub training: bool,
}

impl<'a> Pass<'a> {
    /// A pass over these sequences that nothing follows, without position bias and turns.
    pub fn evaluation(offsets: &'a [usize]) -> Self {
        Pass { offsets, position_bias: None, turns: None, dropout_key: None, training: false }
    }

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
    /// `[key/value heads · E, D]`.
    pub key: Projection,
    /// `[key/value heads · E, D]`.
    pub value: Projection,
    /// `[D, H·E]`.
    pub output: Projection,
    /// Where the live heads lie in the rows and columns of these.
    pub heads: Heads,
    /// Which tokens a token sees.
    pub mask: Mask,
    /// Factor on the scores, `1/√E` of the original head dimension.
    pub scale: f32,
    /// Dropout rate of the probabilities.
    pub dropout: f32,
}

/// What the backward pass of the block needs; also the block's working memory.
#[derive(Debug, Default, Clone)]
pub struct AttentionSaved {
    pub(crate) query: Vec<f32>,
    pub(crate) key: Vec<f32>,
    pub(crate) value: Vec<f32>,
    pub(crate) context: Vec<f32>,
    log_sum_exp: Vec<f32>,
    /// Output of the output projection, `[T, D]`, when training.
    pub(crate) output: Vec<f32>,
}

impl AttentionSaved {
    /// Input of the output projection, `[T, H·E]`.
    pub fn context(&self) -> &[f32] {
        &self.context
    }

    pub(crate) fn buffers(&self) -> [&Vec<f32>; 6] {
        [&self.query, &self.key, &self.value, &self.context, &self.log_sum_exp, &self.output]
    }

    /// Exchanges what is kept from the forward pass to the backward pass: everything.
    pub(crate) fn exchange_kept(&mut self, other: &mut Self) {
        std::mem::swap(self, other);
    }
}

/// Buffers that one backward pass shares between layers.
#[derive(Debug, Default, Clone)]
pub struct Scratch {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
    pub(crate) c: Vec<f32>,
    pub(crate) d: Vec<f32>,
    pub(crate) turned: Vec<f32>,
    pub(crate) product: Vec<f32>,
}

impl Attention {
    fn layout<'a>(&'a self, layer: usize, pass: &Pass<'a>) -> Layout<'a> {
        Layout {
            offsets: pass.offsets,
            heads: &self.heads.heads,
            query_stride: self.query.output_width(),
            key_stride: self.key.output_width(),
            value_stride: self.value.output_width(),
            output_stride: self.output.input_width(),
            scale: self.scale,
            mask: self.mask,
            position_bias: pass.position_bias,
            dropout: pass.dropout(self.dropout, layer, 0),
        }
    }

    /// Fills queries, keys and values from `x` `[T, D]`, turned.
    pub(crate) fn project(&self, x: &[f32], pass: &Pass<'_>, saved: &mut AttentionSaved) {
        let rows = pass.rows();
        let project = |projection: &Projection, buffer: &mut Vec<f32>| {
            resized(buffer, rows * projection.output_width());
            projection.forward(x, rows, buffer, Activation::None);
        };
        let AttentionSaved { query, key, value, .. } = saved;
        let key_and_value = || matrix::together(rows, || project(&self.key, key), || project(&self.value, value));
        matrix::together(rows, || project(&self.query, query), key_and_value);
        self.turn(pass, &mut saved.query, &mut saved.key, rotary::rotate);
    }

    /// Turns queries and keys, or their gradients back.
    fn turn(&self, pass: &Pass<'_>, query: &mut [f32], key: &mut [f32], turn: Turn) {
        let Some(turns) = pass.turns else { return };
        turn(query, self.query.output_width(), &self.heads.query_turns(), &turns.rows, &turns.table);
        turn(key, self.key.output_width(), &self.heads.key_turns(), &turns.rows, &turns.table);
    }

    /// Fills the input of the output projection from `x` `[T, D]`.
    pub fn context(&self, x: &[f32], layer: usize, pass: &Pass<'_>, saved: &mut AttentionSaved) {
        self.project(x, pass, saved);
        let rows = pass.rows();
        resized(&mut saved.context, rows * self.output.input_width());
        resized(&mut saved.log_sum_exp, rows * self.heads.heads.len());
        let layout = self.layout(layer, pass);
        let log_sum_exp = pass.training.then_some(&mut saved.log_sum_exp[..]);
        kernels::attention_forward(&layout, &saved.query, &saved.key, &saved.value, &mut saved.context, log_sum_exp);
    }

    /// Adds to `d_x` `[T, D]` from the gradient of the output projection's output, and gathers the parameters'
    /// gradients; only these when the input needs none.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &mut self,
        x: &[f32],
        layer: usize,
        pass: &Pass<'_>,
        saved: &AttentionSaved,
        d_output: &[f32],
        mut d_x: Option<&mut [f32]>,
        d_bias: Option<&mut [f32]>,
        scratch: &mut Scratch,
    ) {
        let rows = pass.rows();
        let Scratch { b: d_context, c: d_query_key, d: d_value, turned, product, .. } = scratch;
        zeroed(d_context, rows * self.output.input_width());
        self.output.backward(&saved.context, &saved.output, rows, d_output, Some(d_context), product);
        let (query_width, key_width) = (self.query.output_width(), self.key.output_width());
        resized(d_query_key, rows * (query_width + key_width));
        resized(d_value, rows * self.value.output_width());
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
        self.turn(pass, d_query, d_key, rotary::rotate_backward);
        let (mut query, mut key) = (saved.query.as_slice(), saved.key.as_slice());
        if pass.turns.is_some() && self.query.gates().is_some() {
            // The projections' own outputs, which the gradients of their row gates need.
            turned.clear();
            turned.extend_from_slice(query);
            turned.extend_from_slice(key);
            let (own_query, own_key) = turned.split_at_mut(query.len());
            self.turn(pass, own_query, own_key, rotary::rotate_backward);
            (query, key) = (own_query, own_key);
        }
        self.query.backward(x, query, rows, d_query, d_x.as_deref_mut(), product);
        self.key.backward(x, key, rows, d_key, d_x.as_deref_mut(), product);
        self.value.backward(x, &saved.value, rows, d_value, d_x, product);
    }

    /// Query, key, value, attention output: the order of the wiring.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        [&self.query, &self.key, &self.value, &self.output].into_iter()
    }

    /// Query, key, value, attention output: the order of the wiring.
    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        [&mut self.query, &mut self.key, &mut self.value, &mut self.output].into_iter()
    }
}

type Turn = fn(&mut [f32], usize, &[rotary::RotaryHead<'_>], &[u32], &rotary::RotaryTable);

pub(crate) fn zeroed(buffer: &mut Vec<f32>, length: usize) {
    buffer.clear();
    buffer.resize(length, 0.0);
}

/// Room for so many numbers, whatever they are.
pub(crate) fn resized(buffer: &mut Vec<f32>, length: usize) {
    buffer.resize(length, 0.0);
}
