//! All metrics: a file for each metric, or for each family of chosen, rejected and margin.

pub mod accuracy;
pub mod answer_entropy;
pub mod answer_length;
pub mod distance;
pub mod entropy;
pub mod kl;
pub mod log_probs;
pub mod loss;
pub mod margin;
pub mod rewards;
pub mod right_answers;
pub mod token_accuracy;
pub mod tokens;
pub mod u;

use crate::Metric;

/// All metrics, in the order in which logs and tables show them.
pub const METRICS: &[&Metric] = &[
    &loss::LOSS,
    &accuracy::ACCURACY,
    &rewards::ACCURACY,
    &rewards::CHOSEN,
    &rewards::REJECTED,
    &rewards::MARGIN,
    &u::U,
    &margin::MARGIN,
    &log_probs::CHOSEN,
    &log_probs::REJECTED,
    &tokens::CHOSEN,
    &tokens::REJECTED,
    &kl::CHOSEN,
    &kl::REJECTED,
    &kl::MARGIN,
    &distance::CHOSEN,
    &distance::REJECTED,
    &distance::MARGIN,
    &entropy::ENTROPY,
    &token_accuracy::TOKEN_ACCURACY,
    &answer_entropy::ANSWER_ENTROPY,
    &answer_length::ANSWER_LENGTH,
    &right_answers::RIGHT_ANSWERS,
];
