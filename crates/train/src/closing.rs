//! Which gates close, and when: coupled units in the order of their importance to the task, as many as the budget of the moment
//! asks for. What is closed stays closed.
//!
//! A unit's importance is the running mean of `(ω ∂L/∂ω)²` over its gates: the square of what the loss would change, to first
//! order, without it (Fisher information of a mask; Kwon et al., *A Fast Post-Training Pruning Framework for Transformers*, 2022).

use finegates_kernels::random;
use finegates_model::wiring::{Side, Space, Units};
use finegates_model::{Model, Projection, Wiring};

use crate::budget::{Amount, Cost, Live};
use crate::error::Error;
use crate::latency::ROUNDED_FROM;
use crate::phases::{Stop, stops};
use crate::recipe::{Closings, Importance};

/// What a unit counts to save at least, of the whole: a kind that saves nothing comes last.
const LEAST_SAVING: f64 = 1e-12;

/// The state of closing in a run.
#[derive(Clone, Debug)]
pub struct Closing {
    wiring: Wiring,
    units: Units,
    cost: Cost,
    whole: f64,
    stops: Vec<Stop>,
    decay: f32,
    /// Whether importance is learned, not known from the start.
    learns: bool,
    /// Running mean of each unit's importance. That it starts at 0 makes no difference to the ranking.
    importance: Vec<f32>,
    open: Vec<bool>,
    /// What closing a unit alone would save, of the whole model.
    saving: Vec<f64>,
    /// Units that share a space: their number is what products are shaped by.
    groups: Vec<Vec<usize>>,
    live: Live,
}

impl Closing {
    /// Nothing is closed and nothing known yet.
    pub fn new(wiring: &Wiring, cost: Cost, stops: Vec<Stop>, decay: f64) -> Closing {
        let units = Units::of(wiring);
        let live = Live::whole(wiring);
        let whole = cost.of(wiring, &live);
        let count = units.units.len();
        let mut groups: Vec<(Space, Vec<usize>)> = Vec::new();
        for (number, unit) in units.units.iter().enumerate() {
            match groups.iter_mut().find(|(space, _)| *space == unit.space) {
                Some((_, members)) => members.push(number),
                None => groups.push((unit.space, vec![number])),
            }
        }
        let groups: Vec<Vec<usize>> = groups.into_iter().map(|(_, members)| members).collect();
        let mut closing = Closing {
            wiring: wiring.clone(),
            units,
            cost,
            whole,
            stops,
            decay: decay as f32,
            learns: true,
            importance: vec![0.0; count],
            open: vec![true; count],
            saving: vec![0.0; count],
            groups,
            live,
        };
        // Times are no smooth function of sizes: what a unit saves is taken from most of its group. Not from all of it, for
        // where none is left other things go too.
        for group in closing.groups.clone() {
            let mut open = closing.open.clone();
            let kept = closing.cost.granularity().min(group.len() / 2);
            group[kept..].iter().for_each(|&unit| open[unit] = false);
            let left = closing.cost.of(&closing.wiring, &closing.live_of(&open));
            let saving = ((whole - left) / (group.len() - kept) as f64).max(whole * LEAST_SAVING);
            group.iter().for_each(|&unit| closing.saving[unit] = saving);
        }
        closing
    }

