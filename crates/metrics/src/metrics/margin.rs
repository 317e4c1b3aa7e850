//! What a method subtracts from the policy's difference.

use burn::tensor::Tensor;
use fpo_losses::{Objective, Quantities};
use fpo_report::{Better, Unit};

use crate::{Metric, Of, Places, Slot};

/// The method's margin: the part of −u that doesn't depend on the policy.
pub const MARGIN: Metric = Metric {
    name: "margin",
    title: "Margin",
    about: "What the method subtracts from the policy's difference: β times the reference's, or γ.",
    unit: Unit::Plain,
    better: Better::Neither,
    of: Of::Pairs(|pair| pair.method_margin),
    places: Places {
        line: Some(30),
        mean: Some(Slot { rank: 50, title: "Margin" }),
        ..Places::NONE
    },
};

/// −u of each pair with the policy's log-probabilities, KL and D at zero, `[pairs]`.
pub(crate) fn method_margins(objective: &Objective, q: &Quantities) -> Tensor<1> {
    let zero = || q.log_probs.clone().map(|x| x.zeros_like());
    let without_policy = Quantities {
        log_probs: zero(),
        kl: q.kl.as_ref().map(|_| zero()),
        distance: q.distance.as_ref().map(|_| zero()),
        ..q.clone()
    };
    let u = objective.losses(without_policy).logits();
    // 0 − u rather than −u: no margin is 0, not −0.
    u.zeros_like() - u
}
