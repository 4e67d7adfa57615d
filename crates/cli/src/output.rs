//! Where results go: standard output, as text for people or as one JSON object, and notes on standard error. A reader
//! that goes away ends the program quietly.

use std::io::{ErrorKind, Write};

use anyhow::Context;
use serde::Serialize;

/// Standard output was closed by its reader, as `head` does.
#[derive(Debug)]
pub struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for Closed {}

/// A check that the command exists for did not pass. Exit status 1.
#[derive(Debug)]
pub struct CheckFailed(pub String);

impl std::fmt::Display for CheckFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CheckFailed {}

/// The user asked to stop, and everything there is to say about it has been said.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Where a command's result goes.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// One JSON object in place of text.
    pub json: bool,
}

impl Output {
    /// Prints a command's result, in the form that was asked for.
    pub fn result(self, text: &str, value: &impl Serialize) -> anyhow::Result<()> {
        let mut line = match self.json {
            true => serde_json::to_string(value).context("the result cannot be written as JSON")?,
            false => text.trim_end().to_owned(),
        };
        line.push('\n');
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).map_err(stdout_error)
    }

    /// Prints a line of text on standard output at once; nothing with `--json`.
    pub fn line(self, text: &str) -> anyhow::Result<()> {
        if self.json {
            return Ok(());
        }
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(stdout_error)
    }
}

/// An error of writing to standard output.
pub fn stdout_error(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::BrokenPipe => Closed.into(),
        _ => anyhow::Error::new(error).context("cannot write to standard output"),
    }
}

/// An error with its causes, as far as they are not part of its own words already.
pub fn whole(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        match text.is_empty() {
            true => text = cause,
            false if !text.contains(&cause) => text.push_str(&format!(": {cause}")),
            false => {}
        }
    }
    text
}

/// A note on standard error that is neither a result nor an error.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::anyhow!("no such file").context("a.csv: no such file").context("--data");
        assert_eq!(whole(&error), "--data: a.csv: no such file");
    }
}
