//! Logits `softcap(h·Wᵀ)` in blocks, and never more than a fixed number of them in memory. Shared by the operations on the whole
//! vocabulary.
//!
//! In the forward pass a task takes some rows through the vocabulary in chunks and keeps running sums. The first rows' products
//! may be kept for the backward pass; those of the others are computed again there, a slab of rows at a time. Each chunk of the
//! vocabulary is a task, which turns the products of its slabs into their gradients and adds to its part of the weight's gradient.
//! Then the slabs are multiplied by the weight.

use std::{ops::Range, slice};

use burn::backend::flex::FlexTensor;

use super::{
    blocks,
    elementary::{LANES, exp, max, sum, tanh, vectorised},
    matrix::{Matrix, Write, multiply, multiply_into},
    values,
};

/// Rows per task.
const ROWS: usize = 64;
/// Tokens per chunk of the vocabulary; a multiple of the lanes.
const CHUNK: usize = 256;
/// Rows per task of the forward scan: the more, the less often a chunk of the weight is packed for the product.
const SCAN_ROWS: usize = 256;
/// Products per slab that is computed again (32 MiB), but at least [`ROWS`] rows: the more rows, the longer the inner sums of the
/// weight's gradient.
const SLAB: usize = 1 << 23;
/// Products that a forward pass may keep for its backward pass: 320 MiB, which `fpo-plan` counts as well.
pub(crate) const KEPT: usize = 5 << 24;
/// The logit that fills up the last chunk's lanes. Its exponential is zero, and it is finite, so that times zero it is zero.
const PADDING: f32 = -1e30;

/// The unembedding of a language model and its inputs.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    /// `[n, d]`
    pub hidden: &'a [f32],
    /// `[vocabulary, d]`
    pub weight: &'a [f32],
    pub d: usize,
    pub softcap: Option<f32>,
}

impl<'a> Head<'a> {
    /// From contiguous `hidden` `[n, d]` and `weight` `[vocabulary, d]`.
    pub fn new(hidden: &'a FlexTensor, weight: &'a FlexTensor, softcap: Option<f32>) -> Self {
        let d = hidden.layout().shape()[1];
        Self { hidden: values(hidden), weight: values(weight), d, softcap }
    }

    fn rows(&self) -> usize {
        self.hidden.len() / self.d.max(1)
    }

    pub fn vocabulary(&self) -> usize {
        self.weight.len() / self.d.max(1)
    }

    /// The vocabulary in chunks.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let vocabulary = self.vocabulary();
        (0..vocabulary).step_by(CHUNK).map(move |first| first..(first + CHUNK).min(vocabulary))
    }

    fn hidden(&self, rows: &Range<usize>) -> Matrix<'a> {
        let values = &self.hidden[rows.start * self.d..rows.end * self.d];
        Matrix::dense(values, rows.len(), self.d)
    }

    fn weight(&self, tokens: &Range<usize>) -> Matrix<'a> {
        let values = &self.weight[tokens.start * self.d..tokens.end * self.d];
        Matrix::dense(values, tokens.len(), self.d)
    }

    /// The arguments of the soft-cap's tanh (the logits, if there is no soft-cap), in rows of [`CHUNK`].
    fn products(&self, rows: &Range<usize>, tokens: &Range<usize>, output: &mut [f32]) {
        assert!(output.len() >= rows.len() * CHUNK && tokens.len() <= CHUNK);
        let factor = 1.0 / self.softcap.unwrap_or(1.0);
        let (hidden, weight) = (self.hidden(rows), self.weight(tokens).t());
        // SAFETY: the slice holds this many rows of that stride, and is exclusive.
        unsafe {
            multiply_into(output.as_mut_ptr(), CHUNK, Write::Replace, factor, hidden, weight);
        }
    }

    /// The logits in rows of [`CHUNK`], the last lanes filled with [`PADDING`].
    fn logits(&self, rows: &Range<usize>, tokens: &Range<usize>, output: &mut [f32]) {
        self.products(rows, tokens, output);
        self.cap(rows, tokens, output);
    }

    /// Turns products into logits, the last lanes filled with [`PADDING`].
    fn cap(&self, rows: &Range<usize>, tokens: &Range<usize>, output: &mut [f32]) {
        let width = tokens.len().next_multiple_of(LANES);
        vectorised(
            #[inline(always)]
            || {
                for row in output.chunks_exact_mut(CHUNK).take(rows.len()) {
                    let row = &mut row[..width];
                    if let Some(cap) = self.softcap {
                        for x in row.as_chunks_mut::<LANES>().0.as_flattened_mut() {
                            *x = cap * tanh(*x);
                        }
                    }
                    row[tokens.len()..].fill(PADDING);
                }
            },
        );
    }
}

