//! How undecided the policy is where it predicts the responses of pairs.

use fpo_report::{Better, Unit};

use crate::{Metric, Of, Places, Sum};

/// Entropy per response token, over both responses; TRL's `entropy`.
pub const ENTROPY: Metric = Metric {
    name: "token_entropy",
    title: "Token entropy",
    about: "Mean entropy of the policy's distributions over the tokens of both responses.",
    unit: Unit::Nats,
    better: Better::Neither,
    of: Of::PairTokens(|pair| {
        let (entropy, tokens) = (pair.entropy?, pair.tokens);
        Some(Sum { sum: entropy.chosen + entropy.rejected, terms: tokens.chosen + tokens.rejected })
    }),
    places: Places { log: Some("entropy"), ..Places::NONE },
};
