//! The lengths of sampled answers.

use fpo_report::{Better, Unit};

use crate::{Evaluation, Metric, Of, Places};

/// Tokens per sampled answer.
pub const ANSWER_LENGTH: Metric = Metric {
    name: "answer_tokens",
    title: "Answer length",
    about: "Mean length of an answer.",
    unit: Unit::Tokens,
    better: Better::Neither,
    of: Of::Answers(|answer| Some(answer.tokens as f64)),
    places: Places { evaluation: Evaluation::Shown, column: Some(60), ..Places::NONE },
};
