//! A model: embeddings, a stack of layers and a head, with one forward for training and inference.

use std::sync::Mutex;

use finegates_checkpoint::checkpoint::Checkpoint;
use finegates_checkpoint::config::Config;
use finegates_kernels::{parallel, random};

use crate::attention::Pass;
use crate::batch::Batch;
use crate::embedding::{EmbeddingSaved, Embeddings};
use crate::error::Error;
use crate::gate::{GateNoise, GateState};
use crate::head::{Head, HeadSaved};
use crate::language::{Distillation, LanguageScratch, Lesson};
use crate::load::{self, LoadOptions, LoadReport, Task};
use crate::parameter::{Parameter, ParameterMut};
use crate::penalty::Penalty;
use crate::projection::Projection;
use crate::rotary::Turns;
use crate::stack::{Stack, StackSaved};
use crate::wiring::Wiring;
use crate::wiring::units::Slot;

/// Working memory of one pass, and what its backward pass needs.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    embedding: EmbeddingSaved,
    stack: StackSaved,
    head: HeadSaved,
    language: LanguageScratch,
    table: Vec<f32>,
}

impl Workspace {
    /// What embeddings, stack and head need.
    pub(crate) fn parts(&mut self) -> (&mut EmbeddingSaved, &mut StackSaved, &mut HeadSaved) {
        (&mut self.embedding, &mut self.stack, &mut self.head)
    }
}

/// The last training pass.
#[derive(Debug)]
struct LastPass {
    batch: Batch,
    turns: Option<Turns>,
    dropout_key: Option<u64>,
}

impl LastPass {
    /// The pass as it was, with its table of relative position biases.
    fn pass<'a>(&'a self, table: Option<&'a [f32]>) -> Pass<'a> {
        Pass {
            position_bias: table.map(|table| (table, self.batch.longest())),
            turns: self.turns.as_ref(),
            dropout_key: self.dropout_key,
            training: true,
            ..Pass::evaluation(&self.batch.offsets)
        }
    }
}

/// An encoder or a decoder with a head.
#[derive(Debug)]
pub struct Model {
    config: Config,
    pub(crate) wiring: Wiring,
    pub(crate) embeddings: Embeddings,
    pub(crate) stack: Stack,
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
        let mut wiring = wiring;
        let biased = parts.stack.projections().enumerate().filter(|(_, projection)| projection.bias().is_some());
        let biased: Vec<usize> = biased.map(|(index, _)| index).filter(|&at| !wiring.projections[at].bias).collect();
        wiring.give_biases(&biased);
        let model = Self {
            config: checkpoint.config.clone(),
            wiring,
            embeddings: parts.embeddings,
            stack: parts.stack,
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

    /// `C`; `V` of a language model.
    pub fn classes(&self) -> usize {
        self.head.outputs()
    }

    /// Whether the head predicts a number instead of a class.
    pub fn regression(&self) -> bool {
        self.classes() == 1
    }

    /// Whether training passes keep nothing of a layer but its input and run it forward again in the backward pass: less
    /// memory, more time, the same bits.
    pub fn recompute(&mut self, recompute: bool) {
        self.stack.recompute = recompute;
    }

    /// Bytes that the layers keep between the forward and the backward pass of a training step like the last one.
    pub fn kept_bytes(&self) -> usize {
        self.saved.stack.kept_bytes()
    }

    /// The longest sequence that the position table allows, or that a decoder was made for.
    pub fn max_length(&self) -> usize {
        self.embeddings.longest
    }

    /// What the head predicts.
    pub fn task(&self) -> Task {
        match self.head {
            Head::Language(_) => Task::Language,
            Head::FirstToken(_) | Head::LastToken(_) => Task::Classify,
        }
    }

    /// Every gateable projection, in the order of the wiring.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.stack.projections()
    }

    /// Evaluation values of every gateable projection's gates, in the order of the wiring; ones without gates.
    pub fn gates(&self) -> Vec<GateState> {
        self.projections().map(Projection::gate_state).collect()
    }

