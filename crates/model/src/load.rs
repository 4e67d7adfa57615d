//! From a checkpoint's tensors to a model: names with and without the family prefix, old norm names, missing heads.

mod head;
mod layers;
pub(crate) mod shapes;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use finegates_checkpoint::checkpoint::Checkpoint;

pub(crate) use layers::{activation, head_shape};

use finegates_kernels::matrix::Precision;

use crate::embedding::{Embeddings, WordTable};
use crate::error::Error;
use crate::family::Description;
use crate::gate::{Gate, GateSettings, Gates};
use crate::head::Head;
use crate::heads::Places;
use crate::norm::{Norm, RmsNorm};
use crate::parameter::{Group, Parameter};
use crate::projection::{Kept, Needs, Projection};
use crate::stack::Stack;
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
    /// Everything, with gates on rows and columns.
    GatedFull,
}

impl Method {
    /// Whether there are gates on rows and columns.
    pub fn has_gates(self) -> bool {
        matches!(self, Self::Gates | Self::GatedFull)
    }

    /// Whether weights, norms and embeddings train: a run then leaves a whole model.
    pub fn trains_everything(self) -> bool {
        matches!(self, Self::Full | Self::GatedFull)
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gates" => Ok(Self::Gates),
            "bitfit" => Ok(Self::BitFit),
            "full" => Ok(Self::Full),
            "gated-full" => Ok(Self::GatedFull),
            other => Err(format!("unknown method {other:?}: expected gates, bitfit, full or gated-full")),
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Gates => "gates",
            Self::BitFit => "bitfit",
            Self::Full => "full",
            Self::GatedFull => "gated-full",
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

/// What the head is to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Task {
    /// A class or a number of each sequence.
    #[default]
    Classify,
    /// The next token.
    Language,
}

/// How to load a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadOptions {
    /// What the head is to predict.
    pub task: Task,
    /// Classes of the head; `None` takes the checkpoint's.
    pub labels: Option<usize>,
    /// Seed of what must be initialised: gates and a missing head.
    pub seed: u64,
    /// What for.
    pub purpose: Purpose,
    /// Keep the plain weights of projections readable, for the penalty's weights by kurtosis.
    pub keep_weights: bool,
    /// What packed weights and the word table are held in, where they do not train.
    pub precision: Precision,
    /// Give gateable projections that have no bias one of zeros.
    pub add_biases: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            task: Task::Classify,
            labels: None,
            seed: 0,
            purpose: Purpose::Inference,
            keep_weights: false,
            precision: Precision::F32,
            add_biases: false,
        }
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
    pub stack: Stack,
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
    let loader = Loader::new(checkpoint, wiring, options);
    let (embeddings, head) = loader.ends()?;
    let stack = loader.stack()?;
    Ok(Parts { embeddings, stack, head, report: loader.report() })
}

/// The longest sequence that the model of a checkpoint takes, by its config and the shape of its position table.
///
/// # Errors
/// A position table that is missing or of another shape.
pub fn longest(checkpoint: &Checkpoint) -> Result<usize, Error> {
    let description = Description::of(&checkpoint.config);
    let Some(module) = description.position else { return Ok(checkpoint.config.max_tokens()) };
    let name = format!("{}.{module}.weight", description.prefix);
    let found = checkpoint.find(&name).unwrap_or(name);
    match checkpoint.tensors.shape(&found) {
        Some(&[rows, width]) if rows > 0 && width == checkpoint.config.hidden => {
            Ok(description.positions.longest(rows))
        }
        // Reading it says what is wrong with it.
        _ => {
            let config = &checkpoint.config;
            checkpoint.tensors.read(&found, &[config.max_tokens(), config.hidden])?;
            Ok(config.max_tokens())
        }
    }
}

