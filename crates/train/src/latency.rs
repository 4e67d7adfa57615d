//! How long a layer's parts take on this machine by their sizes: measured once, kept, and added up for a model.

use std::path::Path;
use std::time::Instant;

use finegates_checkpoint::Config;
use finegates_checkpoint::read::{SETTINGS_LIMIT_BYTES, read_text};
use finegates_checkpoint::write::write_atomic;
use finegates_kernels::{cpu, matrix, random};
use finegates_model::sample::{LayerSizes, SampleLayer};
use finegates_model::wiring::Role;
use finegates_model::{Batch, Model, Wiring};
use serde::{Deserialize, Serialize};

use crate::budget::Live;
use crate::error::Error;

/// Changes whenever the kernels or the way of measuring do: older tables are then measured anew.
const FORMAT_VERSION: u32 = 2;
/// Rounds over all sizes. Noise then falls on all of them, and not on one.
const ROUNDS: usize = 7;
/// How long a size is measured in a round at least, in milliseconds.
const LEAST_MILLISECONDS: f64 = 2.0;
/// About how many sizes a curve has.
const POINTS: usize = 12;

/// Milliseconds of one part of a layer at several sizes; between them straight lines.
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
        let step = whole.div_ceil(POINTS).next_multiple_of(matrix::PANEL);
        let mut sizes: Vec<usize> = (0..whole).step_by(step).collect();
        sizes.push(whole);
        Curve { sizes, milliseconds: Vec::new() }
    }

    /// More units never count as faster.
    fn straighten(&mut self) {
        for at in (1..self.milliseconds.len()).rev() {
            self.milliseconds[at - 1] = self.milliseconds[at - 1].min(self.milliseconds[at]);
        }
    }

    /// The time at a size.
    pub fn at(&self, size: usize) -> f64 {
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

/// Times of the parts of every layer of a model, all layers having the same sizes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyTable {
    /// The feed-forward block by inner units.
    pub feed_forward: Curve,
    /// The attention block by value dimensions, with all query dimensions.
    pub value: Curve,
    /// The attention block by query dimensions, with all value dimensions.
    pub query_key: Curve,
    /// The attention block without any dimension.
    pub attention_rest_milliseconds: f64,
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
        let text = read_text(path, SETTINGS_LIMIT_BYTES).ok()?;
        let table: LatencyTable = serde_json::from_str(&text).ok()?;
        let whole = LayerSizes::whole(config);
        let sound = table.granularity == matrix::PANEL
            && (0.0..1e9).contains(&table.rest_milliseconds)
            && (0.0..1e9).contains(&table.attention_rest_milliseconds)
            && table.feed_forward.sound(whole.feed_forward)
            && table.value.sound(whole.value)
            && table.query_key.sound(whole.query_key)
            && table.layer_milliseconds(&whole) > 0.0;
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
        let mut layers: Vec<LayerSizes> = Vec::new();
        for (projection, &rows) in wiring.projections.iter().zip(&live.rows) {
            if layers.len() <= projection.layer {
                layers.resize(projection.layer + 1, LayerSizes { query_key: 0, value: 0, feed_forward: 0 });
            }
            let layer = &mut layers[projection.layer];
            match projection.role {
                Role::Up => layer.feed_forward = rows,
                Role::Value => layer.value = rows,
                Role::Query => layer.query_key = rows,
                _ => {}
            }
        }
        self.rest_milliseconds + layers.iter().map(|sizes| self.layer_milliseconds(sizes)).sum::<f64>()
    }

    /// Both curves of attention hold the whole block: what the second saves comes off the first, down to what always remains.
    fn layer_milliseconds(&self, sizes: &LayerSizes) -> f64 {
        let whole = self.query_key.milliseconds.last().copied().unwrap_or(0.0);
        let attention = self.value.at(sizes.value) - (whole - self.query_key.at(sizes.query_key));
        self.feed_forward.at(sizes.feed_forward) + attention.max(self.attention_rest_milliseconds)
    }

    fn measure(model: &Model, sequences: usize, tokens: usize) -> Result<LatencyTable, Error> {
        let config = model.config();
        let whole = LayerSizes::whole(config);
        let mut table = LatencyTable {
            feed_forward: Curve::up_to(whole.feed_forward),
            value: Curve::up_to(whole.value),
            query_key: Curve::up_to(whole.query_key),
            granularity: matrix::PANEL,
            ..LatencyTable::default()
        };
        let ids: Vec<u32> =
            (0..tokens as u64).map(|at| (random::mix(3, at) % config.vocabulary as u64) as u32).collect();
        let segments = vec![0; tokens];
        let batch = Batch::new((0..sequences).map(|_| (ids.as_slice(), segments.as_slice())));
        model.forward(&batch)?;
        let sample = |sizes: LayerSizes| SampleLayer::new(config, &sizes, sequences, tokens);
        let mut attention: Vec<SampleLayer> = Vec::new();
        attention.extend(table.value.sizes.iter().map(|&value| sample(LayerSizes { value, ..whole })));
        attention.extend(table.query_key.sizes.iter().map(|&query_key| sample(LayerSizes { query_key, ..whole })));
        attention.push(sample(LayerSizes { query_key: 0, value: 0, ..whole }));
        let inner = |&feed_forward: &usize| sample(LayerSizes { feed_forward, ..whole });
        let mut feed_forward: Vec<SampleLayer> = table.feed_forward.sizes.iter().map(inner).collect();
        let mut times = vec![Vec::with_capacity(ROUNDS); attention.len() + feed_forward.len() + 1];
        for _ in 0..ROUNDS {
            let mut places = times.iter_mut();
            let mut record = |work: &mut dyn FnMut()| {
                if let Some(times) = places.next() {
                    times.push(milliseconds(work));
                }
            };
            attention.iter_mut().for_each(|layer| record(&mut || layer.attention()));
            feed_forward.iter_mut().for_each(|layer| record(&mut || layer.feed_forward()));
            record(&mut || drop(model.forward(&batch)));
        }
        let mut medians = times.into_iter().map(median);
        let mut next = |count: usize| -> Vec<f64> { medians.by_ref().take(count).collect() };
        table.value.milliseconds = next(table.value.sizes.len());
        table.query_key.milliseconds = next(table.query_key.sizes.len());
        table.attention_rest_milliseconds = next(1)[0];
        table.feed_forward.milliseconds = next(table.feed_forward.sizes.len());
        let pass = next(1)[0];
        for curve in [&mut table.value, &mut table.query_key, &mut table.feed_forward] {
            curve.straighten();
        }
        let wiring = model.wiring();
        table.rest_milliseconds = (pass - table.milliseconds(wiring, &Live::whole(wiring))).max(0.0);
        Ok(table)
    }
}