    /// Sets the gate values of the passes to come: one draw for a training step, [`GateNoise::None`] for evaluation.
    pub fn draw_gates(&mut self, noise: &GateNoise<'_>) {
        self.noisy = !matches!(noise, GateNoise::None);
        self.stack.projections_mut().for_each(|projection| projection.draw_gates(noise));
    }

    /// Logits `[S, C]` at evaluation; of a language model those of the token after each sequence.
    ///
    /// # Errors
    /// A token or segment id outside its table, a sequence that is empty or longer than [`Model::max_length`].
    ///
    /// # Panics
    /// If the gates were drawn with noise; evaluation follows `draw_gates(&GateNoise::None)`.
    pub fn forward(&self, batch: &Batch) -> Result<Vec<f32>, Error> {
        self.with_workspace(|workspace| self.pass(batch, None, false, workspace).map(|(logits, _)| logits))
    }

    /// Runs an evaluation with working memory that is kept for the next.
    ///
    /// # Panics
    /// If the gates were drawn with noise.
    pub(crate) fn with_workspace<T>(&self, run: impl FnOnce(&mut Workspace) -> T) -> T {
        assert!(!self.noisy, "evaluation with noisy gates; draw_gates(&GateNoise::None) comes first");
        let workspace = self.spare.lock().unwrap_or_else(|poison| poison.into_inner()).pop();
        let mut workspace = workspace.unwrap_or_default();
        let result = parallel::awake(|| run(&mut workspace));
        self.spare.lock().unwrap_or_else(|poison| poison.into_inner()).push(workspace);
        result
    }

    /// How the tokens of sequences turn, `(first position, length)` each, in families where they do.
    pub(crate) fn turns(&self, sequences: impl Iterator<Item = (usize, usize)> + Clone) -> Option<Turns> {
        self.stack.rotary.as_ref().map(|rotary| rotary.turns(sequences))
    }

