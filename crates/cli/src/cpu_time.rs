//! The time that all threads of this process have computed, which is what a run costs, however long it waits.

use std::time::Duration;

/// CPU time of the process so far; none where the system is not asked for it.
#[cfg(unix)]
pub fn spent() -> Option<Duration> {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(Duration::new(spent.tv_sec.try_into().ok()?, spent.tv_nsec.try_into().ok()?))
}

/// CPU time of the process so far; none where the system is not asked for it.
#[cfg(not(unix))]
pub fn spent() -> Option<Duration> {
    None
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::spent;

    #[test]
    fn work_takes_cpu_time() {
        let before = spent().unwrap();
        let started = std::time::Instant::now();
        let mut sum = 0_u64;
        while spent().unwrap() < before + std::time::Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
            assert!(started.elapsed().as_secs() < 60, "no time was spent");
        }
    }
}