/// The products of some rows: for each chunk of the vocabulary, rows of [`CHUNK`].
#[derive(Clone, Debug)]
pub(crate) struct Slab {
    rows: Range<usize>,
    products: Vec<f32>,
}

impl Slab {
    fn chunks_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.products.chunks_mut(self.rows.len() * CHUNK)
    }
}

/// Takes every row through the vocabulary. `update` gets the row's state, the row's index, the first token of a chunk, and the
/// logits of each head in this chunk, padded to whole lanes. Returns the final state of each row.
#[inline(always)]
pub(crate) fn scan<A: Clone + Default + Send, const H: usize>(
    heads: [Head; H],
    update: impl Fn(&mut A, usize, usize, [&[f32]; H]) + Send + Sync,
) -> Vec<A> {
    scan_and_keep(heads, 0, update).0
}

/// The same, and the last head's products of the first rows: at most `kept` products.
#[inline(always)]
pub(crate) fn scan_and_keep<A: Clone + Default + Send, const H: usize>(
    heads: [Head; H],
    kept: usize,
    update: impl Fn(&mut A, usize, usize, [&[f32]; H]) + Send + Sync,
) -> (Vec<A>, Vec<Slab>) {
    let n = heads[0].rows();
    let of_row = heads[H - 1].vocabulary().next_multiple_of(CHUNK);
    let blocks = blocks::map(n.div_ceil(SCAN_ROWS), |block| {
        let rows = block * SCAN_ROWS..((block + 1) * SCAN_ROWS).min(n);
        let is_kept = rows.end * of_row <= kept;
        let mut products = Vec::with_capacity(if is_kept { rows.len() * of_row } else { 0 });
        let mut states = vec![A::default(); rows.len()];
        let mut scratch = [(); H].map(|()| vec![0.0; SCAN_ROWS * CHUNK]);
        for tokens in heads[0].chunks() {
            for (head, scratch) in heads.iter().zip(&mut scratch) {
                head.products(&rows, &tokens, scratch);
            }
            if is_kept {
                products.extend_from_slice(&scratch[H - 1][..rows.len() * CHUNK]);
            }
            for (head, scratch) in heads.iter().zip(&mut scratch) {
                head.cap(&rows, &tokens, scratch);
            }
            let width = tokens.len().next_multiple_of(LANES);
            vectorised(
                #[inline(always)]
                || {
                    for (i, state) in states.iter_mut().enumerate() {
                        let logits = scratch.each_ref().map(|rows| &rows[i * CHUNK..][..width]);
                        update(state, rows.start + i, tokens.start, logits);
                    }
                },
            );
        }
        (states, is_kept.then_some(Slab { rows, products }))
    });
    let (states, slabs): (Vec<_>, Vec<_>) = blocks.into_iter().unzip();
    (states.into_iter().flatten().collect(), slabs.into_iter().flatten().collect())
}

