//! A model with one layer in memory at a time, for what is asked of it once: its logits on some batches, its gates and its
//! biases. The parts are those that a whole model has, loaded and run by the same code.

use finegates_checkpoint::adapter::Adapter;
use finegates_checkpoint::checkpoint::Checkpoint;

use crate::adapter::Applying;
use crate::attention::Pass;
use crate::batch::Batch;
use crate::embedding::EmbeddingSaved;
use crate::error::Error;
use crate::gate::{GateNoise, GateState};
use crate::head::{Head, HeadSaved};
use crate::layer::LayerSaved;
use crate::load::{LoadOptions, LoadReport, Loader, Purpose};
use crate::parameter::Parameter;
use crate::rotary::Turns;
use crate::wiring::Wiring;

/// What a model said and what it is made of, its large tensors aside.
#[derive(Debug)]
pub struct Layerwise {
    /// Logits of each batch, `[S, C]`, as [`Model::forward`](crate::Model::forward) gives them, to the bit.
    pub logits: Vec<Vec<f32>>,
    /// `C`; `V` of a language model.
    pub classes: usize,
    /// As that of the whole model.
    pub wiring: Wiring,
    /// What loading found missing, in the adapter as well, or left unused.
    pub report: LoadReport,
    /// Bias and gates of each gateable projection, in the order of the wiring.
    pub projections: Vec<ProjectionRest>,
    /// Every other parameter. Those without values have them in the checkpoint, under their name.
    pub others: Vec<Parameter>,
}

/// What a projection has besides its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectionRest {
    /// One a row.
    pub bias: Option<Vec<f32>>,
    /// Values at evaluation, where it has gates.
    pub gates: Option<GateState>,
}

/// A batch on its way through the layers.
struct Underway<'a> {
    batch: &'a Batch,
    /// `[T, D]`.
    states: Vec<f32>,
    /// Relative position bias and its longest distance, in families that have one.
    position_bias: Option<(Vec<f32>, usize)>,
    turns: Option<Turns>,
}

impl Underway<'_> {
    fn pass(&self) -> Pass<'_> {
        Pass {
            position_bias: self.position_bias.as_ref().map(|(table, longest)| (table.as_slice(), *longest)),
            turns: self.turns.as_ref(),
            ..Pass::evaluation(&self.batch.offsets)
        }
    }
}

/// Runs batches through the model of a checkpoint at evaluation, an adapter applied, one layer after another.
///
/// # Errors
/// As [`Model::load`](crate::Model::load), [`Model::apply_adapter`](crate::Model::apply_adapter) and
/// [`Model::forward`](crate::Model::forward).
///
/// # Panics
/// If the options are for training.
pub fn run_layerwise(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    adapter: Option<&Adapter>,
    batches: &[Batch],
) -> Result<Layerwise, Error> {
    assert_eq!(options.purpose, Purpose::Inference, "one layer at a time nothing trains");
    let options = LoadOptions { keep_weights: false, ..*options };
    let mut wiring = Wiring::of_checkpoint(checkpoint)?;
    let (config, loaded_wiring) = (&checkpoint.config, wiring.clone());
    let loader = Loader::new(checkpoint, &loaded_wiring, &options);
    let mut applying =
        adapter.map(|adapter| Applying::new(adapter, config.compact.is_some(), options.task)).transpose()?;
    let (embeddings, mut head) = loader.ends()?;
    let (relative_bias, rotary) = (loader.relative_bias()?, loader.rotary());
    batches.iter().try_for_each(|batch| embeddings.check(batch))?;
    let mut underway: Vec<Underway<'_>> = Vec::with_capacity(batches.len());
    for batch in batches {
        let mut states = vec![0.0; batch.tokens_count() * embeddings.width()];
        if batch.sequences() > 0 {
            embeddings.forward(batch, &mut EmbeddingSaved::default(), None, false, &mut states);
        }
        let longest = batch.longest();
        let sequences = batch.offsets.windows(2).map(|pair| (0, pair[1] - pair[0]));
        underway.push(Underway {
            batch,
            states,
            position_bias: relative_bias.as_ref().filter(|_| longest > 0).map(|bias| (bias.table(longest), longest)),
            turns: rotary.as_ref().map(|rotary| rotary.turns(sequences)),
        });
    }
    let mut others: Vec<Parameter> = Vec::new();
    // Tables stay in the file.
    others.extend(embeddings.parameters().map(|parameter| {
        let Parameter { name, group, shape, .. } = parameter;
        Parameter { name: name.clone(), group: *group, shape: shape.clone(), value: Vec::new(), gradient: Vec::new() }
    }));
    drop(embeddings);
    others.extend(relative_bias.iter().map(|bias| bias.weight.clone()));

    let mut projections = Vec::new();
    let mut biased = Vec::new();
    let (mut saved, mut out) = (LayerSaved::default(), Vec::new());
    for index in 0..config.layers {
        let mut layer = loader.layer(index)?;
        for projection in layer.projections_mut() {
            if let Some(applying) = &mut applying {
                applying.projection(projection)?;
            }
            projection.draw_gates(&GateNoise::None);
            if projection.bias().is_some() && !wiring.projections[projections.len()].bias {
                biased.push(projections.len());
            }
            projections.push(ProjectionRest {
                bias: projection.bias().map(<[f32]>::to_vec),
                gates: projection.gates().map(|_| projection.gate_state()),
            });
        }
        for one in underway.iter_mut().filter(|one| one.batch.sequences() > 0) {
            std::mem::swap(&mut saved.input, &mut one.states);
            crate::attention::resized(&mut out, saved.input.len());
            layer.forward(index, &one.pass(), &mut saved, &mut out);
            std::mem::swap(&mut saved.input, &mut one.states);
            one.states.copy_from_slice(&out);
        }
        others.extend(layer.norm_parameters().cloned());
    }
    wiring.give_biases(&biased);
    let norm = loader.last_norm()?;
    others.extend(norm.iter().map(|norm| norm.gamma.clone()));
    if let Some(mut applying) = applying {
        applying.head(&mut head)?;
        applying.finish()?;
    }
    let tied = matches!(&head, Head::Language(head) if head.tied);
    for projection in head.projections().filter(|_| !tied) {
        others.extend([projection.weight_parameter()].into_iter().chain(projection.bias_parameter()).cloned());
    }
    let mut report = loader.report();
    report.initialised.retain(|name| adapter.is_none_or(|adapter| !adapter.tensors.contains_key(name)));
    let logits = underway.into_iter().map(|mut one| {
        if one.batch.sequences() == 0 {
            return Vec::new();
        }
        if let Some(norm) = &norm {
            crate::attention::resized(&mut out, one.states.len());
            norm.forward(&one.states, &mut out, None);
            std::mem::swap(&mut one.states, &mut out);
        }
        head.forward(&one.states, one.batch, None, &mut HeadSaved::default())
    });
    Ok(Layerwise { logits: logits.collect(), classes: head.outputs(), wiring, report, projections, others })
}
