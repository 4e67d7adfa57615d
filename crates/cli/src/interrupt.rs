//! Ctrl-C and termination: the first asks to save and stop, the second aborts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::output::note;

/// Set when the program was asked to stop.
static STOP: AtomicBool = AtomicBool::new(false);
/// What to say then; none until the handler is installed.
static MESSAGE: Mutex<Option<String>> = Mutex::new(None);

/// The exit status of a program that was interrupted, as shells have it (128 + SIGINT).
pub const STATUS: u8 = 130;

/// From now on the first Ctrl-C sets the flag and says `message`.
pub fn flag(message: &str) -> anyhow::Result<&'static AtomicBool> {
    let mut current = MESSAGE.lock().unwrap_or_else(|poison| poison.into_inner());
    let installed = current.is_some();
    *current = Some(message.to_owned());
    drop(current);
    if !installed {
        ctrlc::set_handler(on_interrupt).context("Ctrl-C cannot be handled")?;
    }
    Ok(&STOP)
}

fn on_interrupt() {
    if STOP.swap(true, Ordering::Relaxed) {
        std::process::exit(STATUS.into());
    }
    let message = MESSAGE.lock().unwrap_or_else(|poison| poison.into_inner());
    note(&format!("\n{}\n(again to abort at once)", message.as_deref().unwrap_or_default()));
}
