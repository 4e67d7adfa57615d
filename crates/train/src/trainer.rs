//! The loop: passes, steps, evaluations, saved states, in an order that is a function of the step number alone. A run that is stopped
//! at any moment and resumed makes the same steps with the same bits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use finegates_data::Labels;
use finegates_kernels::random;
use finegates_model::language::Distillation;
use finegates_model::{Batch, GateNoise, LoadOptions, Model, Purpose, Task};

use crate::budget::Cost;
use crate::closing::Closing;
use crate::error::{Error, StateLeft};
use crate::evaluation;
use crate::folder::{ModelWriter, RunFolder};
use crate::inputs::{self, Inputs};
use crate::journal::Journal;
use crate::learner::{Learner, Losses, PassInput, UPDATED};
use crate::material::{Data, Material};
use crate::metrics::Metric;
use crate::observer::{
    Best, Ending, EvaluationRecord, Event, GateShares, Observer, Start, StepRecord, StopRecord, Summary,
};
use crate::optimizer::{LearningRates, Optimizer, OptimizerSettings};
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::state::{self, Standing};

/// Keys of everything random, derived from the seed.
struct Keys {
    gates: u64,
    dropout: u64,
}

/// A run in progress.
pub struct Trainer<'a> {
    recipe: Recipe,
    plan: Plan,
    rates: LearningRates,
    keys: Keys,
    learner: Learner,
    /// The dense model that a pruned one is taught by, where it is.
    teacher: Option<Model>,
    material: Material,
    folder: RunFolder,
    writer: ModelWriter,
    journal: Journal,
    standing: Standing,
    /// The step whose state is saved.
    saved_step: Option<(u64, bool)>,
    closing: Option<Closing>,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
}

