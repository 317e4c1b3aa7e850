//! How undecided the model is where it samples.

use fpo_report::{Better, Unit};

use crate::{Evaluation, Metric, Of, Places, Sum};

/// Entropy per sampled token, at temperature 1.
pub const ANSWER_ENTROPY: Metric = Metric {
    name: "entropy",
    title: "Entropy",
    about: "Mean entropy of the distributions from which answers were drawn.",
    unit: Unit::Nats,
    better: Better::Neither,
    of: Of::AnswerTokens(|answer| {
        let sum = answer.entropies.iter().map(|&entropy| f64::from(entropy)).sum();
        Some(Sum { sum, terms: answer.entropies.len() as f64 })
    }),
    places: Places { evaluation: Evaluation::Shown, column: Some(30), ..Places::NONE },
};
