//! How long a layer's parts take on this machine by their sizes: measured once, kept, and added up for a model.

use std::path::Path;
use std::time::Instant;

use finegates_checkpoint::Config;
use finegates_checkpoint::read::{SETTINGS_LIMIT_BYTES, read_text};
use finegates_checkpoint::write::write_atomic;
use finegates_kernels::{cpu, matrix, random};
use finegates_model::sample::{LayerSizes, SampleStack};
use finegates_model::wiring::Role;
use finegates_model::{Batch, Model, Wiring};
use serde::{Deserialize, Serialize};

use crate::budget::Live;
use crate::error::Error;

/// Changes whenever the kernels or the way of measuring do: older tables are then measured anew.
const FORMAT_VERSION: u32 = 4;
/// Rounds over all sizes. Noise then falls on all of them, and not on one.
const ROUNDS: usize = 5;
/// How often a size runs in a round at least, and how long, in milliseconds.
const LEAST: (usize, f64) = (3, 6.0);
/// About how many sizes a curve has.
const POINTS: usize = 10;
/// Groups of fewer granules than this keep the sizes they come to: rounding would change too much of them.
pub(crate) const ROUNDED_FROM: usize = 4;
/// Into how many parts the way from nothing to everything is divided.
const STEPS: usize = 8;

/// Milliseconds of a pass at several sizes; between them straight lines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Units left, ascending, from 0.
    pub sizes: Vec<usize>,
    /// Milliseconds at each size, ascending.
    pub milliseconds: Vec<f64>,
}

impl Curve {
    /// At multiples of what products are cut into, up to `whole`; times are still to come.
    fn up_to(whole: usize) -> Curve {
        let step = rounded(whole.div_ceil(POINTS), whole).max(1);
        let mut sizes: Vec<usize> = (0..whole).step_by(step).collect();
        sizes.extend([rounded(1, whole), whole]);
        sizes.sort_unstable();
        sizes.dedup();
        Curve { sizes, milliseconds: Vec::new() }
    }

    /// More units never count as faster: the rising curve that is nearest to the times by least squares.
    fn straighten(&mut self) {
        let mut pools: Vec<(f64, usize)> = Vec::new();
        for &time in &self.milliseconds {
            pools.push((time, 1));
            while let [.., (before, many), (last, few)] = pools[..]
                && before > last
            {
                let together = many + few;
                let mean = (before * many as f64 + last * few as f64) / together as f64;
                pools.truncate(pools.len() - 2);
                pools.push((mean, together));
            }
        }
        self.milliseconds = pools.into_iter().flat_map(|(time, many)| std::iter::repeat_n(time, many)).collect();
    }

    /// The time at a size. Without any unit other things go too, so nothing lies between none and the first size.
    pub fn at(&self, size: usize) -> f64 {
        if size > 0 && self.sizes.len() > 1 && size < self.sizes[1] {
            return self.milliseconds[1];
        }
        let next = self.sizes.partition_point(|&measured| measured < size);
        match (next, self.sizes.get(next)) {
            (_, Some(&measured)) if measured == size => self.milliseconds[next],
            (0, _) | (_, None) => self.milliseconds.last().copied().unwrap_or(0.0),
            (_, Some(&measured)) => {
                let before = self.sizes[next - 1];
                let part = (size - before) as f64 / (measured - before) as f64;
                self.milliseconds[next - 1] * (1.0 - part) + self.milliseconds[next] * part
            }
        }
    }

    /// What fewer units than all save.
    fn saved(&self, size: usize) -> f64 {
        self.milliseconds.last().map_or(0.0, |whole| whole - self.at(size))
    }

    /// Whether it can be a curve up to `whole`.
    fn sound(&self, whole: usize) -> bool {
        self.sizes.len() == self.milliseconds.len()
            && self.sizes.first() == Some(&0)
            && self.sizes.last() == Some(&whole)
            && self.sizes.is_sorted_by(|one, next| one < next)
            && self.milliseconds.is_sorted()
            && self.milliseconds.iter().all(|time| (0.0..1e9).contains(time))
    }
}

