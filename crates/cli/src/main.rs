//! The `finegates` command line: arguments in, one command, tidy lines or one JSON object out.
//!
//! Exit status: 0 done, 1 a check failed, 2 an error the user can mend, 130 interrupted. Nothing about models or training is decided here.

mod arguments;
mod commands;
mod cpu_time;
mod curve;
mod figures;
mod interrupt;
mod memory;
mod output;
mod progress;
mod table;
mod training;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    match commands::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<output::Closed>() => ExitCode::SUCCESS,
        Err(error) if error.is::<output::Interrupted>() => ExitCode::from(interrupt::STATUS),
        Err(error) => {
            // The last thing said; there is nobody left to tell if this fails too.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("error: {}\n", output::whole(&error)).as_bytes(),
            );
            ExitCode::from(if error.is::<output::CheckFailed>() { 1 } else { 2 })
        }
    }
}
