//! The pool that everything is computed in. What runs in it is split in [`crate::parallel`].

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// A pool of so many threads; 0 is one for each CPU that the process may use, or what `RAYON_NUM_THREADS` says.
///
/// On Linux, where there is a thread for each CPU, each stays on its own. Left to the system, threads that wake up may be put side by
/// side on one CPU for tens of milliseconds while another is idle: virtual machines show idle CPUs as taken
/// (`vcpu_is_preempted`).
///
/// # Errors
/// If the threads cannot be started.
pub fn pool(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    let builder = ThreadPoolBuilder::new().num_threads(threads);
    #[cfg(target_os = "linux")]
    let builder = builder.start_handler(|index| {
        let cpus = process_cpus();
        if cpus.len() == rayon::current_num_threads() { stay_on(&cpus[index..=index]) } else { stay_on(&cpus) }
    });
    builder.build()
}

/// Lets a thread that was started from one of a pool run on every CPU of the process, not only that of its parent.
pub fn leave_cpu() {
    #[cfg(target_os = "linux")]
    stay_on(&process_cpus());
}

/// The CPUs that the process may use: those of its first thread, which belongs to no pool. None where they cannot be told.
#[cfg(target_os = "linux")]
fn process_cpus() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(Some(rustix::process::getpid()));
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_ok_and(|set| set.is_set(cpu))).collect()
}

/// Keeps this thread on some CPUs. Where that is forbidden the system goes on choosing.
#[cfg(target_os = "linux")]
fn stay_on(cpus: &[usize]) {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    if !cpus.is_empty() {
        let _ = sched_setaffinity(None, &set);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn own_cpus() -> Vec<usize> {
        let set = rustix::thread::sched_getaffinity(None).expect("the CPUs of this thread");
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
    }

    /// The CPUs of each thread of a pool.
    fn cpus_of(pool: &ThreadPool) -> Vec<Vec<usize>> {
        pool.broadcast(|_| own_cpus())
    }

    #[test]
    fn a_thread_for_each_cpu_stays_on_its_own() {
        let all = process_cpus();
        let found = cpus_of(&pool(all.len()).expect("a pool"));
        assert_eq!(found, all.iter().map(|&cpu| vec![cpu]).collect::<Vec<_>>());
    }

    #[test]
    fn other_numbers_of_threads_go_where_the_system_puts_them() {
        let all = process_cpus();
        for threads in [all.len() + 1, all.len() + 2] {
            assert_eq!(cpus_of(&pool(threads).expect("a pool")), vec![all.clone(); threads]);
        }
    }

    #[test]
    fn a_pool_inside_a_pool_may_use_every_cpu() {
        let all = process_cpus();
        let outer = pool(all.len()).expect("a pool");
        let inner = outer.install(|| pool(all.len() + 1)).expect("a pool");
        assert_eq!(cpus_of(&inner), vec![all.clone(); all.len() + 1]);
        let started = outer.install(|| std::thread::spawn(|| (leave_cpu(), own_cpus()).1).join());
        assert_eq!(started.expect("a thread"), all);
    }
}
