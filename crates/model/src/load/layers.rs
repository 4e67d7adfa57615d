//! The stack of a checkpoint: its layers, whose blocks are laid out by what is left of them.

use finegates_checkpoint::config::{ActivationName, Config};
use finegates_kernels::attention::Mask;
use finegates_kernels::matrix::Activation;

use super::Loader;
use crate::attention::{Attention, RelativeBias};
use crate::error::Error;
use crate::feed_forward::FeedForward;
use crate::heads::{HeadShape, Left};
use crate::layer::{Layer, LayerNorms};
use crate::norm::RmsNorm;
use crate::parameter::Group;
use crate::projection::Projection;
use crate::rotary::RotaryEmbedding;
use crate::stack::Stack;
use crate::wiring::Role;

impl Loader<'_> {
    pub(super) fn stack(&self) -> Result<Stack, Error> {
        Ok(Stack {
            layers: (0..self.checkpoint.config.layers).map(|layer| self.layer(layer)).collect::<Result<_, _>>()?,
            relative_bias: self.relative_bias()?,
            rotary: self.rotary(),
            norm: self.last_norm()?,
            recompute: false,
        })
    }

    pub(crate) fn relative_bias(&self) -> Result<Option<RelativeBias>, Error> {
        let config = &self.checkpoint.config;
        let relative_bias = self.description.relative_bias.map(|module| {
            let name = format!("{}.{module}.weight", self.description.prefix);
            let mut weight = self.read(&name, Group::Embedding, &[config.relative_attention_buckets, config.heads])?;
            if self.trains_everything() {
                weight.make_trainable();
            }
            Ok::<_, Error>(RelativeBias { weight })
        });
        relative_bias.transpose()
    }

    pub(crate) fn rotary(&self) -> Option<RotaryEmbedding> {
        let config = &self.checkpoint.config;
        let rotary = config.decoder.as_ref().map(|decoder| &decoder.rotary);
        rotary.map(|rotary| RotaryEmbedding::new(rotary.clone(), config.head_dim()))
    }

    pub(crate) fn last_norm(&self) -> Result<Option<RmsNorm>, Error> {
        self.description.last_norm.map(|module| self.rms_norm(module)).transpose()
    }

    pub(crate) fn layer(&self, layer: usize) -> Result<Layer, Error> {
        let config = &self.checkpoint.config;
        let by_role = |role| {
            let mut wired = self.wiring.projections.iter();
            let wired = wired.find(|wired| wired.layer == layer && wired.role == role);
            wired.map(|wired| self.projection(wired)).transpose()
        };
        let one = |role| by_role(role).map(|found| found.expect("every layer has this role"));
        let (mut query, mut key, value, mut output) =
            (one(Role::Query)?, one(Role::Key)?, one(Role::Value)?, one(Role::AttentionOutput)?);
        let (up, down, gate) = (one(Role::Up)?, one(Role::Down)?, by_role(Role::Gate)?);
        agree(&up, &up.kept().map(|kept| &kept.rows), &down, &down.kept().map(|kept| &kept.columns))?;
        if let Some(gate) = &gate {
            agree(gate, &gate.kept().map(|kept| &kept.rows), &up, &up.kept().map(|kept| &kept.rows))?;
        }
        let shape = head_shape(config);
        let heads = match (query.kept(), key.kept(), value.kept(), output.kept()) {
            (Some(q), Some(k), Some(v), Some(o)) => {
                let left = Left { query: &q.rows, key: &k.rows, value: &v.rows, output: &o.columns };
                let laid_out = shape.lay_out(&left).map_err(|(one, other)| {
                    let reason = "keep different dimensions of the space between them";
                    Error::Compact(format!("layer {layer}: {one} and {other} {reason}"))
                })?;
                query.place_rows(laid_out.query);
                key.place_rows(laid_out.key);
                output.place_columns(laid_out.output);
                laid_out.heads
            }
            _ => shape.whole(),
        };
        let stem = format!("{}.{layer}", self.description.layers);
        let attention_norm = format!("{stem}.{}", self.description.attention_norm);
        let feed_forward_norm = format!("{stem}.{}", self.description.feed_forward_norm);
        let window = config.decoder.as_ref().map(|decoder| decoder.windows[layer]);
        Ok(Layer {
            attention: Attention {
                query,
                key,
                value,
                output,
                heads,
                mask: window.map_or(Mask::Full, |window| Mask::Causal { window }),
                scale: 1.0 / (shape.dim as f32).sqrt(),
                dropout: config.attention_dropout,
            },
            feed_forward: FeedForward { gate, up, down, activation: activation(config.activation) },
            norms: match config.decoder {
                Some(_) => LayerNorms::Before {
                    attention: self.rms_norm(&attention_norm)?,
                    feed_forward: self.rms_norm(&feed_forward_norm)?,
                },
                None => LayerNorms::After {
                    attention: self.norm(&attention_norm)?,
                    feed_forward: self.norm(&feed_forward_norm)?,
                    dropouts: [
                        if self.description.attention_output_dropout { config.hidden_dropout } else { 0.0 },
                        config.hidden_dropout,
                    ],
                },
            },
        })
    }
}

/// Two compact projections must have kept the same dimensions of the space between them.
fn agree(
    one: &Projection,
    kept: &Option<&Vec<u32>>,
    other: &Projection,
    also: &Option<&Vec<u32>>,
) -> Result<(), Error> {
    if kept == also {
        return Ok(());
    }
    Err(Error::Compact(format!(
        "{} and {} keep different dimensions of the space between them",
        one.path(),
        other.path()
    )))
}

/// How the heads of a model are made up.
pub(crate) fn head_shape(config: &Config) -> HeadShape {
    HeadShape {
        heads: config.heads,
        key_value_heads: config.key_value_heads(),
        dim: config.head_dim(),
        rotary: config.decoder.is_some(),
    }
}

pub(crate) fn activation(name: ActivationName) -> Activation {
    match name {
        ActivationName::Gelu => Activation::Gelu,
        ActivationName::GeluNew => Activation::GeluTanh,
        ActivationName::Relu => Activation::Relu,
        ActivationName::Silu => Activation::Silu,
        ActivationName::Tanh => Activation::Tanh,
    }
}
