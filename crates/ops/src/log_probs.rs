//! Log-probabilities of target tokens straight from hidden states.

use burn::tensor::{Int, Tensor, activation::log_softmax};

use crate::{linear, softcap::optional_softcap};

/// `log softmax(softcap(h·Wᵀ))[target]` per row, in float32 at least; gradients reach `hidden` and `weight`.
///
/// # Shapes
/// * `hidden`: `[n, d]`, states that predict a token (already shifted: row i predicts `targets[i]`)
/// * `weight`: `[vocabulary, d]`, the unembedding
/// * `targets`: `[n]`, each in `0..vocabulary`
/// * result: `[n]`
pub fn linear_log_probs(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    softcap: Option<f64>,
) -> Tensor<1> {
    check_shapes("linear_log_probs", &hidden, &weight, &targets);
    definition(hidden, weight, targets, softcap)
}

/// [`linear_log_probs`] by plain tensor operations.
pub fn definition(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
    softcap: Option<f64>,
) -> Tensor<1> {
    log_distribution(hidden, weight, softcap)
        .gather(1, targets.unsqueeze_dim(1))
        .squeeze_dim(1)
}

/// `log softmax(softcap(h·Wᵀ))`, `[n, vocabulary]`, in float32 at least.
pub(crate) fn log_distribution(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    softcap: Option<f64>,
) -> Tensor<2> {
    let logits = crate::rms_norm::at_least_f32(linear::definition(hidden, weight));
    log_softmax(optional_softcap(logits, softcap), 1)
}

/// The conditions shared by the operations on `[n, d]`, `[vocabulary, d]` and `[n]`.
pub(crate) fn check_shapes(
    operation: &str,
    hidden: &Tensor<2>,
    weight: &Tensor<2>,
    targets: &Tensor<1, Int>,
) {
    let ([n, d], [_, d_weight], [n_targets]) = (hidden.dims(), weight.dims(), targets.dims());
    assert!(
        d == d_weight && n == n_targets,
        "{operation}: hidden {:?}, weight {:?} and targets {:?} don't fit together",
        hidden.dims(),
        weight.dims(),
        targets.dims()
    );
}
