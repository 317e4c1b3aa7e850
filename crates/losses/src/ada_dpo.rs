//! Adaptive preference scaling (Hong et al. 2024, arXiv 2406.02764) on DPO's margin.

use burn::tensor::{Tensor, activation::softplus};

use crate::{PairLosses, PerResponse, dpo};

/// Ada-DPO: every pair has its own scale τ, small where the preference is weak, large where it is clear:
///
/// min over τ in \[τ_0, τ_max\] of −τ log σ(u / τ) + (ρ₀ − log 2) τ, with DPO's u
///
/// ρ₀ in (0, log 2) bounds the KL divergence of a preference from an even one. The paper finds τ by
/// Newton's method. The derivative to τ is H(σ(u / τ)) + ρ₀ − log 2 with the entropy H, so that the
/// best τ is |u| / s for one s of all pairs, H(σ(s)) = log 2 − ρ₀, clamped to its bounds. It is a constant
/// of the gradient: at the minimum its own derivative is 0, and at a bound it does not move.
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
    let preference = dpo(policy, reference, beta);
    let u = preference.logits();
    let entropy = std::f64::consts::LN_2 - rho;
    let tau: Tensor<1> =
        (u.clone().detach().abs() / logit_of_entropy(entropy)).clamp(least, largest);
    let losses = tau.clone() * softplus(-u / tau.clone(), 1.0) - tau * entropy;
    PairLosses::new(losses, preference.rewards)
}

/// The s > 0 whose coin σ(s) has the given entropy in nats, which must be in (0, log 2).
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
