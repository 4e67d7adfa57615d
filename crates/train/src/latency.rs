//! How long a layer's parts take on this machine by their sizes: measured once, kept, and added up for a model.

use std::path::Path;
use std::time::{Duration, Instant};

use finegates_checkpoint::write::write_atomic;
use finegates_kernels::{cpu, matrix, random};
use finegates_model::sample::{LayerSizes, SampleLayer};
use finegates_model::wiring::Role;
use finegates_model::{Batch, Model, Wiring};
use serde::{Deserialize, Serialize};

use crate::budget::Live;
use crate::error::Error;

/// How long a size is measured at least, and how often at least and at most.
const MEASURED: (Duration, usize, usize) = (Duration::from_millis(30), 5, 200);
/// Sizes measured of each curve.
const POINTS: usize = 16;

/// Milliseconds of one part of a layer at several sizes; between them straight lines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Units left, ascending, from 0.
    pub sizes: Vec<usize>,
    /// Milliseconds at each size.
    pub milliseconds: Vec<f64>,
}

impl Curve {
    /// Times at up to [`POINTS`] multiples of what products are cut into, up to `whole`. More never counts as faster.
    fn measure(whole: usize, mut time: impl FnMut(usize) -> f64) -> Curve {
        let step = whole.div_ceil(POINTS).next_multiple_of(matrix::PANEL);
        let mut sizes: Vec<usize> = (0..whole).step_by(step).collect();
        sizes.push(whole);
        let mut milliseconds: Vec<f64> = sizes.iter().map(|&size| time(size)).collect();
        for at in 1..milliseconds.len() {
            milliseconds[at] = milliseconds[at].max(milliseconds[at - 1]);
        }
        Curve { sizes, milliseconds }
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
}

/// Times of the parts of every layer of a model, all layers having the same sizes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyTable {
    /// Up and down products with their activation, by inner units.
    pub feed_forward: Curve,
    /// Value and output products and the contexts, by value dimensions.
    pub value: Curve,
    /// Query and key products and the scores, by query dimensions.
    pub query_key: Curve,
    /// What a pass takes besides: embeddings, norms, the head.
    pub rest_milliseconds: f64,
    /// Sizes that run well are multiples of this.
    pub granularity: usize,
}

impl LatencyTable {
    /// The table of a model for passes over so many sequences of so many tokens: the one in `folder`, if it was measured there
    /// before on this machine by this version, or one measured now and kept there. A folder that cannot be written is no error.
    ///
    /// # Errors
    /// [`Error::Latency`] if the model cannot take such a pass.
    pub fn of(model: &Model, sequences: usize, tokens: usize, folder: Option<&Path>) -> Result<LatencyTable, Error> {
        let path = folder.map(|folder| folder.join(file_name(model, sequences, tokens)));
        if let Some(known) = path.as_deref().and_then(LatencyTable::read) {
            return Ok(known);
        }
        let table = LatencyTable::measure(model, sequences, tokens)?;
        if let Some(path) = path {
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = table.write(&path);
        }
        Ok(table)
    }

    /// Reads a table; none if there is none or it is no table.
    pub fn read(path: &Path) -> Option<LatencyTable> {
        let text =
            finegates_checkpoint::read::read_text(path, finegates_checkpoint::read::SETTINGS_LIMIT_BYTES).ok()?;
        serde_json::from_str(&text).ok().filter(LatencyTable::sound)
    }

    /// Writes the table.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        Ok(write_atomic(path, text.as_bytes())?)
    }

    fn sound(&self) -> bool {
        let sound = |curve: &Curve| {
            curve.sizes.len() == curve.milliseconds.len()
                && curve.sizes.first() == Some(&0)
                && curve.sizes.windows(2).all(|pair| pair[0] < pair[1])
                && curve.milliseconds.iter().all(|time| time.is_finite())
        };
        self.granularity > 0
            && self.rest_milliseconds.is_finite()
            && [&self.feed_forward, &self.value, &self.query_key].into_iter().all(sound)
    }

    fn measure(model: &Model, sequences: usize, tokens: usize) -> Result<LatencyTable, Error> {
        let config = model.config();
        let whole = LayerSizes::whole(config);
        if tokens > model.max_length() {
            return Err(Error::Latency { tokens, longest: model.max_length() });
        }
        let layer = |sizes: LayerSizes| SampleLayer::new(config, &sizes, sequences, tokens);
        let attention = |sizes: LayerSizes| {
            let mut layer = layer(sizes);
            median_milliseconds(|| layer.attention())
        };
        let feed_forward = Curve::measure(whole.feed_forward, |feed_forward| {
            let mut layer = layer(LayerSizes { feed_forward, ..whole });
            median_milliseconds(|| layer.feed_forward())
        });
        let value = Curve::measure(whole.value, |value| attention(LayerSizes { value, ..whole }));
        let mut query_key = Curve::measure(whole.query_key, |query_key| attention(LayerSizes { query_key, ..whole }));
        // Both curves hold the whole attention block; the second keeps what it saves beside the first.
        let all = query_key.at(whole.query_key);
        query_key.milliseconds.iter_mut().for_each(|time| *time -= all);
        let mut table =
            LatencyTable { feed_forward, value, query_key, rest_milliseconds: 0.0, granularity: matrix::PANEL };
        let ids: Vec<u32> =
            (0..tokens as u64).map(|at| (random::mix(3, at) % config.vocabulary as u64) as u32).collect();
        let segments = vec![0; tokens];
        let batch = Batch::new((0..sequences).map(|_| (ids.as_slice(), segments.as_slice())));
        model.forward(&batch)?;
        let pass = median_milliseconds(|| {
            let _ = model.forward(&batch);
        });
        let wiring = model.wiring();
        table.rest_milliseconds = (pass - table.milliseconds(wiring, &Live::whole(wiring))).max(0.0);
        Ok(table)
    }

    /// The time of a pass through what lives.
    pub fn milliseconds(&self, wiring: &Wiring, live: &Live) -> f64 {
        let parts = wiring.projections.iter().zip(&live.rows).map(|(projection, &rows)| match projection.role {
            Role::Up => self.feed_forward.at(rows),
            Role::Value => self.value.at(rows),
            Role::Query => self.query_key.at(rows),
            _ => 0.0,
        });
        self.rest_milliseconds + parts.sum::<f64>()
    }
}

fn file_name(model: &Model, sequences: usize, tokens: usize) -> String {
    let config = model.config();
    let key = format!(
        "{} {} {} {} {} {} {} {sequences}x{tokens}",
        env!("CARGO_PKG_VERSION"),
        cpu::describe(),
        cpu::name(),
        config.layers,
        config.hidden,
        config.heads,
        config.feed_forward
    );
    format!("{:016x}.json", random::derive(0, &key))
}

fn median_milliseconds(mut work: impl FnMut()) -> f64 {
    let (least, fewest, most) = MEASURED;
    work();
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < fewest || times.len() < most && started.elapsed() < least {
        let began = Instant::now();
        work();
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
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
}
