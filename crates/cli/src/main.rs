//! The `finegates` command line.
fn main() {}
