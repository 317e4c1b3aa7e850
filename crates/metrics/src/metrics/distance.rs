//! How far the policy's features are from the reference's.

use fpo_report::{Better, Unit};

use crate::{Curve, Evaluation, Metric, Of, Places, Plot, Slot};

const PLOT: Plot = Plot { rank: 50, title: "Feature distance D", y_label: "" };

/// D of chosen responses.
pub const CHOSEN: Metric = Metric {
    name: "chosen_distance",
    title: "D, chosen",
    about: "Feature distance to the reference (equation 10), mean over chosen responses.",
    unit: Unit::Plain,
    better: Better::Neither,
    of: Of::Pairs(|pair| Some(pair.distance?.chosen)),
    places: Places {
        log: Some("distance/chosen"),
        curve: Some(Curve { plot: PLOT, series: "chosen" }),
        evaluation: Evaluation::Shown,
        column: Some(50),
        line: Some(40),
        mean: Some(Slot { rank: 80, title: "D, chosen" }),
    },
};

/// D of rejected responses.
pub const REJECTED: Metric = Metric {
    name: "rejected_distance",
    title: "D, rejected",
    about: "The same over rejected responses.",
    of: Of::Pairs(|pair| Some(pair.distance?.rejected)),
    places: Places {
        log: Some("distance/rejected"),
        curve: Some(Curve { plot: PLOT, series: "rejected" }),
        mean: Some(Slot { rank: 80, title: "D, rejected" }),
        ..CHOSEN.places
    },
    ..CHOSEN
};

/// D of chosen responses minus that of rejected ones.
pub const MARGIN: Metric = Metric {
    name: "distance_margin",
    title: "D margin",
    about: "Mean difference of D of both responses, chosen minus rejected.",
    of: Of::Pairs(|pair| Some(pair.distance?.margin)),
    places: Places { log: Some("distance/margins"), ..Places::NONE },
    ..CHOSEN
};
