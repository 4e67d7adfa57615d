//! A sequence classifier: embeddings, encoder and head, with one forward for training and inference.

use std::sync::Mutex;

use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_checkpoint::config::Config;
use finegates_kernels::random;

use crate::attention::Pass;
use crate::batch::Batch;
use crate::embedding::{EmbeddingSaved, Embeddings};
use crate::encoder::{Encoder, EncoderSaved};
use crate::error::Error;
use crate::gate::{GateNoise, GateState};
use crate::head::{Head, HeadSaved};
use crate::load::{self, LoadOptions, LoadReport};
use crate::parameter::{Parameter, ParameterMut};
use crate::penalty::Penalty;
use crate::projection::Projection;
use crate::wiring::Wiring;
use crate::wiring::units::Slot;

/// Working memory of one pass, and what its backward pass needs.
#[derive(Debug, Default)]
struct Workspace {
    embedding: EmbeddingSaved,
    encoder: EncoderSaved,
    head: HeadSaved,
    table: Vec<f32>,
}

/// The last training pass.
#[derive(Debug)]
struct LastPass {
    batch: Batch,
    dropout_key: Option<u64>,
}

/// An encoder with a sequence classification head.
#[derive(Debug)]
pub struct Model {
    config: Config,
    wiring: Wiring,
    pub(crate) embeddings: Embeddings,
    pub(crate) encoder: Encoder,
    pub(crate) head: Head,
    noisy: bool,
    last: Option<LastPass>,
    saved: Workspace,
    spare: Mutex<Vec<Workspace>>,
}

