//! When gates close: a run adapts, then for each stop of a budget closes along a cubic ramp and settles with what is left.

/// One stop of a budget: steps counted from the start of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Stop {
    /// Its name, as `params-0.6`.
    pub name: String,
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

/// The stops of a run of `total` steps, from their names and the shares that may be left at them. The first `adapt` share of the
/// steps closes nothing; the rest is divided evenly among the stops, and the last `settle` share of each closes nothing.
///
/// None if there are too few steps for every stop to have one.
pub fn stops(total: u64, adapt: f64, settle: f64, shares: &[(String, f64)]) -> Option<Vec<Stop>> {
    let adapted = adapt * total as f64;
    let each = (total as f64 - adapted) / shares.len() as f64;
    let mut from = 1.0;
    let mut made = Vec::with_capacity(shares.len());
    for (index, (name, to)) in shares.iter().enumerate() {
        let (name, to) = (name.clone(), *to);
        let begin = (adapted + each * index as f64).round() as u64;
        let end = (adapted + each * (index + 1) as f64).round() as u64;
        if end <= begin {
            return None;
        }
        let met = end - (settle * (end - begin) as f64).round() as u64;
        made.push(Stop { name, begin, met, end, from, to });
        from = to;
    }
    Some(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stop_has_steps_of_its_own_and_the_last_ends_with_the_run() {
        for total in [1, 2, 5, 6, 7, 100, 2301] {
            for shares in [&[0.6][..], &[0.8, 0.6, 0.4, 0.25, 0.1]] {
                let named: Vec<(String, f64)> =
                    shares.iter().map(|share| (format!("params-{share}"), *share)).collect();
                let Some(stops) = stops(total, 0.15, 0.4, &named) else {
                    assert!(total < shares.len() as u64 + 2, "{total} steps are enough for {}", shares.len());
                    continue;
                };
                assert_eq!(stops.last().map(|stop| stop.end), Some(total));
                let mut before = stops[0].begin;
                for (stop, &share) in stops.iter().zip(shares) {
                    assert!(stop.begin == before && stop.begin <= stop.met && stop.met <= stop.end, "{stop:?}");
                    assert!(stop.begin < stop.end && (stop.share(stop.end), stop.to) == (share, share));
                    let ramp: Vec<f64> = (stop.begin..=stop.end).map(|step| stop.share(step)).collect();
                    assert!(ramp.is_sorted_by(|now, then| now >= then) && ramp[0] <= stop.from, "{ramp:?}");
                    before = stop.end;
                }
            }
        }
        assert_eq!(stops(100, 0.999, 0.4, &[("a".to_owned(), 0.5)]), None);
    }

    #[test]
    fn stops_share_the_steps_after_adapting() {
        let stops = stops(100, 0.2, 0.5, &[("a".to_owned(), 0.8), ("b".to_owned(), 0.6)]).unwrap_or_default();
        let steps: Vec<_> = stops.iter().map(|stop| (stop.begin, stop.met, stop.end)).collect();
        assert_eq!(steps, [(20, 40, 60), (60, 80, 100)]);
        let shares = (stops[0].share(20), stops[0].share(30), stops[1].share(60), stops[1].share(100));
        assert_eq!(shares, (1.0, 0.8 + (1.0 - 0.8) / 8.0, 0.8, 0.6));
    }
}
