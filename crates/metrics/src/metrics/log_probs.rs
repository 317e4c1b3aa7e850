//! The policy's log-probabilities of whole responses.

use fpo_report::{Better, Unit};

use crate::{Curve, Evaluation, Metric, Of, Places, Plot, Slot};

const PLOT: Plot = Plot { rank: 40, title: "Log-probability", y_label: "nats per response" };

/// The chosen responses' log-probability.
pub const CHOSEN: Metric = Metric {
    name: "chosen_log_prob",
    title: "Log-probability, chosen",
    about: "The policy's log-probability summed over a response, mean over chosen responses.",
    unit: Unit::Nats,
    better: Better::Neither,
    of: Of::Pairs(|pair| Some(pair.log_probs.chosen)),
    places: Places {
        log: Some("logps/chosen"),
        curve: Some(Curve { plot: PLOT, series: "chosen" }),
        evaluation: Evaluation::Recorded,
        line: Some(10),
        mean: Some(Slot { rank: 60, title: "Log-probability, chosen" }),
        ..Places::NONE
    },
};

/// The rejected responses' log-probability.
pub const REJECTED: Metric = Metric {
    name: "rejected_log_prob",
    title: "Log-probability, rejected",
    about: "The same over rejected responses.",
    of: Of::Pairs(|pair| Some(pair.log_probs.rejected)),
    places: Places {
        log: Some("logps/rejected"),
        curve: Some(Curve { plot: PLOT, series: "rejected" }),
        mean: Some(Slot { rank: 60, title: "Log-probability, rejected" }),
        ..CHOSEN.places
    },
    ..CHOSEN
};
