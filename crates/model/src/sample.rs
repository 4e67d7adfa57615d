//! Layers of given sizes with made-up weights: to be timed, not to be used.

use finegates_checkpoint::config::Config;
use finegates_kernels::attention::Mask;
use finegates_kernels::random;

use crate::attention::{Attention, Pass, RelativeBias};
use crate::family::Description;
use crate::feed_forward::FeedForward;
use crate::heads::Left;
use crate::layer::{Layer, LayerNorms};
use crate::load::{activation, head_shape};
use crate::norm::{Norm, RmsNorm};
use crate::parameter::{Group, Parameter};
use crate::projection::{Kept, Needs, Projection};
use crate::rotary::{RotaryEmbedding, Turns};
use crate::stack::{Stack, StackSaved};
use crate::wiring::{Role, StackShape};

/// How many units of each kind a layer has left. Units are what closes together: of a decoder a pair of dimensions of all
/// heads that share keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSizes {
    /// Query and key units of all heads.
    pub query_key: usize,
    /// Value units of all heads.
    pub value: usize,
    /// Inner units of the feed-forward block.
    pub feed_forward: usize,
}

impl LayerSizes {
    /// The sizes of a whole layer.
    pub fn whole(config: &Config) -> LayerSizes {
        let value = config.key_value_heads() * config.head_dim();
        let query_key = if config.decoder.is_some() { value / 2 } else { value };
        LayerSizes { query_key, value, feed_forward: config.feed_forward }
    }
}

/// The layers of a compact model, all of the same sizes, and an input for them. They have weights of their own each, as in a
/// model: what fits a cache and what does not is part of the time.
#[derive(Debug)]
pub struct SampleStack {
    stack: Stack,
    saved: StackSaved,
    offsets: Vec<usize>,
    input: Vec<f32>,
    /// Relative position bias and its longest distance, in families that have one.
    position_bias: Option<(Vec<f32>, usize)>,
    turns: Option<Turns>,
}

impl SampleStack {
    /// As many layers as `config` has, with these sizes left, dimensions spread evenly over the heads, and an input of so many
    /// sequences of so many tokens.
    pub fn new(config: &Config, sizes: &LayerSizes, sequences: usize, tokens: usize) -> SampleStack {
        let mut input = vec![0.0; sequences * tokens * config.hidden];
        random::fill_normal(1, 0.0, 1.0, &mut input);
        let rotary = config.decoder.as_ref().map(|decoder| &decoder.rotary);
        let rotary = rotary.map(|rotary| RotaryEmbedding::new(rotary.clone(), config.head_dim()));
        SampleStack {
            turns: rotary.as_ref().map(|rotary| rotary.turns((0..sequences).map(|_| (0, tokens)))),
            stack: Stack {
                layers: (0..config.layers).map(|number| layer(config, sizes, number)).collect(),
                relative_bias: None,
                rotary,
                norm: config.decoder.is_some().then(|| rms_norm(config)),
                recompute: false,
            },
            saved: StackSaved::default(),
            offsets: (0..=sequences).map(|sequence| sequence * tokens).collect(),
            position_bias: Description::of(config).relative_bias.map(|_| {
                let shape = [config.relative_attention_buckets, config.heads];
                let weight = Parameter::frozen("bias", Group::Embedding, &shape, vec![0.0; shape[0] * shape[1]]);
                (RelativeBias { weight }.table(tokens), tokens)
            }),
            input,
        }
    }

    /// One pass through all layers.
    pub fn run(&mut self) {
        let position_bias = self.position_bias.as_ref().map(|(table, longest)| (table.as_slice(), *longest));
        let pass = Pass { position_bias, turns: self.turns.as_ref(), ..Pass::evaluation(&self.offsets) };
        self.saved.input(self.input.len()).copy_from_slice(&self.input);
        self.stack.forward(&pass, &mut self.saved);
    }
}

