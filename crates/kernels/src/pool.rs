//! Pools of threads to compute in, each thread on a CPU of its own where that fits. What runs in them is split in [`crate::parallel`].

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

#[cfg(target_os = "linux")]
use std::cell::RefCell;

/// A pool of so many threads; 0 is what rayon takes (`RAYON_NUM_THREADS`, or one for each CPU), inside another pool as many as that one
/// has.
///
/// On Linux, where there is a thread for each CPU that the calling thread may use, each stays on its own. Left to the system,
/// threads that woke up were put side by side on one CPU for tens of milliseconds while another was idle
/// (`docs/experiments/2026-11-24-speed.md`).
///
/// # Errors
/// If the threads cannot be started.
pub fn pool(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    let inside = rayon::current_thread_index().is_some();
    let threads = if threads == 0 && inside { rayon::current_num_threads() } else { threads };
    let builder = ThreadPoolBuilder::new().num_threads(threads);
    #[cfg(target_os = "linux")]
    let builder = {
        let (cpus, bound) = usable_cpus();
        builder.start_handler(move |index| {
            if cpus.len() > 1 && cpus.len() == rayon::current_num_threads() {
                if stay_on(&cpus[index..=index]) {
                    UNBOUND.set(Some(cpus.clone()));
                }
            } else if bound {
                stay_on(&cpus);
            }
        })
    };
    builder.build()
}

/// Work for a thread that is started from one of a pool: it may run on every CPU that the pool may use, not only on its parent's.
pub fn on_any_cpu<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    #[cfg(target_os = "linux")]
    let (cpus, bound) = usable_cpus();
    move || {
        #[cfg(target_os = "linux")]
        if bound {
            stay_on(&cpus);
        }
        work()
    }
}

#[cfg(target_os = "linux")]
thread_local! {
    /// The CPUs that a thread could use before it was bound to one.
    static UNBOUND: RefCell<Option<Vec<usize>>> = const { RefCell::new(None) };
}

/// The CPUs that this thread may use, or might if it was not bound to one, and whether it was. None where they cannot be told.
#[cfg(target_os = "linux")]
fn usable_cpus() -> (Vec<usize>, bool) {
    match UNBOUND.with_borrow(Clone::clone) {
        Some(cpus) => (cpus, true),
        None => (own_cpus(), false),
    }
}

/// The CPUs that this thread may use.
#[cfg(target_os = "linux")]
fn own_cpus() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(None);
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_ok_and(|set| set.is_set(cpu))).collect()
}

/// Keeps this thread on some CPUs; answers whether that was allowed. Where it is not, the system goes on choosing.
#[cfg(target_os = "linux")]
fn stay_on(cpus: &[usize]) -> bool {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    sched_setaffinity(None, &set).is_ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The CPUs of each thread of a pool.
    fn cpus_of(pool: &ThreadPool) -> Vec<Vec<usize>> {
        pool.broadcast(|_| own_cpus())
    }

    /// The CPUs of this thread, where a thread may choose among several.
    fn choice() -> Option<Vec<usize>> {
        let cpus = own_cpus();
        let allowed = std::thread::spawn(|| stay_on(&own_cpus())).join().expect("a thread");
        (allowed && cpus.len() > 1).then_some(cpus)
    }

    #[test]
    fn a_thread_for_each_cpu_stays_on_its_own() {
        let Some(all) = choice() else { return };
        let found = cpus_of(&pool(all.len()).expect("a pool"));
        assert_eq!(found, all.iter().map(|&cpu| vec![cpu]).collect::<Vec<_>>());
    }

    #[test]
    fn other_numbers_of_threads_go_where_the_system_puts_them() {
        let all = own_cpus();
        for threads in [all.len() + 1, all.len() + 2] {
            assert_eq!(cpus_of(&pool(threads).expect("a pool")), vec![all.clone(); threads]);
        }
    }

    #[test]
    fn what_a_bound_thread_starts_is_not_bound() {
        let Some(all) = choice() else { return };
        let outer = pool(all.len()).expect("a pool");
        let inner = outer.install(|| pool(all.len() + 1)).expect("a pool");
        assert_eq!(cpus_of(&inner), vec![all.clone(); all.len() + 1]);
        let again = outer.install(|| pool(0)).expect("a pool");
        assert_eq!(cpus_of(&again), cpus_of(&outer));
        let started = outer.install(|| std::thread::spawn(on_any_cpu(own_cpus)).join());
        assert_eq!(started.expect("a thread"), all);
    }

    #[test]
    fn a_caller_that_is_bound_elsewhere_keeps_its_pool_there() {
        let Some(all) = choice() else { return };
        let found = std::thread::spawn(move || {
            assert!(stay_on(&all[1..2]));
            (all[1], cpus_of(&pool(2).expect("a pool")))
        });
        let (cpu, found) = found.join().expect("a thread");
        assert_eq!(found, [[cpu], [cpu]]);
    }
}
