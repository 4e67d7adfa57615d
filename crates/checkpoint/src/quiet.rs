//! Panics of a library that are caught and told as errors, without the report that a panic prints by itself.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<u32> = const { Cell::new(0) };
}

static HOOK: Once = Once::new();

/// Runs `action` and catches a panic in it, about which nothing is printed; panics elsewhere, in other threads too, are
/// reported as ever. For calls into libraries that panic on files they did not write: what the panic left half-changed
/// is for the caller to drop.
///
/// The first call puts a hook in front of the process's panic hook. A program that sets one of its own later replaces
/// it, and then such panics are printed, but still caught.
///
/// # Errors
/// What `action` panicked with.
pub fn quietly<T>(action: impl FnOnce() -> T) -> std::thread::Result<T> {
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |information| {
            // The value is gone when its thread is.
            if QUIET.try_with(Cell::get).unwrap_or(0) == 0 {
                previous(information);
            }
        }));
    });
    QUIET.set(QUIET.get() + 1);
    let result = panic::catch_unwind(AssertUnwindSafe(action));
    QUIET.set(QUIET.get() - 1);
    result
}
