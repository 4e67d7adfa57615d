//! The hub client against a stand-in on this machine; no request leaves it.

mod dataset;
mod server;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use finegates_checkpoint::Error;
use finegates_checkpoint::source::{FetchOptions, resolve};

use crate::support::{folder, write};
use server::{Reply, Server, git_sha1, sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CONFIG: &[u8] = br#"{"model_type": "bert"}"#;

/// Weights with every byte value, so that a lost or doubled piece shows.
fn weights() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A stand-in for the hub with one model: small files served by itself, weights by `data` after a redirect.
fn hub(files: Vec<(&'static str, Vec<u8>)>, data: &Server) -> Server {
    let data = data.url();
    Server::start(move |request| {
        let list = files.iter().map(|(name, _)| format!(r#"{{"rfilename": "{name}"}}"#)).collect::<Vec<_>>().join(",");
        if request.path.starts_with("/api/models/org/name/revision/") {
            return Reply::ok(format!(r#"{{"sha": "{COMMIT}", "siblings": [{list}, {{"rfilename": "README.md"}}]}}"#));
        }
        let Some(name) = request.path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) else {
            return Reply::status(404);
        };
        let Some((_, content)) = files.iter().find(|(file, _)| *file == name) else { return Reply::status(404) };
        if name.ends_with(".safetensors") {
            let size = content.len().to_string();
            Reply::status(302)
                .with("location", &format!("{data}/{name}?signed=1"))
                .with("x-linked-etag", &format!("\"{}\"", sha256(content)))
                .with("x-linked-size", &size)
        } else {
            Reply::ok(content.clone()).with("etag", &format!("W/\"{}\"", git_sha1(content)))
        }
    })
}

/// Resolves with an environment of our own; returns what was told too.
fn fetch(spec: &str, cache: &Path, endpoint: &str, others: &[(&str, &str)]) -> (Result<PathBuf, Error>, Vec<String>) {
    let told = RefCell::new(Vec::new());
    let tell = |message: &str| told.borrow_mut().push(message.to_owned());
    let environment = |name: &str| {
        let other = others.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        other.or_else(|| match name {
            "HF_HOME" => Some(cache.as_os_str().to_owned()),
            "HF_ENDPOINT" => Some(OsString::from(endpoint)),
            _ => None,
        })
    };
    let options = FetchOptions { offline: false, progress: Some(&tell), environment: Some(&environment) };
    let result = resolve(spec, &options);
    (result, told.into_inner())
}

fn model_files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", CONFIG.to_vec()),
        ("vocab.txt", b"[UNK]\n".to_vec()),
        ("model.safetensors", weights()),
        ("pytorch_model.bin", b"a pickle".to_vec()),
        ("onnx/model.onnx", b"for others".to_vec()),
    ]
}

#[test]
fn a_model_is_fetched_once_into_the_layout_python_shares() {
    let cache = folder();
    let data = Server::start(|_| Reply::ok(weights()));
    let hub = hub(model_files(), &data);
    let (found, told) = fetch("org/name", cache.path(), &hub.url(), &[]);
    let found = found.expect("fetched");
    let model = cache.path().join("hub/models--org--name");
    assert_eq!(found, model.join("snapshots").join(COMMIT));
    assert_eq!(fs::read(found.join("config.json")).expect("read"), CONFIG);
    assert_eq!(fs::read(found.join("model.safetensors")).expect("read"), weights());
    assert_eq!(fs::read_to_string(model.join("refs/main")).expect("read"), COMMIT);
    assert!(
        model.join("blobs").join(git_sha1(CONFIG)).is_file() && model.join("blobs").join(sha256(&weights())).is_file()
    );
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(found.join("config.json")).expect("a link"),
        Path::new("../../blobs").join(git_sha1(CONFIG))
    );
    assert_eq!(fs::read_dir(&found).expect("list").count(), 3, "only what is needed is fetched");
    assert_eq!(fs::read_dir(model.join("blobs")).expect("list").count(), 3, "nothing is left beside the contents");
    assert!(told.contains(&"org/name: fetching model.safetensors (1.2 MB)".to_owned()), "{told:?}");

    // Again: one question whether main has moved. By its commit, or offline: none.
    let asked = hub.requests().len();
    assert_eq!(fetch("org/name", cache.path(), &hub.url(), &[]).0.expect("again"), found);
    assert_eq!(hub.requests().len(), asked + 1);
    assert_eq!(fetch(&format!("org/name@{COMMIT}"), cache.path(), &hub.url(), &[]).0.expect("by commit"), found);
    assert_eq!(fetch("org/name", cache.path(), &hub.url(), &[("HF_HUB_OFFLINE", "1")]).0.expect("offline"), found);
    assert_eq!(hub.requests().len(), asked + 1);

    // Gone: the copy is used, and said to be.
    let (copy, told) = fetch("org/name", cache.path(), "http://127.0.0.1:1", &[]);
    assert_eq!(copy.expect("the copy"), found);
    assert!(told[0].starts_with("org/name: the hub cannot be reached, using the copy in its cache"), "{told:?}");
}

#[test]
fn what_python_fetched_is_used_and_what_it_left_out_is_added() {
    let cache = folder();
    let snapshot = cache.path().join("hub/models--org--name/snapshots").join(COMMIT);
    write(&cache.path().join("hub/models--org--name/refs/main"), COMMIT);
    write(&snapshot.join("config.json"), CONFIG);
    write(&snapshot.join("model.safetensors"), weights());
    let offline = [("HF_HUB_OFFLINE", "ON")];
    assert_eq!(fetch("org/name", cache.path(), "http://127.0.0.1:1", &offline).0.expect("all of a model"), snapshot);
    let data = Server::start(|_| Reply::ok(weights()));
    let hub = hub(model_files(), &data);
    let found = fetch(&format!("org/name@{COMMIT}"), cache.path(), &hub.url(), &[]).0.expect("with its vocabulary");
    assert_eq!(found, snapshot);
    assert!(snapshot.join("vocab.txt").is_file());
    assert!(data.requests().is_empty(), "the weights were there");
    let asked: Vec<String> = hub.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(asked.iter().filter(|path| path.contains("/resolve/")).count(), 2, "{asked:?}");
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let cache = folder();
    let data = Server::start(|_| Reply::ok(weights()));
    let hub = hub(model_files(), &data);
    fetch("org/name@v1", cache.path(), &hub.url(), &[("HF_TOKEN", " hf_secret\n")]).0.expect("fetched");
    assert!(hub.requests().iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    assert!(data.requests().iter().all(|request| request.header("authorization").is_none()));
    assert!(!data.requests().is_empty());
    assert!(cache.path().join("hub/models--org--name/refs/v1").is_file());
    // The one that `hf auth login` leaves.
    let cache = folder();
    write(&cache.path().join("token"), "hf_file\n");
    fetch("org/name", cache.path(), &hub.url(), &[]).0.expect("fetched");
    assert_eq!(hub.requests().last().expect("asked").header("authorization"), Some("Bearer hf_file"));
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let cache = folder();
    let data = Server::start(|request| {
        let content = weights();
        let start = request
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
            .unwrap_or(0);
        let reply = if start == 0 { Reply::ok(content) } else { Reply::ok(&content[start..]).partial() };
        // Every connection breaks after a while.
        reply.cut_after(500_000)
    });
    let hub = hub(model_files(), &data);
    let found = fetch("org/name", cache.path(), &hub.url(), &[]).0.expect("fetched in pieces");
    assert_eq!(fs::read(found.join("model.safetensors")).expect("read"), weights());
    let ranges: Vec<_> = data.requests().iter().map(|request| request.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [None, Some("bytes=500000-".into()), Some("bytes=1000000-".into())]);
}

#[test]
fn a_content_that_is_not_the_announced_one_is_thrown_away() {
    let cache = folder();
    let data = Server::start(|_| {
        let mut content = weights();
        content[1000] ^= 1;
        Reply::ok(content)
    });
    let server = hub(model_files(), &data);
    let error = fetch("org/name", cache.path(), &server.url(), &[]).0.expect_err("a changed byte").to_string();
    assert!(
        error.contains("expected content with hash ") && error.contains("is a proxy or mirror changing it?"),
        "{error}"
    );
    assert!(!cache.path().join("hub/models--org--name/refs/main").exists());
    let longer = Server::start(|_| Reply::ok([weights(), weights()].concat()));
    let error =
        fetch("org/name", cache.path(), &hub(model_files(), &longer).url(), &[]).0.expect_err("too long").to_string();
    assert!(error.contains("more came than the announced 1200000 bytes"), "{error}");
    // The next attempt begins anew and ends well.
    let data = Server::start(|_| Reply::ok(weights()));
    fetch("org/name", cache.path(), &hub(model_files(), &data).url(), &[]).0.expect("an honest server");
}

#[test]
fn refusals_say_what_to_do() {
    for (reply, token, expected) in [
        (Reply::status(401), None, "it is private; set HF_TOKEN to a token that may read it"),
        (Reply::status(401), Some("hf_x"), "your token (HF_TOKEN or hf auth login) may not read it"),
        (
            Reply::status(403).with("x-error-code", "GatedRepo"),
            Some("hf_x"),
            "accept their terms at https://huggingface.co/org/name and set HF_TOKEN",
        ),
        (Reply::status(404), None, "the hub knows no such model; is it spelled right?"),
        (
            Reply::status(404).with("x-error-code", "RevisionNotFound"),
            None,
            "the model has no branch, tag or commit v9",
        ),
        (Reply::status(418), None, "the hub answered 418; try again later"),
        (Reply::ok("<html>a login page</html>"), None, "is no list of a model's files; is HF_ENDPOINT right?"),
        (
            Reply::ok(r#"{"sha": "../../../../tmp", "siblings": []}"#),
            None,
            "is no list of a model's files; is HF_ENDPOINT right?",
        ),
        (Reply::ok(format!(r#"{{"sha": "{COMMIT}", "siblings": []}}"#)), None, "the hub's model has no config.json"),
    ] {
        let cache = folder();
        let server = Server::start(move |_| reply.clone());
        let others: Vec<(&str, &str)> = token.map(|token| ("HF_TOKEN", token)).into_iter().collect();
        let error = fetch("org/name@v9", cache.path(), &server.url(), &others).0.expect_err(expected).to_string();
        assert!(error.starts_with("org/name@v9: ") && error.contains(expected), "{error}");
        assert!(!error.contains("hf_x"), "a token in a message: {error}");
        assert_eq!(fs::read_dir(cache.path()).expect("list").count(), 0, "{expected}");
    }
}

#[test]
fn offline_and_unreachable_are_told_apart() {
    let cache = folder();
    let error = fetch("org/name", cache.path(), "http://127.0.0.1:1", &[("HF_HUB_OFFLINE", "yes")])
        .0
        .expect_err("offline")
        .to_string();
    assert!(error.starts_with("org/name: no such folder, and not in the hub's cache at "), "{error}");
    assert!(error.ends_with("which is all that HF_HUB_OFFLINE allows"), "{error}");
    let error = fetch("org/name", cache.path(), "http://127.0.0.1:1", &[]).0.expect_err("unreachable").to_string();
    assert!(
        error.contains("the hub cannot be reached (http://127.0.0.1:1/api/models/org/name/revision/main: "),
        "{error}"
    );
    let error = fetch("org/name", cache.path(), "not a url", &[]).0.expect_err("no endpoint").to_string();
    assert!(error.contains("HF_ENDPOINT: expected a URL, found not a url"), "{error}");
}

#[test]
fn a_busy_server_is_asked_again_and_renamed_models_are_found() {
    let cache = folder();
    let data = Server::start(|_| Reply::ok(weights()));
    let inner = hub(model_files(), &data);
    let inner_url = inner.url();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let outer = Server::start(move |request| {
        if asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 {
            return Reply::status(503).with("retry-after", "0");
        }
        match request.path.strip_prefix("/api/models/old") {
            Some(rest) => Reply::status(307).with("location", &format!("/api/models/org/name{rest}")),
            None => match request.path.strip_prefix("/old/") {
                Some(rest) => Reply::status(307).with("location", &format!("/org/name/{rest}")),
                None => server::forward(&inner_url, request),
            },
        }
    });
    let found = fetch("old", cache.path(), &outer.url(), &[]).0.expect("found under its new name");
    assert_eq!(found, cache.path().join("hub/models--old/snapshots").join(COMMIT));
    assert_eq!(fs::read(found.join("model.safetensors")).expect("read"), weights());
}

#[test]
fn a_busy_hub_is_as_good_as_none_when_the_model_is_in_the_cache() {
    let cache = folder();
    let data = Server::start(|_| Reply::ok(weights()));
    let found = fetch("org/name", cache.path(), &hub(model_files(), &data).url(), &[]).0.expect("fetched");
    for status in [429, 500, 503] {
        let busy = Server::start(move |_| Reply::status(status).with("retry-after", "0"));
        let (copy, told) = fetch("org/name", cache.path(), &busy.url(), &[]);
        assert_eq!(copy.expect("the copy"), found);
        let expected =
            format!("org/name: the hub cannot be reached, using the copy in its cache (it answered {status})");
        assert_eq!(told, [expected]);
        assert_eq!(busy.requests().len(), 2, "asked once more, not for minutes");
    }
    // What is refused for good is not hidden by an old copy.
    let gone = Server::start(|_| Reply::status(404));
    let error = fetch("org/name", cache.path(), &gone.url(), &[]).0.expect_err("gone").to_string();
    assert!(error.contains("the hub knows no such model"), "{error}");
}

#[test]
fn offline_is_said_as_huggingface_hub_reads_it() {
    for (value, expected) in [
        ("1", true),
        ("ON", true),
        ("yes", true),
        ("True", true),
        ("0", false),
        ("", false),
        ("no", false),
        ("2", false),
    ] {
        for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            let environment = |name: &str| (name == variable).then(|| OsString::from(value));
            let options = FetchOptions { environment: Some(&environment), ..FetchOptions::default() };
            assert_eq!(options.hub_offline(), expected, "{variable}={value}");
            assert!(FetchOptions { offline: true, ..options }.hub_offline());
        }
    }
}

#[test]
fn shards_are_fetched_and_must_stay_in_their_folder() {
    let data = Server::start(|request| if request.path.contains("one") { Reply::ok("11") } else { Reply::ok("2") });
    let index = |second: &str| format!(r#"{{"weight_map": {{"a": "one.safetensors", "b": "{second}"}}}}"#).into_bytes();
    let files = |second: &str| {
        vec![
            ("config.json", CONFIG.to_vec()),
            ("model.safetensors.index.json", index(second)),
            ("one.safetensors", b"11".to_vec()),
            ("two.safetensors", b"2".to_vec()),
        ]
    };
    let cache = folder();
    let found = fetch("org/name", cache.path(), &hub(files("two.safetensors"), &data).url(), &[]).0.expect("fetched");
    assert_eq!(fs::read(found.join("one.safetensors")).expect("read"), b"11");
    assert_eq!(fs::read(found.join("two.safetensors")).expect("read"), b"2");
    let cache = folder();
    let error =
        fetch("org/name", cache.path(), &hub(files("../../x"), &data).url(), &[]).0.expect_err("outside").to_string();
    assert!(error.contains("b: expected the name of a file in the same folder, found ../../x"), "{error}");
}

#[test]
fn a_model_that_is_only_a_pickle_says_how_to_convert_it() {
    let cache = folder();
    let data = Server::start(|_| Reply::status(404));
    let files = vec![("config.json", CONFIG.to_vec()), ("pytorch_model.bin", b"x".to_vec())];
    let error = fetch("org/name", cache.path(), &hub(files, &data).url(), &[]).0.expect_err("a pickle").to_string();
    assert!(
        error.contains("only as pytorch_model.bin") && error.contains("org/name main name\nand give the folder name"),
        "{error}"
    );
    let error = fetch("org/name", cache.path(), &hub(vec![("config.json", CONFIG.to_vec())], &data).url(), &[])
        .0
        .expect_err("no weights");
    assert!(error.to_string().contains("has no model.safetensors"), "{error}");
}

#[test]
fn an_etag_that_would_lead_elsewhere_is_refused() {
    for etag in ["../../evil", "", "a/b"] {
        let cache = folder();
        let server = Server::start(move |request| match request.path.starts_with("/api/") {
            true => Reply::ok(format!(
                r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "config.json"}}, {{"rfilename": "model.safetensors"}}]}}"#
            )),
            false => Reply::ok(CONFIG).with("etag", &format!("\"{etag}\"")),
        });
        let error = fetch("org/name", cache.path(), &server.url(), &[]).0.expect_err("an etag").to_string();
        assert!(error.contains("config.json: expected an etag from the hub, found "), "{error}");
    }
}

#[test]
fn what_is_neither_folder_nor_id_is_said_to_be_so() {
    let cache = folder();
    let file = cache.path().join("file");
    write(&file, "");
    let said = |spec: &str| fetch(spec, cache.path(), "http://127.0.0.1:1", &[]).0.expect_err(spec).to_string();
    assert!(said("./missing").contains("no such folder, and neither a hub id (name or org/name"));
    assert!(
        said(&file.display().to_string())
            .ends_with("expected a model folder, found a file; give the folder it lies in")
    );
    assert_eq!(fetch(&cache.path().display().to_string(), cache.path(), "", &[]).0.expect("a folder"), cache.path());
}
