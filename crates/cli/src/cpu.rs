//! The name of the CPU, for the record of a measurement.

/// What the system calls its CPU, or its architecture.
pub fn name() -> String {
    let named = if cfg!(windows) { std::env::var("PROCESSOR_IDENTIFIER").ok() } else { from_proc() };
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn from_proc() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
