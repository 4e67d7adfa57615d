//! When gates close: a run adapts, then for each stop of a budget closes along a cubic ramp and settles with what is left.

/// One stop of a budget: steps counted from the start of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    /// Steps made when closing begins.
    pub begin: u64,
    /// Steps made when the budget is met.
    pub met: u64,
    /// Steps made when the stop is over and its model is kept.
    pub end: u64,
    /// Cost left before it, as a share of the whole.
    pub from: f64,
    /// Cost left at its end, as a share of the whole.
    pub to: f64,
}

impl Stop {
    /// The share of the cost that may be left after so many steps: `to + (from − to)(1 − t)³`, `t` the share of the ramp
    /// that lies behind (Zhu and Gupta, *To prune, or not to prune*, 2017).
    pub fn share(&self, steps: u64) -> f64 {
        if steps >= self.met {
            return self.to;
        }
        let behind = steps.saturating_sub(self.begin) as f64 / (self.met - self.begin) as f64;
        self.to + (self.from - self.to) * (1.0 - behind).powi(3)
    }
}

/// The stops of a run of `total` steps. The first `adapt` share of the steps closes nothing; the rest is divided evenly among the
/// stops, and the last `settle` share of each closes nothing.
pub fn stops(total: u64, adapt: f64, settle: f64, shares: &[f64]) -> Vec<Stop> {
    let adapted = adapt * total as f64;
    let each = (total as f64 - adapted) / shares.len() as f64;
    let mut from = 1.0;
    let mut made = Vec::with_capacity(shares.len());
    for (index, &to) in shares.iter().enumerate() {
        let begin = (adapted + each * index as f64).round() as u64;
        let end = (adapted + each * (index + 1) as f64).round() as u64;
        let met = end - (settle * (end - begin) as f64).round() as u64;
        made.push(Stop { begin, met, end, from, to });
        from = to;
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stop_is_met_and_the_last_ends_with_the_run() {
        for total in [1, 2, 7, 100, 2301] {
            for shares in [&[0.6][..], &[0.8, 0.6, 0.4, 0.25, 0.1]] {
                let stops = stops(total, 0.15, 0.4, shares);
                assert_eq!(stops.last().map(|stop| stop.end), Some(total));
                for (stop, &share) in stops.iter().zip(shares) {
                    assert!(stop.begin <= stop.met && stop.met <= stop.end, "{stop:?}");
                    assert_eq!((stop.share(stop.met), stop.share(stop.end)), (share, share));
                    let mut last = f64::INFINITY;
                    for step in stop.begin..=stop.end {
                        assert!(stop.share(step) <= last);
                        last = stop.share(step);
                    }
                }
            }
        }
    }
}
