//! Causal attention on Flex: blocks of queries against all keys that they see, one block of scores per thread.
//!
//! A task is one key-value head of one row. The backward pass recomputes the scores from the saved logarithm of each
//! softmax's denominator, so nothing of size tokens × tokens is ever in memory.

use std::ops::Range;

use burn::backend::flex::FlexTensor;

use super::{AttentionOptions, TextStarts};
use crate::flex::{
    Operation, blocks,
    blocks::Shared,
    elementary::{LANES, exp, max, sum, tanh, vectorised},
    matrix::{Matrix, Write, multiply_into},
    tensor, tensors_like, values,
};

/// Queries per block.
const QUERIES: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub options: AttentionOptions,
    /// `None` if each row is one text.
    pub texts: Option<TextStarts>,
}

impl Operation<3> for Attention {
    /// The inputs, and log Σ exp of each query's scores, `[batch, heads, tokens]`.
    type Saved = ([FlexTensor; 3], FlexTensor);

    fn forward(&self, inputs: [FlexTensor; 3]) -> (FlexTensor, Self::Saved) {
        let sizes = Sizes::of(&inputs, self);
        let [q, k, v] = inputs.each_ref().map(values);
        let mut output = Vec::<f32>::with_capacity(q.len());
        let destination = Shared::new(output.spare_capacity_mut());

        let log_sums = blocks::map(sizes.batch * sizes.kv_heads, |task| {
            let mut scratch = sizes.scratch();
            let mut log_sums = Vec::with_capacity(sizes.group() * sizes.tokens);
            for block in sizes.blocks(task) {
                let scores = &mut scratch[..block.queries.len() * block.width()];
                let (query, keys) = (sizes.queries(q, &block), sizes.keys(k, &block));
                block.products(scores, self.factor(), query, keys);
                vectorised(
                    #[inline(always)]
                    || self.softmax(scores, &block, &sizes, &mut log_sums),
                );
                let weights = block.matrix(scores);
                let rows = sizes.query_place(&block);
                // SAFETY: the block's rows of this head are within the output and belong to this block alone.
                unsafe {
                    let destination = destination.at(rows.0);
                    let v = sizes.keys(v, &block);
                    multiply_into(destination, rows.1, Write::Replace, 1.0, weights, v);
                }
            }
            log_sums
        });

        // SAFETY: the blocks cover every query of every head.
        unsafe { output.set_len(q.len()) };
        let log_sums = tensor(log_sums.concat(), [sizes.batch, sizes.heads, sizes.tokens]);
        let output = tensor(output, inputs[0].layout().shape().clone());
        (output, (inputs, log_sums))
    }

    fn backward(
        &self,
        (inputs, log_sums): Self::Saved,
        gradient: FlexTensor,
        _wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let sizes = Sizes::of(&inputs, self);
        let ([q, k, v], g) = (inputs.each_ref().map(values), values(&gradient));
        let log_sums = values(&log_sums);
        let mut d_q = Vec::<f32>::with_capacity(q.len());
        let (mut d_k, mut d_v) = (vec![0.0; k.len()], vec![0.0; v.len()]);
        let (to_q, to_k, to_v) = (
            Shared::new(d_q.spare_capacity_mut()),
            Shared::initialised(&mut d_k),
            Shared::initialised(&mut d_v),
        );

        blocks::for_each(sizes.batch * sizes.kv_heads, |task| {
            let mut scratch = [sizes.scratch(), sizes.scratch(), sizes.scratch()];
            for block in sizes.blocks(task) {
                let length = block.queries.len() * block.width();
                let [weights, slopes, d_scores] = &mut scratch;
                let [weights, slopes, d_scores] =
                    [weights, slopes, d_scores].map(|buffer| &mut buffer[..length]);
                let (query, g) = (sizes.queries(q, &block), sizes.queries(g, &block));
                let (keys, v) = (sizes.keys(k, &block), sizes.keys(v, &block));
                block.products(weights, self.factor(), query, keys);
                block.products(d_scores, 1.0, g, v);
                let log_sums = &log_sums[block.head * sizes.tokens..][block.queries.clone()];
                vectorised(
                    #[inline(always)]
                    || {
                        self.softmax_backward(weights, slopes, d_scores, &block, &sizes, log_sums);
                    },
                );
                let (weights, d_scores) = (block.matrix(weights), block.matrix(d_scores));
                let (query_place, key_place) = (sizes.query_place(&block), sizes.key_place(&block));
                // SAFETY: the block's queries of this head belong to this block alone, and its keys to this task.
                unsafe {
                    let (to_q, stride) = (to_q.at(query_place.0), query_place.1);
                    multiply_into(to_q, stride, Write::Replace, 1.0, d_scores, keys);
                    let (at, stride) = key_place;
                    multiply_into(to_k.at(at), stride, Write::Add, 1.0, d_scores.t(), query);
                    multiply_into(to_v.at(at), stride, Write::Add, 1.0, weights.t(), g);
                }
            }
        });

        // SAFETY: the blocks cover every query of every head.
        unsafe { d_q.set_len(q.len()) };
        tensors_like([d_q, d_k, d_v].map(Some), &inputs)
    }
}

