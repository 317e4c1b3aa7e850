//! u, the argument of the sigmoid.

use fpo_report::{Better, Unit};

use crate::{Metric, Of, Places, Slot};

/// u of equation 8 (arXiv 2411.07618).
pub const U: Metric = Metric {
    name: "u",
    title: "u",
    about: "The argument of the sigmoid: the margin of rewards minus the target margin (equation 8).",
    unit: Unit::Plain,
    better: Better::Higher,
    of: Of::Pairs(|pair| Some(pair.u)),
    places: Places {
        log: Some("u"),
        line: Some(50),
        mean: Some(Slot { rank: 40, title: "u" }),
        ..Places::NONE
    },
};
