//! The reference's numbers for a batch, from its cache to tensors.

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor, TensorData};
use fpo_data::{ReferenceCache, reference::ReferenceResponseView};

/// What the cache says of the responses of a batch, the chosen ones first.
fn responses<'a>(cache: &'a ReferenceCache, ids: &[u64]) -> Result<Vec<ReferenceResponseView<'a>>> {
    let mut chosen = Vec::with_capacity(2 * ids.len());
    let mut rejected = Vec::with_capacity(ids.len());
    for &id in ids {
        let row = cache
            .get(id)
            .with_context(|| format!("the reference cache has no pair {id}; make it again"))?;
        chosen.push(row.chosen);
        rejected.push(row.rejected);
    }
    chosen.append(&mut rejected);
    Ok(chosen)
}

/// The reference's summed log-probabilities of a batch, `[rows]`.
pub fn cached_log_probs(cache: &ReferenceCache, ids: &[u64], device: &Device) -> Result<Tensor<1>> {
    let values: Vec<f32> = responses(cache, ids)?.iter().map(|r| r.log_prob).collect();
    let rows = values.len();
    Ok(Tensor::from_data(TensorData::new(values, [rows]), device))
}

/// The same over as many of a response's first tokens as the shorter response of its pair has, `[rows]`.
pub fn cached_shared_log_probs(
    cache: &ReferenceCache,
    ids: &[u64],
    device: &Device,
) -> Result<Tensor<1>> {
    let values: Vec<f32> = responses(cache, ids)?.iter().map(|r| r.shared_log_prob).collect();
    let rows = values.len();
    Ok(Tensor::from_data(TensorData::new(values, [rows]), device))
}

/// The reference's pooled activations of a batch, `[rows, d_sae]`.
pub fn cached_features(cache: &ReferenceCache, ids: &[u64], device: &Device) -> Result<Tensor<2>> {
    let (responses, d_sae) = (responses(cache, ids)?, cache.d_sae());
    let mut values = vec![0f32; responses.len() * d_sae];
    for (row, response) in responses.iter().enumerate() {
        response.features.to_dense_into(&mut values[row * d_sae..][..d_sae]);
    }
    Ok(Tensor::from_data(TensorData::new(values, [responses.len(), d_sae]), device))
}