impl Attention {
    /// The factor of the dot products: with a soft-cap, it includes the division by the cap inside the tanh.
    fn factor(&self) -> f32 {
        (self.options.scale / self.options.softcap.unwrap_or(1.0)) as f32
    }

    /// Turns rows of scaled dot products into rows of attention weights, which are zero for hidden keys.
    #[inline(always)]
    fn softmax(&self, scores: &mut [f32], block: &Block, sizes: &Sizes, log_sums: &mut Vec<f32>) {
        for (row, query) in scores.chunks_exact_mut(block.width()).zip(block.queries.clone()) {
            let seen = sizes.seen(query, block);
            let (chunks, _) = row[whole_lanes(&seen)].as_chunks_mut::<LANES>();
            if let Some(cap) = self.options.softcap {
                each(
                    chunks,
                    #[inline(always)]
                    |x| cap as f32 * tanh(x),
                );
            }
            row[..seen.start].fill(f32::NEG_INFINITY);
            row[seen.end..].fill(f32::NEG_INFINITY);
            let (chunks, _) = row[whole_lanes(&seen)].as_chunks_mut::<LANES>();
            let flat = chunks.as_flattened();
            let largest = max(flat);
            each(
                chunks,
                #[inline(always)]
                |x| exp(x - largest),
            );
            let flat = chunks.as_flattened();
            let total = sum(
                [flat],
                #[inline(always)]
                |[x]| x,
            );
            let inverse = 1.0 / total;
            each(
                chunks,
                #[inline(always)]
                |x| x * inverse,
            );
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            log_sums.push(largest + total.ln());
        }
    }

    /// Turns `weights` from scaled dot products into attention weights p, and `d_scores` from the gradients g of the weights into
    /// those of the dot products: `scale · p·(g − Σ p·g) · tanh′`. `slopes` is scratch space for p·tanh′.
    #[inline(always)]
    fn softmax_backward(
        &self,
        weights: &mut [f32],
        slopes: &mut [f32],
        d_scores: &mut [f32],
        block: &Block,
        sizes: &Sizes,
        log_sums: &[f32],
    ) {
        let width = block.width();
        let scale = self.options.scale as f32;
        let rows = weights
            .chunks_exact_mut(width)
            .zip(slopes.chunks_exact_mut(width))
            .zip(d_scores.chunks_exact_mut(width))
            .zip(block.queries.clone().zip(log_sums));
        for (((weights, slopes), d_scores), (query, &log_sum)) in rows {
            let seen = sizes.seen(query, block);
            let lanes = whole_lanes(&seen);
            let (p, _) = weights[lanes.clone()].as_chunks_mut::<LANES>();
            let (slope, _) = slopes[lanes.clone()].as_chunks_mut::<LANES>();
            match self.options.softcap {
                Some(cap) => {
                    let cap = cap as f32;
                    for (p, slope) in p.iter_mut().zip(slope) {
                        for (p, slope) in p.iter_mut().zip(slope) {
                            let t = tanh(*p);
                            *p = exp(cap * t - log_sum);
                            *slope = *p * (1.0 - t) * (1.0 + t);
                        }
                    }
                }
                None => {
                    each(
                        p,
                        #[inline(always)]
                        |x| exp(x - log_sum),
                    );
                    slope.copy_from_slice(p);
                }
            }
            for row in [&mut *weights, &mut *slopes, &mut *d_scores] {
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
            }
            let (p, g) = (&weights[lanes.clone()], &d_scores[lanes.clone()]);
            let mean = sum(
                [p, g],
                #[inline(always)]
                |[p, g]| p * g,
            );
            let (g, _) = d_scores[lanes.clone()].as_chunks_mut::<LANES>();
            let (slope, _) = slopes[lanes].as_chunks::<LANES>();
            for (g, slope) in g.iter_mut().zip(slope) {
                for (g, slope) in g.iter_mut().zip(slope) {
                    *g = scale * slope * (*g - mean);
                }
            }
        }
    }
}

/// The smallest range of whole lanes around a range.
fn whole_lanes(range: &Range<usize>) -> Range<usize> {
    range.start - range.start % LANES..range.end.next_multiple_of(LANES)
}

/// Applies `f` to each element in place.
#[inline(always)]
fn each(chunks: &mut [[f32; LANES]], f: impl Fn(f32) -> f32) {
    for chunk in chunks {
        for x in chunk {
            *x = f(*x);
        }
    }
}

/// The sizes of one call.
struct Sizes<'a> {
    batch: usize,
    tokens: usize,
    heads: usize,
    head_dim: usize,
    kv_tokens: usize,
    kv_heads: usize,
    window: usize,
    texts: Option<&'a TextStarts>,
}

