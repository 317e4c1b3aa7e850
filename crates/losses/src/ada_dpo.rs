//! Adaptive preference scaling (Hong et al. 2024, arXiv 2406.02764) on DPO's margin.

use burn::tensor::{Tensor, activation::softplus};

use crate::{MethodSpec, Options, PairLosses, PerResponse};

/// Ada-DPO: each pair has its own scale τ, small for a weak preference, large for a clear one:
///
/// min over τ in \[τ_0, τ_max\] of −τ log σ(u / τ) + (ρ₀ − log 2) τ, with DPO's u
///
/// ρ₀ in (0, log 2) bounds the KL divergence between a preference and an even one. The paper finds τ by
/// Newton's method, but a closed form exists: with H the entropy, the derivative in τ is
/// H(σ(u / τ)) + ρ₀ − log 2, so the minimum is at τ = |u| / s, where s solves H(σ(s)) = log 2 − ρ₀ for all
/// pairs alike, clamped to the bounds. The gradient treats τ as a constant, which is exact: at the minimum
/// the derivative in τ is 0, and at a bound τ does not move.
///
/// # Panics
/// If ρ₀ isn't in (0, log 2), or the bounds aren't positive and ascending.
pub fn ada_dpo(
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    rho: f64,
    [least, largest]: [f64; 2],
) -> PairLosses {
    assert!(rho > 0.0 && rho < std::f64::consts::LN_2, "ada_dpo needs 0 < ρ₀ < log 2");
    assert!(0.0 < least && least <= largest, "ada_dpo needs 0 < τ_0 ≤ τ_max");
    let entropy = std::f64::consts::LN_2 - rho;
    PairLosses::of_margin((policy - reference) * beta, |u| {
        let tau: Tensor<1> =
            (u.clone().detach().abs() / logit_of_entropy(entropy)).clamp(least, largest);
        tau.clone() * softplus(-u / tau.clone(), 1.0) - tau * entropy
    })
}

pub(crate) static ADA_DPO: MethodSpec = MethodSpec {
    options: Options { ada_rho: Some(0.3), ada_tau: Some([0.1, 5.0]), ..Options::ON_SUMS },
    ..MethodSpec::on_sums("ada-dpo", |o, q| {
        let (policy, reference) = o.sums(q);
        let (rho, tau) = (o.option(|x| x.ada_rho), o.option(|x| x.ada_tau));
        ada_dpo(policy, reference, o.beta, rho, tau)
    })
};

/// The s > 0 for which a coin of probability σ(s) has the entropy `wanted`, in nats, within (0, log 2).
fn logit_of_entropy(wanted: f64) -> f64 {
    // H(σ(s)) = log(1 + e^−s) + s σ(−s) falls from log 2 to 0.
    let entropy = |s: f64| (-s).exp().ln_1p() + s / (1.0 + s.exp());
    let (mut low, mut high) = (0.0, 1.0);
    while entropy(high) > wanted {
        high *= 2.0;
    }
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        match entropy(middle) > wanted {
            true => low = middle,
            false => high = middle,
        }
    }
    0.5 * (low + high)
}
