//! The Kullback-Leibler divergence of two language models, straight from their hidden states.

use burn::tensor::Tensor;

use crate::log_probs::log_distribution;

/// `KL(reference ‖ policy) = Σ_v r_v·(log r_v − log p_v)` per row, with `r = softmax(softcap(h_r·W_rᵀ))` and
/// `p = softmax(softcap(h·Wᵀ))` over the whole vocabulary (TDPO, equation 11). Gradients reach the policy only.
///
/// # Shapes
/// * `reference_hidden`: `[n, d_reference]`, `reference_weight`: `[vocabulary, d_reference]`
/// * `hidden`: `[n, d]`, `weight`: `[vocabulary, d]`
/// * result: `[n]`, in nats
pub fn linear_kl(
    reference_hidden: Tensor<2>,
    reference_weight: Tensor<2>,
    hidden: Tensor<2>,
    weight: Tensor<2>,
    softcap: Option<f64>,
) -> Tensor<1> {
    let ([n_r, d_r], [v_r, dw_r]) = (reference_hidden.dims(), reference_weight.dims());
    let ([n, d], [v, dw]) = (hidden.dims(), weight.dims());
    assert!(
        n_r == n && v_r == v && d_r == dw_r && d == dw,
        "linear_kl: reference {:?} and {:?}, policy {:?} and {:?} don't fit together",
        reference_hidden.dims(),
        reference_weight.dims(),
        hidden.dims(),
        weight.dims()
    );
    definition(reference_hidden, reference_weight, hidden, weight, softcap)
}

/// [`linear_kl`] by plain tensor operations.
pub fn definition(
    reference_hidden: Tensor<2>,
    reference_weight: Tensor<2>,
    hidden: Tensor<2>,
    weight: Tensor<2>,
    softcap: Option<f64>,
) -> Tensor<1> {
    let log_r = log_distribution(
        reference_hidden.without_autodiff(),
        reference_weight.without_autodiff(),
        softcap,
    );
    let log_p = log_distribution(hidden, weight, softcap);
    (log_r.clone().exp() * (log_r - log_p))
        .sum_dim(1)
        .squeeze_dim(1)
}