/// Times of passes through all layers of a model, all layers having the same sizes.
///
/// A kind of unit saves what a pass takes less with fewer of them, everything else being whole; what several kinds save adds
/// up. How far that is from the truth is measured along the way on which all shrink together, and taken into account.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyTable {
    /// By inner units of the feed-forward blocks.
    pub feed_forward: Curve,
    /// By value dimensions.
    pub value: Curve,
    /// By query dimensions.
    pub query_key: Curve,
    /// By eighths of all units, all kinds together.
    pub together: Curve,
    /// What a pass takes besides its layers: embeddings and the head.
    pub rest_milliseconds: f64,
    /// Sizes that run well are multiples of this.
    pub granularity: usize,
}

impl LatencyTable {
    /// The table of a model for passes over so many sequences of so many tokens: the one in `folder`, if it was measured there
    /// before on this machine by this version, or one measured now, of which `measuring` is told, and kept there. A folder that
    /// cannot be written is no error.
    ///
    /// # Errors
    /// [`Error::Latency`] if the model cannot take such a pass.
    pub fn of(
        model: &Model,
        sequences: usize,
        tokens: usize,
        folder: Option<&Path>,
        measuring: &mut dyn FnMut(),
    ) -> Result<LatencyTable, Error> {
        let config = model.config();
        if tokens > model.max_length() {
            return Err(Error::Latency { tokens, longest: model.max_length() });
        }
        let path = folder.map(|folder| folder.join(file_name(config, sequences, tokens)));
        if let Some(known) = path.as_deref().and_then(|path| LatencyTable::read(path, config)) {
            return Ok(known);
        }
        measuring();
        let table = LatencyTable::measure(model, sequences, tokens)?;
        if let Some(path) = path {
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = table.write(&path);
        }
        Ok(table)
    }

    /// Reads a table; none if there is none, or none that can be one of such a model.
    pub fn read(path: &Path, config: &Config) -> Option<LatencyTable> {
        LatencyTable::parse(&read_text(path, SETTINGS_LIMIT_BYTES).ok()?, &LayerSizes::whole(config))
    }

    /// Reads the text of a table of a model whose layers have these sizes; none if it cannot be one.
    pub fn parse(text: &str, whole: &LayerSizes) -> Option<LatencyTable> {
        let table: LatencyTable = serde_json::from_str(text).ok()?;
        let sound = table.granularity == matrix::PANEL
            && (0.0..1e9).contains(&table.rest_milliseconds)
            && table.feed_forward.sound(whole.feed_forward)
            && table.value.sound(whole.value)
            && table.query_key.sound(whole.query_key)
            && table.together.sound(STEPS)
            && table.together.at(STEPS) > 0.0;
        sound.then_some(table)
    }

