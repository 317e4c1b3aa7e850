//! Distributional alignment via optimal transport (Melnyk et al. 2024, arXiv 2406.05882):
//! quantiles of a batch are compared, so that one distribution comes to dominate the other.
//!
//! The losses are those of quantiles, in ascending order, not of the pairs as they came: their mean is
//! what they are for. A mean over micro-batches is not the mean over the whole batch.

use burn::tensor::Tensor;

use crate::{PairLosses, PerResponse, dpo, dpo_variants::smoothed};

/// Paired: the margins of the policy against those of the reference:
///
/// δ = sort(log p(y_w) − log p(y_l)) − sort(log r(y_w) − log r(y_l)),
/// loss = −(1 − ε) log σ(β δ) − ε log σ(−β δ)
pub fn aot(
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    label_smoothing: f64,
) -> PairLosses {
    let delta = policy.margin().sort(0) - reference.margin().sort(0);
    quantile_losses(delta, policy, reference, beta, label_smoothing)
}

/// Unpaired: the log-ratios of the chosen responses against those of the rejected ones:
///
/// δ = sort(log p(y_w) − log r(y_w)) − sort(log p(y_l) − log r(y_l)),
/// loss as in [`aot`]
pub fn aot_unpaired(
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    label_smoothing: f64,
) -> PairLosses {
    let PerResponse { chosen, rejected } = policy.clone() - reference.clone();
    let delta = chosen.sort(0) - rejected.sort(0);
    quantile_losses(delta, policy, reference, beta, label_smoothing)
}

fn quantile_losses(
    delta: Tensor<1>,
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    label_smoothing: f64,
) -> PairLosses {
    let losses = smoothed(delta * beta, label_smoothing);
    PairLosses::new(losses, dpo(policy, reference, beta).rewards)
}
