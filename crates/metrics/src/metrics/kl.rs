//! How far the policy's distributions are from the reference's.

use fpo_report::{Better, Unit};

use crate::{Curve, Evaluation, Metric, Of, Places, Plot, Slot};

const PLOT: Plot = Plot { rank: 60, title: "KL to the reference", y_label: "nats" };

/// KL of chosen responses.
pub const CHOSEN: Metric = Metric {
    name: "chosen_kl",
    title: "KL, chosen",
    about: "KL(reference ‖ model) summed over a response, mean over chosen responses.",
    unit: Unit::Nats,
    better: Better::Neither,
    of: Of::Pairs(|pair| Some(pair.kl?.chosen)),
    places: Places {
        log: Some("kl/chosen"),
        curve: Some(Curve { plot: PLOT, series: "chosen" }),
        evaluation: Evaluation::Shown,
        column: Some(40),
        line: Some(70),
        mean: Some(Slot { rank: 90, title: "KL, chosen" }),
    },
};

/// KL of rejected responses.
pub const REJECTED: Metric = Metric {
    name: "rejected_kl",
    title: "KL, rejected",
    about: "The same over rejected responses.",
    of: Of::Pairs(|pair| Some(pair.kl?.rejected)),
    places: Places {
        log: Some("kl/rejected"),
        curve: Some(Curve { plot: PLOT, series: "rejected" }),
        mean: Some(Slot { rank: 90, title: "KL, rejected" }),
        ..CHOSEN.places
    },
    ..CHOSEN
};

/// KL of chosen responses minus that of rejected ones.
pub const MARGIN: Metric = Metric {
    name: "kl_margin",
    title: "KL margin",
    about: "Mean difference of the KL of both responses, chosen minus rejected.",
    of: Of::Pairs(|pair| Some(pair.kl?.margin)),
    places: Places { log: Some("kl/margins"), ..Places::NONE },
    ..CHOSEN
};
