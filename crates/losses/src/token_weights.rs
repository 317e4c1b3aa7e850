//! Weights of tokens, applied before a loss, and of pairs, applied after it.

use burn::tensor::Tensor;

use crate::PerResponse;

/// Length desensitisation (Liu et al. 2024, LD-DPO, arXiv 2409.06411; TRL's `ld_alpha`): the tokens by
/// which a response is longer than the other response of its pair have weight α:
///
/// shared + α (full − shared)
///
/// `full` are sums over all tokens of a response, `shared` those over its first n tokens, n being the
/// length of the shorter response.
pub fn length_desensitised(full: PerResponse, shared: PerResponse, ld_alpha: f64) -> PerResponse {
    full * ld_alpha + shared * (1.0 - ld_alpha)
}

/// Weighted preference optimization (Zhou et al. 2024, WPO, arXiv 2406.11827, equation 2 with its sampled
/// alignment; TRL's `use_weighting`): pairs count by how likely the policy is to generate both responses:
///
/// w(y_w) w(y_l), w(y) = exp(mean over tokens of log p(token) − log Σ_v p(v)²)
///
/// `aligned` is that mean. Returns `[pairs]`, without gradient.
pub fn wpo_weights(aligned: PerResponse) -> Tensor<1> {
    (aligned.chosen + aligned.rejected).detach().exp()
}
