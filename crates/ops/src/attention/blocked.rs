//! Attention in blocks of queries, for backends without a fast path: the full matrix of scores is never in memory, and the backward
//! pass recomputes the scores of each block. Between the products there is a kernel on GPUs, and tensor operations elsewhere.

use std::ops::Range;

use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, TensorData, activation::softmax};

use super::{AttentionOptions, TextStarts};
use crate::{
    blocked::{add, ranges},
    graph::{Operation, Plain},
    joined,
    product::{Factor, product},
    rms_norm::at_least_f32,
};

/// Scores per block: 128 MiB in float32.
const BLOCK: usize = 1 << 25;

#[derive(Clone, Debug)]
pub(super) struct Blocked {
    pub options: AttentionOptions,
    pub texts: Option<TextStarts>,
    /// Queries per block.
    pub queries: usize,
    /// Any integers on the device, for kernels that would read none: uploading some takes time.
    pub unread: Option<Tensor<1, Int>>,
}

/// The sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    kv_heads: usize,
    /// Query heads per key-value head.
    group: usize,
    tokens: usize,
    kv_tokens: usize,
    width: usize,
}

impl Sizes {
    fn of([q, k]: [&Tensor<4>; 2]) -> Self {
        let [batch, heads, tokens, width] = q.dims();
        let [_, kv_heads, kv_tokens, _] = k.dims();
        Self { batch, kv_heads, group: heads / kv_heads, tokens, kv_tokens, width }
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Positions of queries among the keys: the queries are the last of them.
    fn counted_like_keys(&self, queries: &Range<usize>) -> Range<usize> {
        let offset = self.kv_tokens - self.tokens;
        queries.start + offset..queries.end + offset
    }

    /// The queries of a block, grouped by key-value head: `[batch, heads, tokens, head_dim]` →
    /// `[batch · kv_heads, group · block, head_dim]`.
    fn queries(&self, x: &Tensor<4>, block: &Range<usize>) -> Tensor<3> {
        let Self { batch, kv_heads, group, width, .. } = *self;
        let x = x.clone().narrow(2, block.start, block.len());
        x.reshape([batch * kv_heads, group * block.len(), width])
    }

    /// The reverse.
    fn ungrouped_queries(&self, x: Tensor<3>, block: &Range<usize>) -> Tensor<4> {
        x.reshape([self.batch, self.heads(), block.len(), self.width])
    }

    /// `[batch, kv_heads, kv_tokens, head_dim]` → `[batch · kv_heads, kv_tokens, head_dim]`.
    fn keys(&self, x: Tensor<4>) -> Tensor<3> {
        x.reshape([self.batch * self.kv_heads, self.kv_tokens, self.width])
    }

    /// The reverse.
    fn ungrouped_keys(&self, x: Tensor<3>) -> Tensor<4> {
        x.reshape([self.batch, self.kv_heads, self.kv_tokens, self.width])
    }

    /// `[batch, heads, block, keys]` → `[batch · kv_heads, group · block, keys]`
    fn grouped(&self, x: Tensor<4>) -> Tensor<3> {
        let [.., block, keys] = x.dims();
        x.reshape([self.batch * self.kv_heads, self.group * block, keys])
    }

    /// The reverse.
    fn by_head(&self, x: Tensor<3>, block: usize) -> Tensor<4> {
        let [.., keys] = x.dims();
        x.reshape([self.batch, self.heads(), block, keys])
    }
}

/// A block of queries, and the keys that at least one of them sees.
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Block {
    fn of_keys(&self, x: &Tensor<3>) -> Tensor<3> {
        x.clone().narrow(1, self.keys.start, self.keys.len())
    }
}

/// Attention weights of a block, in tensor operations.
struct Weights {
    /// `[batch, heads, queries, keys]`, in float32 at least.
    values: Tensor<4>,
    /// The tanh inside the soft-cap, of the same shape.
    tanh: Option<Tensor<4>>,
}

/// How products become attention weights.
enum Path {
    Operations,
    /// The first position of each position's text, `[batch · tokens]`; unread if each row is one text.
    #[cfg(feature = "cube")]
    Kernels(Box<Tensor<1, Int>>),
}

impl Blocked {
    /// With as many queries per block as a block of scores has room for; `per_query` are the scores of a query, over all heads and
    /// rows.
    pub fn new(options: &AttentionOptions, texts: Option<TextStarts>, per_query: usize) -> Self {
        let queries = (BLOCK / per_query.max(1)).max(16);
        Self { options: *options, texts, queries, unread: None }
    }

