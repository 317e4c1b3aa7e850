//! The reference's values for a batch, from its cache to tensors.

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor, TensorData};
use fpo_data::{ReferenceCache, reference::ReferenceResponseView};
use fpo_ops::profile;

/// What the cache holds of a batch: one response per row, all chosen ones first.
pub struct Cached<'a> {
    responses: Vec<ReferenceResponseView<'a>>,
    d_sae: usize,
}

impl<'a> Cached<'a> {
    /// Finds the pairs of a batch.
    ///
    /// # Errors
    /// A pair that the cache lacks.
    pub fn new(cache: &'a ReferenceCache, ids: &[u64]) -> Result<Self> {
        let find = |&id: &u64| {
            cache
                .get(id)
                .with_context(|| format!("the reference cache has no pair {id}; make it again"))
        };
        let rows = ids.iter().map(find).collect::<Result<Vec<_>>>()?;
        let chosen = rows.iter().map(|row| row.chosen);
        let responses = chosen.chain(rows.iter().map(|row| row.rejected)).collect();
        Ok(Self { responses, d_sae: cache.d_sae() })
    }

    /// Log-probabilities summed over responses, in nats. `[rows]`
    pub fn log_probs(&self, device: &Device) -> Tensor<1> {
        self.column(|response| response.log_prob, device)
    }

    /// The same, summed over as many of a response's first tokens as the shorter response of its pair has. `[rows]`
    pub fn shared_log_probs(&self, device: &Device) -> Tensor<1> {
        self.column(|response| response.shared_log_prob, device)
    }

    fn column(&self, value: fn(&ReferenceResponseView) -> f32, device: &Device) -> Tensor<1> {
        let _cache = profile::part("reference cache");
        let values: Vec<f32> = self.responses.iter().map(value).collect();
        let rows = values.len();
        Tensor::from_data(TensorData::new(values, [rows]), device)
    }

    /// Pooled features, `[rows, width]` per site; the cache has the sites' features one after another.
    pub fn features(&self, widths: &[usize], device: &Device) -> Vec<Tensor<2>> {
        let _cache = profile::part("reference cache");
        let (rows, d_sae) = (self.responses.len(), self.d_sae);
        let mut values = vec![0f32; rows * d_sae];
        for (row, response) in values.chunks_exact_mut(d_sae).zip(&self.responses) {
            response.features.to_dense_into(row);
        }
        let all = Tensor::<2>::from_data(TensorData::new(values, [rows, d_sae]), device);
        match widths {
            [_] => vec![all],
            _ => all.split_with_sizes(widths.to_vec(), 1),
        }
    }
}
