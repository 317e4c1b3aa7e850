//! The key-value cache of a generation.

use burn::tensor::{Int, Tensor, TensorData, activation::softmax};

/// A score that no softmax sees, finite so that a row without any real key gives no NaN.
const MASKED: f64 = -1e30;

/// Keys and values of one layer for a batch of left-padded rows.
pub(crate) struct LayerCache {
    /// Padding before each row's first token.
    padding: Vec<usize>,
    /// `[batch, kv_heads, tokens so far, head_dim]`
    keys_values: Option<(Tensor<4>, Tensor<4>)>,
}

impl LayerCache {
    pub(crate) fn new(padding: &[usize]) -> Self {
        Self { padding: padding.to_vec(), keys_values: None }
    }

    /// Appends the new keys and values and attends with the new queries to everything that they may
    /// see. `q` `[batch, new, heads, head_dim]`, `k` and `v` `[batch, new, kv_heads, head_dim]` →
    /// `[batch, new, heads · head_dim]`.
    pub(crate) fn attend(
        &mut self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        scale: f64,
        softcap: Option<f64>,
        window: Option<usize>,
    ) -> Tensor<3> {
        let [batch, new, heads, width] = q.dims();
        let kv_heads = k.dims()[2];
        let (k, v) = (k.swap_dims(1, 2), v.swap_dims(1, 2));
        let (keys, values) = match self.keys_values.take() {
            Some((keys, values)) => {
                (Tensor::cat(vec![keys, k], 2), Tensor::cat(vec![values, v], 2))
            }
            None => (k, v),
        };
        self.keys_values = Some((keys.clone(), values.clone()));
        let total = keys.dims()[2];

        // The queries of one group share their keys: [batch, kv_heads, group · new, head_dim].
        let group = heads / kv_heads;
        let q = q.swap_dims(1, 2).reshape([batch, kv_heads, group * new, width]);
        let mut scores = q.matmul(keys.swap_dims(2, 3)) * scale;
        if let Some(cap) = softcap {
            scores = fpo_ops::softcap(scores, cap);
        }
        let scores = scores.reshape([batch, heads, new, total]);
        let scores = scores + self.mask(new, total, window, &values.device());
        let weights = softmax(scores, 3).reshape([batch, kv_heads, group * new, total]);
        let z = weights.matmul(values).reshape([batch, heads, new, width]).swap_dims(1, 2);
        z.reshape([batch, new, heads * width])
    }

    /// Zero where query `i` of the new ones sees key `j`, else [`MASKED`]. `[batch, 1, new, total]`
    fn mask(
        &self,
        new: usize,
        total: usize,
        window: Option<usize>,
        device: &burn::tensor::Device,
    ) -> Tensor<4> {
        let mut hidden = Vec::with_capacity(self.padding.len() * new * total);
        for &padding in &self.padding {
            for i in total - new..total {
                let first = window.map_or(0, |w| (i + 1).saturating_sub(w)).max(padding);
                hidden.extend((0..total).map(|j| i32::from(j < first || j > i)));
            }
        }
        let shape = [self.padding.len(), 1, new, total];
        let hidden = Tensor::<4, Int>::from_data(TensorData::new(hidden, shape), device);
        hidden.float() * MASKED
    }
}
