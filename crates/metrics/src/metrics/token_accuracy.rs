//! How many tokens of the chosen responses the policy would have picked.

use fpo_report::{Better, Unit};

use crate::{Metric, Of, Places, Sum};

/// The share of the chosen responses' tokens that are the policy's most probable ones; TRL's `mean_token_accuracy`.
pub const TOKEN_ACCURACY: Metric = Metric {
    name: "token_accuracy",
    title: "Token accuracy",
    about: "Tokens of chosen responses that are the policy's most probable ones.",
    unit: Unit::Percent,
    better: Better::Higher,
    of: Of::PairTokens(|pair| {
        Some(Sum { sum: pair.right_tokens?.chosen, terms: pair.tokens.chosen })
    }),
    places: Places { log: Some("mean_token_accuracy"), ..Places::NONE },
};
