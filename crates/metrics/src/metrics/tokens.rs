//! The lengths of responses.

use fpo_report::{Better, Unit};

use crate::{Metric, Of, Places, Slot};

/// The chosen responses' length.
pub const CHOSEN: Metric = Metric {
    name: "chosen_tokens",
    title: "Tokens, chosen",
    about: "Response tokens, mean over chosen responses.",
    unit: Unit::Tokens,
    better: Better::Neither,
    of: Of::Pairs(|pair| Some(pair.tokens.chosen)),
    places: Places {
        log: Some("tokens/chosen"),
        line: Some(20),
        mean: Some(Slot { rank: 70, title: "Tokens, chosen" }),
        ..Places::NONE
    },
};

/// The rejected responses' length.
pub const REJECTED: Metric = Metric {
    name: "rejected_tokens",
    title: "Tokens, rejected",
    about: "The same over rejected responses.",
    of: Of::Pairs(|pair| Some(pair.tokens.rejected)),
    places: Places {
        log: Some("tokens/rejected"),
        mean: Some(Slot { rank: 70, title: "Tokens, rejected" }),
        ..CHOSEN.places
    },
    ..CHOSEN
};
