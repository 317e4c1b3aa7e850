//! The same by tensor operations, some queries at a time, for the other backends: the scores of all positions with all others
//! are never there at once, and the backward pass forms those of each block again.

use std::ops::Range;

use burn::tensor::{Bool, FloatDType, Int, Tensor, TensorData, activation::softmax};

use super::{AttentionOptions, TextStarts};
use crate::{
    blocked::{add, ranges},
    graph::{Operation, Plain},
    rms_norm::at_least_f32,
};

#[derive(Clone, Debug)]
pub(super) struct Blocked {
    pub options: AttentionOptions,
    pub texts: Option<TextStarts>,
    /// Queries of a block.
    pub queries: usize,
}

/// The sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    kv_heads: usize,
    /// Query heads that share a key head.
    group: usize,
    tokens: usize,
    kv_tokens: usize,
    width: usize,
}

impl Sizes {
    fn of([q, k]: [&Tensor<4>; 2]) -> Self {
        let [batch, tokens, heads, width] = q.dims();
        let [_, kv_tokens, kv_heads, _] = k.dims();
        Self { batch, kv_heads, group: heads / kv_heads, tokens, kv_tokens, width }
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// `[batch, tokens, heads, head_dim]` → the queries of a block that share a key head one after another,
    /// `[batch · kv_heads, group · block, head_dim]`.
    fn queries(&self, x: &Tensor<4>, block: &Range<usize>) -> Tensor<3> {
        let Self { batch, kv_heads, group, width, .. } = *self;
        let x = x.clone().narrow(1, block.start, block.len()).swap_dims(1, 2);
        x.reshape([batch * kv_heads, group * block.len(), width])
    }

    /// The reverse.
    fn ungrouped_queries(&self, x: Tensor<3>, block: &Range<usize>) -> Tensor<4> {
        x.reshape([self.batch, self.heads(), block.len(), self.width]).swap_dims(1, 2)
    }

    /// `[batch, kv_tokens, kv_heads, head_dim]` → `[batch · kv_heads, kv_tokens, head_dim]`.
    fn keys(&self, x: Tensor<4>) -> Tensor<3> {
        x.swap_dims(1, 2).reshape([self.batch * self.kv_heads, self.kv_tokens, self.width])
    }

    /// The reverse.
    fn ungrouped_keys(&self, x: Tensor<3>) -> Tensor<4> {
        x.reshape([self.batch, self.kv_heads, self.kv_tokens, self.width]).swap_dims(1, 2)
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

/// The weights of a block of queries over the keys that any of them sees.
struct Weights {
    keys: Range<usize>,
    /// `[batch, heads, block, keys]`, in float32 at least.
    values: Tensor<4>,
    /// The tanh of the soft-capping, of the same shape.
    tanh: Option<Tensor<4>>,
}

impl Blocked {
    /// The first key that a query sees; queries are counted like keys.
    fn first_key(&self, row: usize, query: usize) -> usize {
        let of_window = self.options.window.map_or(0, |window| (query + 1).saturating_sub(window));
        let of_text = self.texts.as_ref().map_or(0, |texts| texts.of(row, query));
        of_window.max(of_text)
    }

    /// The keys that queries may see, and which of them each doesn't: `[rows, 1, block, keys]`, rows being 1 where all rows are
    /// alike.
    fn hidden(
        &self,
        sizes: &Sizes,
        queries: &Range<usize>,
        like: &Tensor<4>,
    ) -> (Range<usize>, Tensor<4, Bool>) {
        let rows = self.texts.as_ref().map_or(1, |_| sizes.batch);
        let offset = sizes.kv_tokens - sizes.tokens;
        let queries = queries.start + offset..queries.end + offset;
        let firsts: Vec<usize> = (0..rows)
            .flat_map(|row| queries.clone().map(move |query| self.first_key(row, query)))
            .collect();
        let keys = firsts.iter().copied().min().unwrap_or(0)..queries.end;
        let shape = [rows, 1, queries.len(), keys.len()];
        let ints = |values: Vec<i64>, shape: [usize; 4]| {
            Tensor::<4, Int>::from_data(TensorData::new(values, shape), &like.device())
        };
        let firsts =
            ints(firsts.into_iter().map(|i| i as i64).collect(), [rows, 1, queries.len(), 1]);
        let own = ints(queries.clone().map(|i| i as i64).collect(), [1, 1, queries.len(), 1]);
        let key =
            ints(keys.clone().map(|i| i as i64).collect(), [1, 1, 1, keys.len()]).expand(shape);
        let before = key.clone().lower(firsts.expand(shape));
        (keys, before.bool_or(key.greater(own.expand(shape))))
    }

    fn weights(
        &self,
        sizes: &Sizes,
        q: &Tensor<4>,
        k: &Tensor<3>,
        block: &Range<usize>,
    ) -> Weights {
        let (keys, hidden) = self.hidden(sizes, block, q);
        let k = k.clone().narrow(1, keys.start, keys.len());
        let products = sizes.queries(q, block).matmul(k.swap_dims(1, 2));
        let scores = sizes.by_head(at_least_f32(products), block.len()) * self.options.scale;
        let (scores, tanh) = match self.options.softcap {
            Some(cap) => {
                let tanh = (scores / cap).tanh();
                (tanh.clone() * cap, Some(tanh))
            }
            None => (scores, None),
        };
        let hidden = hidden.expand(scores.dims());
        Weights { keys, values: softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3), tanh }
    }
}

impl Operation<3> for Blocked {
    type Saved = ();

    fn forward(&self, inputs: [Plain; 3]) -> (Plain, ()) {
        let [q, k, v] = inputs.map(Tensor::<4>::from);
        let (sizes, dtype) = (Sizes::of([&q, &k]), FloatDType::from(q.dtype()));
        let (k, v) = (sizes.keys(k), sizes.keys(v));
        let blocks = ranges(sizes.tokens, self.queries).map(|block| {
            let Weights { keys, values, .. } = self.weights(&sizes, &q, &k, &block);
            let v = v.clone().narrow(1, keys.start, keys.len());
            sizes.ungrouped_queries(sizes.grouped(values.cast(dtype)).matmul(v), &block)
        });
        (Tensor::cat(blocks.collect(), 1).into(), ())
    }

    /// With p the weights, g the gradient of a block and `dp = g·vᵀ`: `ds = p·(dp − Σ dp·p)`, through the soft-capping and the
    /// scale; then `dq = ds·k`, `dk = dsᵀ·q`, `dv = pᵀ·g`.
    fn backward(
        &self,
        inputs: [Plain; 3],
        (): (),
        gradient: Plain,
        wanted: [bool; 3],
    ) -> [Option<Plain>; 3] {
        let [q, k, v] = inputs.map(Tensor::<4>::from);
        let gradient = Tensor::<4>::from(gradient);
        let (sizes, dtype) = (Sizes::of([&q, &k]), FloatDType::from(q.dtype()));
        let (k, v) = (sizes.keys(k), sizes.keys(v));
        let mut d_q = Vec::new();
        let (mut d_k, mut d_v): (Option<Tensor<3>>, Option<Tensor<3>>) = (None, None);
        for block in ranges(sizes.tokens, self.queries) {
            let Weights { keys, values: p, tanh } = self.weights(&sizes, &q, &k, &block);
            let of_keys = |x: &Tensor<3>| x.clone().narrow(1, keys.start, keys.len());
            let among_all = |x: Tensor<3>| {
                let after = sizes.kv_tokens - keys.end;
                at_least_f32(x).pad([(0, 0), (keys.start, after), (0, 0)], 0.0)
            };
            let g = sizes.queries(&gradient, &block);
            if wanted[2] {
                let more = sizes.grouped(p.clone().cast(dtype)).swap_dims(1, 2).matmul(g.clone());
                d_v = Some(add(d_v, among_all(more)));
            }
            if !(wanted[0] || wanted[1]) {
                continue;
            }
            let d_p = g.matmul(of_keys(&v).swap_dims(1, 2));
            let d_p = sizes.by_head(at_least_f32(d_p), block.len());
            let mean = (d_p.clone() * p.clone()).sum_dim(3);
            let d_s = p * (d_p - mean) * self.options.scale;
            let d_s = match tanh {
                Some(tanh) => d_s * (-tanh.square() + 1.0),
                None => d_s,
            };
            let d_s = sizes.grouped(d_s.cast(dtype));
            if wanted[0] {
                d_q.push(sizes.ungrouped_queries(d_s.clone().matmul(of_keys(&k)), &block));
            }
            if wanted[1] {
                let more = d_s.swap_dims(1, 2).matmul(sizes.queries(&q, &block));
                d_k = Some(add(d_k, among_all(more)));
            }
        }
        let [d_k, d_v] =
            [d_k, d_v].map(|sum| sum.map(|x| sizes.ungrouped_keys(x.cast(dtype)).into()));
        [wanted[0].then(|| Tensor::cat(d_q, 1).into()), d_k, d_v]
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
                            Blocked { options, texts: None, queries },
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
                    Blocked { options, texts: Some(texts.clone()), queries },
                    [[2, 8, 4, 3], [2, 8, 2, 3], [2, 8, 2, 3]],
                    |[q, k, v]| super::super::by_definition(q, k, v, &options, Some(&texts)),
                );
            }
        }
    }
}
