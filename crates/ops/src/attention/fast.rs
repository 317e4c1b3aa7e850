//! Causal attention on Flex: blocks of queries against all keys that they see, one block of scores per thread.
//!
//! Queries, keys and values are read where they lie, and gradients written there. The backward pass recomputes the scores from the
//! saved logarithm of each softmax's denominator, so nothing of size tokens × tokens is ever in memory.

use std::{ops::Range, sync::Arc};

use burn::backend::flex::FlexTensor;

use super::{AttentionOptions, FlatRows, TextStarts, flat::Row};
use crate::flex::{
    Operation, blocks,
    blocks::Shared,
    elementary::{LANES, exp, max, sum, tanh, vectorised},
    matrix::{Matrix, Write, multiply_into},
    tensor, tensors_like, values,
};

/// Queries per block.
const QUERIES: usize = 64;

/// Attention within texts, each query being in one of them.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    options: AttentionOptions,
    /// A task is one key-value head of one group: keys of a group are in no other.
    groups: Arc<[Vec<Text>]>,
}

/// Queries in sequence, and the keys that the last of them sees: those of the first range, then those of the second. Each earlier
/// query sees one key less.
#[derive(Clone, Debug, PartialEq)]
struct Text {
    queries: Range<usize>,
    keys: [Range<usize>; 2],
}

impl Text {
    fn alone(queries: Range<usize>, keys: Range<usize>) -> Self {
        Self { queries, keys: [0..0, keys] }
    }
}

impl Attention {
    /// Over `batch` rows of `tokens` queries and `kv_tokens` keys.
    pub fn of_rows(
        options: &AttentionOptions,
        [batch, tokens, kv_tokens]: [usize; 3],
        texts: Option<&TextStarts>,
    ) -> Self {
        let groups = match texts {
            Some(texts) => {
                texts.ranges().map(|text| vec![Text::alone(text.clone(), text)]).collect()
            }
            None => {
                let row = |row, length| row * length..(row + 1) * length;
                (0..batch)
                    .map(|at| vec![Text::alone(row(at, tokens), row(at, kv_tokens))])
                    .collect()
            }
        };
        Self { options: *options, groups }
    }

    /// Over rows whose tokens lie flat. A shared beginning is a text of its own, read by both of its rows.
    pub fn flat(options: &AttentionOptions, rows: &FlatRows) -> Self {
        let mut groups: Vec<Vec<Text>> = vec![Vec::new(); rows.rows().len()];
        for Row { ranges: [beginning, rest], shared, shared_with } in rows.rows() {
            let in_beginning = *shared.min(&beginning.len());
            let queries = [
                beginning.start + in_beginning..beginning.end,
                rest.start + (shared - in_beginning)..rest.end,
            ];
            let keys = [[0..0, beginning.clone()], [beginning.clone(), rest.clone()]];
            let texts = queries.into_iter().zip(keys).map(|(queries, keys)| Text { queries, keys });
            groups[*shared_with].extend(texts.filter(|text| !text.queries.is_empty()));
        }
        groups.retain(|group| !group.is_empty());
        Self { options: *options, groups: groups.into() }
    }
}

impl Operation<3> for Attention {
    /// The inputs, and log Σ exp of each query's scores, per task in the order of its blocks.
    type Saved = ([FlexTensor; 3], Arc<[Vec<f32>]>);

    fn forward(&self, inputs: [FlexTensor; 3]) -> (FlexTensor, Self::Saved) {
        let sizes = Sizes::of(&inputs, self);
        let [q, k, v] = inputs.each_ref().map(values);
        let mut output = Vec::<f32>::with_capacity(q.len());
        let destination = Shared::new(output.spare_capacity_mut());

        let log_sums = blocks::map(sizes.tasks(), |task| {
            let mut scratch = sizes.scratch(task);
            let mut log_sums = Vec::new();
            for block in sizes.blocks(task) {
                let scores = &mut scratch[..block.queries.len() * block.width()];
                sizes.products(&block, scores, self.factor(), q, k);
                vectorised(
                    #[inline(always)]
                    || self.softmax(scores, &block, &mut log_sums),
                );
                let (at, stride) = sizes.query_place(&block);
                for part in block.parts() {
                    let (weights, v) = (block.matrix(scores, &part), sizes.keys(v, &block, &part));
                    // SAFETY: the block's queries of this head are within the output and belong to this block alone.
                    unsafe {
                        let to = destination.at(at);
                        multiply_into(to, stride, part.write(), 1.0, weights, v);
                    }
                }
            }
            log_sums
        });

        // SAFETY: the blocks cover every query of every head.
        unsafe { output.set_len(q.len()) };
        let output = tensor(output, inputs[0].layout().shape().clone());
        (output, (inputs, log_sums.into()))
    }