    /// Writes the table.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        Ok(write_atomic(path, text.as_bytes())?)
    }

    /// The time of a pass through what lives.
    pub fn milliseconds(&self, wiring: &Wiring, live: &Live) -> f64 {
        let layers = wiring.projections.iter().map(|projection| projection.layer + 1).max().unwrap_or(1);
        let saved = wiring.projections.iter().zip(&live.rows).map(|(projection, &rows)| match projection.role {
            Role::Up => self.feed_forward.saved(rows),
            Role::Value => self.value.saved(rows),
            // Of a decoder the units are pairs of key rows.
            Role::Key => {
                let units = self.query_key.sizes.last().copied().unwrap_or(0);
                self.query_key.saved(rows * units / projection.rows.max(1))
            }
            _ => 0.0,
        });
        self.rest_milliseconds + self.corrected(saved.sum::<f64>() / layers as f64)
    }

    /// The time of the layers, given what the kinds of units save by themselves.
    fn corrected(&self, saved: f64) -> f64 {
        let whole = |curve: &Curve| curve.sizes.last().copied().unwrap_or(0);
        // What would be saved at each step of the way, by the sum; falling.
        let sums: Vec<f64> = (0..=STEPS)
            .map(|step| {
                let at = |curve: &Curve| curve.saved(part(whole(curve), step));
                at(&self.feed_forward) + at(&self.value) + at(&self.query_key)
            })
            .collect();
        let times = &self.together.milliseconds;
        if saved >= sums[0] {
            return times[0];
        }
        // As of a curve: nothing lies between none and the first step.
        let Some(step) = (2..=STEPS).rev().find(|&step| saved <= sums[step - 1]) else { return times[1] };
        let span = sums[step - 1] - sums[step];
        let share = if span > 0.0 { ((saved - sums[step]) / span).clamp(0.0, 1.0) } else { 0.0 };
        times[step] * (1.0 - share) + times[step - 1] * share
    }

    fn measure(model: &Model, sequences: usize, tokens: usize) -> Result<LatencyTable, Error> {
        let config = model.config();
        let whole = LayerSizes::whole(config);
        let mut table = LatencyTable {
            feed_forward: Curve::up_to(whole.feed_forward),
            value: Curve::up_to(whole.value),
            query_key: Curve::up_to(whole.query_key),
            together: Curve { sizes: (0..=STEPS).collect(), milliseconds: Vec::new() },
            granularity: matrix::PANEL,
            ..LatencyTable::default()
        };
        let ids: Vec<u32> =
            (0..tokens as u64).map(|at| (random::mix(3, at) % config.vocabulary as u64) as u32).collect();
        let segments = vec![0; tokens];
        let batch = Batch::new((0..sequences).map(|_| (ids.as_slice(), segments.as_slice())));
        model.forward_outside_layers(&batch)?;
        let mut sizes: Vec<LayerSizes> = Vec::new();
        sizes.extend(table.feed_forward.sizes.iter().map(|&feed_forward| LayerSizes { feed_forward, ..whole }));
        sizes.extend(table.value.sizes.iter().map(|&value| LayerSizes { value, ..whole }));
        sizes.extend(table.query_key.sizes.iter().map(|&query_key| LayerSizes { query_key, ..whole }));
        sizes.extend((0..=STEPS).map(|step| LayerSizes {
            query_key: part(whole.query_key, step),
            value: part(whole.value, step),
            feed_forward: part(whole.feed_forward, step),
        }));
        let mut times = vec![Vec::new(); sizes.len() + 1];
        for _ in 0..ROUNDS {
            for (sizes, times) in sizes.iter().zip(&mut times) {
                let mut stack = SampleStack::new(config, sizes, sequences, tokens);
                measure(times, || stack.run());
            }
            measure(&mut times[sizes.len()], || drop(model.forward_outside_layers(&batch)));
        }
        let mut typical = times.into_iter().map(lower_quartile);
        for curve in [&mut table.feed_forward, &mut table.value, &mut table.query_key, &mut table.together] {
            curve.milliseconds = typical.by_ref().take(curve.sizes.len()).collect();
        }
        table.rest_milliseconds = typical.next().unwrap_or(0.0);
        // The whole model stands at the end of every curve: one time for it, the mean of all, which no size exceeds.
        let curves = [&mut table.feed_forward, &mut table.value, &mut table.query_key, &mut table.together];
        let wholes: Vec<f64> = curves.iter().filter_map(|curve| curve.milliseconds.last().copied()).collect();
        let whole = wholes.iter().sum::<f64>() / wholes.len() as f64;
        for curve in curves {
            curve.straighten();
            curve.milliseconds.iter_mut().for_each(|time| *time = time.min(whole));
            if let Some(last) = curve.milliseconds.last_mut() {
                *last = whole;
            }
        }
        Ok(table)
    }
}

