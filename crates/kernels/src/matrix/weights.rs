//! Memory for the panels of weights, side by side in large pages where Linux gives them: every product passes over all of a weight, and to look up
//! a page of 4 KiB every 64 cache lines takes time of its own (`docs/experiments/2026-12-01-zen4.md`).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::aligned::Word;

/// Bytes of a cache line, which every weight starts on.
const LINE: usize = 64;
/// Bytes of a chunk that several weights share: some large pages of 2 MiB, so that little of the last one lies idle.
const CHUNK: usize = 16 << 20;
/// Bytes of a large page of Linux on x86-64 and most others.
#[cfg(target_os = "linux")]
const LARGE_PAGE: usize = 2 << 20;
/// A multiple of the small pages of any system.
#[cfg(target_os = "linux")]
const SMALL_PAGES: usize = 1 << 16;
/// Bytes of the weights that share chunks; others have one of their own.
const SHARING: std::ops::RangeInclusive<usize> = 1 << 16..=CHUNK / 4;

/// Where a weight is put.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Place {
    /// Beside others, for as long as a model lives: pages go with a weight, the address space with the last of them.
    Shared,
    /// By itself, for weights that come and go.
    Own,
}

impl Place {
    /// What is packed for a part that is kept now will be packed again.
    pub(super) fn of(kept: Option<&[u32]>) -> Self {
        if kept.is_some() { Place::Own } else { Place::Shared }
    }
}

/// A block of zeros that is given back as a whole.
struct Chunk {
    start: NonNull<u8>,
    bytes: usize,
    memory: Memory,
}

enum Memory {
    Allocated(Layout),
    #[cfg(target_os = "linux")]
    Mapped {
        base: NonNull<u8>,
        bytes: usize,
    },
}

// SAFETY: a chunk is memory without an owner thread; who may touch which part of it is the affair of `Weights`.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// Zeros on a cache line; of a large page or more in such pages, if the system has them.
    fn new(bytes: usize) -> Self {
        #[cfg(target_os = "linux")]
        if bytes >= LARGE_PAGE {
            return Self::mapped(bytes);
        }
        let layout = Layout::from_size_align(bytes.max(LINE), LINE).expect("a size in memory");
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, bytes, memory: Memory::Allocated(layout) }
    }

    #[cfg(target_os = "linux")]
    fn mapped(bytes: usize) -> Self {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
        // Address space to begin with a large page in: what is not touched takes no memory of the machine.
        let mapped = bytes.checked_add(LARGE_PAGE).expect("a size in memory");
        let layout = Layout::from_size_align(mapped, LINE).expect("a size in memory");
        // SAFETY: a new mapping at a place that the system chooses.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let base =
            base.ok().and_then(|base| NonNull::new(base.cast::<u8>())).unwrap_or_else(|| handle_alloc_error(layout));
        // SAFETY: less than a page further there is room for all bytes. The advice is for these pages alone and changes no content;
        // where it is not taken pages are small.
        let start = unsafe {
            let address = base.addr().get();
            let start = base.add(address.next_multiple_of(LARGE_PAGE) - address);
            _ = madvise(start.as_ptr().cast(), bytes, Advice::LinuxHugepage);
            start
        };
        Self { start, bytes, memory: Memory::Mapped { base, bytes: mapped } }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        match self.memory {
            // SAFETY: allocated with this layout, and nobody has a part of it any more.
            Memory::Allocated(layout) => unsafe { dealloc(self.start.as_ptr(), layout) },
            #[cfg(target_os = "linux")]
            // SAFETY: mapped so, and nobody has a part of it any more.
            Memory::Mapped { base, bytes } => unsafe {
                _ = rustix::mm::munmap(base.as_ptr().cast(), bytes);
            },
        }
    }
}

/// The chunk that the next weight is put into, while another one is in it, and how many of its bytes are taken.
struct Open(Mutex<(Weak<Chunk>, usize)>);

static OPEN: Open = Open(Mutex::new((Weak::new(), 0)));

impl Open {
    /// A part of the chunk, or of a new one: the chunk, and where the part begins. Each part is given once.
    fn take(&self, bytes: usize) -> (Arc<Chunk>, usize) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, first) = match open.0.upgrade() {
            Some(chunk) if chunk.bytes - open.1 >= bytes => (chunk, open.1),
            _ => (Arc::new(Chunk::new(CHUNK)), 0),
        };
        *open = (Arc::downgrade(&chunk), first + bytes);
        (chunk, first)
    }
}

/// Elements that start on a cache line, zeros at first.
pub(crate) struct Weights<T> {
    chunk: Arc<Chunk>,
    start: NonNull<T>,
    length: usize,
    element: PhantomData<T>,
}

// SAFETY: these elements of the chunk belong to this value alone.
unsafe impl<T: Word + Send> Send for Weights<T> {}
// SAFETY: as above.
unsafe impl<T: Word + Sync> Sync for Weights<T> {}