/// The wanted gradients of the hidden states and of the weight. `kept` are the products that [`scan_and_keep`] kept.
///
/// `gradient` turns one row of a chunk in place: from arguments of the soft-cap's tanh (logits, if there is no soft-cap) into the
/// gradients of the products `h·Wᵀ`. It gets the row's index, the first token of the chunk, the row, and the logits of `other`
/// in this chunk (empty if there is none).
#[inline(always)]
pub(crate) fn backward(
    head: Head,
    other: Option<Head>,
    mut kept: Vec<Slab>,
    [hidden_wanted, weight_wanted]: [bool; 2],
    gradient: impl Fn(usize, usize, &mut [f32], &[f32]) + Send + Sync,
) -> [Option<Vec<f32>>; 2] {
    let (n, d, vocabulary) = (head.rows(), head.d, head.vocabulary());
    let mut d_hidden = vec![0.0; if hidden_wanted { n * d } else { 0 }];
    let mut d_weight = vec![0.0; if weight_wanted { vocabulary * d } else { 0 }];

    let mut pass = |slabs: &mut [Slab], are_computed: bool| {
        let Some(first) = slabs.first().map(|slab| slab.rows.start) else { return };
        let end = slabs.last().map_or(first, |slab| slab.rows.end);
        let rows: Vec<_> = slabs.iter().map(|slab| slab.rows.clone()).collect();
        let tasks: Vec<_> = {
            let mut products: Vec<_> = slabs.iter_mut().map(Slab::chunks_mut).collect();
            let mut d_weights = d_weight.chunks_mut((CHUNK * d).max(1));
            let of_chunk = |tokens| {
                let slabs: Vec<_> = products.iter_mut().filter_map(Iterator::next).collect();
                (tokens, slabs, d_weights.next())
            };
            head.chunks().map(of_chunk).collect()
        };
        blocks::for_each_item(tasks, |(tokens, slabs, mut d_weight)| {
            let width = tokens.len().next_multiple_of(LANES);
            let mut scratch = vec![0.0; if other.is_some() { ROWS * CHUNK } else { 0 }];
            for (rows, slab) in rows.iter().zip(slabs) {
                for (first, slab) in rows.clone().step_by(ROWS).zip(slab.chunks_mut(ROWS * CHUNK)) {
                    let some = first..(first + ROWS).min(rows.end);
                    if !are_computed {
                        head.products(&some, &tokens, slab);
                    }
                    if let Some(other) = other {
                        other.logits(&some, &tokens, &mut scratch);
                    }
                    vectorised(
                        #[inline(always)]
                        || {
                            for (i, row) in slab.chunks_exact_mut(CHUNK).enumerate() {
                                let other = scratch.get(i * CHUNK..i * CHUNK + width);
                                let other = other.unwrap_or_default();
                                gradient(first + i, tokens.start, &mut row[..width], other);
                            }
                        },
                    );
                }
                if let Some(d_weight) = &mut d_weight {
                    let slab = Matrix::strided(slab, rows.len(), tokens.len(), CHUNK);
                    multiply(d_weight, Write::Add, 1.0, slab.t(), head.hidden(rows));
                }
            }
        });
        if hidden_wanted {
            // All slabs but the last have as many rows as the first.
            let of_slab = rows[0].len();
            let d_hidden = &mut d_hidden[first * d..end * d];
            blocks::for_each_block([(d_hidden, ROWS * d)], |block, [d_hidden]| {
                let row = block * ROWS;
                let slab = &slabs[row / of_slab];
                for (chunk, tokens) in head.chunks().enumerate() {
                    let first = chunk * slab.rows.len() + row % of_slab;
                    let products = &slab.products[first * CHUNK..];
                    let products =
                        Matrix::strided(products, d_hidden.len() / d, tokens.len(), CHUNK);
                    multiply(d_hidden, Write::Add, 1.0, products, head.weight(&tokens));
                }
            });
        }
    };
    pass(&mut kept, true);
    let first = kept.last().map_or(0, |slab| slab.rows.end);
    drop(kept);
    let slab_rows = (SLAB / vocabulary.max(1) / ROWS * ROWS).clamp(ROWS, 16 * ROWS);
    let mut slab = Slab { rows: 0..0, products: Vec::new() };
    for first in (first..n).step_by(slab_rows) {
        slab.rows = first..(first + slab_rows).min(n);
        slab.products.resize(slab.rows.len() * vocabulary.next_multiple_of(CHUNK), 0.0);
        pass(slice::from_mut(&mut slab), false);
    }
    [hidden_wanted.then_some(d_hidden), weight_wanted.then_some(d_weight)]
}

/// Running `log Σ exp` of logits that arrive in chunks.
#[derive(Clone, Copy)]
pub(crate) struct LogSumExp {
    pub largest: f32,
    pub sum: f32,
}

impl Default for LogSumExp {
    fn default() -> Self {
        Self { largest: f32::NEG_INFINITY, sum: 0.0 }
    }
}

impl LogSumExp {
    /// Adds logits. Returns the factor by which the sum so far was rescaled to the new largest logit.
    #[inline(always)]
    pub fn update(&mut self, logits: &[f32]) -> f32 {
        let largest = max(logits);
        let largest = if largest > self.largest { largest } else { self.largest };
        let rescale = exp(self.largest - largest);
        self.sum = self.sum * rescale
            + sum(
                [logits],
                #[inline(always)]
                |[logit]| exp(logit - largest),
            );
        self.largest = largest;
        rescale
    }

    pub fn value(&self) -> f32 {
        self.largest + self.sum.ln()
    }
}