    #[cfg_attr(not(feature = "cube"), allow(unused_variables))]
    fn path(&self, q: &Tensor<4>) -> Path {
        #[cfg(feature = "cube")]
        if crate::cube::takes(q) {
            if let (None, Some(unread)) = (&self.texts, &self.unread) {
                return Path::Kernels(Box::new(unread.clone()));
            }
            let starts: Vec<i32> = match &self.texts {
                None => vec![0],
                Some(texts) => texts.starts.iter().map(|&start| start as i32).collect(),
            };
            let shape = [starts.len()];
            let device = q.device();
            let starts = Tensor::from_data(TensorData::new(starts, shape), &device);
            return Path::Kernels(Box::new(starts));
        }
        Path::Operations
    }

    /// The first key that a query sees, where `query` is its position among the keys.
    fn first_key(&self, row: usize, query: usize) -> usize {
        let of_window = self.options.window.map_or(0, |window| (query + 1).saturating_sub(window));
        let of_text = self.texts.as_ref().map_or(0, |texts| texts.of(row, query));
        of_window.max(of_text)
    }

    /// [`Self::first_key`] of the queries of a block, for each row of the batch, or once if all rows are alike.
    fn first_keys(&self, sizes: &Sizes, queries: &Range<usize>) -> Vec<usize> {
        let rows = self.texts.as_ref().map_or(1, |_| sizes.batch);
        let queries = sizes.counted_like_keys(queries);
        (0..rows)
            .flat_map(|row| queries.clone().map(move |query| self.first_key(row, query)))
            .collect()
    }

    fn blocks(&self, sizes: &Sizes) -> impl Iterator<Item = Block> {
        ranges(sizes.tokens, self.queries).map(|queries| {
            let first = self.first_keys(sizes, &queries).into_iter().min().unwrap_or(0);
            let keys = first..sizes.counted_like_keys(&queries).end;
            Block { queries, keys }
        })
    }

    /// Whether each key is hidden from each query: `[rows, 1, queries, keys]`, where rows is 1 if all rows are alike.
    fn hidden(&self, sizes: &Sizes, block: &Block, device: &Device) -> Tensor<4, Bool> {
        let firsts = self.first_keys(sizes, &block.queries);
        let queries = sizes.counted_like_keys(&block.queries);
        let rows = firsts.len() / queries.len();
        let shape = [rows, 1, queries.len(), block.keys.len()];
        let ints = |values: Vec<i64>, shape: [usize; 4]| {
            Tensor::<4, Int>::from_data(TensorData::new(values, shape), device)
        };
        let firsts =
            ints(firsts.into_iter().map(|i| i as i64).collect(), [rows, 1, queries.len(), 1]);
        let own = ints(queries.clone().map(|i| i as i64).collect(), [1, 1, queries.len(), 1]);
        let key = ints(block.keys.clone().map(|i| i as i64).collect(), [1, 1, 1, shape[3]]);
        let key = key.expand(shape);
        let before = key.clone().lower(firsts.expand(shape));
        before.bool_or(key.greater(own.expand(shape)))
    }

    /// The attention weights of `products` `[batch · kv_heads, group · queries, keys]`.
    fn by_operations(&self, sizes: &Sizes, block: &Block, products: Tensor<3>) -> Weights {
        let hidden = self.hidden(sizes, block, &products.device());
        let scores = sizes.by_head(at_least_f32(products), block.queries.len());
        let scores = scores * self.options.scale;
        let (scores, tanh) = match self.options.softcap {
            Some(cap) => {
                let tanh = (scores / cap).tanh();
                (tanh.clone() * cap, Some(tanh))
            }
            None => (scores, None),
        };
        let hidden = hidden.expand(scores.dims());
        Weights { values: softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3), tanh }
    }

