//! Which panics are reported, in a process of its own: the hook is the whole process's.

use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use finegates_checkpoint::quietly;

#[test]
fn only_a_caught_panic_is_silent() {
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    panic::set_hook(Box::new(move |_| {
        count.fetch_add(1, SeqCst);
    }));
    assert!(quietly(|| panic!("caught")).is_err());
    assert_eq!(quietly(|| 3).ok(), Some(3));
    assert_eq!(quietly(|| quietly(|| panic!("inner")).is_err()).ok(), Some(true));
    assert_eq!(told.load(SeqCst), 0);
    assert!(panic::catch_unwind(|| panic!("told")).is_err());
    assert_eq!(told.load(SeqCst), 1);
    let elsewhere = quietly(|| std::thread::spawn(|| panic!("told too")).join().is_err());
    assert_eq!((elsewhere.ok(), told.load(SeqCst)), (Some(true), 2));
}
