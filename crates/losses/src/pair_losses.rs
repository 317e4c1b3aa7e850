//! The return value of every pairwise loss: a loss for each pair, and the rewards it compares.

use burn::tensor::{Tensor, activation::softplus};

use crate::PerResponse;

/// The losses of a batch of pairs, and the implicit rewards they are a function of.
#[derive(Clone, Debug)]
pub struct PairLosses {
    /// `[pairs]`; training minimises their mean.
    pub losses: Tensor<1>,
    /// The implicit rewards, `[pairs]` each; their margin is what the method widens.
    pub rewards: PerResponse,
    /// γ, subtracted from the margin of the rewards: SimPO's target, 0 for the other methods.
    pub target_margin: f64,
}

impl PairLosses {
    /// −log σ(u), u = reward(y_w) − reward(y_l) − γ: the paper's equation 8.
    pub fn logistic(rewards: PerResponse, target_margin: f64) -> Self {
        // −log σ(u) = log(1 + e^−u), which does not overflow.
        let losses = softplus(-(rewards.margin() - target_margin), 1.0);
        Self { losses, rewards, target_margin }
    }

    /// f(u), u = reward(y_w) − reward(y_l), for a function other than −log σ.
    pub fn of_margin(rewards: PerResponse, f: impl FnOnce(Tensor<1>) -> Tensor<1>) -> Self {
        Self::new(f(rewards.margin()), rewards)
    }

    /// Losses that aren't a function of the margin alone.
    pub fn new(losses: Tensor<1>, rewards: PerResponse) -> Self {
        Self { losses, rewards, target_margin: 0.0 }
    }

    /// u = reward(y_w) − reward(y_l) − γ, `[pairs]`: the argument of the sigmoid in equation 8.
    pub fn logits(&self) -> Tensor<1> {
        self.rewards.margin() - self.target_margin
    }

    /// Adds `weight` times the negative log-likelihood of the chosen responses, `[pairs]`.
    pub(crate) fn plus_nll(mut self, chosen_nll: Tensor<1>, weight: f64) -> Self {
        if weight != 0.0 {
            self.losses = self.losses + chosen_nll * weight;
        }
        self
    }
}

/// Mean over pairs, which is what training minimises. `[1]`
pub fn mean_loss(pairs: PairLosses) -> Tensor<1> {
    // Not `mean`, whose gradient Burn scales in float32.
    let [count] = pairs.losses.dims();
    pairs.losses.sum() / count as f64
}
