//! From a checkpoint's tensors to a model: names with and without the family prefix, old norm names, missing heads.

pub(crate) mod shapes;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::str::FromStr;

use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_checkpoint::config::ActivationName;
use finegates_kernels::attention::Head as AttentionHead;
use finegates_kernels::matrix::Activation;
use finegates_kernels::random;

use crate::attention::{Attention, RelativeBias};
use crate::embedding::Embeddings;
use crate::encoder::{Encoder, Layer};
use crate::error::Error;
use crate::family::Description;
use crate::feed_forward::FeedForward;
use crate::gate::{Gate, GateSettings, Gates};
use crate::head::Head;
use crate::norm::Norm;
use crate::parameter::{Group, Parameter};
use crate::projection::{Kept, Needs, Projection};
use crate::wiring::{ProjectionWiring, Space, Wiring};

/// What trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Gates on rows and columns, biases of the gated projections, and the head.
    Gates,
    /// Biases of the same projections and the head.
    BitFit,
    /// Everything.
    Full,
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gates" => Ok(Self::Gates),
            "bitfit" => Ok(Self::BitFit),
            "full" => Ok(Self::Full),
            other => Err(format!("unknown method {other:?}: expected gates, bitfit or full")),
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Gates => "gates",
            Self::BitFit => "bitfit",
            Self::Full => "full",
        })
    }
}

/// What the model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Purpose {
    /// Forward passes only.
    Inference,
    /// Training by a method; `gates` says what kind new gates are.
    Training {
        /// What trains.
        method: Method,
        /// What kind new gates are and how they start.
        gates: GateSettings,
    },
}

/// How to load a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadOptions {
    /// Classes of the head; `None` takes the checkpoint's.
    pub labels: Option<usize>,
    /// Seed of what must be initialised: gates and a missing head.
    pub seed: u64,
    /// What for.
    pub purpose: Purpose,
    /// Keep the plain weights readable, for compression.
    pub keep_weights: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { labels: None, seed: 0, purpose: Purpose::Inference, keep_weights: false }
    }
}

/// What loading found missing or left unused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Tensors that the checkpoint lacks (or has for another number of labels) and that were initialised.
    pub initialised: Vec<String>,
    /// Tensors of the checkpoint that this model has no use for.
    pub ignored: Vec<String>,
}

/// The parts of a model as read from a checkpoint.
pub(crate) struct Parts {
    pub embeddings: Embeddings,
    pub encoder: Encoder,
    pub head: Head,
    pub report: LoadReport,
}

pub(crate) fn load(checkpoint: &Checkpoint, wiring: &Wiring, options: &LoadOptions) -> Result<Parts, Error> {
    if checkpoint.config.compact.is_some() && options.purpose != Purpose::Inference {
        return Err(Error::Unsupported(format!(
            "{}: a compact checkpoint cannot be trained further; train on the checkpoint it was made from, then compress again",
            checkpoint.folder.display()
        )));
    }
    let loader = Loader {
        checkpoint,
        description: Description::of(&checkpoint.config),
        wiring,
        options,
        used: RefCell::default(),
        initialised: RefCell::default(),
    };
    let embeddings = loader.embeddings()?;
    let encoder = loader.encoder()?;
    let head = loader.head()?;
    let used = loader.used.into_inner();
    let ignored = checkpoint.tensors.names().filter(|name| !used.contains(*name) && !name.ends_with("position_ids"));
    let report =
        LoadReport { ignored: ignored.map(str::to_owned).collect(), initialised: loader.initialised.into_inner() };
    Ok(Parts { embeddings, encoder, head, report })
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    description: Description,
    wiring: &'a Wiring,
    options: &'a LoadOptions,
    used: RefCell<BTreeSet<String>>,
    initialised: RefCell<Vec<String>>,
}