fn file_name(config: &Config, sequences: usize, tokens: usize) -> String {
    let Config { family, activation, layers, hidden, heads, feed_forward, vocabulary, .. } = config;
    let key = format!(
        "{FORMAT_VERSION} {} {} {} {family:?} {activation:?} {layers} {hidden} {heads} {feed_forward} {vocabulary} {sequences}x{tokens}",
        env!("CARGO_PKG_VERSION"),
        cpu::describe(),
        cpu::name(),
    );
    format!("{:016x}.json", random::derive(0, &key))
}

/// The time of one run of `work`, from as many as it takes to be measured.
fn milliseconds(work: &mut dyn FnMut()) -> f64 {
    work();
    let started = Instant::now();
    let mut runs = 0;
    loop {
        work();
        runs += 1;
        let elapsed = started.elapsed().as_secs_f64() * 1e3;
        if elapsed >= LEAST_MILLISECONDS {
            return elapsed / f64::from(runs);
        }
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_between_measured_sizes_lie_on_straight_lines() {
        let curve = Curve { sizes: vec![0, 32, 96], milliseconds: vec![1.0, 2.0, 6.0] };
        for (size, expected) in [(0, 1.0), (16, 1.5), (32, 2.0), (64, 4.0), (96, 6.0), (97, 6.0)] {
            assert!((curve.at(size) - expected).abs() < 1e-12, "{size}: {}", curve.at(size));
        }
    }

    #[test]
    fn more_units_never_count_as_faster() {
        let mut curve = Curve { sizes: vec![0, 32, 64, 96], milliseconds: vec![1.0, 5.0, 2.0, 3.0] };
        curve.straighten();
        assert_eq!(curve.milliseconds, [1.0, 2.0, 2.0, 3.0]);
    }

    #[test]
    fn what_attention_saves_is_counted_once() {
        let curve = |milliseconds: &[f64]| Curve { sizes: vec![0, 64], milliseconds: milliseconds.to_vec() };
        let table = LatencyTable {
            feed_forward: curve(&[1.0, 9.0]),
            value: curve(&[4.0, 10.0]),
            query_key: curve(&[3.0, 10.0]),
            attention_rest_milliseconds: 2.0,
            rest_milliseconds: 0.5,
            granularity: matrix::PANEL,
        };
        let time =
            |query_key, value, feed_forward| table.layer_milliseconds(&LayerSizes { query_key, value, feed_forward });
        assert_eq!(time(64, 64, 64), 19.0);
        assert_eq!(time(0, 64, 64), 12.0);
        assert_eq!(time(64, 0, 64), 13.0);
        assert_eq!(time(0, 0, 0), 3.0, "not below what always remains");
    }
}