    fn backward(
        &self,
        (inputs, log_sums): Self::Saved,
        gradient: FlexTensor,
        _wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let sizes = Sizes::of(&inputs, self);
        let ([q, k, v], g) = (inputs.each_ref().map(values), values(&gradient));
        let mut d_q = Vec::<f32>::with_capacity(q.len());
        let (mut d_k, mut d_v) = (vec![0.0; k.len()], vec![0.0; v.len()]);
        let (to_q, to_k, to_v) = (
            Shared::new(d_q.spare_capacity_mut()),
            Shared::initialised(&mut d_k),
            Shared::initialised(&mut d_v),
        );

        blocks::for_each(sizes.tasks(), |task| {
            let mut scratch = [sizes.scratch(task), sizes.scratch(task), sizes.scratch(task)];
            let mut log_sums = log_sums[task].as_slice();
            for block in sizes.blocks(task) {
                let length = block.queries.len() * block.width();
                let [weights, slopes, d_scores] = &mut scratch;
                let [weights, slopes, d_scores] =
                    [weights, slopes, d_scores].map(|buffer| &mut buffer[..length]);
                sizes.products(&block, weights, self.factor(), q, k);
                sizes.products(&block, d_scores, 1.0, g, v);
                let (of_block, rest) = log_sums.split_at(block.queries.len());
                log_sums = rest;
                vectorised(
                    #[inline(always)]
                    || self.softmax_backward(weights, slopes, d_scores, &block, of_block),
                );
                let (queries, g) = (sizes.queries(q, &block), sizes.queries(g, &block));
                let (query, query_stride) = sizes.query_place(&block);
                for part in block.parts() {
                    let weights = block.matrix(weights, &part);
                    let d_scores = block.matrix(d_scores, &part);
                    let keys = sizes.keys(k, &block, &part);
                    let (key, stride) = sizes.key_place(&block, &part);
                    // SAFETY: the block's queries of this head belong to this block alone, and its keys to this task.
                    unsafe {
                        let to_q = to_q.at(query);
                        multiply_into(to_q, query_stride, part.write(), 1.0, d_scores, keys);
                        multiply_into(to_k.at(key), stride, Write::Add, 1.0, d_scores.t(), queries);
                        multiply_into(to_v.at(key), stride, Write::Add, 1.0, weights.t(), g);
                    }
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

    fn window(&self) -> usize {
        self.options.window.unwrap_or(usize::MAX)
    }

    /// Turns rows of scaled dot products into rows of attention weights, which are zero for hidden keys.
    #[inline(always)]
    fn softmax(&self, scores: &mut [f32], block: &Block, log_sums: &mut Vec<f32>) {
        for (row, query) in scores.chunks_exact_mut(block.width()).zip(block.queries.clone()) {
            let seen = block.seen(query, self.window());
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
            let seen = block.seen(query, self.window());
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
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    attention: &'a Attention,
}

/// Some queries of one head, and the keys that at least one of them sees.
struct Block<'a> {
    text: &'a Text,
    head: usize,
    kv_head: usize,
    /// Places in the text.
    queries: Range<usize>,
    /// Places among the text's keys.
    keys: Range<usize>,
}

/// The keys of a block that lie in sequence.
struct Part {
    /// The column of the first one in the scores.
    column: usize,
    keys: Range<usize>,
}

impl Part {
    /// How a sum over all keys is written part by part.
    fn write(&self) -> Write {
        if self.column == 0 { Write::Replace } else { Write::Add }
    }
}

impl Text {
    fn kv_tokens(&self) -> usize {
        self.keys[0].len() + self.keys[1].len()
    }

    /// The keys that a query sees, as places among the text's.
    fn visible(&self, query: usize, window: usize) -> Range<usize> {
        let end = query + 1 + self.kv_tokens() - self.queries.len();
        end.saturating_sub(window)..end
    }
}

impl Block<'_> {
    /// The row stride of the scores, in whole lanes.
    fn width(&self) -> usize {
        self.keys.len().next_multiple_of(LANES)
    }

    /// The keys that a query sees, relative to the block's.
    fn seen(&self, query: usize, window: usize) -> Range<usize> {
        let visible = self.text.visible(query, window);
        visible.start - self.keys.start..visible.end - self.keys.start
    }

    /// At least one.
    fn parts(&self) -> impl Iterator<Item = Part> {
        let [first, second] = &self.text.keys;
        let split = first.len();
        let at = |place: usize| first.start + place.min(split);
        let first = at(self.keys.start)..at(self.keys.end);
        let at = |place: usize| second.start + place.saturating_sub(split);
        let second = Part { column: first.len(), keys: at(self.keys.start)..at(self.keys.end) };
        [Part { column: 0, keys: first }, second].into_iter().filter(|part| !part.keys.is_empty())
    }

    /// The columns of a part as a matrix, `[queries, keys]`.
    fn matrix<'s>(&self, scores: &'s [f32], part: &Part) -> Matrix<'s> {
        let (queries, keys) = (self.queries.len(), part.keys.len());
        Matrix::strided(&scores[part.column..], queries, keys, self.width())
    }
}

impl<'a> Sizes<'a> {
    fn of([q, k, _]: &[FlexTensor; 3], attention: &'a Attention) -> Self {
        let [_, _, heads, head_dim] = q.layout().shape()[..] else { unreachable!("of rank 4") };
        Self { heads, kv_heads: k.layout().shape()[2], head_dim, attention }
    }

    fn tasks(&self) -> usize {
        self.attention.groups.len() * self.kv_heads
    }

    fn texts(&self, task: usize) -> &'a [Text] {
        &self.attention.groups[task / self.kv_heads]
    }

    /// Scratch space for the scores of one block.
    fn scratch(&self, task: usize) -> Vec<f32> {
        let length = |text: &Text| {
            QUERIES.min(text.queries.len()) * text.kv_tokens().next_multiple_of(LANES)
        };
        vec![0.0; self.texts(task).iter().map(length).max().unwrap_or(0)]
    }

    /// The blocks of the query heads that share one key-value head of one group.
    fn blocks(&self, task: usize) -> impl Iterator<Item = Block<'a>> {
        let (kv_head, shared_by) = (task % self.kv_heads, self.heads / self.kv_heads);
        let (texts, window) = (self.texts(task), self.attention.window());
        (kv_head * shared_by..(kv_head + 1) * shared_by).flat_map(move |head| {
            texts.iter().flat_map(move |text| {
                (0..text.queries.len()).step_by(QUERIES).map(move |first| {
                    let queries = first..(first + QUERIES).min(text.queries.len());
                    let keys = text.visible(first, window).start
                        ..text.visible(queries.end - 1, window).end;
                    Block { text, head, kv_head, queries, keys }
                })
            })
        })
    }

    /// `factor` times the dot products of queries and keys, as rows of scores.
    fn products(&self, block: &Block, scores: &mut [f32], factor: f32, q: &[f32], k: &[f32]) {
        assert_eq!(scores.len(), block.queries.len() * block.width());
        let queries = self.queries(q, block);
        for part in block.parts() {
            let keys = self.keys(k, block, &part).t();
            let to = scores[part.column..].as_mut_ptr();
            // SAFETY: with its stride, the product ends where the slice does or before, which is exclusive.
            unsafe { multiply_into(to, block.width(), Write::Replace, factor, queries, keys) };
        }
    }

    /// Where the first query of a block starts in `[tokens, heads, head_dim]`, and the distance to the next.
    fn query_place(&self, block: &Block) -> (usize, usize) {
        let stride = self.heads * self.head_dim;
        let first = block.text.queries.start + block.queries.start;
        (first * stride + block.head * self.head_dim, stride)
    }

    /// Where the first key of a part starts in `[kv_tokens, kv_heads, head_dim]`, and the distance to the next.
    fn key_place(&self, block: &Block, part: &Part) -> (usize, usize) {
        let stride = self.kv_heads * self.head_dim;
        (part.keys.start * stride + block.kv_head * self.head_dim, stride)
    }

    /// The block's queries, `[queries, head_dim]`.
    fn queries<'b>(&self, q: &'b [f32], block: &Block) -> Matrix<'b> {
        let (start, stride) = self.query_place(block);
        Matrix::strided(&q[start..], block.queries.len(), self.head_dim, stride)
    }

    /// A part's keys or values, `[keys, head_dim]`.
    fn keys<'b>(&self, k: &'b [f32], block: &Block, part: &Part) -> Matrix<'b> {
        let (start, stride) = self.key_place(block, part);
        Matrix::strided(&k[start..], part.keys.len(), self.head_dim, stride)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn a_shared_beginning_is_a_text_of_its_own() {
        let rows = [[0..3, 3..8], [0..3, 8..9], [9..9, 9..12], [9..11, 12..13], [13..15, 15..15]];
        let rows = FlatRows::new(&rows, &Device::flex());
        let options = AttentionOptions { scale: 1.0, softcap: None, window: None };
        let text = |queries, keys| Text { queries, keys };
        let expected: [&[Text]; 3] = [
            &[text(0..3, [0..0, 0..3]), text(3..8, [0..3, 3..8]), text(8..9, [0..3, 8..9])],
            &[text(9..12, [9..9, 9..12]), text(12..13, [9..11, 12..13])],
            &[text(13..15, [0..0, 13..15])],
        ];
        assert_eq!(*Attention::flat(&options, &rows).groups, expected);
    }
}
