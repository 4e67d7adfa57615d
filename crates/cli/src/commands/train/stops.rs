//! What a run with a budget leaves besides its adapters: a compact model for each stop, and the curve over them.

use std::path::Path;

use finegates_checkpoint::write::write_atomic;
use finegates_infer::Which;
use finegates_train::Summary;
use finegates_train::folder::COMPACT;

use crate::arguments::Common;
use crate::commands::compress::{Job, compress, own_probe};
use crate::curve::{Curve, Point};
use crate::figures::{bytes, percent};

/// The name of the curve's files in the run folder, without their endings.
const CURVE: &str = "curve";

/// Makes a compact model of every stop that has none yet, in the run's `compact` folder, and writes the curve.
///
/// # Errors
/// As compressing.
pub fn compact_stops(summary: &Summary, common: &Common) -> anyhow::Result<Curve> {
    let folder = &summary.folder;
    let run = folder.display().to_string();
    let mut points = Vec::new();
    for stop in &summary.stops {
        let output = folder.join(COMPACT).join(&stop.name);
        let which = Which::Stop(stop.name.clone());
        let job = Job { run: &run, output: &output, overwrite: output.exists(), checkpoint: which, base: None };
        let report = compress(&job, common, own_probe)?;
        points.push(Point {
            name: stop.name.clone(),
            asked: stop.asked,
            left: stop.left,
            removed: report.removal.totals.share_removed(),
            score: stop.score,
            step: stop.step,
            epoch: stop.epoch,
            compact: output.display().to_string(),
            size_bytes: report.size_bytes.after,
        });
    }
    let curve = Curve { metric: summary.best_metric.clone(), points };
    write(folder, &curve)?;
    Ok(curve)
}

fn write(folder: &Path, curve: &Curve) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(curve)? + "\n";
    write_atomic(&folder.join(CURVE).with_extension("json"), json.as_bytes())?;
    write_atomic(&folder.join(CURVE).with_extension("svg"), curve.to_svg().as_bytes())?;
    Ok(())
}

/// A stop in a line.
pub fn point_text(point: &Point, metric: &str) -> String {
    format!(
        "{}: {metric} {:.4}, {} of the gated weights removed, {} in {}",
        point.name,
        point.score,
        percent(point.removed),
        bytes(point.size_bytes),
        point.compact
    )
}
