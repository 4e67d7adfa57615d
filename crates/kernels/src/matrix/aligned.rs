//! Buffers that start on a cache line, so that no vector load of a packed panel straddles two lines.

use std::marker::PhantomData;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// What a buffer may hold: four bytes of which every pattern is a value.
pub(crate) trait Word: private::Sealed + Copy {}
impl Word for f32 {}
impl Word for u32 {}

mod private {
    pub(crate) trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u32 {}
}

/// A growable buffer aligned to 64 bytes.
#[derive(Debug, Clone)]
pub(crate) struct Aligned<T = f32> {
    lines: Vec<Line>,
    element: PhantomData<T>,
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), element: PhantomData }
    }
}

impl<T: Word> Aligned<T> {
    /// At least `length` zeros (whole lines).
    pub(crate) fn zeros(length: usize) -> Self {
        Self { lines: vec![Line([0; 16]); length.div_ceil(16)], element: PhantomData }
    }

    /// Room for `length` elements, of whatever value.
    pub(crate) fn room(&mut self, length: usize) -> &mut [T] {
        let lines = length.div_ceil(16);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 16]));
        }
        &mut self.as_mut_slice()[..length]
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: a `Line` is 16 words of four bytes without padding, the slice covers exactly the vector's lines, and
        // every pattern of a word is a `T`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 16) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 16) }
    }
}
