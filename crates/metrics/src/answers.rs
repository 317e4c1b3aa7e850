//! What is known of a sampled answer.

/// What is known of one answer that a model sampled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnswerValues {
    /// Entropy of the model's distribution at every sampled position, in nats; a sampled stop token has one too.
    pub entropies: Vec<f32>,
    /// Tokens of the answer, without the stop token.
    pub tokens: usize,
    /// The verdict; `None` if the answer can't be checked.
    pub right: Option<bool>,
}