/// A size in whole panels, where there are several.
fn rounded(size: usize, whole: usize) -> usize {
    if whole < ROUNDED_FROM * matrix::PANEL { size } else { size.next_multiple_of(matrix::PANEL).min(whole) }
}

/// So many steps' share of `whole` units.
fn part(whole: usize, step: usize) -> usize {
    rounded((whole * step).div_ceil(STEPS), whole)
}

fn file_name(config: &Config, sequences: usize, tokens: usize) -> String {
    let Config { family, activation, layers, hidden, heads, feed_forward, vocabulary, .. } = config;
    let key = format!(
        "{FORMAT_VERSION} {} {} {} {family:?} {activation:?} {layers} {hidden} {heads}/{} of {} {feed_forward} {vocabulary} {sequences}x{tokens}",
        env!("CARGO_PKG_VERSION"),
        cpu::describe(),
        cpu::name(),
        config.key_value_heads(),
        config.head_dim(),
    );
    format!("{:016x}.json", random::derive(0, &key))
}

/// Adds the times of some runs of `work` in milliseconds.
fn measure(times: &mut Vec<f64>, mut work: impl FnMut()) {
    work();
    let (fewest, milliseconds) = LEAST;
    let (started, before) = (Instant::now(), times.len());
    while times.len() < before + fewest || started.elapsed().as_secs_f64() * 1e3 < milliseconds {
        let began = Instant::now();
        work();
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
}

/// What a quarter of the times lie below: whatever else a machine does only adds.
fn lower_quartile(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_between_measured_sizes_lie_on_straight_lines() {
        let curve = Curve { sizes: vec![0, 32, 96], milliseconds: vec![1.0, 2.0, 6.0] };
        for (size, expected) in [(0, 1.0), (1, 2.0), (16, 2.0), (32, 2.0), (64, 4.0), (96, 6.0), (97, 6.0)] {
            assert!((curve.at(size) - expected).abs() < 1e-12, "{size}: {}", curve.at(size));
        }
    }

    #[test]
    fn more_units_never_count_as_faster() {
        let mut curve = Curve { sizes: vec![0, 32, 64, 96], milliseconds: vec![1.0, 5.0, 2.0, 3.0] };
        curve.straighten();
        let mean = 10.0 / 3.0;
        assert!(
            curve
                .milliseconds
                .iter()
                .zip([1.0, mean, mean, mean])
                .all(|(found, expected)| (found - expected).abs() < 1e-12)
        );
    }

    #[test]
    fn savings_add_up_and_are_corrected_along_the_way_all_shrink_together() {
        let curve = |times: [f64; 3]| Curve { sizes: vec![0, 32, 64], milliseconds: times.to_vec() };
        // Sizes below 128 are eighths as they are: 8, 16, … of 64. By the sum 16 of 20 would be saved with all closed, and 8 with
        // half or less; it is 19 and 6.
        let times = [1.0, 14.0, 14.0, 14.0, 14.0, 15.5, 17.0, 18.5, 20.0];
        let table = LatencyTable {
            feed_forward: curve([12.0, 16.0, 20.0]),
            value: curve([15.0, 17.5, 20.0]),
            query_key: curve([17.0, 18.5, 20.0]),
            together: Curve { sizes: (0..=STEPS).collect(), milliseconds: times.to_vec() },
            rest_milliseconds: 0.5,
            granularity: matrix::PANEL,
        };
        assert_eq!((table.corrected(0.0), table.corrected(4.0)), (20.0, 17.0));
        assert_eq!((table.corrected(8.0), table.corrected(15.9)), (14.0, 14.0));
        assert_eq!((table.corrected(16.0), table.corrected(99.0)), (1.0, 1.0), "no less than what always remains");
        let falling: Vec<f64> = (0..=32).map(|half| table.corrected(f64::from(half) / 2.0)).collect();
        assert!(falling.is_sorted_by(|now, then| now >= then), "{falling:?}");
    }
}