/// Some queries of one head, and the keys that at least one of them sees.
struct Block {
    row: usize,
    /// Index into `[batch, heads]`, flattened.
    head: usize,
    kv_head: usize,
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Block {
    /// The row stride of the scores, in whole lanes.
    fn width(&self) -> usize {
        self.keys.len().next_multiple_of(LANES)
    }

    /// The scores as a matrix, `[queries, keys]`.
    fn matrix<'a>(&self, scores: &'a [f32]) -> Matrix<'a> {
        Matrix::strided(scores, self.queries.len(), self.keys.len(), self.width())
    }

    /// `factor` times the dot products of queries and keys.
    fn products(&self, scores: &mut [f32], factor: f32, queries: Matrix, keys: Matrix) {
        assert_eq!(scores.len(), self.queries.len() * self.width());
        // SAFETY: the slice is as large as the product with its stride, and exclusive.
        unsafe {
            let (destination, stride) = (scores.as_mut_ptr(), self.width());
            multiply_into(destination, stride, Write::Replace, factor, queries, keys.t());
        }
    }
}

impl<'a> Sizes<'a> {
    fn of(inputs: &[FlexTensor; 3], attention: &'a Attention) -> Self {
        let [q, k, _] = inputs.each_ref().map(|tensor| tensor.layout().shape());
        Self {
            batch: q[0],
            tokens: q[1],
            heads: q[2],
            head_dim: q[3],
            kv_tokens: k[1],
            kv_heads: k[2],
            window: attention.options.window.unwrap_or(usize::MAX),
            texts: attention.texts.as_ref(),
        }
    }

    /// Query heads per key-value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Scratch space for the scores of one block.
    fn scratch(&self) -> Vec<f32> {
        vec![0.0; QUERIES.min(self.tokens) * self.kv_tokens.next_multiple_of(LANES)]
    }

    /// The keys that a query sees.
    fn visible(&self, row: usize, query: usize) -> Range<usize> {
        let end = query + 1 + self.kv_tokens - self.tokens;
        let first = self.texts.map_or(0, |texts| texts.of(row, query));
        end.saturating_sub(self.window).max(first)..end
    }

    /// The same, relative to the keys of a block.
    fn seen(&self, query: usize, block: &Block) -> Range<usize> {
        let visible = self.visible(block.row, query);
        visible.start - block.keys.start..visible.end - block.keys.start
    }

    /// The blocks of the query heads that share one key-value head of one row.
    fn blocks(&self, task: usize) -> impl Iterator<Item = Block> {
        let (row, kv_head) = (task / self.kv_heads, task % self.kv_heads);
        (0..self.group()).flat_map(move |member| {
            self.query_ranges(row).map(move |queries| {
                let keys =
                    self.visible(row, queries.start).start..self.visible(row, queries.end - 1).end;
                Block {
                    row,
                    head: (row * self.kv_heads + kv_head) * self.group() + member,
                    kv_head,
                    queries,
                    keys,
                }
            })
        })
    }

    /// The queries of a row in blocks, none of which spans two texts.
    fn query_ranges(&self, row: usize) -> impl Iterator<Item = Range<usize>> {
        let next = move |first: usize| {
            let end = (first + QUERIES).min(self.tokens);
            let mut queries = first..end;
            let text_ends = |texts: &TextStarts| {
                queries.find(|&i| texts.of(row, i) != texts.of(row, first)).unwrap_or(end)
            };
            let end = self.texts.map_or(end, text_ends);
            (first < end).then_some(first..end)
        };
        std::iter::successors(next(0), move |range| next(range.end))
    }

    /// Where the first query of a block starts in `[batch, tokens, heads, head_dim]`, and the distance to the next.
    fn query_place(&self, block: &Block) -> (usize, usize) {
        let position = block.row * self.tokens + block.queries.start;
        let head = block.head - block.row * self.heads;
        let stride = self.heads * self.head_dim;
        (position * stride + head * self.head_dim, stride)
    }

    /// Where the first key of a block starts in `[batch, kv_tokens, kv_heads, head_dim]`, and the distance to the next.
    fn key_place(&self, block: &Block) -> (usize, usize) {
        let position = block.row * self.kv_tokens + block.keys.start;
        let stride = self.kv_heads * self.head_dim;
        (position * stride + block.kv_head * self.head_dim, stride)
    }

    /// The block's queries, `[queries, head_dim]`.
    fn queries<'b>(&self, q: &'b [f32], block: &Block) -> Matrix<'b> {
        let (start, stride) = self.query_place(block);
        Matrix::strided(&q[start..], block.queries.len(), self.head_dim, stride)
    }

    /// The block's keys or values, `[keys, head_dim]`.
    fn keys<'b>(&self, k: &'b [f32], block: &Block) -> Matrix<'b> {
        let (start, stride) = self.key_place(block);
        Matrix::strided(&k[start..], block.keys.len(), self.head_dim, stride)
    }
}
