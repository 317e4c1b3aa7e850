//! Feature-level constrained preference optimization (arXiv 2411.07618, equations 8 and 10).

use burn::tensor::{Bool, Tensor};

use crate::{MethodSpec, Needs, PairLosses, PerResponse};

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
) -> PairLosses {
    let distance = match stop_gradient {
        true => distance.stop_gradient_on_chosen(),
        false => distance,
    };
    PairLosses::logistic((policy - reference + distance * alpha) * beta, 0.0)
}

pub(crate) static FPO: MethodSpec = MethodSpec {
    needs: Needs { features: true, ..Needs::REFERENCE },
    ..MethodSpec::on_averages("fpo", |o, q| {
        let (policy, reference) = q.averages();
        fpo(policy, reference, q.distance(), o.beta, o.alpha, o.stop_gradient)
    })
};

/// Equation 10: D = 1/k · Σ_{i ∈ I_k} w_i (c̄_policy,i − c̄_ref,i)², with
/// I_k = topk(c̄_policy) ∪ topk(c̄_ref).
///
/// `policy` and `reference` are pooled activations, `[responses, d_sae]`, none negative; `weights`
/// `[d_sae]` are the w_i of section 5.3 and default to 1. Returns `[responses]`. Gradients reach `policy`
/// only; the index set is a constant.
///
/// A feature that is zero in a response is never in its top k: most features are zero, and ties among
/// them must not select any.
///
/// If only the n ≥ k largest activations of `reference` were kept, and the dropped ones are at most b, the
/// result is off by at most 1/k · Σ w_i b max(2 c̄_policy,i, b), summed over topk(c̄_policy).
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

/// True where an activation is positive and among the k largest of its row, `[responses, d_sae]`.
fn in_top_k(activations: Tensor<2>, k: usize) -> Tensor<2, Bool> {
    let [rows, d_sae] = activations.dims();
    let k = k.min(d_sae);
    let smallest = fpo_ops::kth_largest(activations.clone(), k);
    let in_top_k = activations.clone().greater_equal(smallest.expand([rows, d_sae]));
    in_top_k.bool_and(activations.greater_scalar(0.0))
}