impl<'a> Trainer<'a> {
    /// Loads the model, encodes the data and takes up the state saved in the folder, if the run goes on from one. Then, with nothing
    /// left that can be wrong with the inputs, the folder is made ready. Setting `stop` ends the run after the step being made, with
    /// everything saved.
    ///
    /// # Errors
    /// A model that cannot be loaded or trained, data that cannot be encoded, a state that does not belong to them.
    pub fn new(
        inputs: Inputs,
        folder: RunFolder,
        observer: &'a mut dyn Observer,
        stop: &'a AtomicBool,
    ) -> Result<Trainer<'a>, Error> {
        let Inputs { recipe, mut data, checkpoint, tokenizer, base_fingerprint, latency_tables } = inputs;
        if let Data::Examples(dataset) = &mut data
            && dataset.match_order(&checkpoint.config.labels)
        {
            observer.event(&Event::Note("the labels are numbered as in the checkpoint, whose head knows them"));
        }
        let options = LoadOptions {
            task: recipe.head_task(),
            labels: data.labels().map(Labels::outputs),
            seed: recipe.seed,
            purpose: Purpose::Training { method: *recipe.method, gates: recipe.gate_settings() },
            // Where layers have no biases, those of zeros train beside the gates, and by themselves.
            add_biases: recipe.head_task() == Task::Classify && !recipe.method.trains_everything(),
            // The penalty's weights by kurtosis read the plain weights.
            keep_weights: recipe.kurtosis == Some(true),
            precision: *recipe.precision,
        };
        let (mut model, report) = Model::load(&checkpoint, &options)?;
        model.recompute(recipe.recompute);
        if !report.initialised.is_empty() {
            let note =
                format!("the checkpoint has no head for these labels; initialised {}", report.initialised.join(", "));
            observer.event(&Event::Note(&note));
        }
        let teacher = match recipe.distillation() {
            Some(_) => {
                let purpose = Purpose::Inference;
                let options = LoadOptions { purpose, add_biases: false, keep_weights: false, ..options };
                Some(Model::load(&checkpoint, &options)?.0)
            }
            None => None,
        };
        let writer = ModelWriter::new(&recipe, &checkpoint.config, data.labels(), &model, &tokenizer);
        let labels = data.labels().and_then(Labels::names).unwrap_or_default().to_vec();
        let fresh = Standing { data: data.fingerprint(), base_model: base_fingerprint, ..Standing::default() };
        let place = folder.saved_state().map(|path| state::read(&path)).transpose()?;
        let place = place.and_then(|(standing, _)| standing.corpus.filter(|_| standing.data == fresh.data));
        let material = Material::new(data, &recipe, &model, tokenizer, place.as_ref(), observer)?;
        let mut learner = Learner::new(model, Optimizer::new(OptimizerSettings::of(&recipe)));
        let plan = Plan::new(&recipe, material.len());
        let mut closing = match recipe.closings() {
            None => None,
            Some(closings) => {
                let tables = latency_tables.as_deref();
                let cost = inputs::cost(
                    closings.budget.measure,
                    &learner.model,
                    material.attended(),
                    &folder,
                    tables,
                    observer,
                )?;
                let mut closing = Closing::prepare(&closings, learner.model.wiring(), cost, plan.total_steps)?;
                closing.rank_by(closings.importance, &learner.model, recipe.seed);
                Some(closing)
            }
        };
        let saved = folder.saved_state();
        let saved = saved
            .map(|path| state::take_up(&folder, &path, &fresh, &plan, &mut learner, closing.as_mut()))
            .transpose()?;
        let saved_step = saved.as_ref().map(|standing| (standing.step, standing.evaluation_pending));
        let standing = Standing { corpus: material.place(), ..saved.unwrap_or(fresh) };
        folder.begin(&recipe)?;
        if let Some(Cost::Latency(table)) = closing.as_ref().map(Closing::cost) {
            table.write(&folder.latency())?;
        }
        let journal = Journal::open(&folder.journal(), standing.journal_bytes)?;
        if !journal.complete() {
            observer
                .event(&Event::Note("metrics.jsonl is shorter than when the run was saved: earlier lines are missing"));
        }
        if let Some(start) = recipe.sparsity_start_step.filter(|&start| start > plan.total_steps) {
            let total = plan.total_steps;
            let note = format!("the penalty is to begin at step {start}, and the run has {total}: it never counts");
            observer.event(&Event::Note(&note));
        }
        let start = Start {
            folder: folder.path().to_owned(),
            step: standing.step,
            total_steps: plan.total_steps,
            steps_an_epoch: plan.steps_an_epoch,
            train_examples: material.len(),
            validation_examples: material.validation_sizes(),
            tokens_per_sequence: recipe.tokens_per_sequence,
            labels,
            best_metric: recipe.best_metric.clone(),
            trainable_parameters: inputs::count_trainable(&mut learner.model),
            gated_parameters: inputs::gated_parameters(&learner.model),
        };
        observer.event(&Event::Started(&start));
        let key = |label| random::derive(recipe.seed, label);
        Ok(Trainer {
            keys: Keys { gates: key("gates"), dropout: key("dropout") },
            rates: LearningRates::of(&recipe),
            recipe,
            plan,
            learner,
            teacher,
            material,
            folder,
            writer,
            journal,
            standing,
            saved_step,
            closing,
            observer,
            stop,
        })
    }

    /// Makes all steps that are left.
    ///
    /// # Errors
    /// [`Error::NotFinite`], after saving the state before the step that failed if it can be; files that cannot be written.
    pub fn run(mut self) -> Result<Summary, Error> {
        let ending = loop {
            if self.standing.evaluation_pending {
                if !self.evaluate()? {
                    break Ending::Interrupted;
                }
                self.save()?;
            }
            if self.standing.early_stopped {
                break Ending::EarlyStopped;
            }
            if self.standing.step >= self.plan.total_steps {
                break Ending::Finished;
            }
            if self.stop.load(Ordering::Relaxed) {
                break Ending::Interrupted;
            }
            if let Err(mut error) = self.step() {
                // Updated parameters are none to go on from.
                if let Error::NotFinite { what, left, .. } = &mut error
                    && *what != UPDATED
                {
                    *left = self.save().map_or_else(|why| StateLeft::Unsaved(why.to_string()), |()| StateLeft::Saved);
                }
                return Err(error);
            }
            let (step, steps_an_epoch) = (self.standing.step, self.plan.steps_an_epoch as f64);
            self.standing.evaluation_pending = step == self.plan.total_steps
                || self.stop_at(step).is_some()
                || self.recipe.evaluate_every.due(step, steps_an_epoch);
            if !self.standing.evaluation_pending && self.recipe.checkpoint_every.due(step, steps_an_epoch) {
                self.save()?;
            }
        };
        self.save()?;
        let summary = self.summary(ending);
        if ending != Ending::Interrupted {
            let text = serde_json::to_string_pretty(&summary).unwrap_or_default() + "\n";
            finegates_checkpoint::write::write_atomic(&self.folder.summary(), text.as_bytes())?;
        }
        self.observer.event(&Event::Ended(&summary));
        Ok(summary)
    }

    /// Makes one step.
    fn step(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        let made = self.standing.step;
        let epoch = self.plan.epoch(made);
        let counts = self.recipe.sparsity_start_epoch.is_none_or(|start| self.plan.progress(made) >= start)
            && self.recipe.sparsity_start_step.is_none_or(|start| made + 1 >= start);
        let penalty = self.recipe.penalty().filter(|_| counts);
        let (mut losses, mut sequences, mut tokens) = (Losses::default(), 0, 0);
        let mut batch = Batch::default();
        let distillation = self.teacher.as_ref().zip(self.recipe.distillation());
        let distillation =
            distillation.map(|(teacher, (share, temperature))| Distillation { teacher, share, temperature });
        for pass in self.plan.passes(made) {
            let targets = self.material.fill(&self.recipe, epoch, &pass, &mut batch)?;
            let noise = match self.recipe.method.has_gates() {
                true => GateNoise::Key(random::mix(self.keys.gates, pass.number)),
                false => GateNoise::None,
            };
            let found = self.learner.pass(&PassInput {
                batch: &batch,
                targets: &targets,
                noise,
                dropout_key: Some(random::mix(self.keys.dropout, pass.number)),
                penalty: penalty.as_ref(),
                distillation,
                share: pass.share,
            })?;
            losses.task += pass.share * found.task;
            losses.penalty += pass.share * found.penalty;
            sequences += batch.sequences();
            tokens += batch.tokens_count();
        }
        let stops = self.closing.as_ref().map_or(&[][..], Closing::stops);
        let rates = self.rates.scaled(self.plan.rate_share(made + 1, stops));
        let closing = &mut self.closing;
        let observe = |model: &Model| closing.iter_mut().for_each(|closing| closing.observe(model));
        let gradient_norm = self.learner.update_and_show(&rates, observe)?;
        if let Some(closing) = &mut self.closing {
            closing.close(&mut self.learner.model, made + 1);
        }
        let removed = self.gate_shares().map_or(0.0, |shares| shares.removed);
        let seconds = started.elapsed().as_secs_f64();
        let standing = &mut self.standing;
        standing.step += 1;
        standing.sequences += sequences as u64;
        standing.step_seconds += seconds;
        standing.seconds += seconds;
        let record = StepRecord {
            kind: "step",
            step: standing.step,
            epoch: self.plan.progress(standing.step),
            loss: losses.task + losses.penalty,
            task_loss: losses.task,
            penalty: losses.penalty,
            gradient_norm,
            learning_rates: rates,
            removed,
            sequences,
            tokens,
            seconds,
            sequences_per_second: sequences as f64 / seconds.max(1e-9),
        };
        // Only now: a step that fails is made again with the same sequences.
        self.standing.corpus = self.material.place();
        self.journal.write(&record)?;
        self.observer.event(&Event::Step(&record));
        Ok(())
    }

    /// Judges the model as it is. False if it was asked to stop before it was done.
    fn evaluate(&mut self) -> Result<bool, Error> {
        let started = Instant::now();
        self.learner.model.draw_gates(&GateNoise::None);
        let mut progress = |split: &str, done, total| {
            self.observer.event(&Event::Evaluating { split, done, total });
            !self.stop.load(Ordering::Relaxed)
        };
        let batch_size = self.recipe.evaluation_batch_size;
        let Some(scores) = self.material.evaluate(&self.learner.model, batch_size, &mut progress)? else {
            return Ok(false);
        };
        let gates = self.gate_shares();
        let score = evaluation::deciding_score(&scores, &self.recipe.best_metric);
        let seconds = started.elapsed().as_secs_f64();
        self.standing.seconds += seconds;
        let mut record = EvaluationRecord {
            kind: "evaluation",
            step: self.standing.step,
            epoch: self.plan.progress(self.standing.step),
            loss: scores.first().map_or(f64::NAN, |split| split.loss),
            metrics: evaluation::flat_metrics(&scores),
            score,
            best: false,
            gates,
            seconds,
        };
        record.best = self.is_best(&record);
        self.standing.evaluation_pending = false;
        if record.best {
            self.writer.write(&self.learner.model, &self.folder.best())?;
            self.standing.evaluations_since_best = 0;
        } else if self.standing.best.as_ref().is_some_and(|best| best.eligible) {
            // Until enough is removed, patience does not run out: what is waited for is still to come.
            self.standing.evaluations_since_best += 1;
        }
        let patience = self.recipe.early_stopping;
        let over = patience > 0 && self.standing.evaluations_since_best >= patience;
        self.standing.early_stopped = over && self.standing.step < self.plan.total_steps;
        self.journal.write(&record)?;
        self.observer.event(&Event::Evaluated(&record));
        // A run that ends before its last stop does keeps it as it is; its budget is met, or patience would not have run out.
        let early =
            self.closing.as_ref().filter(|_| self.standing.early_stopped).map(|closing| closing.stops().len() - 1);
        if let Some(stop) = self.stop_at(record.step).or(early) {
            self.keep_stop(stop, &record)?;
        }
        self.standing.last = Some(record);
        Ok(true)
    }

    /// The stop of the budget that ends after so many steps, by its number.
    fn stop_at(&self, step: u64) -> Option<usize> {
        self.closing.as_ref()?.stops().iter().position(|stop| stop.end == step)
    }

    /// Keeps the model of a stop of the budget.
    fn keep_stop(&mut self, number: usize, record: &EvaluationRecord) -> Result<(), Error> {
        let (Some(closing), Some(budget)) = (&self.closing, &self.recipe.budget) else { return Ok(()) };
        let stop = &closing.stops()[number];
        let folder = self.folder.stop(&stop.name);
        self.writer.write_anew(&self.learner.model, &folder)?;
        let kept = StopRecord {
            name: stop.name.clone(),
            asked: stop.to,
            left: closing.left(),
            cost: closing.left() * closing.whole(),
            step: record.step,
            epoch: record.epoch,
            score: record.score,
            metrics: record.metrics.clone(),
            removed: record.gates.map_or(0.0, |gates| gates.removed),
        };
        self.observer.event(&Event::Kept { stop: &kept, measure: budget.measure, folder: &folder });
        self.standing.stops.push(kept);
        Ok(())
    }

    /// Whether enough is removed for a model to be the run's best.
    fn enough_removed(&self, removed: f64) -> bool {
        let met = self.closing.as_ref().is_none_or(|closing| closing.met(self.standing.step));
        !self.recipe.method.has_gates() || met && removed >= self.recipe.best_min_removed
    }

    /// How the gates stand at evaluation; none for methods without.
    fn gate_shares(&self) -> Option<GateShares> {
        self.recipe.method.has_gates().then(|| GateShares::of(&self.learner.model.gates())).flatten()
    }

    /// Whether an evaluation beats the best so far, which it then becomes: enough removed before not enough, then the score, then more
    /// removed.
    fn is_best(&mut self, record: &EvaluationRecord) -> bool {
        let removed = record.gates.map_or(0.0, |gates| gates.removed);
        let finite = |score: f64| (!score.is_nan()).then_some(score);
        let found = Best {
            step: record.step,
            epoch: record.epoch,
            score: finite(record.score),
            removed,
            metrics: record.metrics.iter().map(|(name, value)| (name.clone(), finite(*value))).collect(),
            eligible: self.enough_removed(removed),
        };
        // A lower loss or perplexity is better, a higher value of anything else.
        let falling = ["loss", Metric::Perplexity.name()];
        let sign = if falling.contains(&self.recipe.best_metric.as_str()) { -1.0 } else { 1.0 };
        let rank =
            |best: &Best| (best.eligible, best.score.map_or(f64::NEG_INFINITY, |score| sign * score), best.removed);
        let better = self.standing.best.as_ref().is_none_or(|best| rank(&found) > rank(best));
        if better {
            self.standing.best = Some(found);
        }
        better
    }

    /// Saves the model and everything needed to go on from here.
    fn save(&mut self) -> Result<(), Error> {
        let now = (self.standing.step, self.standing.evaluation_pending);
        if self.saved_step == Some(now) {
            return Ok(());
        }
        self.standing.journal_bytes = self.journal.sync()?;
        self.writer.write(&self.learner.model, &self.folder.last(*self.recipe.method))?;
        // The state comes last: once it says so, everything up to its step is there.
        let path = self.folder.state();
        state::save(&path, &self.standing, &mut self.learner, self.closing.as_ref())?;
        self.saved_step = Some(now);
        let folder = path.parent().unwrap_or(&path);
        self.observer.event(&Event::Saved { step: self.standing.step, folder });
        Ok(())
    }

    fn summary(&self, ending: Ending) -> Summary {
        let standing = &self.standing;
        Summary {
            folder: self.folder.path().to_owned(),
            ending,
            step: standing.step,
            total_steps: self.plan.total_steps,
            epoch: self.plan.progress(standing.step),
            best_metric: self.recipe.best_metric.clone(),
            best: standing.best.clone(),
            last: standing.last.clone(),
            budget: self.recipe.budget.as_ref().map(|budget| budget.to_string()),
            stops: standing.stops.clone(),
            gates: self.gate_shares(),
            seconds: standing.seconds,
            sequences_per_second: standing.sequences as f64 / standing.step_seconds.max(1e-9),
        }
    }
}
