//! How often the policy prefers the chosen response, whatever the method's rewards are.

use fpo_report::{Better, Unit};

use crate::{Curve, Evaluation, Metric, Of, Places, Plot, Slot};

/// The chart of this accuracy and of the rewards'.
pub(super) const PLOT: Plot = Plot { rank: 20, title: "Accuracy", y_label: "share" };

/// The share of pairs whose chosen response has the strictly higher log-probability per token.
pub const ACCURACY: Metric = Metric {
    name: "accuracy",
    title: "Accuracy",
    about: "Held-out pairs whose chosen response has the higher average log-probability per token.",
    unit: Unit::Percent,
    better: Better::Higher,
    of: Of::Pairs(|pair| {
        let (sums, tokens) = (pair.log_probs, pair.tokens);
        Some(f64::from(sums.chosen / tokens.chosen > sums.rejected / tokens.rejected))
    }),
    places: Places {
        log: Some("accuracy"),
        curve: Some(Curve { plot: PLOT, series: "length-normalised" }),
        evaluation: Evaluation::Shown,
        column: Some(10),
        mean: Some(Slot { rank: 20, title: "Accuracy (higher average log-probability)" }),
        ..Places::NONE
    },
};