impl Model {
    /// Builds the model of a checkpoint, dense or compact.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read; a compact checkpoint to be trained.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<(Self, LoadReport), Error> {
        let wiring = Wiring::of_checkpoint(checkpoint)?;
        let parts = load::load(checkpoint, &wiring, options)?;
        let model = Self {
            config: checkpoint.config.clone(),
            wiring,
            embeddings: parts.embeddings,
            encoder: parts.encoder,
            head: parts.head,
            noisy: false,
            last: None,
            saved: Workspace::default(),
            spare: Mutex::default(),
        };
        Ok((model, parts.report))
    }

    /// The checkpoint's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Which projections there are and what dies together.
    pub fn wiring(&self) -> &Wiring {
        &self.wiring
    }

    /// `C`.
    pub fn classes(&self) -> usize {
        self.head.output.out_features()
    }

    /// Whether the head predicts a number instead of a class.
    pub fn regression(&self) -> bool {
        self.classes() == 1
    }

    /// The longest sequence that the position table allows.
    pub fn max_length(&self) -> usize {
        self.embeddings.longest()
    }

    /// Every gateable projection, in the order of the wiring.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.encoder.projections()
    }

    /// Evaluation values of every gateable projection's gates, in the order of the wiring; ones without gates.
    pub fn gates(&self) -> Vec<GateState> {
        self.projections().map(Projection::gate_state).collect()
    }

    /// Sets the gate values of the passes to come: one draw for a training step, [`GateNoise::None`] for evaluation.
    pub fn draw_gates(&mut self, noise: &GateNoise<'_>) {
        self.noisy = !matches!(noise, GateNoise::None);
        self.encoder.projections_mut().for_each(|projection| projection.draw_gates(noise));
    }

    /// Logits `[S, C]` at evaluation.
    ///
    /// # Errors
    /// A token or segment id outside its table, a sequence that is empty or longer than [`Model::max_length`].
    ///
    /// # Panics
    /// If the gates were drawn with noise; evaluation follows `draw_gates(&GateNoise::None)`.
    pub fn forward(&self, batch: &Batch) -> Result<Vec<f32>, Error> {
        assert!(!self.noisy, "evaluation with noisy gates; draw_gates(&GateNoise::None) comes first");
        let workspace = self.spare.lock().unwrap_or_else(|poison| poison.into_inner()).pop();
        let mut workspace = workspace.unwrap_or_default();
        let logits = self.pass(batch, None, false, &mut workspace);
        self.spare.lock().unwrap_or_else(|poison| poison.into_inner()).push(workspace);
        logits
    }

    /// What a forward pass does outside its layers, embeddings and head: to be timed.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_outside_layers(&self, batch: &Batch) -> Result<Vec<f32>, Error> {
        self.embeddings.check(batch)?;
        let Workspace { mut embedding, mut encoder, mut head, .. } = Workspace::default();
        let input = encoder.input(batch.tokens_count() * self.embeddings.width());
        self.embeddings.forward(batch, &mut embedding, None, false, input);
        if let Some(bias) = &self.encoder.relative_bias {
            bias.table(batch.longest());
        }
        Ok(self.head.forward(input, &batch.offsets, None, &mut head))
    }

    /// Logits `[S, C]` with the gates of the last draw, keeping what [`Model::backward`] needs.
    ///
    /// Dropout masks are a function of `dropout_key`; `None` means no dropout.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_training(&mut self, batch: &Batch, dropout_key: Option<u64>) -> Result<Vec<f32>, Error> {
        let mut saved = std::mem::take(&mut self.saved);
        let logits = self.pass(batch, dropout_key, true, &mut saved);
        self.saved = saved;
        self.last = logits.is_ok().then(|| LastPass { batch: batch.clone(), dropout_key });
        logits
    }

    fn pass(
        &self,
        batch: &Batch,
        key: Option<u64>,
        training: bool,
        workspace: &mut Workspace,
    ) -> Result<Vec<f32>, Error> {
        self.embeddings.check(batch)?;
        if batch.sequences() == 0 {
            return Ok(Vec::new());
        }
        let Workspace { embedding, encoder, head, table } = workspace;
        let input = encoder.input(batch.tokens_count() * self.embeddings.width());
        self.embeddings.forward(batch, embedding, embedding_key(key), training, input);
        let longest = batch.longest();
        if let Some(bias) = &self.encoder.relative_bias {
            *table = bias.table(longest);
        }
        let pass = Pass {
            offsets: &batch.offsets,
            position_bias: self.encoder.relative_bias.as_ref().map(|_| (table.as_slice(), longest)),
            dropout_key: key,
            training,
        };
        self.encoder.forward(&pass, encoder);
        Ok(self.head.forward(encoder.output(), &batch.offsets, key, head))
    }

    /// Adds the gradients of everything that trains, from `d_logits` `[S, C]` of the last [`Model::forward_training`].
    ///
    /// # Panics
    /// If there was no such pass, or `d_logits` has another length.
    pub fn backward(&mut self, d_logits: &[f32]) {
        let LastPass { batch, dropout_key } = self.last.as_ref().expect("backward follows forward_training");
        assert_eq!(d_logits.len(), batch.sequences() * self.head.output.out_features());
        if batch.sequences() == 0 {
            return;
        }
        let Workspace { embedding, encoder, head, table } = &mut self.saved;
        let length = encoder.output().len();
        let pass = Pass {
            offsets: &batch.offsets,
            position_bias: self.encoder.relative_bias.as_ref().map(|_| (table.as_slice(), batch.longest())),
            dropout_key: *dropout_key,
            training: true,
        };
        let gradient = encoder.gradient();
        crate::attention::zeroed(gradient, length);
        self.head.backward(&batch.offsets, *dropout_key, head, d_logits, gradient);
        let input_gradient = self.embeddings.trainable();
        self.encoder.backward(&pass, encoder, input_gradient);
        if input_gradient {
            let mut d_sum = vec![0.0; length];
            self.embeddings.backward(batch, embedding, embedding_key(*dropout_key), encoder.gradient(), &mut d_sum);
        }
    }

    /// The sparsity penalty with the gates and inputs of the last [`Model::forward_training`]; adds `gradient_scale`
    /// times its gradient to the gates'. 0 without gates.
    pub fn penalty(&mut self, penalty: &Penalty, gradient_scale: f32) -> f64 {
        let rows = self.last.as_ref().map_or(0, |last| last.batch.tokens_count());
        self.encoder.penalty(penalty, &self.saved.encoder, rows, gradient_scale)
    }

    /// Shows every trainable parameter, always in the same order.
    pub fn parameters(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        self.embeddings.visit(visit);
        self.encoder.visit(visit);
        self.head.visit(visit);
    }

    /// Sets every gradient to 0.
    pub fn zero_gradients(&mut self) {
        self.parameters(&mut |parameter| parameter.gradient.fill(0.0));
    }

    /// Follows parameter values that were saved: as [`Model::parameters_changed`], and direct gates at 0 are closed.
    pub fn parameters_restored(&mut self) {
        self.encoder.projections_mut().for_each(Projection::adopt_gates);
        self.parameters_changed();
    }

    /// Follows parameter values that an optimiser has written.
    pub fn parameters_changed(&mut self) {
        self.encoder.projections_mut().for_each(Projection::changed);
        self.head.dense.changed();
        self.head.output.changed();
    }

    /// Closes these rows and columns for good; all gates must be direct. The values of the last draw stay until the next.
    ///
    /// # Panics
    /// If a slot is none of this model's, or its gates are stochastic.
    pub fn close(&mut self, slots: impl IntoIterator<Item = Slot>) {
        let mut projections: Vec<&mut Projection> = self.encoder.projections_mut().collect();
        for slot in slots {
            let gates = projections[slot.projection].gates_mut().expect("a gated projection");
            gates.side_mut(slot.side).close(slot.index);
        }
    }

    /// Every parameter of the model, frozen or not.
    pub fn all_parameters(&self) -> impl Iterator<Item = &Parameter> {
        let projections = self.projections().chain([&self.head.dense, &self.head.output]);
        let weights = projections
            .flat_map(|projection| std::iter::once(projection.weight_parameter()).chain(projection.bias_parameter()));
        let norms = self.encoder.norms().flat_map(|norm| [&norm.gamma, &norm.beta]);
        let bias = self.encoder.relative_bias.iter().map(|bias| &bias.weight);
        self.embeddings.parameters().chain(bias).chain(weights).chain(norms)
    }
}

fn embedding_key(key: Option<u64>) -> Option<u64> {
    key.map(|key| random::derive(key, "embeddings"))
}
