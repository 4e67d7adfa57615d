//! Layers of given sizes with made-up weights: to be timed, not to be used.

use finegates_checkpoint::config::Config;
use finegates_kernels::random;

use crate::attention::{Attention, AttentionSaved, Pass, RelativeBias};
use crate::encoder::Layer;
use crate::family::Description;
use crate::feed_forward::{FeedForward, FeedForwardSaved};
use crate::load::{activation, heads};
use crate::norm::Norm;
use crate::parameter::{Group, Parameter};
use crate::projection::{Kept, Needs, Projection};

/// How many units of each kind a layer has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSizes {
    /// Query and key dimensions of all heads.
    pub query_key: usize,
    /// Value dimensions of all heads.
    pub value: usize,
    /// Inner units of the feed-forward block.
    pub feed_forward: usize,
}

impl LayerSizes {
    /// The sizes of a whole layer.
    pub fn whole(config: &Config) -> LayerSizes {
        LayerSizes { query_key: config.hidden, value: config.hidden, feed_forward: config.feed_forward }
    }
}

/// The layers of a compact model, all of the same sizes, and an input for them. They have weights of their own each, as in a
/// model: what fits a cache and what does not is part of the time.
#[derive(Debug)]
pub struct SampleStack {
    layers: Vec<Layer>,
    attention: AttentionSaved,
    feed_forward: FeedForwardSaved,
    offsets: Vec<usize>,
    input: Vec<f32>,
    x: Vec<f32>,
    middle: Vec<f32>,
    /// Relative position bias and its longest distance, in families that have one.
    position_bias: Option<(Vec<f32>, usize)>,
}

impl SampleStack {
    /// As many layers as `config` has, with these sizes left, dimensions spread evenly over the heads, and an input of so many
    /// sequences of so many tokens.
    pub fn new(config: &Config, sizes: &LayerSizes, sequences: usize, tokens: usize) -> SampleStack {
        let mut input = vec![0.0; sequences * tokens * config.hidden];
        random::fill_normal(1, 0.0, 1.0, &mut input);
        SampleStack {
            layers: (0..config.layers).map(|_| layer(config, sizes)).collect(),
            attention: AttentionSaved::default(),
            feed_forward: FeedForwardSaved::default(),
            offsets: (0..=sequences).map(|sequence| sequence * tokens).collect(),
            x: input.clone(),
            middle: input.clone(),
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
        let Self { layers, attention, feed_forward, offsets, input, x, middle, position_bias } = self;
        let position_bias = position_bias.as_ref().map(|(table, longest)| (table.as_slice(), *longest));
        let pass = Pass { offsets, position_bias, dropout_key: None, training: false };
        x.copy_from_slice(input);
        for (number, layer) in layers.iter().enumerate() {
            layer.attention.forward(x, number, &pass, attention, middle);
            layer.feed_forward.forward(middle, number, &pass, feed_forward, x);
        }
    }
}

fn layer(config: &Config, sizes: &LayerSizes) -> Layer {
    let width = config.hidden;
    let residual = || (0..width as u32).collect::<Vec<u32>>();
    // The k-th of those left lies evenly among all: a head has as many as its neighbours, give or take one.
    let spread = |left: usize| -> Vec<u32> { (0..left).map(|at| (at * width / left) as u32).collect() };
    let into = |name: &str, rows: Vec<u32>| projection(name, (width, width), rows, residual());
    let query_key = spread(sizes.query_key);
    let value = spread(sizes.value);
    let inner: Vec<u32> = (0..sizes.feed_forward as u32).collect();
    let (query, key) = (into("query", query_key.clone()), into("key", query_key));
    let values = into("value", value.clone());
    Layer {
        attention: Attention {
            heads: heads(config.heads, width / config.heads.max(1), query.kept(), values.kept()),
            query,
            key,
            value: values,
            output: projection("output", (width, width), residual(), value),
            norm: norm(config),
            scale: 1.0,
            attention_dropout: 0.0,
            hidden_dropout: 0.0,
        },
        feed_forward: FeedForward {
            up: projection("up", (config.feed_forward, width), inner.clone(), residual()),
            down: projection("down", (width, config.feed_forward), residual(), inner),
            norm: norm(config),
            activation: activation(config.activation),
            hidden_dropout: 0.0,
        },
    }
}

fn projection(name: &str, original: (usize, usize), rows: Vec<u32>, columns: Vec<u32>) -> Projection {
    let shape = [rows.len(), columns.len()];
    // Small numbers of both signs, made faster than normal ones.
    let number = |at: usize| ((at.wrapping_mul(0x9e37_79b9) >> 7) % 1000) as f32 * 4e-5 - 0.02;
    let weight = (0..shape[0] * shape[1]).map(number).collect();
    let weight = Parameter::frozen(format!("{name}.weight"), Group::Weight, &shape, weight);
    let bias = Parameter::frozen(format!("{name}.bias"), Group::Bias, &shape[..1], vec![0.0; shape[0]]);
    // All of the residual stream is there, so nothing is gathered from it or scattered into it.
    let kept = Kept { rows, columns, scatter_rows: false, gather_columns: false };
    Projection::compact(name, weight, Some(bias), original, kept, Needs::default())
}

fn norm(config: &Config) -> Norm {
    let vector = |value: f32| Parameter::frozen("norm", Group::Norm, &[config.hidden], vec![value; config.hidden]);
    Norm { gamma: vector(1.0), beta: vector(0.0), eps: config.norm_eps }
}
