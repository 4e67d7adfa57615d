//! One file a command: its arguments, and what it does with them.

pub mod bench;
pub mod completions;
pub mod compress;
pub mod eval;
pub mod inspect;
pub mod model;
pub mod predict;
pub mod quickstart;
pub mod train;

use anyhow::Context;

use crate::arguments::{Arguments, Command};

/// Runs the command that was asked for.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let common = &arguments.common;
    if let Some(threads) = common.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().with_context(|| format!("--threads: {threads} threads cannot be started"))?;
    }
    match &arguments.command {
        Command::Train(command) => train::run(command, common),
        Command::Compress(command) => compress::run(command, common),
        Command::Eval(command) => eval::run(command, common),
        Command::Predict(command) => predict::run(command, common),
        Command::Inspect(command) => inspect::run(command, common),
        Command::Bench(command) => bench::run(command, common),
        Command::Quickstart(command) => quickstart::run(command, common),
        Command::Completions(command) => completions::run(command),
    }
}