    #[cfg(feature = "cube")]
    fn for_kernels(&self, sizes: &Sizes, block: &Block) -> crate::cube::attention::Block {
        let AttentionOptions { scale, softcap, window } = self.options;
        crate::cube::attention::Block {
            scale,
            softcap,
            window,
            heads: sizes.heads(),
            queries: block.queries.len(),
            first_query: sizes.counted_like_keys(&block.queries).start,
            first_key: block.keys.start,
            positions: self.texts.as_ref().map_or(0, |_| sizes.tokens),
        }
    }

    /// Products `[batch · kv_heads, group · queries, keys]` → attention weights of the same shape and type.
    fn weights(&self, path: &Path, sizes: &Sizes, block: &Block, products: Tensor<3>) -> Tensor<3> {
        match path {
            Path::Operations => {
                let dtype = FloatDType::from(products.dtype());
                sizes.grouped(self.by_operations(sizes, block, products).values.cast(dtype))
            }
            #[cfg(feature = "cube")]
            Path::Kernels(starts) => self.for_kernels(sizes, block).weights(products, starts),
        }
    }

    /// Recomputes the weights p, and returns them with the gradient of the products, given that of the weights:
    /// `p·(dp − Σ dp·p)` through soft-cap and scale.
    fn differentiate(
        &self,
        path: &Path,
        sizes: &Sizes,
        block: &Block,
        products: Tensor<3>,
        d_p: Tensor<3>,
    ) -> [Tensor<3>; 2] {
        match path {
            Path::Operations => {
                let dtype = FloatDType::from(products.dtype());
                let Weights { values: p, tanh } = self.by_operations(sizes, block, products);
                let d_p = sizes.by_head(at_least_f32(d_p), block.queries.len());
                let mean = (d_p.clone() * p.clone()).sum_dim(3);
                let d_s = p.clone() * (d_p - mean) * self.options.scale;
                let d_s = match tanh {
                    Some(tanh) => d_s * (-tanh.square() + 1.0),
                    None => d_s,
                };
                [p, d_s].map(|x| sizes.grouped(x.cast(dtype)))
            }
            #[cfg(feature = "cube")]
            Path::Kernels(starts) => self.for_kernels(sizes, block).backward(products, d_p, starts),
        }
    }
}

impl Blocked {
    /// The outputs, of the shape of the queries.
    ///
    /// # Shapes
    /// * queries: `[batch, heads, tokens, head_dim]`
    /// * keys, values: `[batch, kv_heads, kv_tokens, head_dim]`
    pub fn of_heads(&self, [q, k, v]: [Tensor<4>; 3]) -> Tensor<4> {
        let (sizes, path) = (Sizes::of([&q, &k]), self.path(&q));
        let (k, v) = (sizes.keys(k), sizes.keys(v));
        let blocks = self.blocks(&sizes).map(|block| {
            let products =
                product(sizes.queries(&q, &block.queries), Factor::transposed(block.of_keys(&k)));
            let weights = self.weights(&path, &sizes, &block, products);
            sizes.ungrouped_queries(product(weights, block.of_keys(&v)), &block.queries)
        });
        joined(blocks.collect(), 2)
    }

