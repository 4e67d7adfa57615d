//! The progress of a training run: loss, penalty, share removed, speed and time left, smoothed over the last steps.

use std::time::{Duration, Instant};

use finegates_train::observer::{Start, StepRecord};

use crate::figures::{duration, percent, rate};
use crate::output::note;
use crate::progress::Progress;

/// How much of the old mean is kept with every step.
const KEPT: f64 = 0.95;

/// What is shown while a run goes on.
pub struct TrainingProgress {
    bar: Option<Progress>,
    started: Instant,
    first_step: u64,
    total_steps: u64,
    /// Smoothed task loss and sequences a second.
    means: Option<(f64, f64)>,
}

impl TrainingProgress {
    /// Nothing is shown until the run has started.
    pub fn new() -> TrainingProgress {
        TrainingProgress { bar: None, started: Instant::now(), first_step: 0, total_steps: 0, means: None }
    }

    /// The run's steps follow.
    pub fn start(&mut self, start: &Start) {
        let bar = Progress::bar("step", start.total_steps);
        bar.begin_at(start.step);
        self.bar = Some(bar);
        self.started = Instant::now();
        self.first_step = start.step;
        self.total_steps = start.total_steps;
    }

    /// A step is made.
    pub fn step(&mut self, record: &StepRecord) {
        let now = (record.task_loss, record.sequences_per_second);
        let mean = |old: f64, new: f64| KEPT * old + (1.0 - KEPT) * new;
        let (loss, speed) = self.means.map_or(now, |old| (mean(old.0, now.0), mean(old.1, now.1)));
        self.means = Some((loss, speed));
        let Some(bar) = &self.bar else { return };
        bar.set(record.step, || {
            let mut parts = vec![format!("epoch {:.2}", record.epoch), format!("loss {loss:.4}")];
            if record.learning_rates.gate > 0.0 && record.penalty > 0.0 || record.removed > 0.0 {
                parts.push(format!("penalty {:.3}", record.penalty));
                parts.push(format!("removed {}", percent(record.removed)));
            }
            parts.push(format!("{} sequences/s", rate(speed)));
            parts.push(format!("{} left", duration(self.left(record.step))));
            parts.join("  ")
        });
    }

    /// Part of an evaluation is done.
    pub fn evaluating(&self, split: &str, done: usize, total: usize) {
        if let Some(bar) = &self.bar {
            bar.message(|| format!("evaluating on {split}: {done}/{total}"));
        }
    }

    /// Prints a line on standard error.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.line(text),
            None => note(text),
        }
    }

    /// Does something with the bar out of the way.
    pub fn suspend<R>(&self, work: impl FnOnce() -> R) -> R {
        match &self.bar {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }

    /// The time left, evaluations included, as it went until now.
    #[allow(clippy::cast_precision_loss)]
    fn left(&self, step: u64) -> Duration {
        let made = (step - self.first_step).max(1) as f64;
        let left = self.total_steps.saturating_sub(step) as f64;
        self.started.elapsed().mul_f64(left / made)
    }
}