fn layer(config: &Config, sizes: &LayerSizes, number: usize) -> Layer {
    let (stack, shape, whole) = (StackShape::of(config), head_shape(config), LayerSizes::whole(config));
    let (sharing, dim) = (shape.heads / shape.key_value_heads.max(1), shape.dim);
    // The k-th of those left lies evenly among all: a head has as many as its neighbours, give or take one.
    let spread = |left: usize, all: usize| (0..left).map(move |at| at * all / left);
    // Dimensions of shared heads, and the same of every head that shares them.
    let shared = |dimensions: Vec<usize>| -> (Vec<u32>, Vec<u32>) {
        let of =
            |&index: &usize| (0..sharing).map(move |head| ((index / dim * sharing + head) * dim + index % dim) as u32);
        let mut all: Vec<u32> = dimensions.iter().flat_map(of).collect();
        all.sort_unstable();
        (dimensions.into_iter().map(|index| index as u32).collect(), all)
    };
    let parts = if shape.rotary { 2 } else { 1 };
    let span = (dim / parts).max(1);
    let pairs = |unit: usize| (0..parts).map(move |part| unit / span * dim + part * span + unit % span);
    let mut query_key: Vec<usize> = spread(sizes.query_key, whole.query_key).flat_map(pairs).collect();
    query_key.sort_unstable();
    let (key_rows, query_rows) = shared(query_key);
    let (value_rows, output_columns) = shared(spread(sizes.value, whole.value).collect());
    let residual: Vec<u32> = (0..config.hidden as u32).collect();
    let inner: Vec<u32> = (0..sizes.feed_forward as u32).collect();
    let left = Left { query: &query_rows, key: &key_rows, value: &value_rows, output: &output_columns };
    let heads = shape.lay_out(&left).map(|laid_out| laid_out.heads).unwrap_or_default();
    let make = |role: Role| {
        let wired = stack.projections(config.family, number).find(|wired| wired.role == role);
        let (rows, columns) = match role {
            Role::Query => (&query_rows, &residual),
            Role::Key => (&key_rows, &residual),
            Role::Value => (&value_rows, &residual),
            Role::AttentionOutput => (&residual, &output_columns),
            Role::Down => (&residual, &inner),
            _ => (&inner, &residual),
        };
        wired.map(|wired| projection(&wired.path, (wired.rows, wired.columns), wired.bias, rows, columns))
    };
    let one = |role| make(role).expect("every layer has this role");
    let window = config.decoder.as_ref().map(|decoder| decoder.windows[number]);
    Layer {
        attention: Attention {
            query: one(Role::Query),
            key: one(Role::Key),
            value: one(Role::Value),
            output: one(Role::AttentionOutput),
            heads,
            mask: window.map_or(Mask::Full, |window| Mask::Causal { window }),
            scale: 1.0,
            dropout: 0.0,
        },
        feed_forward: FeedForward {
            gate: make(Role::Gate),
            up: one(Role::Up),
            down: one(Role::Down),
            activation: activation(config.activation),
        },
        norms: match config.decoder {
            Some(_) => LayerNorms::Before { attention: rms_norm(config), feed_forward: rms_norm(config) },
            None => LayerNorms::After { attention: norm(config), feed_forward: norm(config), dropouts: [0.0; 2] },
        },
    }
}

fn projection(name: &str, original: (usize, usize), bias: bool, rows: &[u32], columns: &[u32]) -> Projection {
    let shape = [rows.len(), columns.len()];
    // Small numbers of both signs, made faster than normal ones.
    let number = |at: usize| ((at.wrapping_mul(0x9e37_79b9) >> 7) % 1000) as f32 * 4e-5 - 0.02;
    let weight = (0..shape[0] * shape[1]).map(number).collect();
    let weight = Parameter::frozen(format!("{name}.weight"), Group::Weight, &shape, weight);
    let zeros = || vec![0.0; shape[0]];
    let bias = bias.then(|| Parameter::frozen(format!("{name}.bias"), Group::Bias, &shape[..1], zeros()));
    // Whole units stand side by side, and so does all of the residual stream.
    let kept = Kept { rows: rows.to_vec(), columns: columns.to_vec(), row_places: None, column_places: None };
    Projection::compact(name, weight, bias, original, kept, Needs::default())
}

fn vector(config: &Config, value: f32) -> Parameter {
    Parameter::frozen("norm", Group::Norm, &[config.hidden], vec![value; config.hidden])
}

fn norm(config: &Config) -> Norm {
    Norm { gamma: vector(config, 1.0), beta: vector(config, 0.0), eps: config.norm_eps }
}

fn rms_norm(config: &Config) -> RmsNorm {
    RmsNorm { gamma: vector(config, 1.0), eps: config.norm_eps }
}