    /// What a run closes by these settings. Amounts become shares of the whole model's cost.
    ///
    /// # Errors
    /// [`Error::OutOfReach`] for a budget that is below what no closing takes away, [`Error::FewSteps`] for stops without steps.
    pub fn prepare(settings: &Closings, wiring: &Wiring, cost: Cost, total_steps: u64) -> Result<Closing, Error> {
        let budget = &settings.budget;
        let whole = cost.of(wiring, &Live::whole(wiring));
        let share = |amount: Amount| match amount {
            Amount::Share(share) => share,
            // Nothing closes for a time that the whole model keeps.
            Amount::Milliseconds(milliseconds) => (milliseconds / whole).min(1.0),
        };
        let shares: Vec<(String, f64)> =
            budget.stops.iter().map(|&amount| (budget.stop_name(amount), share(amount))).collect();
        let stops = stops(total_steps, settings.adapt_ratio, settings.settle_ratio, &shares);
        let few = || Error::FewSteps { stops: shares.len(), steps: total_steps, adapt_ratio: settings.adapt_ratio };
        let closing = Closing::new(wiring, cost, stops.ok_or_else(few)?, settings.importance_decay);
        let least = closing.least() / whole;
        if let Some((&amount, (_, last))) = budget.stops.last().zip(shares.last())
            && *last < least
        {
            let (whole, unit) = if let Amount::Share(_) = amount { (1.0, "") } else { (whole, " ms") };
            return Err(Error::OutOfReach { budget: budget.to_string(), least: least * whole, whole, unit });
        }
        Ok(closing)
    }

    /// Ranks the units of a model that is still whole by what is known before training, or not.
    pub fn rank_by(&mut self, importance: Importance, model: &Model, seed: u64) {
        self.learns = importance == Importance::Gradient;
        match importance {
            Importance::Gradient => {}
            Importance::Random => {
                let key = random::derive(seed, "order of closing");
                for (unit, importance) in self.importance.iter_mut().enumerate() {
                    // 24 bits are a whole number in 32.
                    *importance = (random::mix(key, unit as u64) >> 40) as f32;
                }
            }
            Importance::Magnitude => {
                let sums: Vec<_> = model.projections().map(Projection::square_sums).collect();
                for (unit, importance) in self.units.units.iter().zip(&mut self.importance) {
                    let squares = unit.slots.iter().map(|slot| match slot.side {
                        Side::Row => sums[slot.projection].0[slot.index],
                        Side::Column => sums[slot.projection].1[slot.index],
                    });
                    *importance = squares.sum::<f64>() as f32;
                }
            }
        }
    }

    /// Whether the last stop is under way after so many steps and its amount met.
    pub fn met(&self, steps: u64) -> bool {
        let met = |stop: &Stop| steps > stop.begin && self.cost.of(&self.wiring, &self.live) <= stop.to * self.whole;
        self.stops.last().is_none_or(met)
    }

    /// How the cost follows from what lives.
    pub fn cost(&self) -> &Cost {
        &self.cost
    }

    /// The stops of the run.
    pub fn stops(&self) -> &[Stop] {
        &self.stops
    }

    /// The cost of the whole model, in its own unit.
    pub fn whole(&self) -> f64 {
        self.whole
    }

    /// The cost that no closing takes away, in its own unit.
    pub fn least(&self) -> f64 {
        self.cost.of(&self.wiring, &self.live_of(&vec![false; self.open.len()]))
    }

    /// The share of the cost that is left.
    pub fn left(&self) -> f64 {
        if self.whole > 0.0 { self.cost.of(&self.wiring, &self.live) / self.whole } else { 1.0 }
    }

    /// Running means of importance, one a unit: what a resumed run needs to know.
    pub fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// Takes up where an earlier run was: its running means, and what is closed in its model.
    ///
    /// # Panics
    /// If there are not as many means as units.
    pub fn take_up(&mut self, importance: &[f32], model: &Model) {
        self.importance.copy_from_slice(importance);
        let projections: Vec<_> = model.projections().collect();
        for (unit, open) in self.units.units.iter().zip(&mut self.open) {
            *open = unit.slots.iter().all(|slot| {
                let gates = projections[slot.projection].gates();
                gates.is_none_or(|gates| gates.side(slot.side).parameter.value[slot.index] != 0.0)
            });
        }
        self.live = self.live_of(&self.open);
    }

