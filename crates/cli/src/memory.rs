//! How much memory the program took at most, where the system says.

/// The most memory that was in use at one time, files mapped by the system included; none where the system does not say.
pub fn peak_bytes() -> Option<u64> {
    peak_in(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// `VmHWM:   7340032 kB` of Linux's `/proc/PID/status`, whose kB are 1,024 bytes.
fn peak_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_what_linux_says() {
        assert_eq!(peak_in("VmPeak:\t  9 kB\nVmHWM:\t 7340032 kB\nVmRSS:\t1 kB\n"), Some(7_516_192_768));
        for other in ["", "VmHWM:\t12", "VmHWM:\tx kB", "VmHWM: 18446744073709551615 kB"] {
            assert_eq!(peak_in(other), None, "{other}");
        }
        if cfg!(target_os = "linux") {
            assert!(peak_bytes().is_some_and(|peak| peak > 1 << 20));
        }
    }
}