    /// What a forward pass does outside its layers, embeddings and head: to be timed.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_outside_layers(&self, batch: &Batch) -> Result<Vec<f32>, Error> {
        self.embeddings.check(batch)?;
        let Workspace { mut embedding, mut stack, mut head, .. } = Workspace::default();
        let input = stack.input(batch.tokens_count() * self.embeddings.width());
        self.embeddings.forward(batch, &mut embedding, None, false, input);
        if let Some(bias) = &self.stack.relative_bias {
            bias.table(batch.longest());
        }
        Ok(self.head.forward(input, batch, None, &mut head))
    }

    /// Logits `[S, C]` with the gates of the last draw, keeping what [`Model::backward`] needs.
    ///
    /// Dropout masks are a function of `dropout_key`; `None` means no dropout.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_training(&mut self, batch: &Batch, dropout_key: Option<u64>) -> Result<Vec<f32>, Error> {
        let mut saved = std::mem::take(&mut self.saved);
        let passed = self.pass(batch, dropout_key, true, &mut saved);
        self.saved = saved;
        let (logits, turns) = passed.inspect_err(|_| self.last = None)?;
        self.last = Some(LastPass { batch: batch.clone(), turns, dropout_key });
        Ok(logits)
    }

    fn pass(
        &self,
        batch: &Batch,
        key: Option<u64>,
        training: bool,
        workspace: &mut Workspace,
    ) -> Result<(Vec<f32>, Option<Turns>), Error> {
        let turns = self.states(batch, key, training, workspace)?;
        if batch.sequences() == 0 {
            return Ok((Vec::new(), None));
        }
        Ok((self.head.forward(workspace.stack.output(), batch, key, &mut workspace.head), turns))
    }

    /// The stack's output `[T, D]`, left in the workspace.
    fn states(
        &self,
        batch: &Batch,
        key: Option<u64>,
        training: bool,
        workspace: &mut Workspace,
    ) -> Result<Option<Turns>, Error> {
        self.embeddings.check(batch)?;
        if batch.sequences() == 0 {
            return Ok(None);
        }
        let Workspace { embedding, stack, table, .. } = workspace;
        let input = stack.input(batch.tokens_count() * self.embeddings.width());
        self.embeddings.forward(batch, embedding, embedding_key(key), training, input);
        let longest = batch.longest();
        if let Some(bias) = &self.stack.relative_bias {
            *table = bias.table(longest);
        }
        let turns = self.turns(batch.offsets.windows(2).map(|pair| (0, pair[1] - pair[0])));
        let pass = Pass {
            position_bias: self.stack.relative_bias.as_ref().map(|_| (table.as_slice(), longest)),
            turns: turns.as_ref(),
            dropout_key: key,
            training,
            ..Pass::evaluation(&batch.offsets)
        };
        self.stack.forward(&pass, stack);
        Ok(turns)
    }

    /// `−log p(target)` of each token of a language model at evaluation, `[T]`; 0 where there is no target.
    ///
    /// # Errors
    /// As [`Model::forward`].
    ///
    /// # Panics
    /// As [`Model::forward`]; if there is not one target a token, or this is no language model.
    pub fn token_losses(&self, batch: &Batch, targets: &[u32]) -> Result<Vec<f64>, Error> {
        let Head::Language(head) = &self.head else { panic!("token losses of a model without a language head") };
        assert_eq!(targets.len(), batch.tokens_count(), "one target a token");
        self.with_workspace(|workspace| {
            self.states(batch, None, false, workspace)?;
            Ok(match batch.sequences() {
                0 => Vec::new(),
                _ => head.losses(workspace.stack.output(), targets, &mut workspace.language),
            })
        })
    }

    /// One training pass of a language model with the gates of the last draw, forward and backward: the sum of
    /// `−log p(target)` over the tokens, or of what a distillation makes of it; adds `factor` times its gradient to everything
    /// that trains.
    ///
    /// # Errors
    /// As [`Model::forward`], of the teacher as well.
    ///
    /// # Panics
    /// If there is not one target a token, or this or the teacher is no language model, or of another vocabulary.
    pub fn language_pass(
        &mut self,
        batch: &Batch,
        targets: &[u32],
        factor: f32,
        dropout_key: Option<u64>,
        distillation: Option<&Distillation<'_>>,
    ) -> Result<f64, Error> {
        assert_eq!(targets.len(), batch.tokens_count(), "one target a token");
        let mut saved = std::mem::take(&mut self.saved);
        let turns = self.states(batch, dropout_key, true, &mut saved);
        self.saved = saved;
        self.last = Some(LastPass { batch: batch.clone(), turns: turns?, dropout_key });
        if batch.sequences() == 0 {
            return Ok(0.0);
        }
        let Head::Language(head) = &mut self.head else { panic!("a language pass of a model without a language head") };
        let Workspace { stack, language, .. } = &mut self.saved;
        let (output, gradient) = stack.output_and_gradient();
        crate::attention::zeroed(gradient, output.len());
        let total = match distillation {
            None => head.loss_and_backward(output, targets, factor, None, gradient, language),
            Some(&Distillation { teacher, share, temperature }) => {
                let Head::Language(teaching) = &teacher.head else { panic!("a teacher without a language head") };
                teacher.with_workspace(|workspace| {
                    teacher.states(batch, None, false, workspace)?;
                    let lesson = Lesson { head: teaching, states: workspace.stack.output(), share, temperature };
                    Ok::<f64, Error>(head.loss_and_backward(output, targets, factor, Some(&lesson), gradient, language))
                })?
            }
        };
        self.backward_from_states();
        Ok(total)
    }

    /// Adds the gradients of everything that trains, from `d_logits` `[S, C]` of the last [`Model::forward_training`].
    ///
    /// # Panics
    /// If there was no such pass, or `d_logits` has another length.
    pub fn backward(&mut self, d_logits: &[f32]) {
        let LastPass { batch, dropout_key, .. } = self.last.as_ref().expect("backward follows forward_training");
        assert_eq!(d_logits.len(), batch.sequences() * self.head.outputs());
        if batch.sequences() == 0 {
            return;
        }
        let Workspace { stack, head, .. } = &mut self.saved;
        let length = stack.output().len();
        let gradient = stack.gradient();
        crate::attention::zeroed(gradient, length);
        self.head.backward(batch, *dropout_key, head, d_logits, gradient);
        self.backward_from_states();
    }

    /// From the gradient of the stack's output, laid into the working memory, back to everything that trains.
    fn backward_from_states(&mut self) {
        let last = self.last.as_ref().expect("a pass before");
        let LastPass { batch, dropout_key, .. } = last;
        let Workspace { embedding, stack, table, .. } = &mut self.saved;
        let pass = last.pass(self.stack.relative_bias.as_ref().map(|_| table.as_slice()));
        let input_gradient = self.embeddings.trainable();
        self.stack.backward(&pass, stack, input_gradient);
        if input_gradient {
            let mut d_sum = vec![0.0; if self.embeddings.norm.is_some() { stack.gradient().len() } else { 0 }];
            self.embeddings.backward(batch, embedding, embedding_key(*dropout_key), stack.gradient(), &mut d_sum);
        }
        if let Head::Language(head) = &mut self.head
            && head.tied
            && self.embeddings.trainable()
        {
            // Both uses of the one table; the head's share is gathered apart, for the head owns a packed copy.
            let gradient = &mut head.output.weight_parameter_mut().gradient;
            finegates_kernels::reduce::add(gradient, &mut self.embeddings.word.gradient);
            gradient.fill(0.0);
        }
    }

    /// The sparsity penalty with the gates and inputs of the last [`Model::forward_training`]; adds `gradient_scale`
    /// times its gradient to the gates'. 0 without gates.
    pub fn penalty(&mut self, penalty: &Penalty, gradient_scale: f32) -> f64 {
        let Some(last) = self.last.as_ref().filter(|last| last.batch.sequences() > 0) else { return 0.0 };
        let Workspace { stack, table, .. } = &mut self.saved;
        let pass = last.pass(self.stack.relative_bias.as_ref().map(|_| table.as_slice()));
        self.stack.penalty(penalty, &pass, stack, gradient_scale)
    }

    /// Shows every trainable parameter, always in the same order.
    pub fn parameters(&mut self, visit: &mut dyn FnMut(ParameterMut<'_>)) {
        self.embeddings.visit(visit);
        self.stack.visit(visit);
        self.head.visit(visit);
    }

    /// Sets every gradient to 0.
    pub fn zero_gradients(&mut self) {
        self.parameters(&mut |parameter| parameter.gradient.fill(0.0));
    }

    /// Follows parameter values that were saved: as [`Model::parameters_changed`], and direct gates at 0 are closed.
    pub fn parameters_restored(&mut self) {
        self.stack.projections_mut().for_each(Projection::adopt_gates);
        self.parameters_changed();
    }

    /// Follows parameter values that an optimiser has written.
    pub fn parameters_changed(&mut self) {
        self.stack.projections_mut().for_each(Projection::changed);
        if let Head::Language(head) = &mut self.head
            && head.tied
            && self.embeddings.trainable()
        {
            head.output.weight_parameter_mut().value.copy_from_slice(&self.embeddings.word.value);
        }
        self.head.changed();
    }

    /// Closes these rows and columns for good; all gates must be direct. The values of the last draw stay until the next.
    ///
    /// # Panics
    /// If a slot is none of this model's, or its gates are stochastic.
    pub fn close(&mut self, slots: impl IntoIterator<Item = Slot>) {
        let mut projections: Vec<&mut Projection> = self.stack.projections_mut().collect();
        for slot in slots {
            let gates = projections[slot.projection].gates_mut().expect("a gated projection");
            gates.side_mut(slot.side).close(slot.index);
        }
    }

    /// Every parameter of the model, frozen or not.
    pub fn all_parameters(&self) -> impl Iterator<Item = &Parameter> {
        let tied = matches!(&self.head, Head::Language(head) if head.tied);
        let projections = self.projections().chain(self.head.projections().filter(move |_| !tied));
        let weights = projections
            .flat_map(|projection| std::iter::once(projection.weight_parameter()).chain(projection.bias_parameter()));
        let bias = self.stack.relative_bias.iter().map(|bias| &bias.weight);
        self.embeddings.parameters().chain(bias).chain(weights).chain(self.stack.norm_parameters())
    }
}

fn embedding_key(key: Option<u64>) -> Option<u64> {
    key.map(|key| random::derive(key, "embeddings"))
}