    /// Learns from the gradients of a step, before they are used up.
    pub fn observe(&mut self, model: &Model) {
        if !self.learns {
            return;
        }
        let projections: Vec<_> = model.projections().collect();
        for ((unit, importance), _) in
            self.units.units.iter().zip(&mut self.importance).zip(&self.open).filter(|(_, open)| **open)
        {
            let products = unit.slots.iter().filter_map(|slot| {
                let gate = projections[slot.projection].gates()?.side(slot.side);
                let product = gate.parameter.value[slot.index] * gate.parameter.gradient[slot.index];
                Some(product * product)
            });
            let mean = products.sum::<f32>() / unit.slots.len() as f32;
            let now = self.decay * *importance + (1.0 - self.decay) * mean;
            // The square of a finite gradient may be too large for 32 bits.
            if now.is_finite() {
                *importance = now;
            }
        }
    }

    /// Closes what the budget asks for after so many steps; true if anything was closed.
    pub fn close(&mut self, model: &mut Model, steps: u64) -> bool {
        let Some(stop) = self.stops.iter().find(|stop| stop.begin < steps && steps <= stop.end) else { return false };
        let target = stop.share(steps) * self.whole;
        if self.cost.of(&self.wiring, &self.live) <= target {
            return false;
        }
        let mut ranking: Vec<usize> = (0..self.open.len()).filter(|&unit| self.open[unit]).collect();
        let worth = |unit: usize| f64::from(self.importance[unit]) / self.saving[unit];
        ranking.sort_by(|&a, &b| worth(a).total_cmp(&worth(b)).then(a.cmp(&b)));
        let (mut too_few, mut enough) = (0, ranking.len());
        while enough - too_few > 1 {
            let middle = usize::midpoint(too_few, enough);
            let open = self.open_without(&ranking, middle);
            match self.cost.of(&self.wiring, &self.live_of(&open)) <= target {
                true => enough = middle,
                false => too_few = middle,
            }
        }
        let open = self.open_without(&ranking, enough);
        let closed = (0..open.len()).filter(|&unit| self.open[unit] && !open[unit]);
        model.close(closed.flat_map(|unit| self.units.units[unit].slots.iter().copied()));
        self.live = self.live_of(&open);
        self.open = open;
        true
    }

    /// What stays open when the first `count` of a ranking close: sizes rounded to what runs well, within what is open now, and
    /// without the units that then say nothing.
    fn open_without(&self, ranking: &[usize], count: usize) -> Vec<bool> {
        let mut open = self.open.clone();
        ranking[..count].iter().for_each(|&unit| open[unit] = false);
        let granularity = self.cost.granularity();
        if granularity > 1 {
            let mut place = vec![0; open.len()];
            ranking.iter().enumerate().for_each(|(at, &unit)| place[unit] = at);
            for group in self.groups.iter().filter(|group| group.len() >= ROUNDED_FROM * granularity) {
                let mut members: Vec<usize> = group.iter().copied().filter(|&unit| self.open[unit]).collect();
                let left = members.iter().filter(|&&unit| open[unit]).count();
                // What is left of a group that is not to vanish does not vanish by rounding.
                let rounded = (left + granularity / 2) / granularity * granularity;
                let rounded = if left > 0 { rounded.max(granularity) } else { 0 };
                members.sort_unstable_by_key(|&unit| std::cmp::Reverse(place[unit]));
                for (at, unit) in members.into_iter().enumerate() {
                    open[unit] = at < rounded;
                }
            }
        }
        for dependence in &self.units.dependences {
            if dependence.when.iter().all(|&unit| !open[unit]) {
                dependence.then.iter().for_each(|&unit| open[unit] = false);
            }
        }
        open
    }

    fn live_of(&self, open: &[bool]) -> Live {
        let mut live = Live::whole(&self.wiring);
        for (unit, _) in self.units.units.iter().zip(open).filter(|(_, open)| !**open) {
            for slot in &unit.slots {
                match slot.side {
                    Side::Row => live.rows[slot.projection] -= 1,
                    Side::Column => live.columns[slot.projection] -= 1,
                }
            }
        }
        live
    }
}
