//! One file of a data set on the hub. Which commit a branch is at, the answer for the file itself says.

use std::path::PathBuf;

use super::{Download, Repository, Storage, refused, snapshot};
use crate::Error;
use crate::error::shorten;
use crate::source::FetchOptions;
use crate::source::transfer::{Client, Patience, Unreachable};

/// The place of a data set's file, fetched if it is not in the cache. `file` is a path as [`is_plain`] has it.
pub(in crate::source) fn fetch_file(
    dataset: &Repository,
    file: &str,
    options: &FetchOptions,
) -> Result<PathBuf, Error> {
    let environment = options.environment();
    let storage = Storage::new(&environment.hub_cache()?, dataset);
    let commit = storage.commit(&dataset.revision);
    let cached = commit.map(|commit| storage.snapshot(&commit).join(file)).filter(|place| place.is_file());
    // What a commit holds never changes.
    if let Some(place) = cached.as_ref().filter(|_| snapshot::is_commit(&dataset.revision)) {
        return Ok(place.clone());
    }
    if options.hub_offline() {
        return dataset.offline(cached, &storage, options);
    }
    let endpoint = environment.hub_endpoint();
    let client = match Client::new(&endpoint, environment.hub_token()) {
        Ok(client) => client,
        Err(Unreachable(reason)) => return dataset.copy_in_place_of(cached, &reason, options),
    };
    let download = Download { repository: dataset, endpoint, client, storage, options };
    let url = download.url(&dataset.revision.replace('/', "%2F"), file);
    let patience = if cached.is_some() { Patience::Little } else { Patience::Much };
    let reply = match download.client.head(&url, patience) {
        Ok(reply) if reply.is_busy() && cached.is_some() => {
            return dataset.copy_in_place_of(cached, &format!("it answered {}", reply.status), options);
        }
        Ok(reply) => reply,
        Err(Unreachable(reason)) => return dataset.copy_in_place_of(cached, &reason, options),
    };
    if reply.header("x-error-code") == Some("EntryNotFound") {
        return Err(dataset.wrong(format!("the data set has no file {file}")));
    }
    if !(200..400).contains(&reply.status) {
        return Err(refused(dataset, &download.client, &reply));
    }
    let Some(commit) = reply.header("x-repo-commit").filter(|commit| snapshot::is_commit(commit)) else {
        let found = shorten(reply.header("x-repo-commit").unwrap_or("none"));
        let reason =
            format!("{file}: expected a commit from {}, found {found}; is HF_ENDPOINT right?", download.endpoint);
        return Err(dataset.wrong(reason));
    };
    let place = download.storage.snapshot(commit).join(file);
    if !place.is_file() {
        download.announced(&reply, commit, file)?;
    }
    download.storage.point(&dataset.revision, commit)?;
    Ok(place)
}

/// Whether a text is the path of a file below a folder, of letters that stand for themselves in a URL.
pub(in crate::source) fn is_plain(file: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=' | b'+');
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.len() <= 255 && part.bytes().all(letter);
    file.split('/').count() <= 16 && file.split('/').all(part)
}
