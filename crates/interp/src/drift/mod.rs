//! What alignment changed of each feature: two models read the same tokens, and the activations of each feature are compared token by
//! token. Memory is bounded: activations are encoded block by block, and per feature only sums in float64 and its most changed
//! tokens are kept.

mod compare;
mod sums;

pub use compare::Comparison;

use std::ops::Range;

/// What belongs together in the data: a line, an example, or both responses of a pair. Standard errors are over texts.
pub type Text = Vec<Sequence>;

/// Tokens that the models read from the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The first position that counts: positions before it were counted in another sequence of the same text.
    pub from: usize,
}

impl Sequence {
    /// The positions that count: those from `from` on whose token isn't excluded.
    pub fn counted<'a>(&'a self, excluded: &'a [u32]) -> impl Iterator<Item = usize> + 'a {
        (self.from..self.tokens.len()).filter(|&at| !excluded.contains(&self.tokens[at]))
    }
}

/// Result of a [`Comparison`].
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    /// Number of texts with a position that counts.
    pub texts: usize,
    /// Number of positions counted.
    pub tokens: usize,
    /// One per feature of the autoencoder.
    pub features: Vec<FeatureDrift>,
}

/// A feature in both models.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureDrift {
    /// In the model before alignment.
    pub before: Level,
    /// In the aligned model.
    pub after: Level,
    /// Standard error of the change of the mean, paired over texts; none with fewer than two texts.
    pub standard_error: Option<f64>,
    /// Where its activation changed most, at most one place per text, and one of those that follow the same tokens; largest change
    /// first.
    pub places: Vec<Place>,
}

impl FeatureDrift {
    /// How much the mean activation changed.
    pub fn change(&self) -> f64 {
        self.after.mean - self.before.mean
    }
}

/// How active a feature is in one model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Level {
    /// Mean activation over all positions counted.
    pub mean: f64,
    /// Share of these positions at which it is active, 0 to 1.
    pub firing: f64,
}

/// A feature's activation at one token in both models.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Place {
    /// Index of the text.
    pub text: usize,
    /// Index of the sequence in the text.
    pub sequence: usize,
    /// Position in the sequence.
    pub position: usize,
    /// Hash of the tokens up to this one. Where it is the same, so are the activations: the models are causal.
    pub prefix: u64,
    /// Activation before alignment.
    pub before: f32,
    /// Activation in the aligned model.
    pub after: f32,
}

impl Place {
    /// Size of the change.
    pub fn size(&self) -> f64 {
        (f64::from(self.after) - f64::from(self.before)).abs()
    }
}

/// Features by the size of their change, largest first; of equal ones the first.
pub fn by_change(features: usize, change: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..features).collect();
    order.sort_by(|&a, &b| change(b).abs().total_cmp(&change(a).abs()).then(a.cmp(&b)));
    order
}

/// The positions of an excerpt: `context` tokens on either side of position `at` in a text of `length` tokens.
pub fn excerpt(at: usize, context: usize, length: usize) -> Range<usize> {
    at.saturating_sub(context)..at.saturating_add(context + 1).min(length)
}
