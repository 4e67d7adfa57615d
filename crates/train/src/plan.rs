//! How many steps a run has and what each of them covers: a function of the recipe and the number of examples alone, so that the step
//! number says everything about where a run stands.

use std::ops::Range;

use crate::phases::Stop;
use crate::recipe::Recipe;
use crate::schedule::Schedule;

/// The steps of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Examples an epoch.
    pub examples: usize,
    /// Examples in a pass.
    pub batch_size: usize,
    /// Passes in a step.
    pub accumulation: usize,
    /// Steps an epoch; the last may be short.
    pub steps_an_epoch: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// How learning rates move.
    pub schedule: Schedule,
}

/// One pass of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Pass {
    /// Its number in the run, from 0: what its randomness follows from.
    pub number: u64,
    /// The places of its examples in the epoch's order.
    pub places: Range<usize>,
    /// Its share of the step's examples, by which its loss counts.
    pub share: f64,
}

impl Plan {
    /// The steps of `recipe` over so many examples.
    pub fn new(recipe: &Recipe, examples: usize) -> Plan {
        let passes = examples.div_ceil(recipe.batch_size);
        let steps_an_epoch = passes.div_ceil(recipe.gradient_accumulation).max(1) as u64;
        // A corpus is gone through once, as far as the run goes.
        let epochs = if recipe.corpus.is_some() { 1.0 } else { recipe.epochs };
        let of_epochs = (epochs * steps_an_epoch as f64 - 1e-6).ceil().max(1.0) as u64;
        let total_steps = recipe.max_steps.unwrap_or(of_epochs);
        let warmup = recipe.warmup_steps.unwrap_or((recipe.warmup_ratio * total_steps as f64).round() as u64);
        Plan {
            examples,
            batch_size: recipe.batch_size,
            accumulation: recipe.gradient_accumulation,
            steps_an_epoch,
            total_steps,
            schedule: Schedule {
                shape: *recipe.schedule,
                warmup_steps: warmup,
                total_steps,
                floor: recipe.learning_rate_floor,
            },
        }
    }

    /// The epoch, from 0, that a step belongs to. Steps count from 0 here: it is the number of steps made before it.
    pub fn epoch(&self, step: u64) -> u64 {
        step / self.steps_an_epoch
    }

    /// How far a run has come after so many steps, in epochs.
    pub fn progress(&self, steps: u64) -> f64 {
        steps as f64 / self.steps_an_epoch as f64
    }

    /// The share of the learning rates' peaks for a step, counted from 1. Each stop of a budget has the whole schedule to itself: the
    /// first one with the steps before it and the warm-up, the others from the peak on.
    pub fn rate_share(&self, step: u64, stops: &[Stop]) -> f64 {
        let Some(at) = stops.iter().position(|stop| step <= stop.end) else { return self.schedule.share(step) };
        let begin = if at == 0 { 0 } else { stops[at].begin };
        let warmup_steps = if at == 0 { self.schedule.warmup_steps.min(stops[0].end / 2) } else { 0 };
        let schedule = Schedule { warmup_steps, total_steps: stops[at].end - begin, ..self.schedule };
        schedule.share(step - begin)
    }

    /// The passes of a step.
    pub fn passes(&self, step: u64) -> Vec<Pass> {
        let in_epoch = (step % self.steps_an_epoch) as usize;
        let passes_an_epoch = self.examples.div_ceil(self.batch_size);
        let first = in_epoch * self.accumulation;
        let last = (first + self.accumulation).min(passes_an_epoch);
        let start = first * self.batch_size;
        let total = (last * self.batch_size).min(self.examples) - start;
        (first..last)
            .map(|pass| {
                let places = pass * self.batch_size..((pass + 1) * self.batch_size).min(self.examples);
                Pass {
                    number: self.epoch(step) * passes_an_epoch as u64 + pass as u64,
                    share: places.len() as f64 / total as f64,
                    places,
                }
            })
            .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::recipe::PartialRecipe;

    fn plan(examples: usize, batch_size: usize, accumulation: usize, epochs: f64) -> Plan {
        let partial = PartialRecipe {
            model: Some("m".to_owned()),
            data: Some("/d".into()),
            batch_size: Some(batch_size),
            gradient_accumulation: Some(accumulation),
            epochs: Some(epochs),
            ..PartialRecipe::default()
        };
        Plan::new(&partial.resolve().unwrap(), examples)
    }

    #[test]
    fn the_last_short_group_is_a_step_of_its_own() {
        let plan = plan(23, 4, 4, 2.0);
        assert_eq!((plan.steps_an_epoch, plan.total_steps), (2, 4));
        let places = |step| plan.passes(step).into_iter().map(|pass| pass.places).collect::<Vec<_>>();
        assert_eq!(places(0), [0..4, 4..8, 8..12, 12..16]);
        assert_eq!(places(1), [16..20, 20..23]);
        assert_eq!(plan.passes(1)[1].share, 3.0 / 7.0);
        assert_eq!((plan.passes(1)[1].number, plan.passes(2)[0].number, plan.epoch(2)), (5, 6, 1));
    }

    #[test]
    fn shares_of_a_step_add_up_to_one() {
        for examples in 1..40 {
            for accumulation in 1..4 {
                let plan = plan(examples, 3, accumulation, 1.0);
                let covered: usize = (0..plan.total_steps)
                    .map(|step| {
                        let passes = plan.passes(step);
                        assert!((passes.iter().map(|pass| pass.share).sum::<f64>() - 1.0).abs() < 1e-12);
                        passes.iter().map(|pass| pass.places.len()).sum::<usize>()
                    })
                    .sum();
                assert_eq!(covered, examples);
            }
        }
    }

    #[test]
    fn epochs_may_be_parts() {
        assert_eq!(plan(40, 4, 1, 0.25).total_steps, 3);
        assert_eq!(plan(40, 4, 1, 0.3).total_steps, 3);
        assert_eq!(plan(40, 4, 1, 0.001).total_steps, 1);
        assert_eq!(plan(40, 4, 1, 1.5).total_steps, 15);
    }
}
