//! One file a command: its arguments, and what it does with them.

pub mod bench;
pub mod completions;
pub mod compress;
pub mod eval;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod model;
pub mod perplexity;
pub mod predict;
pub mod pretrain;
pub mod quickstart;
pub mod sparsify;
pub mod train;

use anyhow::Context;

use crate::arguments::{Arguments, Command};

/// Runs the command that was asked for.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // The whole command runs on a thread of the pool: from outside, each of the thousands of small parallel jobs of a
    // step would cost a hand-over to the pool and back.
    let threads = arguments.common.threads.map_or(0, usize::from);
    finegates_kernels::pool::pool(threads)
        .context("the threads to compute with cannot be started; fewer may do with --threads")?
        .install(|| dispatch(arguments))
}

fn dispatch(arguments: &Arguments) -> anyhow::Result<()> {
    let common = &arguments.common;
    match &arguments.command {
        Command::Train(command) => train::run(command, common),
        Command::Sparsify(command) => sparsify::run(command, common),
        Command::Pretrain(command) => pretrain::run(command, common),
        Command::Generate(command) => generate::run(command, common),
        Command::Perplexity(command) => perplexity::run(command, common),
        Command::Compress(command) => compress::run(command, common),
        Command::Eval(command) => eval::run(command, common),
        Command::Predict(command) => predict::run(command, common),
        Command::Inspect(command) => inspect::run(command, common),
        Command::Bench(command) => bench::run(command, common),
        Command::Quickstart(command) => quickstart::run(command, common),
        Command::Import(command) => import::run(command, common),
        Command::Completions(command) => completions::run(command),
    }
}
