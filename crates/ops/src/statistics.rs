//! What a language model thinks of given tokens: log-probability, entropy, most probable token.

use burn::tensor::{Int, Tensor};

use crate::log_probs::{check_shapes, log_distribution};

/// Per row of hidden states, in nats.
#[derive(Clone, Debug)]
pub struct TokenStatistics {
    /// The log-probability of the target, `[n]`.
    pub log_probs: Tensor<1>,
    /// The entropy of the distribution, `[n]`.
    pub entropy: Tensor<1>,
    /// The most probable token (the first of equals), `[n]`.
    pub argmax: Tensor<1, Int>,
}

/// The statistics of `softmax(softcap(h·Wᵀ))` per row; nothing is recorded for a gradient.
///
/// # Shapes
/// * `hidden`: `[n, d]`
/// * `weight`: `[vocabulary, d]`
/// * `targets`: `[n]`, each in `0..vocabulary`
pub fn linear_token_statistics(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    softcap: Option<f64>,
) -> TokenStatistics {
    check_shapes("linear_token_statistics", &hidden, &weight, &targets);
    definition(hidden, weight, targets, softcap)
}

/// [`linear_token_statistics`] by plain tensor operations.
pub fn definition(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    softcap: Option<f64>,
) -> TokenStatistics {
    let log_p = log_distribution(
        hidden.without_autodiff(),
        weight.without_autodiff(),
        softcap,
    );
    let targets = targets.without_autodiff().unsqueeze_dim(1);
    TokenStatistics {
        log_probs: log_p.clone().gather(1, targets).squeeze_dim(1),
        entropy: -(log_p.clone().exp() * log_p.clone())
            .sum_dim(1)
            .squeeze_dim(1),
        argmax: log_p.argmax(1).squeeze_dim(1),
    }
}
