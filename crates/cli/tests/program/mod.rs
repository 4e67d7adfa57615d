//! Running the real binary on tiny checkpoints and made-up data.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// What came of running the program.
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The exit status must be this; shows everything otherwise.
    #[track_caller]
    pub fn exits(self, status: i32) -> Ran {
        assert_eq!(self.status, status, "\nstdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output as the one JSON object it must be.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.stdout.trim_end().lines().count(), 1, "one line:\n{}", self.stdout);
        let value: serde_json::Value = serde_json::from_str(&self.stdout).unwrap();
        assert!(value.is_object());
        value
    }

    #[track_caller]
    pub fn says(&self, words: &str) {
        assert!(self.stdout.contains(words), "expected {words:?} in standard output:\n{}", self.stdout);
    }

    #[track_caller]
    pub fn complains(&self, words: &str) {
        assert!(self.stderr.contains(words), "expected {words:?} in standard error:\n{}", self.stderr);
    }
}

/// The program, with no settings of whoever runs the tests.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_finegates"));
    command.args(arguments).stdin(Stdio::null());
    for name in ["FINEGATES_THREADS", "FINEGATES_ISA"] {
        command.env_remove(name);
    }
    command.env("HF_HUB_OFFLINE", "1").env("FINEGATES_CACHE", std::env::temp_dir().join("finegates-tests-cache"));
    command
}

pub fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

pub fn run(arguments: &[&str]) -> Ran {
    ran(command(arguments).output().unwrap())
}

/// Runs with this on standard input.
pub fn run_with_input(arguments: &[&str], input: &str) -> Ran {
    let mut child = piped(arguments);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // The program may stop reading before the end.
        let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    ran(output)
}

/// Starts the program with all its streams connected.
pub fn piped(arguments: &[&str]) -> Child {
    command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The folder of a tiny checkpoint.
pub fn tiny(family: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(family);
    folder.to_str().unwrap().to_owned()
}

/// A copy of the tiny BERT checkpoint without its task head.
pub fn headless(place: &Place) -> String {
    let folder = place.path("headless");
    std::fs::create_dir(&folder).unwrap();
    for name in ["config.json", "vocab.txt", "tokenizer_config.json"] {
        std::fs::copy(Path::new(&tiny("bert")).join(name), folder.join(name)).unwrap();
    }
    let bytes = std::fs::read(Path::new(&tiny("bert")).join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = tensors.iter().filter(|(name, _)| !name.starts_with("classifier."));
    let written = safetensors::serialize(kept, None).unwrap();
    std::fs::write(folder.join("model.safetensors"), written).unwrap();
    folder.to_str().unwrap().to_owned()
}

/// A folder that goes away with the test.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same as an argument.
    pub fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, content: &str) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.name(name)
    }

    /// `train.csv` and `dev.csv` of sentences that are good or bad.
    pub fn with_data(train_rows: usize) -> Place {
        let place = Place::new();
        place.write("train.csv", &sentences(train_rows, 0));
        place.write("dev.csv", &sentences(40, 7000));
        place
    }
}

/// Labelled sentences of the tiny vocabularies' own words.
pub fn sentences(rows: usize, first: usize) -> String {
    const THINGS: [&str; 6] = ["film", "plot", "cast", "actor", "music", "story"];
    const GOOD: [&str; 3] = ["good", "great", "fine"];
    const BAD: [&str; 3] = ["bad", "dull", "awful"];
    let mut text = "sentence,label\n".to_owned();
    for row in (first..).take(rows) {
        let mixed = row.wrapping_mul(2_654_435_761) >> 7;
        let (thing, good) = (THINGS[mixed % 6], mixed.is_multiple_of(2));
        let word = if good { GOOD[mixed / 7 % 3] } else { BAD[mixed / 7 % 3] };
        let label = if good { "positive" } else { "negative" };
        let tail = ["", " and we saw it", ", really"][mixed / 23 % 3];
        text.push_str(&format!("\"the {thing} was very {word}{tail}\",{label}\n"));
    }
    text
}