    /// The wanted gradients, given that of the outputs. With p the weights, g the gradient of a block, `dp = g·vᵀ` and `ds` from
    /// [`Blocked::differentiate`]: `dq = ds·k`, `dk = dsᵀ·q`, `dv = pᵀ·g`.
    pub fn backward_of_heads(
        &self,
        [q, k, v]: [Tensor<4>; 3],
        gradient: &Tensor<4>,
        wanted: [bool; 3],
    ) -> [Option<Tensor<4>>; 3] {
        let (sizes, path) = (Sizes::of([&q, &k]), self.path(&q));
        let dtype = FloatDType::from(q.dtype());
        let (k, v) = (sizes.keys(k), sizes.keys(v));
        let mut d_q = Vec::new();
        let (mut d_k, mut d_v): (Option<Tensor<3>>, Option<Tensor<3>>) = (None, None);
        for block in self.blocks(&sizes) {
            let among_all = |x: Tensor<3>| {
                let after = sizes.kv_tokens - block.keys.end;
                match (block.keys.start, after) {
                    (0, 0) => at_least_f32(x),
                    (before, after) => at_least_f32(x).pad([(0, 0), (before, after), (0, 0)], 0.0),
                }
            };
            let (q, g) =
                (sizes.queries(&q, &block.queries), sizes.queries(gradient, &block.queries));
            let products = product(q.clone(), Factor::transposed(block.of_keys(&k)));
            let (p, d_s) = match wanted[0] || wanted[1] {
                true => {
                    let d_p = product(g.clone(), Factor::transposed(block.of_keys(&v)));
                    let [p, d_s] = self.differentiate(&path, &sizes, &block, products, d_p);
                    (p, Some(d_s))
                }
                false => (self.weights(&path, &sizes, &block, products), None),
            };
            if wanted[2] {
                d_v = Some(add(d_v, among_all(product(Factor::transposed(p), g))));
            }
            if let (Some(d_s), true) = (&d_s, wanted[0]) {
                let d_block = product(d_s.clone(), block.of_keys(&k));
                d_q.push(sizes.ungrouped_queries(d_block, &block.queries));
            }
            if let (Some(d_s), true) = (d_s, wanted[1]) {
                d_k = Some(add(d_k, among_all(product(Factor::transposed(d_s), q))));
            }
        }
        let [d_k, d_v] = [d_k, d_v].map(|sum| sum.map(|x| sizes.ungrouped_keys(x.cast(dtype))));
        [wanted[0].then(|| joined(d_q, 2)), d_k, d_v]
    }
}

/// `[batch, tokens, heads, head_dim]` → `[batch, heads, tokens, head_dim]`, and the reverse.
fn swapped(x: Tensor<4>) -> Tensor<4> {
    x.swap_dims(1, 2)
}

impl Operation<3> for Blocked {
    type Saved = ();

    fn forward(&self, inputs: [Plain; 3]) -> (Plain, ()) {
        (swapped(self.of_heads(inputs.map(|x| swapped(x.into())))).into(), ())
    }

    fn backward(
        &self,
        inputs: [Plain; 3],
        (): (),
        gradient: Plain,
        wanted: [bool; 3],
    ) -> [Option<Plain>; 3] {
        let inputs = inputs.map(|x| swapped(x.into()));
        let gradients = self.backward_of_heads(inputs, &swapped(gradient.into()), wanted);
        gradients.map(|gradient| gradient.map(|x| swapped(x).into()))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::testing::check;

    #[test]
    fn blocks_make_no_difference() {
        // batch, tokens, kv tokens, heads, kv heads, head_dim
        for [b, t, kt, h, kh, d] in [[1, 1, 1, 1, 1, 1], [2, 7, 7, 4, 2, 3], [1, 3, 8, 3, 1, 2]] {
            // A power of two: autodiff rounds the reciprocal of a divisor to float32.
            for softcap in [None, Some(2.0)] {
                for window in [None, Some(1), Some(3)] {
                    for queries in [1, 2, 100] {
                        let options = AttentionOptions { scale: 0.7, softcap, window };
                        check(
                            Blocked { options, texts: None, queries, unread: None },
                            [[b, t, h, d], [b, kt, kh, d], [b, kt, kh, d]],
                            |[q, k, v]| super::super::by_definition(q, k, v, &options, None),
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_make_no_difference_to_packed_texts() {
        let texts = TextStarts::new(&[vec![3, 1, 4], vec![2, 4]], 8);
        for window in [None, Some(2)] {
            for queries in [1, 3, 100] {
                let options = AttentionOptions { scale: 0.7, softcap: Some(2.0), window };
                check(
                    Blocked { options, texts: Some(texts.clone()), queries, unread: None },
                    [[2, 8, 4, 3], [2, 8, 2, 3], [2, 8, 2, 3]],
                    |[q, k, v]| super::super::by_definition(q, k, v, &options, Some(&texts)),
                );
            }
        }
    }
}
