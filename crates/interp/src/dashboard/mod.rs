//! Dashboard of an autoencoder's features: the tokens on which they are active and the tokens that they promote, as a page or in
//! SAEDashboard's format.

mod collect;
mod export;
mod histogram;
mod logits;
mod page;

pub use collect::{Options, collect};
pub use export::{Export, batches};
pub use histogram::{Bar, Histogram};
pub use page::{Page, render};

/// A token and how much a feature promotes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogit {
    /// Token id.
    pub token: u32,
    /// Dot product of the decoder direction and the token's unembedding.
    pub logit: f32,
}

/// An excerpt in which a feature is active.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The feature's activation at each token.
    pub activations: Vec<f32>,
    /// Index into `tokens` of the strongest activation.
    pub strongest: usize,
}

/// Statistics and examples of a feature.
#[derive(Clone, Debug)]
pub struct Feature {
    /// Index in `0..d_sae`.
    pub index: usize,
    /// Share of tokens on which it is active, 0 to 1.
    pub density: f64,
    /// Largest activation.
    pub max: f32,
    /// Mean activation over the tokens on which it is active.
    pub mean: f64,
    /// Histogram of its non-zero activations.
    pub activations: Histogram,
    /// Excerpts around the strongest activations, at most one per row, strongest first.
    pub examples: Vec<Example>,
    /// Tokens with the largest logits, largest first.
    pub promoted: Vec<TokenLogit>,
    /// Tokens with the lowest logits, lowest first.
    pub suppressed: Vec<TokenLogit>,
    /// Histogram of the logits over the vocabulary.
    pub logits: Vec<Bar>,
}
