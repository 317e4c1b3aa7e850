//! What verdicts add up to. Preferences are probabilities that the model's answer is better than the baseline's.

pub mod bradley_terry;
pub mod gamed;
pub mod length_controlled;
pub mod logistic;
pub mod win_rate;

/// How intervals are found: by drawing as many questions or battles again, with replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resampling {
    /// How often.
    pub rounds: usize,
    /// The same seed gives the same intervals.
    pub seed: u64,
}
