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

/// The loss of every pair, whatever function of the rewards it is.
#[derive(Clone, Debug)]
pub struct PairLosses {
    /// `[pairs]`; training minimises their mean.
    pub losses: Tensor<1>,
    /// The implicit rewards, `[pairs]` each.
    pub rewards: PerResponse,
    /// What is subtracted from their margin: γ of SimPO, else 0.
    pub target_margin: f64,
}

impl PairLosses {
    /// Losses that ask for no margin.
    pub fn new(losses: Tensor<1>, rewards: PerResponse) -> Self {
        Self { losses, rewards, target_margin: 0.0 }
    }

    /// u = reward(y_w) − reward(y_l) − γ, `[pairs]`: what equation 8's methods take the sigmoid of.
    pub fn logits(&self) -> Tensor<1> {
        self.rewards.margin() - self.target_margin
    }

    /// Adds `weight` times the chosen responses' negative log-likelihood.
    pub(crate) fn plus_nll(mut self, chosen_nll: Tensor<1>, weight: f64) -> Self {
        if weight != 0.0 {
            self.losses = self.losses + chosen_nll * weight;
        }
        self
    }
}

impl From<Preference> for PairLosses {
    fn from(preference: Preference) -> Self {
        let (losses, target_margin) = (preference.losses(), preference.target_margin);
        Self { losses, rewards: preference.rewards, target_margin }
    }
}
