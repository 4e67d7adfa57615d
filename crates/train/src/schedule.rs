//! How the learning rate moves over the steps, and when something recurs.

use std::str::FromStr;

/// How the learning rate goes from its peak to its floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Stays at the peak.
    Constant,
    /// Falls evenly.
    Linear,
    /// Falls along half a cosine wave.
    Cosine,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(name: &str) -> Result<Shape, String> {
        match name {
            "constant" => Ok(Shape::Constant),
            "linear" => Ok(Shape::Linear),
            "cosine" => Ok(Shape::Cosine),
            other => Err(format!("expected constant, linear or cosine, found {other:?}")),
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Shape::Constant => "constant",
            Shape::Linear => "linear",
            Shape::Cosine => "cosine",
        })
    }
}

/// The learning rate as a share of its peak, for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// What comes after the warm-up.
    pub shape: Shape,
    /// Steps over which the rate rises evenly to its peak.
    pub warmup_steps: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// The share of the peak at the end.
    pub floor: f64,
}

impl Schedule {
    /// The share for a step, counted from 1: `step / warmup` in the warm-up, so that no step is without effect; the peak right
    /// after it; the floor after the last step.
    pub fn share(&self, step: u64) -> f64 {
        if step <= self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let falling = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps - 1) as f64 / falling as f64).min(1.0);
        let height = match self.shape {
            Shape::Constant => return 1.0,
            Shape::Linear => 1.0 - progress,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.floor + (1.0 - self.floor) * height
    }
}

/// How often something recurs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Interval {
    /// Every so many epochs, or parts of one.
    Epochs(f64),
    /// Every so many steps.
    Steps(u64),
}

impl Interval {
    /// Whether it is due after a step, counted from 1.
    pub fn due(self, step: u64, steps_an_epoch: f64) -> bool {
        match self {
            Interval::Steps(steps) => step.is_multiple_of(steps),
            Interval::Epochs(epochs) => {
                let turns = |step: u64| (step as f64 / (steps_an_epoch * epochs)).floor();
                turns(step) > turns(step - 1)
            }
        }
    }
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Interval, String> {
        let wrong = || format!("expected for example \"500 steps\", \"1 epoch\" or \"0.25 epochs\", found {text:?}");
        let text = text.trim();
        let digits = text.find(|c: char| c.is_ascii_alphabetic() || c.is_whitespace()).unwrap_or(text.len());
        let (number, unit) = (&text[..digits], text[digits..].trim());
        match unit {
            "" | "step" | "steps" => match number.parse() {
                Ok(steps) if steps > 0 => Ok(Interval::Steps(steps)),
                _ => Err(wrong()),
            },
            "epoch" | "epochs" => match number.parse::<f64>() {
                Ok(epochs) if epochs > 0.0 && epochs.is_finite() => Ok(Interval::Epochs(epochs)),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Interval::Epochs(1.0) => write!(f, "1 epoch"),
            Interval::Epochs(epochs) => write!(f, "{epochs} epochs"),
            Interval::Steps(1) => write!(f, "1 step"),
            Interval::Steps(steps) => write!(f, "{steps} steps"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shares(shape: Shape, warmup_steps: u64, total_steps: u64, floor: f64) -> Vec<f64> {
        let schedule = Schedule { shape, warmup_steps, total_steps, floor };
        (1..=total_steps + 1).map(|step| schedule.share(step)).collect()
    }

    #[test]
    fn the_rate_rises_to_its_peak_and_falls_to_its_floor() {
        assert_eq!(shares(Shape::Constant, 2, 4, 0.0), [0.5, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(shares(Shape::Linear, 2, 6, 0.0), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(shares(Shape::Linear, 0, 4, 0.5), [1.0, 0.875, 0.75, 0.625, 0.5]);
        let cosine = shares(Shape::Cosine, 0, 4, 0.1);
        assert_eq!((cosine[0], cosine[2]), (1.0, 0.55));
        assert!((cosine[4] - 0.1).abs() < 1e-15);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_only_rises() {
        assert_eq!(shares(Shape::Cosine, 10, 2, 0.0), [0.1, 0.2, 0.3]);
    }

    #[test]
    fn intervals_recur_by_steps_and_by_epochs() {
        let due = |interval: &str, steps_an_epoch: f64| {
            let interval: Interval = interval.parse().unwrap();
            (1..=12).filter(|&step| interval.due(step, steps_an_epoch)).collect::<Vec<_>>()
        };
        assert_eq!(due("5 steps", 4.0), [5, 10]);
        assert_eq!(due("1 epoch", 4.0), [4, 8, 12]);
        assert_eq!(due("0.5epochs", 4.0), [2, 4, 6, 8, 10, 12]);
        assert_eq!(due("2 epochs", 4.0), [8]);
        assert_eq!(due("0.1 epochs", 4.0), (1..=12).collect::<Vec<_>>());
    }

    #[test]
    fn intervals_are_read_as_they_are_written() {
        for text in ["1 step", "500 steps", "1 epoch", "0.25 epochs", "2 epochs"] {
            assert_eq!(text.parse::<Interval>().unwrap().to_string(), text);
        }
        assert_eq!("7".parse::<Interval>(), Ok(Interval::Steps(7)));
        for text in ["", "0", "-1 steps", "1.5 steps", "0 epochs", "nan epochs", "inf epochs", "5 minutes", "epoch"] {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
    }
}