pub(crate) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    description: Description,
    wiring: &'a Wiring,
    options: &'a LoadOptions,
    used: RefCell<BTreeSet<String>>,
    initialised: RefCell<Vec<String>>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, wiring: &'a Wiring, options: &'a LoadOptions) -> Self {
        Loader {
            checkpoint,
            description: Description::of(&checkpoint.config),
            wiring,
            options,
            used: RefCell::default(),
            initialised: RefCell::default(),
        }
    }

    /// What was initialised and left unused by everything loaded so far.
    pub(crate) fn report(self) -> LoadReport {
        let used = self.used.into_inner();
        let names = self.checkpoint.tensors.names();
        let ignored = names.filter(|name| !used.contains(*name) && !name.ends_with("position_ids"));
        LoadReport { ignored: ignored.map(str::to_owned).collect(), initialised: self.initialised.into_inner() }
    }

    /// Embeddings and head. They come before the layers: the plain table of a vocabulary is the largest tensor there is, and
    /// it is given up here where another form of it is enough.
    pub(crate) fn ends(&self) -> Result<(Embeddings, Head), Error> {
        let mut embeddings = self.embeddings()?;
        let config = &self.checkpoint.config;
        // A tied head is packed from the table as it is. Any other one finds it small already.
        let tied = self.options.task == Task::Language && config.decoder.as_ref().is_some_and(|decoder| decoder.tied);
        if !embeddings.trainable() && !tied && self.options.precision == Precision::Bf16 {
            embeddings.round_words();
        }
        let head = self.head(&embeddings)?;
        if !embeddings.trainable()
            && let Head::Language(head) = &head
            && head.tied
        {
            embeddings.share_words(Arc::clone(head.output.packed()));
        }
        Ok((embeddings, head))
    }

    fn method(&self) -> Option<Method> {
        match self.options.purpose {
            Purpose::Inference => None,
            Purpose::Training { method, .. } => Some(method),
        }
    }

    fn trains_everything(&self) -> bool {
        self.method().is_some_and(Method::trains_everything)
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
        if self.trains_everything() {
            norm.gamma.make_trainable();
            norm.beta.make_trainable();
        }
        Ok(norm)
    }

    fn rms_norm(&self, module: &str) -> Result<RmsNorm, Error> {
        let config = &self.checkpoint.config;
        let name = format!("{}.{module}.weight", self.description.prefix);
        let mut gamma = self.read(&name, Group::Norm, &[config.hidden])?;
        if self.trains_everything() {
            gamma.make_trainable();
        }
        Ok(RmsNorm { gamma, eps: config.norm_eps })
    }

    fn embeddings(&self) -> Result<Embeddings, Error> {
        let (config, description) = (&self.checkpoint.config, &self.description);
        let position = description.position.map(|module| self.table(module, config.hidden)).transpose()?;
        let mut embeddings = Embeddings {
            word: self.table(description.word, config.hidden)?,
            table: WordTable::Plain,
            segment: description.segment.map(|module| self.table(module, config.hidden)).transpose()?,
            norm: description.embedding_norm.map(|module| self.norm(module)).transpose()?,
            positions: description.positions,
            longest: longest(self.checkpoint)?,
            position,
            padding_id: match &config.decoder {
                Some(decoder) => decoder.padding_id,
                None => Some(config.padding_id),
            },
            dropout: config.hidden_dropout,
        };
        if self.trains_everything() {
            embeddings.make_trainable();
        }
        Ok(embeddings)
    }

    fn projection(&self, wired: &ProjectionWiring) -> Result<Projection, Error> {
        let (path, shape) = (wired.path.as_str(), (wired.rows, wired.columns));
        let method = self.method();
        let needs = Needs {
            backward: method.is_some(),
            plain_weight: self.options.keep_weights,
            weight_gradient: self.trains_everything(),
            bias_gradient: method.is_some(),
            precision: self.options.precision,
        };
        if self.checkpoint.config.compact.is_some() {
            return self.compact_projection(wired, needs);
        }
        let weight = self.read(&format!("{path}.weight"), Group::Weight, &[shape.0, shape.1])?;
        let name = format!("{path}.bias");
        let bias = match self.shape(&name) {
            None if !wired.bias => {
                let zeros = || Parameter::frozen(name, Group::Bias, &[shape.0], vec![0.0; shape.0]);
                self.options.add_biases.then(zeros)
            }
            _ => wired.bias.then(|| self.read(&name, Group::Bias, &[shape.0])).transpose()?,
        };
        let mut projection = Projection::dense(path, weight, bias, needs);
        if let Purpose::Training { method, gates } = &self.options.purpose
            && method.has_gates()
        {
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
        // In the residual stream everything has its old place; in other spaces the layer says where things lie.
        let places = |space: Space, kept: &Vec<u32>, width: usize| {
            let places = (space == Space::Residual).then(|| Places { places: kept.clone(), width });
            places.and_then(Places::unless_side_by_side)
        };
        let kept = Kept {
            row_places: places(wired.row_space, &found.kept_rows, shape.0),
            column_places: places(wired.column_space, &found.kept_columns, shape.1),
            rows: found.kept_rows,
            columns: found.kept_columns,
        };
        let (rows, columns) = (kept.rows.len(), kept.columns.len());
        let weight = Parameter::frozen(weight_name, Group::Weight, &[rows, columns], found.weight);
        let bias = found.bias.map(|bias| Parameter::frozen(bias_name, Group::Bias, &[rows], bias));
        Ok(Projection::compact(path, weight, bias, shape, kept, needs))
    }
}
