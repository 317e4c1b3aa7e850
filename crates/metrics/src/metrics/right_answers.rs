//! How many sampled answers are right.

use fpo_report::{Better, Unit};

use crate::{Evaluation, Metric, Of, Places};

/// The share of answers that the checker calls right, among those it can judge.
pub const RIGHT_ANSWERS: Metric = Metric {
    name: "right",
    title: "Right answers",
    about: "Answers to held-out prompts that the built-in checker calls right, in content and in format.",
    unit: Unit::Percent,
    better: Better::Higher,
    of: Of::Answers(|answer| answer.right.map(f64::from)),
    places: Places { evaluation: Evaluation::Shown, column: Some(20), ..Places::NONE },
};