impl<T: Word> Weights<T> {
    pub(crate) fn zeros(length: usize, place: Place) -> Self {
        let bytes = length.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_next_multiple_of(LINE));
        let bytes = bytes.expect("a size in memory");
        let (chunk, first) = match place == Place::Shared && SHARING.contains(&bytes) {
            true => OPEN.take(bytes),
            false => (Arc::new(Chunk::new(bytes)), 0),
        };
        // SAFETY: the chunk has that many bytes from there on, on a cache line.
        let start = unsafe { chunk.start.add(first).cast() };
        Self { chunk, start, length, element: PhantomData }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: the elements lie in the chunk, which lives as long, and are this value's alone; every pattern is a `T`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl<T> Drop for Weights<T> {
    /// Gives the memory of a part back before its chunk, which others may keep: no part is given twice.
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if Arc::strong_count(&self.chunk) > 1 && matches!(self.chunk.memory, Memory::Mapped { .. }) {
            let first = self.start.addr().get();
            let (start, end) = (first.next_multiple_of(SMALL_PAGES), first + self.length * size_of::<T>());
            let whole = end.saturating_sub(start) / SMALL_PAGES * SMALL_PAGES;
            if whole > 0 {
                // SAFETY: these pages lie in this part of the chunk, which nobody will read or write again.
                unsafe {
                    let start = self.start.cast::<u8>().add(start - first).as_ptr().cast();
                    _ = rustix::mm::madvise(start, whole, rustix::mm::Advice::LinuxDontNeed);
                }
            }
        }
    }
}

impl<T: Word> Clone for Weights<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.length, Place::Own);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl<T> fmt::Debug for Weights<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (length, bytes) = (self.length, self.chunk.bytes);
        f.debug_struct("Weights").field("length", &length).field("chunk_bytes", &bytes).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 6] = [0, 1, 17, 40_000, 1 << 20, 5 << 20];

    #[test]
    fn weights_are_zeros_on_lines_of_their_own() {
        for place in [Place::Shared, Place::Own] {
            let mut all: Vec<Weights<u32>> =
                LENGTHS.repeat(3).iter().map(|&length| Weights::zeros(length, place)).collect();
            for (index, weights) in all.iter_mut().enumerate() {
                assert_eq!(weights.as_slice().as_ptr() as usize % LINE, 0, "{place:?}");
                assert_eq!(weights.as_slice().len(), LENGTHS[index % LENGTHS.len()]);
                assert!(weights.as_slice().iter().all(|&word| word == 0), "{place:?}");
                weights.as_mut_slice().fill(index as u32 + 1);
            }
            let copies = all.clone();
            for weights in &mut all {
                weights.as_mut_slice().fill(u32::MAX);
            }
            for (index, copy) in copies.iter().enumerate() {
                assert!(copy.as_slice().iter().all(|&word| word == index as u32 + 1), "{place:?}: {index}");
            }
        }
    }

    #[test]
    fn a_chunk_is_given_back_with_its_last_part() {
        let open = Open(Mutex::new((Weak::new(), 0)));
        let mut parts: Vec<_> = (0..20).map(|_| open.take(CHUNK / 8)).collect();
        let places: Vec<usize> = parts.iter().map(|part| part.1).collect();
        assert_eq!(places, (0..20).map(|part| part % 8 * (CHUNK / 8)).collect::<Vec<_>>());
        let chunks = [0, 8, 16].map(|first| Arc::downgrade(&parts[first].0));
        let alive = || chunks.each_ref().map(|chunk| chunk.strong_count() > 0);
        parts.drain(1..15);
        assert_eq!(alive(), [true; 3], "the second has one part left");
        parts.remove(0);
        assert_eq!(alive(), [false, true, true]);
        parts.clear();
        assert_eq!(alive(), [false; 3], "also the one that was open");
        assert_eq!(open.take(64).1, 0, "a new one");
    }

    /// What the others in a chunk hold stays, and memory of a part goes with it.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_part_that_is_gone_takes_no_memory() {
        let filled = |value: u32| {
            let mut weights = Weights::<u32>::zeros(1 << 20, Place::Shared);
            weights.as_mut_slice().fill(value);
            weights
        };
        let mut all: Vec<Weights<u32>> = (1..=9).map(filled).collect();
        let gone = all.remove(4);
        // Whole pages of the part read as zeros when they were given back; the chunk itself is still there.
        let (chunk, start) = (Arc::clone(&gone.chunk), gone.start);
        drop(gone);
        // SAFETY: the chunk is alive, and no other test takes this part.
        let middle = unsafe { start.add(1 << 19).read_volatile() };
        assert_eq!(middle, 0);
        drop(chunk);
        for (weights, value) in all.iter().zip([1, 2, 3, 4, 6, 7, 8, 9]) {
            assert!(weights.as_slice().iter().all(|&word| word == value), "{value}");
        }
    }

    #[test]
    fn weights_by_themselves_share_with_nobody() {
        let own: Vec<Weights<f32>> = (0..3).map(|_| Weights::zeros(1 << 19, Place::Own)).collect();
        assert!(own.iter().all(|weights| Arc::strong_count(&weights.chunk) == 1));
    }
}
