//! The method's implicit rewards.

use fpo_report::{Better, Unit};

use super::accuracy;
use crate::{Curve, Evaluation, Metric, Of, Places, Plot, Slot};

const PLOT: Plot = Plot { rank: 30, title: "Rewards", y_label: "" };

/// The share of pairs whose chosen response has the strictly higher reward.
pub const ACCURACY: Metric = Metric {
    name: "reward_accuracy",
    title: "Reward accuracy",
    about: "Held-out pairs whose chosen response has the higher reward. Before alignment there is none where it is measured \
            against the reference.",
    unit: Unit::Percent,
    better: Better::Higher,
    of: Of::Pairs(|pair| Some(f64::from(pair.rewards.margin > 0.0))),
    places: Places {
        log: Some("rewards/accuracies"),
        curve: Some(Curve { plot: accuracy::PLOT, series: "reward" }),
        evaluation: Evaluation::Shown,
        column: Some(70),
        mean: Some(Slot { rank: 30, title: "Accuracy (higher reward)" }),
        ..Places::NONE
    },
};

/// The chosen responses' reward.
pub const CHOSEN: Metric = Metric {
    name: "chosen_reward",
    title: "Reward, chosen",
    about: "The method's own reward, mean over chosen responses.",
    unit: Unit::Plain,
    better: Better::Higher,
    of: Of::Pairs(|pair| Some(pair.rewards.chosen)),
    places: Places {
        log: Some("rewards/chosen"),
        curve: Some(Curve { plot: PLOT, series: "chosen" }),
        ..Places::NONE
    },
};

/// The rejected responses' reward.
pub const REJECTED: Metric = Metric {
    name: "rejected_reward",
    title: "Reward, rejected",
    about: "The same over rejected responses.",
    better: Better::Lower,
    of: Of::Pairs(|pair| Some(pair.rewards.rejected)),
    places: Places {
        log: Some("rewards/rejected"),
        curve: Some(Curve { plot: PLOT, series: "rejected" }),
        ..Places::NONE
    },
    ..CHOSEN
};

/// The reward of chosen responses minus that of rejected ones.
pub const MARGIN: Metric = Metric {
    name: "reward_margin",
    title: "Reward margin",
    about: "Mean difference of the method's own rewards, chosen minus rejected.",
    unit: Unit::Plain,
    better: Better::Higher,
    of: Of::Pairs(|pair| Some(pair.rewards.margin)),
    places: Places {
        log: Some("rewards/margins"),
        curve: Some(Curve { plot: PLOT, series: "margin" }),
        evaluation: Evaluation::Shown,
        ..Places::NONE
    },
};
