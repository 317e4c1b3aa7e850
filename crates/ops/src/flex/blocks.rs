//! Work split into fixed blocks that run on rayon's threads.
//!
//! The blocks depend on the sizes alone, never on the number of threads, and partial sums are added in the order of the blocks.
//! Any number of threads therefore gives the same bits.

use std::{marker::PhantomData, mem::MaybeUninit};

use rayon::prelude::*;

/// Elements per block of an elementwise operation: tens of microseconds of work.
pub(crate) const ELEMENTS: usize = 8192;

/// A block of memory that isn't initialised yet.
pub(crate) type Uninit<'a> = &'a mut [MaybeUninit<f32>];

/// Runs `work` for every index below `count`. A single index runs on this thread: waking another takes microseconds.
pub(crate) fn for_each(count: usize, work: impl Fn(usize) + Send + Sync) {
    if count <= 1 {
        (0..count).for_each(work);
    } else {
        (0..count).into_par_iter().for_each(work);
    }
}

/// Runs `work` on every item; on this thread if there is only one.
pub(crate) fn for_each_item<T: Send>(items: Vec<T>, work: impl Fn(T) + Send + Sync) {
    if items.len() <= 1 {
        items.into_iter().for_each(work);
    } else {
        items.into_par_iter().for_each(work);
    }
}

/// The results of `work` for every index below `count`, in order.
pub(crate) fn map<R: Send>(count: usize, work: impl Fn(usize) -> R + Send + Sync) -> Vec<R> {
    if count <= 1 {
        (0..count).map(work).collect()
    } else {
        (0..count).into_par_iter().map(work).collect()
    }
}

/// Splits each slice into blocks of the length given with it, and runs `work(i, blocks)` on the `i`-th blocks of all slices.
pub(crate) fn for_each_block<T: Send, const N: usize>(
    mut slices: [(&mut [T], usize); N],
    work: impl Fn(usize, [&mut [T]; N]) + Send + Sync,
) {
    let mut blocks = Vec::new();
    while slices.iter().any(|(slice, _)| !slice.is_empty()) {
        blocks.push(slices.each_mut().map(|(slice, length)| {
            let length = (*length).min(slice.len());
            let (block, rest) = std::mem::take(slice).split_at_mut(length);
            *slice = rest;
            block
        }));
    }
    for_each_item(blocks.into_iter().enumerate().collect(), |(index, block)| work(index, block));
}

/// Splits a slice into parts of the given lengths, and runs `work(index, index of the first element, part)` on each.
pub(crate) fn for_each_part(
    mut slice: &mut [f32],
    lengths: impl Iterator<Item = usize>,
    work: impl Fn(usize, usize, &mut [f32]) + Send + Sync,
) {
    let mut parts = Vec::new();
    let mut start = 0;
    for (index, length) in lengths.enumerate() {
        let (part, rest) = slice.split_at_mut(length);
        parts.push((index, start, part));
        start += length;
        slice = rest;
    }
    for_each_item(parts, |(index, start, part)| work(index, start, part));
}

/// New vectors, filled block by block as in [`for_each_block`]. `lengths` are the lengths of a block and of the vector.
///
/// # Safety
/// `work` must initialise every element of its blocks.
pub(crate) unsafe fn fill<const N: usize>(
    lengths: [(usize, usize); N],
    work: impl Fn(usize, [Uninit; N]) + Send + Sync,
) -> [Vec<f32>; N] {
    let mut vectors = lengths.map(|(_, whole)| Vec::<f32>::with_capacity(whole));
    let mut length = lengths.iter();
    let slices = vectors.each_mut().map(|vector| {
        let &(block, whole) = length.next().expect("one per vector");
        (&mut vector.spare_capacity_mut()[..whole], block)
    });
    for_each_block(slices, work);
    for (vector, (_, whole)) in vectors.iter_mut().zip(lengths) {
        // SAFETY: the capacity was reserved, and the caller's `work` has initialised every element.
        unsafe { vector.set_len(whole) };
    }
    vectors
}

/// `N` new vectors of `n` elements, filled block by block by `work(index of the first element, blocks)`.
///
/// # Safety
/// As for [`fill`].
pub(crate) unsafe fn elementwise<const N: usize>(
    n: usize,
    work: impl Fn(usize, [Uninit; N]) + Send + Sync,
) -> [Vec<f32>; N] {
    // SAFETY: the caller promises that `work` initialises its blocks.
    unsafe { fill([(ELEMENTS, n); N], |index, blocks| work(index * ELEMENTS, blocks)) }
}

/// The sum of all rows of length `row`, added in order.
pub(crate) fn sum_rows(values: &[f32], row: usize) -> Vec<f32> {
    let mut total = vec![0.0; row];
    for values in values.chunks_exact(row.max(1)) {
        for (total, value) in total.iter_mut().zip(values) {
            *total += value;
        }
    }
    total
}

/// The memory of one vector, written by many tasks at places that don't overlap.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    start: *mut f32,
    length: usize,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is an address and a length. Whoever writes through it promises that the places don't overlap.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(memory: Uninit<'a>) -> Self {
        Self { start: memory.as_mut_ptr().cast(), length: memory.len(), memory: PhantomData }
    }

    pub fn initialised(memory: &'a mut [f32]) -> Self {
        Self { start: memory.as_mut_ptr(), length: memory.len(), memory: PhantomData }
    }

    /// The address of an element.
    pub fn at(self, index: usize) -> *mut f32 {
        assert!(index < self.length, "element {index} of {}", self.length);
        // SAFETY: the element lies within the memory.
        unsafe { self.start.add(index) }
    }
}
