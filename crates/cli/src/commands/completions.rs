//! `finegates completions`: a script that teaches a shell the commands and options.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::arguments::Arguments;
use crate::output::stdout_error;

const EXAMPLES: &str = "\
Examples:
  finegates completions bash > ~/.local/share/bash-completion/completions/finegates
  finegates completions zsh > ~/.zfunc/_finegates
  finegates completions fish > ~/.config/fish/completions/finegates.fish";

/// Print a completion script for a shell
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: &CompletionsArguments) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "finegates", &mut script);
    let mut stdout = std::io::stdout().lock();
    std::io::Write::write_all(&mut stdout, &script).map_err(stdout_error)
}
