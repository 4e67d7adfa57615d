//! Single files of data sets.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use finegates_checkpoint::Error;
use finegates_checkpoint::source::{FetchOptions, dataset_file};

use super::COMMIT;
use super::server::{Reply, Server, git_sha1, sha256};
use crate::support::folder;

const FILE: &str = "plain_text/train-00000-of-00001.parquet";
const NEWER: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn rows() -> Vec<u8> {
    (0..200_000u32).flat_map(u32::to_le_bytes).collect()
}

/// A stand-in for the hub with one data set: a large file whose content lies elsewhere, and a small one.
fn hub(data: &Server, commit: &'static str) -> Server {
    let data = data.url();
    Server::start(move |request| {
        let reply =
            match request.path.strip_prefix("/datasets/org/texts/resolve/").and_then(|rest| rest.split_once('/')) {
                Some((revision, _)) if revision != "main" && revision != "a%2Fbranch" && revision != commit => {
                    return Reply::status(404).with("x-error-code", "RevisionNotFound");
                }
                Some((_, FILE)) => Reply::status(302)
                    .with("location", &format!("{data}/content?signed=1"))
                    .with("x-linked-etag", &format!("\"{}\"", sha256(&rows())))
                    .with("x-linked-size", &rows().len().to_string()),
                Some((_, "README.md")) => Reply::ok("words").with("etag", &format!("\"{}\"", git_sha1(b"words"))),
                Some(_) => Reply::status(404).with("x-error-code", "EntryNotFound"),
                None => Reply::status(404),
            };
        reply.with("x-repo-commit", commit)
    })
}

fn fetch(
    (id, revision, file): (&str, &str, &str),
    cache: &Path,
    endpoint: &str,
    offline: bool,
) -> (Result<PathBuf, Error>, Vec<String>) {
    let told = RefCell::new(Vec::new());
    let tell = |message: &str| told.borrow_mut().push(message.to_owned());
    let environment = |name: &str| match name {
        "HF_HOME" => Some(cache.as_os_str().to_owned()),
        "HF_ENDPOINT" => Some(OsString::from(endpoint)),
        "HF_TOKEN" => Some(OsString::from("hf_secret")),
        "HF_HUB_OFFLINE" => offline.then(|| OsString::from("1")),
        _ => None,
    };
    let options = FetchOptions { offline: false, progress: Some(&tell), environment: Some(&environment) };
    let result = dataset_file(id, revision, file, &options);
    (result, told.into_inner())
}

#[test]
fn a_file_is_fetched_once_into_the_layout_python_shares() {
    let cache = folder();
    let data = Server::start(|_| Reply::ok(rows()));
    let server = hub(&data, COMMIT);
    let (found, told) = fetch(("org/texts", "main", FILE), cache.path(), &server.url(), false);
    let found = found.expect("fetched");
    let place = cache.path().join("hub/datasets--org--texts");
    assert_eq!(found, place.join("snapshots").join(COMMIT).join(FILE));
    assert_eq!(fs::read(&found).expect("read"), rows());
    assert_eq!(fs::read_to_string(place.join("refs/main")).expect("read"), COMMIT);
    #[cfg(unix)]
    assert_eq!(fs::read_link(&found).expect("a link"), Path::new("../../../blobs").join(sha256(&rows())));
    assert_eq!(told[0], format!("org/texts: fetching {FILE} (0.8 MB)"));
    assert!(server.requests().iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    assert!(data.requests().iter().all(|request| request.header("authorization").is_none()));

    // Again: one question. By its commit, or offline: none.
    let asked = server.requests().len();
    let again = |revision: &str, offline| fetch(("org/texts", revision, FILE), cache.path(), &server.url(), offline).0;
    assert_eq!(again("main", false).expect("again"), found);
    assert_eq!((server.requests().len(), data.requests().len()), (asked + 1, 1));
    assert_eq!(again(COMMIT, false).expect("by commit"), found);
    assert_eq!(again("main", true).expect("offline"), found);
    assert_eq!(server.requests().len(), asked + 1);
    assert_eq!(again("a/branch", false).expect("a branch"), found);
    assert!(place.join("refs/a/branch").is_file());

    // The branch has moved on; what did not change is not fetched again.
    let moved = hub(&data, NEWER);
    let newer = fetch(("org/texts", "main", FILE), cache.path(), &moved.url(), false).0.expect("moved");
    assert_eq!(newer, place.join("snapshots").join(NEWER).join(FILE));
    assert_eq!(fs::read(&newer).expect("read"), rows());
    assert_eq!(data.requests().len(), 1);

    // Gone or busy: the copy is used, and said to be.
    for endpoint in ["http://127.0.0.1:1".to_owned(), Server::start(|_| Reply::status(503)).url()] {
        let (copy, told) = fetch(("org/texts", "main", FILE), cache.path(), &endpoint, false);
        assert_eq!(copy.expect("the copy"), newer);
        assert!(told[0].starts_with("org/texts: the hub cannot be reached, using the copy in its cache ("), "{told:?}");
    }
}

#[test]
fn a_small_file_of_the_first_folder_is_fetched_too() {
    let cache = folder();
    let data = Server::start(|_| Reply::status(404));
    let found = fetch(("org/texts", "main", "README.md"), cache.path(), &hub(&data, COMMIT).url(), false).0;
    assert_eq!(fs::read_to_string(found.expect("fetched")).expect("read"), "words");
}

#[test]
fn what_cannot_be_had_is_said() {
    let cache = folder();
    let data = Server::start(|_| Reply::status(404));
    let server = hub(&data, COMMIT);
    let said = |id: &str, revision: &str, file: &str, offline| {
        fetch((id, revision, file), cache.path(), &server.url(), offline).0.expect_err("an error").to_string()
    };
    assert_eq!(said("org/texts", "main", "x.csv", false), "org/texts: the data set has no file x.csv");
    assert_eq!(said("org/texts", "v9", "x.csv", false), "org/texts@v9: the data set has no branch, tag or commit v9");
    assert_eq!(said("other", "main", "x.csv", false), "other: the hub knows no such data set; is it spelled right?");
    let error = said("org/texts", "main", "x.csv", true);
    assert!(error.starts_with("org/texts: not in the hub's cache at ") && error.contains("HF_HUB_OFFLINE"), "{error}");
    for file in ["../x", "a/../x", "/x", "", "a//b", "a b", "a?b", "a%2e", ".hidden", "a\\b"] {
        let error = said("org/texts", "main", file, false);
        assert!(error.starts_with("org/texts: expected the path of a file in the data set"), "{file}: {error}");
    }
    for (id, revision) in [("a/b/c", "main"), ("../x", "main"), ("org/texts", "../x"), ("org/texts", "")] {
        assert!(said(id, revision, "x", false).contains("expected the id of a data set"), "{id} {revision}");
    }
    let liar = Server::start(|_| Reply::ok("x").with("etag", "\"a\"").with("x-repo-commit", "../../x"));
    let error = fetch(("org/texts", "main", "x"), cache.path(), &liar.url(), false).0.expect_err("a liar").to_string();
    assert!(error.contains("x: expected a commit from http://") && error.contains("found ../../x"), "{error}");
    assert_eq!(fs::read_dir(cache.path()).expect("list").count(), 0);
}
