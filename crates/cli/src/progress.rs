//! Progress on standard error: a bar where it is a terminal, and otherwise a plain line now and then.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::figures::duration;
use crate::output::note;

/// How long it takes until the first plain line; later the pauses grow with the time already spent.
const PLAIN_INTERVAL: Duration = Duration::from_secs(20);

/// The progress of one piece of work.
pub struct Progress {
    bar: ProgressBar,
    what: String,
    plain: bool,
    total: Cell<u64>,
    started: Instant,
    last_line: Cell<Instant>,
}

impl Progress {
    /// A bar of `total` steps.
    pub fn bar(what: &str, total: u64) -> Progress {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(5) };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} {msg}");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        }
        bar.set_prefix(what.to_owned());
        let now = Instant::now();
        Progress { bar, what: what.to_owned(), plain, total: Cell::new(total), started: now, last_line: Cell::new(now) }
    }

    /// Moves on by some steps.
    pub fn advance(&self, steps: u64) {
        self.bar.inc(steps);
        self.plain_line(self.bar.position(), String::new);
    }

    /// Stands at `position` and says how things are.
    pub fn set(&self, position: u64, message: impl Fn() -> String) {
        if self.plain {
            self.bar.set_position(position);
            self.plain_line(position, message);
        } else {
            self.bar.set_message(message());
            self.bar.set_position(position);
        }
    }

    /// Stands at `position` of a `total` that was not known before.
    pub fn set_of(&self, position: u64, total: u64) {
        self.bar.set_length(total);
        self.total.set(total);
        self.set(position, String::new);
    }

    /// Starts at `position`: what is before it was done earlier.
    pub fn begin_at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Says how things are, without moving on.
    pub fn message(&self, message: impl Fn() -> String) {
        if !self.plain {
            self.bar.set_message(message());
        }
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| note(text));
        self.last_line.set(Instant::now());
    }

    /// Does something, such as printing, with the bar out of the way.
    pub fn suspend<R>(&self, work: impl FnOnce() -> R) -> R {
        self.bar.suspend(work)
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn plain_line(&self, position: u64, message: impl Fn() -> String) {
        let pause = PLAIN_INTERVAL.max(self.elapsed() / 8);
        if !self.plain || self.last_line.get().elapsed() < pause {
            return;
        }
        self.last_line.set(Instant::now());
        let (what, total, elapsed) = (&self.what, self.total.get(), duration(self.elapsed()));
        note(format!("{what} {position}/{total} after {elapsed} {}", message()).trim_end());
    }
}