impl Loader<'_> {
    fn method(&self) -> Option<Method> {
        match self.options.purpose {
            Purpose::Inference => None,
            Purpose::Training { method, .. } => Some(method),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.checkpoint.tensors.shape(&self.checkpoint.find(name)?).map(<[usize]>::to_vec)
    }

    /// Reads a tensor of a known shape; a missing one is an error that names the canonical tensor.
    fn read(&self, name: &str, group: Group, shape: &[usize]) -> Result<Parameter, Error> {
        let found = self.checkpoint.find(name).unwrap_or_else(|| name.to_owned());
        let value = self.checkpoint.tensors.read(&found, shape)?;
        self.used.borrow_mut().insert(found);
        Ok(Parameter::frozen(name, group, shape, value))
    }

    /// Reads a table `[rows, width]` whose number of rows the file decides.
    fn table(&self, module: &str, width: usize) -> Result<Parameter, Error> {
        let name = format!("{}.{module}.weight", self.description.prefix);
        let rows = self.shape(&name).and_then(|shape| shape.first().copied()).unwrap_or(0);
        self.read(&name, Group::Embedding, &[rows, width])
    }

    fn norm(&self, module: &str) -> Result<Norm, Error> {
        let config = &self.checkpoint.config;
        let path = format!("{}.{module}", self.description.prefix);
        let mut norm = Norm {
            gamma: self.read(&format!("{path}.weight"), Group::Norm, &[config.hidden])?,
            beta: self.read(&format!("{path}.bias"), Group::Norm, &[config.hidden])?,
            eps: config.norm_eps,
        };
        if self.method() == Some(Method::Full) {
            norm.gamma.make_trainable();
            norm.beta.make_trainable();
        }
        Ok(norm)
    }

    fn embeddings(&self) -> Result<Embeddings, Error> {
        let (config, description) = (&self.checkpoint.config, &self.description);
        let mut embeddings = Embeddings {
            word: self.table(description.word, config.hidden)?,
            position: self.table(description.position, config.hidden)?,
            segment: description.segment.map(|module| self.table(module, config.hidden)).transpose()?,
            norm: self.norm(description.embedding_norm)?,
            positions: description.positions,
            padding_id: config.padding_id,
            dropout: config.hidden_dropout,
        };
        if self.method() == Some(Method::Full) {
            embeddings.make_trainable();
        }
        Ok(embeddings)
    }

    fn encoder(&self) -> Result<Encoder, Error> {
        let config = &self.checkpoint.config;
        let relative_bias = self.description.relative_bias.map(|module| {
            let name = format!("{}.{module}.weight", self.description.prefix);
            let mut weight = self.read(&name, Group::Embedding, &[config.relative_attention_buckets, config.heads])?;
            if self.method() == Some(Method::Full) {
                weight.make_trainable();
            }
            Ok::<_, Error>(RelativeBias { weight })
        });
        Ok(Encoder {
            layers: (0..config.layers).map(|layer| self.layer(layer)).collect::<Result<_, _>>()?,
            relative_bias: relative_bias.transpose()?,
        })
    }

    fn layer(&self, layer: usize) -> Result<Layer, Error> {
        let config = &self.checkpoint.config;
        let hidden = config.hidden;
        let wired = self.wiring.projections.get(layer * 6..layer * 6 + 6).unwrap_or_default();
        let mut projections = wired.iter().map(|wired| self.projection(wired));
        let mut next = || projections.next().expect("six projections a layer");
        let (query, key, value, output, up, down) = (next()?, next()?, next()?, next()?, next()?, next()?);
        agree(&query, |kept| &kept.rows, &key, |kept| &kept.rows)?;
        agree(&value, |kept| &kept.rows, &output, |kept| &kept.columns)?;
        agree(&up, |kept| &kept.rows, &down, |kept| &kept.columns)?;
        let head_dimension = hidden / config.heads;
        let layer_prefix = format!("{}.{layer}", self.description.layers);
        Ok(Layer {
            attention: Attention {
                heads: heads(config.heads, head_dimension, query.kept(), value.kept()),
                query,
                key,
                value,
                output,
                norm: self.norm(&format!("{layer_prefix}.{}", self.description.attention_norm))?,
                scale: 1.0 / (head_dimension as f32).sqrt(),
                attention_dropout: config.attention_dropout,
                hidden_dropout: if self.description.attention_output_dropout { config.hidden_dropout } else { 0.0 },
            },
            feed_forward: FeedForward {
                up,
                down,
                norm: self.norm(&format!("{layer_prefix}.{}", self.description.output_norm))?,
                activation: activation(config.activation),
                hidden_dropout: config.hidden_dropout,
            },
        })
    }

    fn projection(&self, wired: &ProjectionWiring) -> Result<Projection, Error> {
        let (path, shape) = (wired.path.as_str(), (wired.rows, wired.columns));
        let method = self.method();
        let needs = Needs {
            backward: method.is_some(),
            plain_weight: self.options.keep_weights,
            weight_gradient: method == Some(Method::Full),
            bias_gradient: method.is_some(),
        };
        if self.checkpoint.config.compact.is_some() {
            return self.compact_projection(wired, needs);
        }
        let weight = self.read(&format!("{path}.weight"), Group::Weight, &[shape.0, shape.1])?;
        let bias = self.read(&format!("{path}.bias"), Group::Bias, &[shape.0])?;
        let mut projection = Projection::dense(path, weight, Some(bias), needs);
        if let Purpose::Training { method: Method::Gates, gates } = &self.options.purpose {
            let seed = self.options.seed;
            projection.set_gates(Gates {
                rows: Gate::fresh_rows(path, shape.0, gates, seed),
                columns: Gate::fresh_columns(path, shape.1, gates, seed),
            });
        }
        Ok(projection)
    }

    fn compact_projection(&self, wired: &ProjectionWiring, needs: Needs) -> Result<Projection, Error> {
        let (path, shape) = (wired.path.as_str(), (wired.rows, wired.columns));
        let declared = self.checkpoint.config.compact.as_ref().and_then(|compact| compact.projections.get(path));
        shapes::check_declared(path, declared.copied(), shape)?;
        let compact = self.checkpoint.config.compact.as_ref().expect("only called for compact checkpoints");
        let found = compact.read(&self.checkpoint.tensors, path)?;
        let parts = ["weight", "bias", "kept_rows", "kept_columns"].map(|part| format!("{path}.{part}"));
        let [weight_name, bias_name, ..] = parts.clone();
        self.used.borrow_mut().extend(parts);
        // Where all of the residual stream is kept, nothing needs to be scattered into it or gathered from it.
        let kept = Kept {
            scatter_rows: wired.row_space == Space::Residual && found.kept_rows.len() < shape.0,
            gather_columns: wired.column_space == Space::Residual && found.kept_columns.len() < shape.1,
            rows: found.kept_rows,
            columns: found.kept_columns,
        };
        let (rows, columns) = (kept.rows.len(), kept.columns.len());
        let weight = Parameter::frozen(weight_name, Group::Weight, &[rows, columns], found.weight);
        let bias = found.bias.map(|bias| Parameter::frozen(bias_name, Group::Bias, &[rows], bias));
        Ok(Projection::compact(path, weight, bias, shape, kept, needs))
    }

    fn head(&self) -> Result<Head, Error> {
        let (config, description) = (&self.checkpoint.config, self.description.head.clone());
        let found = self.shape(&format!("{}.weight", description.output)).and_then(|shape| shape.first().copied());
        let named = Some(config.labels.len()).filter(|&labels| labels > 0);
        // transformers' default for a config without labels is two.
        let classes = self.options.labels.or(found).or(named).unwrap_or(2);
        if self.options.labels.is_none() && found.is_some() && self.method().is_none() {
            self.checkpoint.check_labels(classes)?;
        }
        let dense = self.head_projection(description.dense, config.hidden, config.hidden)?;
        let output = self.head_projection(description.output, classes, config.hidden)?;
        Ok(Head {
            dense,
            activation: description.activation,
            output,
            dropout_before: description.dropout_before,
            dropout: config.classifier_dropout,
        })
    }

    /// A module of the head: the checkpoint's, or initialised as transformers does (normal weights, zero biases).
    fn head_projection(&self, path: &str, rows: usize, columns: usize) -> Result<Projection, Error> {
        let (weight_name, bias_name) = (format!("{path}.weight"), format!("{path}.bias"));
        let fits =
            self.shape(&weight_name).is_some_and(|shape| shape.len() == 2 && shape[1] == columns && shape[0] == rows);
        let other_labels =
            self.options.labels.is_some() && self.shape(&weight_name).is_some_and(|shape| shape[0] != rows);
        let (weight, bias) = if fits || (self.checkpoint.find(&weight_name).is_some() && !other_labels) {
            (self.read(&weight_name, Group::Head, &[rows, columns])?, self.read(&bias_name, Group::Head, &[rows])?)
        } else {
            self.used
                .borrow_mut()
                .extend([&weight_name, &bias_name].into_iter().filter_map(|name| self.checkpoint.find(name)));
            self.initialised.borrow_mut().extend([weight_name.clone(), bias_name.clone()]);
            shapes::check_new_head(self.checkpoint, rows, columns)?;
            let mut value = vec![0.0; rows * columns];
            random::fill_normal(
                random::derive(self.options.seed, &weight_name),
                0.0,
                self.checkpoint.config.initializer_range,
                &mut value,
            );
            (
                Parameter::frozen(weight_name, Group::Head, &[rows, columns], value),
                Parameter::frozen(bias_name, Group::Head, &[rows], vec![0.0; rows]),
            )
        };
        let trains = self.method().is_some();
        // The head is small and always kept whole: adapters replace it and write it.
        let needs = Needs { backward: trains, plain_weight: true, weight_gradient: trains, bias_gradient: trains };
        Ok(Projection::dense(path, weight, Some(bias), needs))
    }
}

