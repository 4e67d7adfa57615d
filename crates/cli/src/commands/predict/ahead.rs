//! Rows read ahead on a thread of their own, so that reading and answering overlap, and taken in groups that are answered
//! together. Both are bounded in rows and in bytes: a few long texts do not fill the memory.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use finegates_data::{BrokenRow, TextRow};

/// Most rows that are answered together. Fewer are when no more are there yet, so that a slow source is answered at once.
pub const ROWS_TOGETHER: usize = 256;
/// A group is closed when its texts take more bytes than this.
const BYTES_TOGETHER: usize = 4 << 20;
/// How far is read ahead: so many rows, and so many bytes of text unless one row alone takes more.
const ROWS_AHEAD: usize = 2 * ROWS_TOGETHER;
const BYTES_AHEAD: usize = 8 << 20;

/// A row, a row that is broken, or the error that ends the reading.
pub type Row = Result<Result<TextRow, BrokenRow>, finegates_data::Error>;

/// Rows in their order, read ahead.
pub struct Ahead {
    queue: Arc<Queue>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    rows: VecDeque<Row>,
    bytes: usize,
    /// There will be no more rows.
    ended: bool,
    /// Nobody wants more rows.
    abandoned: bool,
}

impl Ahead {
    /// Starts to read; `next` gives rows until there is none. Nothing is read after an error.
    pub fn new(mut next: impl FnMut() -> Option<Row> + Send + 'static) -> Ahead {
        let queue = Arc::new(Queue::default());
        let ending = Ending(Arc::clone(&queue));
        let reader = std::thread::spawn(finegates_kernels::pool::on_any_cpu(move || {
            while let Some(row) = next() {
                let last = row.is_err();
                if !ending.0.put(row) || last {
                    return;
                }
            }
        }));
        Ahead { queue, reader: Some(reader) }
    }

    /// Waits for a row, and takes those that are there already with it; none at the end.
    ///
    /// # Panics
    /// If the reading did.
    pub fn group(&mut self) -> Option<Vec<Row>> {
        let mut state = self.queue.lock();
        while state.rows.is_empty() && !state.ended {
            state = self.queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while rows.len() < ROWS_TOGETHER
            && bytes <= BYTES_TOGETHER
            && let Some(row) = state.rows.pop_front()
        {
            bytes += size(&row);
            rows.push(row);
        }
        state.bytes -= bytes;
        drop(state);
        self.queue.changed.notify_all();
        if rows.is_empty() {
            if let Some(Err(panic)) = self.reader.take().map(JoinHandle::join) {
                std::panic::resume_unwind(panic);
            }
            return None;
        }
        Some(rows)
    }
}

impl Drop for Ahead {
    /// Lets the reader go; it may be waiting for its source, so it is not waited for.
    fn drop(&mut self) {
        self.queue.lock().abandoned = true;
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room and appends; false if nobody wants the row.
    fn put(&self, row: Row) -> bool {
        let bytes = size(&row);
        let full = |state: &State| {
            state.rows.len() >= ROWS_AHEAD || (!state.rows.is_empty() && state.bytes + bytes > BYTES_AHEAD)
        };
        let mut state = self.lock();
        while full(&state) && !state.abandoned {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.bytes += bytes;
        state.rows.push_back(row);
        self.changed.notify_all();
        !state.abandoned
    }
}

/// Marks the end when the reader ends, however it does.
struct Ending(Arc<Queue>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

/// The bytes of a row's texts.
fn size(row: &Row) -> usize {
    match row {
        Ok(Ok(row)) => row.text.len() + row.pair.as_ref().map_or(0, String::len),
        _ => 0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    /// A source of so many rows of so many bytes, and how many were asked of it.
    fn source(rows: u64, bytes: usize) -> (Ahead, Arc<AtomicU64>) {
        let asked = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&asked);
        let next = move || {
            let line = counter.load(Ordering::SeqCst) + 1;
            let row = (line <= rows).then(|| Ok(Ok(TextRow { line, text: "x".repeat(bytes), pair: None })));
            counter.store(line, Ordering::SeqCst);
            row
        };
        (Ahead::new(next), asked)
    }

    /// What was asked for, once nothing more is.
    fn settled(asked: &AtomicU64) -> u64 {
        loop {
            let before = asked.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(100));
            if before > 0 && asked.load(Ordering::SeqCst) == before {
                return before;
            }
        }
    }

    fn lines(group: &[Row]) -> Vec<u64> {
        group.iter().map(|row| row.as_ref().unwrap().as_ref().unwrap().line).collect()
    }

    #[test]
    fn long_rows_are_read_ahead_and_grouped_by_their_bytes() {
        let (mut ahead, asked) = source(40, 1 << 20);
        // Eight mebibytes are in the queue and one row is waiting for room.
        assert_eq!(settled(&asked), 9);
        assert_eq!(lines(&ahead.group().unwrap()), [1, 2, 3, 4, 5]);
        let mut all: Vec<u64> = (1..=5).collect();
        while let Some(group) = ahead.group() {
            assert!(group.len() <= 5);
            all.extend(lines(&group));
        }
        assert_eq!(all, (1..=40).collect::<Vec<_>>());
    }

    #[test]
    fn short_rows_are_bounded_by_their_number() {
        let (mut ahead, asked) = source(2000, 3);
        assert_eq!(settled(&asked), ROWS_AHEAD as u64 + 1);
        assert_eq!(ahead.group().unwrap().len(), ROWS_TOGETHER);
        let mut all: Vec<u64> = (1..=ROWS_TOGETHER as u64).collect();
        while let Some(group) = ahead.group() {
            all.extend(lines(&group));
        }
        assert_eq!(all, (1..=2000).collect::<Vec<_>>());
    }

    #[test]
    fn a_row_beyond_the_limit_goes_alone() {
        let (mut ahead, _) = source(3, BYTES_AHEAD + 1);
        for line in 1..=3 {
            assert_eq!(lines(&ahead.group().unwrap()), [line]);
        }
        assert!(ahead.group().is_none());
        assert!(ahead.group().is_none());
    }

    #[test]
    fn an_error_is_the_last_row() {
        let mut left = 3;
        let mut ahead = Ahead::new(move || {
            left -= 1;
            Some(if left == 1 {
                Err(finegates_data::Error::Missing("x"))
            } else {
                Ok(Ok(TextRow { line: 1, text: String::new(), pair: None }))
            })
        });
        let mut rows = Vec::new();
        while let Some(group) = ahead.group() {
            rows.extend(group);
        }
        assert_eq!(rows.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
    }
}
