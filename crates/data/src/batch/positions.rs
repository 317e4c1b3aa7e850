//! Positions of a batch, as indices of its tokens.

use super::TokenBatch;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// The positions whose features are averaged into one vector per row.
///
/// With 0-based positions, a prompt of `p` tokens and `n` tokens in total:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// `p−1 … n−2`: those whose logits predict the response's tokens; theorem B.1 of the FPO paper is about these.
    #[default]
    Predicting,
    /// `p … n−1`: the response's own tokens.
    Response,
    /// `1 … n−2`: all that predict a token, prompt included, except position 0 (BOS, on which sparse autoencoders aren't trained).
    Sequence,
}

impl Pooling {
    /// The name used in settings and fingerprints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Predicting => "predicting",
            Self::Response => "response",
            Self::Sequence => "sequence",
        }
    }
}

impl FromStr for Pooling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Predicting, Self::Response, Self::Sequence];
        all.into_iter().find(|pooling| pooling.name() == text).ok_or_else(|| {
            format!("no pooling `{text}`; choose one of {}", all.map(Self::name).join(", "))
        })
    }
}

/// Positions of a batch, row by row in ascending order, at least one per row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// Indices of the batch's tokens, `[positions]`. What two rows share may be there twice, once for each.
    pub flat: Vec<i32>,
    /// Row of each position, `[positions]`.
    pub row: Vec<i32>,
    /// Number of positions in each row, `[rows]`. Never 0.
    pub counts: Vec<usize>,
}

impl TokenBatch {
    /// Positions `p−1 … n−2` of every row as indices of the batch's tokens: those whose logits predict the response's tokens, without those of context.
    /// `[response tokens]`
    pub fn predicting_positions(&self) -> Vec<i32> {
        self.positions(Pooling::Predicting, &[]).flat
    }

    /// The response's tokens `p … n−1` of every row, aligned with [`Self::predicting_positions`]. `[response tokens]`
    pub fn targets(&self) -> Vec<i32> {
        let rows = 0..self.rows();
        rows.flat_map(|row| self.learned(row).map(move |t| self.tokens[self.at(row, t)])).collect()
    }

    /// The row of every predicting position, aligned with [`Self::predicting_positions`]. `[response tokens]`
    pub fn row_of_position(&self) -> Vec<i32> {
        self.positions(Pooling::Predicting, &[]).row
    }

    /// The positions to pool. Positions of `excluded` tokens are left out (pass [`crate::Tokenizer::special_ids`] for autoencoders
    /// that weren't trained on them); a row with no other positions keeps its predicting ones, so that its mean exists.
    pub fn positions(&self, pooling: Pooling, excluded: &[u32]) -> Positions {
        let mut positions = Positions {
            flat: Vec::new(),
            row: Vec::new(),
            counts: Vec::with_capacity(self.rows()),
        };
        for row in 0..self.rows() {
            let (prompt, len) = (self.prompt_lens[row], self.lens[row]);
            let predicting = || self.learned(row).map(|t| t - 1).collect::<Vec<_>>();
            let range = match pooling {
                Pooling::Predicting => predicting(),
                Pooling::Response => (prompt..len).collect(),
                Pooling::Sequence => (1..len - 1).collect(),
            };
            let is_excluded = |t: &usize| {
                let found = i64::from(self.tokens[self.at(row, *t)]);
                excluded.iter().any(|&token| i64::from(token) == found)
            };
            let mut kept: Vec<usize> = range.into_iter().filter(|t| !is_excluded(t)).collect();
            if kept.is_empty() {
                kept = predicting();
            }
            positions.counts.push(kept.len());
            // Both fit: TokenBatch::new rejects more than i32::MAX elements.
            positions.row.extend(kept.iter().map(|_| row as i32));
            positions.flat.extend(kept.iter().map(|&t| self.at(row, t) as i32));
        }
        positions
    }
}