/// Two compact projections must have kept the same dimensions of the space between them.
fn agree(
    a: &Projection,
    side_a: fn(&Kept) -> &Vec<u32>,
    b: &Projection,
    side_b: fn(&Kept) -> &Vec<u32>,
) -> Result<(), Error> {
    match (a.kept(), b.kept()) {
        (Some(kept_a), Some(kept_b)) if side_a(kept_a) != side_b(kept_b) => Err(Error::Compact(format!(
            "{} and {} keep different dimensions of the space between them",
            a.path(),
            b.path()
        ))),
        _ => Ok(()),
    }
}

/// Heads that still have a value dimension, with the columns they own in query/key and value space.
pub(crate) fn heads(count: usize, dimension: usize, query: Option<&Kept>, value: Option<&Kept>) -> Vec<AttentionHead> {
    let run = |kept: Option<&Kept>, head: usize| match kept {
        None => (head * dimension, dimension),
        Some(kept) => {
            let before = |limit: usize| kept.rows.partition_point(|&row| (row as usize) < limit);
            let start = before(head * dimension);
            (start, before((head + 1) * dimension) - start)
        }
    };
    (0..count)
        .map(|head| AttentionHead { query_key: run(query, head), value: run(value, head), bias: head })
        .filter(|head| head.value.1 > 0)
        .collect()
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
