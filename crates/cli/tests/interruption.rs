//! Runs that are stopped or killed go on to the same bits as runs that were not. Signals are Unix's.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod program;

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use program::{Place, piped, ran, run, tiny};

fn arguments(place: &Place, output: &str) -> Vec<String> {
    let words = [
        "train",
        "--model",
        &tiny("bert"),
        "--train",
        &place.name("train.csv"),
        "--validation",
        &place.name("dev.csv"),
        "--output",
        &place.name(output),
        "--epochs",
        "6",
        "--gate-learning-rate",
        "0.05",
        "--checkpoint-every",
        "25 steps",
        "--kurtosis",
    ];
    words.map(str::to_owned).to_vec()
}

fn start(arguments: &[String]) -> Child {
    piped(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Waits until the journal has so many lines.
fn wait_for_lines(run: &Path, lines: usize, child: &mut Child) {
    let started = Instant::now();
    loop {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        if text.lines().count() >= lines {
            return;
        }
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
        assert!(started.elapsed() < Duration::from_secs(120), "the run does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Everything a run says about itself, but for what the clock says.
fn journal(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        for name in ["seconds", "sequences_per_second"] {
            value.as_object_mut().unwrap().remove(name);
        }
        value
    });
    lines.collect()
}

fn assert_same_run(a: &Path, b: &Path) {
    for part in ["adapter", "best"] {
        let bytes = |run: &Path| std::fs::read(run.join(part).join("adapter_model.safetensors")).unwrap();
        assert!(bytes(a) == bytes(b), "{part} differs");
    }
    assert_eq!(journal(a), journal(b));
}

#[test]
fn ctrl_c_saves_and_resume_goes_on_to_the_same_bits() {
    let place = Place::with_data(800);
    let mut child = start(&arguments(&place, "stopped"));
    wait_for_lines(&place.path("stopped"), 40, &mut child);
    signal(&child, "INT");
    let stopped = ran(child.wait_with_output().unwrap()).exits(130);
    stopped.says("interrupted");
    stopped.says(&format!("finegates train --resume {}", place.name("stopped")));
    stopped.complains("stopping after this step");
    assert!(journal(&place.path("stopped")).len() < 306, "it was to stop before its end");
    run(&["eval", &place.name("stopped"), "--checkpoint", "last"]).exits(0);
    run(&["train", "--resume", &place.name("stopped"), "--threads", "1"]).exits(0).says("finished");

    let whole = arguments(&place, "whole");
    run(&whole.iter().map(String::as_str).collect::<Vec<_>>()).exits(0);
    assert_same_run(&place.path("stopped"), &place.path("whole"));
}

#[test]
fn a_killed_run_resumes_from_its_last_checkpoint_to_the_same_bits() {
    let place = Place::with_data(800);
    let mut child = start(&arguments(&place, "killed"));
    for lines in [60, 150] {
        wait_for_lines(&place.path("killed"), lines, &mut child);
        signal(&child, "KILL");
        child.wait().unwrap();
        child = start(&["train", "--resume", &place.name("killed")].map(str::to_owned));
    }
    ran(child.wait_with_output().unwrap()).exits(0).says("resumed");

    let whole = arguments(&place, "whole");
    run(&whole.iter().map(String::as_str).collect::<Vec<_>>()).exits(0);
    assert_same_run(&place.path("killed"), &place.path("whole"));
}

#[test]
fn two_processes_do_not_train_in_one_folder() {
    let place = Place::with_data(800);
    let mut child = start(&arguments(&place, "run"));
    wait_for_lines(&place.path("run"), 5, &mut child);
    run(&["train", "--resume", &place.name("run")]).exits(2).complains("another process");
    signal(&child, "TERM");
    ran(child.wait_with_output().unwrap()).exits(130);
}
