//! The loss that training minimises.

use fpo_report::{Better, Unit};

use crate::{Curve, Evaluation, Metric, Of, Places, Plot, Slot};

/// The method's loss, mean over pairs.
pub const LOSS: Metric = Metric {
    name: "loss",
    title: "Loss",
    about: "The method's loss on held-out pairs.",
    unit: Unit::Plain,
    better: Better::Lower,
    of: Of::Pairs(|pair| Some(pair.loss)),
    places: Places {
        log: Some("loss"),
        curve: Some(Curve {
            plot: Plot { rank: 10, title: "Loss", y_label: "nats" },
            series: "Loss",
        }),
        evaluation: Evaluation::Shown,
        line: Some(60),
        mean: Some(Slot { rank: 10, title: "Loss" }),
        ..Places::NONE
    },
};
