//! Splitting work over rayon's current pool: rows of one or more buffers, and raw shared output for tasks that write
//! places known to be disjoint. Small work stays on the caller's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// How long a thread that finds nothing to do stays awake. A bound, for a thread that waits inside another task must get back to it.
const AWAKE: Duration = Duration::from_millis(1);

/// Runs `work` with the other threads of the current pool awake: between products of a small pass they would fall asleep, and to wake
/// them takes longer than a product.
pub fn awake<R>(work: impl FnOnce() -> R) -> R {
    if rayon::current_num_threads() == 1 {
        return work();
    }
    let (caller, done) = (rayon::current_thread_index(), Arc::new(Done(AtomicBool::new(false))));
    let watched = Arc::clone(&done);
    rayon::spawn_broadcast(move |context| {
        if caller == Some(context.index()) {
            return;
        }
        let mut idle = Instant::now();
        while !watched.0.load(Ordering::Acquire) && idle.elapsed() < AWAKE {
            match rayon::yield_now() {
                Some(rayon::Yield::Executed) => idle = Instant::now(),
                _ => std::thread::yield_now(),
            }
        }
    });
    let finished = Finished(&done);
    let result = work();
    drop(finished);
    result
}

struct Done(AtomicBool);

/// Says that the work is done, also when it panics.
struct Finished<'a>(&'a Done);

impl Drop for Finished<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Release);
    }
}

/// Elements that one task should at least have for the hand-over to pay.
pub(crate) const TASK_ELEMENTS: usize = 16 * 1024;

/// Rows of a task when each row has `width` elements and work is split by the shape alone.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (TASK_ELEMENTS / width.max(1)).max(1)
}

/// Runs `work(first_row, rows_of_x)` over `x` split in runs of whole rows of `width` elements.
pub(crate) fn rows_mut(x: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if x.is_empty() || width == 0 {
        return;
    }
    let rows = rows_per_task(width);
    if x.len() <= rows * width || rayon::current_num_threads() == 1 {
        for (index, chunk) in x.chunks_mut(rows * width).enumerate() {
            work(index * rows, chunk);
        }
    } else {
        x.par_chunks_mut(rows * width).enumerate().for_each(|(index, chunk)| work(index * rows, chunk));
    }
}

/// Runs `work(first_row, results)` over `out`, one result for each row of `width` elements of something else, split in runs
/// of whole rows.
pub(crate) fn row_results_mut<T: Send>(out: &mut [T], width: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let rows = rows_per_task(width);
    if out.len() <= rows || rayon::current_num_threads() == 1 {
        for (index, chunk) in out.chunks_mut(rows).enumerate() {
            work(index * rows, chunk);
        }
    } else {
        out.par_chunks_mut(rows).enumerate().for_each(|(index, chunk)| work(index * rows, chunk));
    }
}

/// Runs `work(i)` for `i` in `0..tasks`, in parallel when `parallel` says that it pays. Tasks are begun in order: threads that come
/// take the next one, so that small ones at the end even out what large ones before them left.
pub(crate) fn tasks(tasks: usize, parallel: bool, work: impl Fn(usize) + Sync) {
    let threads = tasks.min(rayon::current_num_threads());
    if threads <= 1 || !parallel {
        return (0..tasks).for_each(work);
    }
    let next = AtomicUsize::new(0);
    let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&task| task < tasks);
    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
        while let Some(task) = take() {
            work(task);
        }
    });
}

/// A mutable buffer that several tasks write at once, each at places of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    data: *mut f32,
    length: usize,
    lifetime: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a `&mut [f32]` that is borrowed for `'a`; all access goes through `slice`, whose caller
// promises that no two live slices overlap.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(data: &'a mut [f32]) -> Self {
        Self { data: data.as_mut_ptr(), length: data.len(), lifetime: std::marker::PhantomData }
    }

    /// The place of element `index`.
    ///
    /// # Safety
    /// The index is inside the buffer; the place is not used while a slice or another place covers it.
    #[inline(always)]
    pub(crate) unsafe fn place(&self, index: usize) -> *mut f32 {
        debug_assert!(index < self.length, "inside the shared buffer");
        // SAFETY: inside the buffer by the caller's promise.
        unsafe { self.data.add(index) }
    }

    /// The elements `start .. start + length`.
    ///
    /// # Safety
    /// No other slice of this buffer that is alive at the same time may overlap this one.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, length: usize) -> &'a mut [f32] {
        assert!(start <= self.length && length <= self.length - start, "inside the shared buffer");
        // SAFETY: inside the buffer by the assertion; not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), length) }
    }
}

/// Columns of a task when a result of one number a column is split.
const TASK_COLUMNS: usize = 64;

/// Runs `work(first_column, columns_of_out)` over `out`, one number a column, where all columns together read `elements`.
pub(crate) fn columns_mut(out: &mut [f32], elements: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if elements <= TASK_ELEMENTS || rayon::current_num_threads() == 1 {
        if !out.is_empty() {
            work(0, out);
        }
    } else {
        out.par_chunks_mut(TASK_COLUMNS).enumerate().for_each(|(index, chunk)| work(index * TASK_COLUMNS, chunk));
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn every_task_runs_once_also_inside_others() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            let counts: Vec<AtomicUsize> = (0..7 * 11).map(|_| AtomicUsize::new(0)).collect();
            pool.install(|| {
                tasks(7, true, |outer| {
                    tasks(11, true, |inner| {
                        counts[outer * 11 + inner].fetch_add(1, Ordering::Relaxed);
                    });
                });
                tasks(0, true, |_| panic!("there is no task"));
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} threads: {counts:?}");
        }
    }

    #[test]
    fn a_task_that_panics_is_heard_of_and_the_pool_goes_on() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("pool");
        for bad in [0, 4, 8] {
            let run = || pool.install(|| tasks(9, true, |task| assert_ne!(task, bad)));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "task {bad}");
        }
        let done = AtomicUsize::new(0);
        pool.install(|| tasks(9, true, |_| _ = done.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(done.into_inner(), 9);
    }
}
