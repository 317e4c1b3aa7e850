//! What an autoencoder's features are about: on which tokens they fire, and which tokens they promote. Shown as
//! one page, and exported in the shape of SAEDashboard.

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
    /// The decoder direction's product with the token's unembedding.
    pub logit: f32,
}

/// A text on which a feature fires.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The feature's activation on each of them.
    pub activations: Vec<f32>,
    /// Which of them it fires on most strongly.
    pub strongest: usize,
}

/// What is known of a feature.
#[derive(Clone, Debug)]
pub struct Feature {
    /// Which one.
    pub index: usize,
    /// Share of tokens on which it is active.
    pub density: f64,
    /// Its largest activation.
    pub max: f32,
    /// Its mean activation where it is active.
    pub mean: f64,
    /// Its activations where it is active.
    pub activations: Histogram,
    /// The strongest texts, strongest first, each from another row.
    pub examples: Vec<Example>,
    /// What it promotes most, first.
    pub promoted: Vec<TokenLogit>,
    /// What it suppresses most, first.
    pub suppressed: Vec<TokenLogit>,
    /// Its effect on all tokens.
    pub logits: Vec<Bar>,
}
