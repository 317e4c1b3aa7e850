//! What a run's evaluation leaves behind: `evaluate/evaluation.json`.

use fpo_metrics::Measured;
use fpo_report::FeatureMove;
use serde::{Deserialize, Serialize};

/// One prompt, answered before and after.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AnsweredPrompt {
    /// The prompt.
    pub prompt: String,
    /// The right answer of the built-in data, else the chosen response.
    pub expected: String,
    /// The answer before.
    pub before: Answer,
    /// The answer after.
    pub after: Answer,
}

/// An answer and what the built-in checker says of it, where it can judge.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The text, without special tokens.
    pub text: String,
    /// In words.
    pub verdict: Option<String>,
    /// Whether it is right.
    pub right: Option<bool>,
}

/// Metrics, answers and features before and after alignment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// The model before alignment.
    pub before: Measured,
    /// The model after it.
    pub after: Measured,
    /// Every prompt with both answers.
    pub answers: Vec<AnsweredPrompt>,
    /// The features that moved most.
    pub features: Vec<FeatureMove>,
}
