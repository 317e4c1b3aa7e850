//! What every pairwise objective comes to: a reward for each response, and the loss of their margin.

use burn::tensor::{Tensor, activation::softplus};

use crate::PerResponse;

/// The rewards by which a method compares two responses, and what it subtracts from their margin.
#[derive(Clone, Debug)]
pub struct Preference {
    /// The implicit rewards, `[pairs]` each; their margin is what the method widens.
    pub rewards: PerResponse,
    /// γ: the margin that is asked for (SimPO).
    pub target_margin: f64,
}

impl Preference {
    /// u = reward(y_w) − reward(y_l) − γ, `[pairs]`; equation 8's argument of the sigmoid.
    pub fn logits(&self) -> Tensor<1> {
        self.rewards.margin() - self.target_margin
    }

    /// −log σ(u) for each pair, `[pairs]`.
    pub fn losses(&self) -> Tensor<1> {
        // −log σ(u) = log(1 + e^−u), which does not overflow.
        softplus(-self.logits(), 1.0)
    }
}

/// What an objective comes to whose loss is another function than −log σ of a margin.
#[derive(Clone, Debug)]
pub struct PairLosses {
    /// `[pairs]`; training minimises their mean.
    pub losses: Tensor<1>,
    /// The implicit rewards, `[pairs]` each.
    pub rewards: PerResponse,
}

impl From<Preference> for PairLosses {
    fn from(preference: Preference) -> Self {
        Self { losses: preference.losses(), rewards: preference.rewards }
    }
}
