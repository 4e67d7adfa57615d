//! Memory for the panels of weights, side by side in large pages where Linux gives them: every product passes over all of a weight, and to look up
//! a page of 4 KiB every 64 cache lines takes time of its own (`docs/experiments/2026-12-01-zen4.md`).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::aligned::Word;

/// Bytes of a cache line, which every weight starts on.
const LINE: usize = 64;
/// Bytes of a chunk that several weights share: some large pages of 2 MiB, so that little of the last one lies idle.
const CHUNK: usize = 16 << 20;
/// Bytes from which a weight shares a chunk, and beyond which it has one of its own.
const SHARING: std::ops::RangeInclusive<usize> = 1 << 16..=CHUNK / 4;

/// Where a weight is put.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Place {
    /// Beside others, for as long as a model lives: the memory is given back with the last of them.
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
        if bytes >= *SHARING.start() {
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
        const PAGE: usize = 2 << 20;
        // Address space to begin with a large page in: what is not touched takes no memory.
        let mapped = bytes + PAGE;
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
            let start = base.add(base.align_offset(PAGE));
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

/// The chunk that the next weight is put into, and how many of its bytes are taken.
static OPEN: Mutex<Option<(Arc<Chunk>, usize)>> = Mutex::new(None);

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
        let bytes = (length * size_of::<T>()).next_multiple_of(LINE);
        let (chunk, first) = match place == Place::Shared && SHARING.contains(&bytes) {
            true => share(bytes),
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

/// A part of the open chunk, or of a new one: the chunk, and where the part begins. Each part is given once.
fn share(bytes: usize) -> (Arc<Chunk>, usize) {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let (chunk, first) = match open.take() {
        Some((chunk, taken)) if chunk.bytes - taken >= bytes => (chunk, taken),
        _ => (Arc::new(Chunk::new(CHUNK)), 0),
    };
    *open = Some((Arc::clone(&chunk), first + bytes));
    (chunk, first)
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
    fn a_chunk_is_given_back_with_the_last_weight() {
        let weights: Vec<Weights<f32>> = (0..20).map(|_| Weights::zeros(1 << 19, Place::Shared)).collect();
        let chunks: Vec<_> = weights.iter().map(|weights| Arc::downgrade(&weights.chunk)).collect();
        // 2 MiB each, so that 20 of them fill more than two chunks, whatever other tests put between them.
        let first = chunks[0].clone();
        assert!(chunks.iter().any(|chunk| !chunk.ptr_eq(&first)));
        let alive = |chunks: &[std::sync::Weak<Chunk>]| chunks.iter().filter(|chunk| chunk.strong_count() > 0).count();
        assert_eq!(alive(&chunks), 20);
        let own: Vec<Weights<f32>> = (0..3).map(|_| Weights::zeros(1 << 19, Place::Own)).collect();
        assert!(own.iter().all(|weights| Arc::strong_count(&weights.chunk) == 1));
    }
}
