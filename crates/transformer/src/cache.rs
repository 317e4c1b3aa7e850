//! The key-value cache of generation.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData, activation::softmax};
use fpo_ops::at_least_f32;

/// The score of a masked key. Finite, so that a row without any real key doesn't become NaN.
const MASKED: f64 = -1e30;

/// Keys and values of one layer for a batch of left-padded rows: all of them, or only those that later queries can see through
/// the sliding window.
pub(crate) struct LayerCache {
    /// Padding tokens before each row's first token.
    padding: Vec<usize>,
    /// Number of tokens whose keys and values were dropped, because no later query sees them.
    forgotten: usize,
    /// `[batch, kv_heads, tokens kept, head_dim]`
    keys_values: Option<(Tensor<4>, Tensor<4>)>,
}

impl LayerCache {
    pub(crate) fn new(padding: &[usize]) -> Self {
        Self { padding: padding.to_vec(), forgotten: 0, keys_values: None }
    }

    /// Appends the new keys and values, and returns the attention of the new queries.
    ///
    /// # Shapes
    /// * `q`: `[batch, new, heads, head_dim]`
    /// * `k`, `v`: `[batch, new, kv_heads, head_dim]`
    /// * result: `[batch, new, heads · head_dim]`
    pub(crate) fn attend(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        scale: f64,
        softcap: Option<f64>,
        window: Option<usize>,
    ) -> Tensor<3> {
        let ([batch, new, heads, width], dtype) = (q.dims(), q.dtype());
        let kv_heads = k.dims()[2];
        let (k, v) = (k.swap_dims(1, 2), v.swap_dims(1, 2));
        let (keys, values) = match self.keys_values.take() {
            Some((keys, values)) => {
                (Tensor::cat(vec![keys, k], 2), Tensor::cat(vec![values, v], 2))
            }
            None => (k, v),
        };
        let total = keys.dims()[2];
        let first = self.forgotten;
        self.keep(&keys, &values, window);

        // The queries of one group share their keys: [batch, kv_heads, group · new, head_dim].
        let group = heads / kv_heads;
        let q = q.swap_dims(1, 2).reshape([batch, kv_heads, group * new, width]);
        let mut scores = at_least_f32(q.matmul(keys.swap_dims(2, 3))) * scale;
        if let Some(cap) = softcap {
            scores = fpo_ops::softcap(scores, cap);
        }
        let scores = scores.reshape([batch, heads, new, total]);
        let scores = scores + self.mask(new, first..first + total, window, &values.device());
        let weights = softmax(scores, 3).cast(dtype);
        let weights = weights.reshape([batch, kv_heads, group * new, total]);
        let z = weights.matmul(values).reshape([batch, heads, new, width]).swap_dims(1, 2);
        z.reshape([batch, new, heads * width])
    }

    /// Keeps what later queries can see: the last w − 1 tokens for a window of w, which includes the query's own.
    fn keep(&mut self, keys: &Tensor<4>, values: &Tensor<4>, window: Option<usize>) {
        let [batch, heads, total, width] = keys.dims();
        // At least one, because empty tensors are a special case everywhere.
        let kept = window.map_or(total, |w| (w - 1).clamp(1, total));
        let newest = |x: &Tensor<4>| match kept == total {
            true => x.clone(),
            false => x.clone().slice([0..batch, 0..heads, total - kept..total, 0..width]),
        };
        self.keys_values = Some((newest(keys), newest(values)));
        self.forgotten += total - kept;
    }

    /// Zero where a query (one of the `new` last tokens) sees a key, else [`MASKED`]. `keys` are the positions of the keys in the
    /// cache. `[batch, 1, new, keys]`
    fn mask(
        &self,
        new: usize,
        keys: Range<usize>,
        window: Option<usize>,
        device: &Device,
    ) -> Tensor<4> {
        let mut hidden = Vec::with_capacity(self.padding.len() * new * keys.len());
        for &padding in &self.padding {
            for i in keys.end - new..keys.end {
                let first = window.map_or(0, |w| (i + 1).saturating_sub(w)).max(padding);
                hidden.extend(keys.clone().map(|j| i32::from(j < first || j > i)));
            }
        }
        let shape = [self.padding.len(), 1, new, keys.len()];
        let hidden = Tensor::<4, Int>::from_data(TensorData::new(hidden, shape), device);
        hidden.float() * MASKED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    /// Oracle: one call for all tokens, where the window is only a mask.
    #[test]
    fn the_window_bounds_the_cache() {
        let device = Device::flex();
        let random = |heads| Tensor::<4>::random([2, 12, heads, 4], Distribution::Default, &device);
        let (q, k, v) = (random(4), random(2), random(2));
        for window in [None, Some(1), Some(2), Some(5), Some(40)] {
            let attend = |cache: &mut LayerCache, tokens: Range<usize>| {
                let part = |x: &Tensor<4>| {
                    let [batch, _, heads, width] = x.dims();
                    x.clone().slice([0..batch, tokens.clone(), 0..heads, 0..width])
                };
                cache.attend(part(&q), part(&k), part(&v), 0.5, Some(3.0), window)
            };
            let whole = attend(&mut LayerCache::new(&[0, 3]), 0..12);
            let mut cache = LayerCache::new(&[0, 3]);
            let mut parts = vec![attend(&mut cache, 0..6)];
            for t in 6..12 {
                parts.push(attend(&mut cache, t..t + 1));
                let kept = cache.keys_values.as_ref().map(|(keys, _)| keys.dims()[2]);
                assert_eq!(kept, Some(window.map_or(t + 1, |w| (w - 1).clamp(1, t + 1))));
            }
            // Outputs at the second row's padding are meaningless.
            for (row, first) in [(0, 0), (1, 3)] {
                let real = |x: Tensor<3>| x.slice([row..row + 1, first..12, 0..16]);
                let parts = real(Tensor::cat(parts.clone(), 1));
                let difference: f32 = (parts - real(whole.clone())).abs().max().into_scalar();
                assert!(difference < 1e-6, "window {window:?}, row {row}: {difference}");
            }
        }
    }
}
