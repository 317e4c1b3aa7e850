//! Feature-level constrained preference optimization (arXiv 2411.07618, equations 8 and 10).

use burn::tensor::{Bool, Tensor};

use crate::{PerResponse, Preference};

/// FPO with stop-gradient on the chosen side:
///
/// u = β (avg log p(y_w) − avg log r(y_w)) − β (avg log p(y_l) − avg log r(y_l))
///     − α (β D(y_l) − sg(β D(y_w)))
///
/// `policy` and `reference` are log-probabilities divided by the number of response tokens,
/// `distance` is [`feature_distance`] of both responses.
pub fn fpo(
    policy: PerResponse,
    reference: PerResponse,
    distance: PerResponse,
    beta: f64,
    alpha: f64,
    stop_gradient: bool,
) -> Preference {
    let distance = match stop_gradient {
        true => distance.stop_gradient_on_chosen(),
        false => distance,
    };
    let rewards = (policy - reference + distance * alpha) * beta;
    Preference { rewards, target_margin: 0.0 }
}

/// Equation 10: D = 1/k · Σ_{i ∈ I_k} w_i (c̄_policy,i − c̄_ref,i)², with
/// I_k = topk(c̄_policy) ∪ topk(c̄_ref).
///
/// `policy` and `reference` are pooled activations, `[responses, d_sae]`, none negative; `weights`
/// `[d_sae]` are the w_i of section 5.3, all 1 where absent. A feature that is zero in a response is
/// in no top k of it, so that ties at zero, of which there are many, never bring a feature in.
///
/// Where `reference` was cut to its n ≥ k largest activations, and none that was dropped is above b, the
/// result is off by at most 1/k · Σ w_i b max(2 c̄_policy,i, b) over topk(c̄_policy).
///
/// → `[responses]`. Gradients reach `policy` only; the index set is a constant.
///
/// # Panics
/// If k is 0 or the shapes differ.
pub fn feature_distance(
    policy: Tensor<2>,
    reference: Tensor<2>,
    k: usize,
    weights: Option<Tensor<1>>,
) -> Tensor<1> {
    assert!(k > 0, "k must be at least 1");
    assert_eq!(policy.dims(), reference.dims(), "pooled activations of different shapes");
    let reference = reference.detach();
    let selected = in_top_k(policy.clone().detach(), k).bool_or(in_top_k(reference.clone(), k));
    let squares = (policy - reference).square().mask_fill(selected.bool_not(), 0.0);
    let squares = match weights {
        Some(weights) => squares * weights.unsqueeze::<2>(),
        None => squares,
    };
    squares.sum_dim(1).squeeze_dim(1) / k as f64
}

/// Whether an activation is among the k largest of its row and positive. `[responses, d_sae]`
fn in_top_k(activations: Tensor<2>, k: usize) -> Tensor<2, Bool> {
    let [rows, d_sae] = activations.dims();
    let k = k.min(d_sae);
    let smallest = activations.clone().topk(k, 1).slice([0..rows, k - 1..k]);
    let in_top_k = activations.clone().greater_equal(smallest.expand([rows, d_sae]));
    in_top_k.bool_and(activations.greater_scalar(0.0))
}
