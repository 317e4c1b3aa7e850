//! Batches in host memory: rows of tokens, padded on the right, and the positions that losses and pooling use.

mod epochs;
mod plan;
mod positions;

pub use epochs::{Epochs, NoStep};
pub use plan::Batches;
pub use positions::{Pooling, Positions};

use crate::tokens::{ExampleView, PairView, ResponseView};

/// Why a batch can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// No items.
    #[error("a batch needs at least one item")]
    Empty,
    /// A row with nothing to predict, or nothing to predict it from.
    #[error(
        "item {id}: {prompt_len} prompt tokens of {len} in total; a batch needs 1 ≤ prompt < total (prepare the data again)"
    )]
    Unsound {
        /// Id of the pair or example.
        id: u64,
        /// Number of prompt tokens.
        prompt_len: usize,
        /// Number of tokens, prompt included.
        len: usize,
    },
    /// A token id that does not fit an `i32`.
    #[error(
        "item {id}: token id {token} is above 2^31 - 1; the prepared data is damaged, or was prepared for another vocabulary"
    )]
    TokenId {
        /// Id of the pair or example.
        id: u64,
        /// The token.
        token: u32,
    },
    /// More elements than an `i32` can index.
    #[error(
        "a batch of {rows} rows × {width} tokens has more than 2^31 - 1 elements; lower the batch size or max_length"
    )]
    TooLarge {
        /// Rows of the batch.
        rows: usize,
        /// Tokens of its longest row.
        width: usize,
    },
}

/// Rows of tokens of different lengths, padded on the right to the longest.
///
/// `1 ≤ prompt_len < len` holds in every row, so every row has at least one predicting position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// Token ids, `[rows, width]`, row-major.
    pub tokens: Vec<i32>,
    /// Number of rows.
    pub rows: usize,
    /// Tokens per row, padding included: the length of the longest row.
    pub width: usize,
    /// Prompt tokens of each row, `[rows]`.
    pub prompt_lens: Vec<usize>,
    /// Tokens of each row without padding, `[rows]`.
    pub lens: Vec<usize>,
}

/// Preference pairs as `2 · pairs` rows: first all chosen responses, then all rejected ones in the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairBatch {
    /// Pair ids, `[pairs]`. Row `i` is the chosen response of `ids[i]`, row `pairs + i` the rejected one.
    pub ids: Vec<u64>,
    /// The padded rows.
    pub batch: TokenBatch,
}

/// Examples for supervised fine-tuning, one row each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceBatch {
    /// Example ids, `[rows]`.
    pub ids: Vec<u64>,
    /// The padded rows.
    pub batch: TokenBatch,
}

impl PairBatch {
    /// Lays out pairs as a batch, padded with the token `pad`.
    ///
    /// # Errors
    /// No pairs, an unsound row, or a token id or batch too large for `i32`.
    pub fn new(pairs: &[PairView<'_>], pad: u32) -> Result<Self, BatchError> {
        let chosen = pairs.iter().map(|pair| (pair.id, pair.chosen));
        let rejected = pairs.iter().map(|pair| (pair.id, pair.rejected));
        let batch = TokenBatch::new(&chosen.chain(rejected).collect::<Vec<_>>(), pad)?;
        Ok(Self { ids: pairs.iter().map(|pair| pair.id).collect(), batch })
    }

    /// Number of pairs: half the rows.
    pub fn pairs(&self) -> usize {
        self.ids.len()
    }
}

impl SequenceBatch {
    /// Lays out examples as a batch, padded with the token `pad`.
    ///
    /// # Errors
    /// As [`PairBatch::new`].
    pub fn new(examples: &[ExampleView<'_>], pad: u32) -> Result<Self, BatchError> {
        let rows: Vec<_> = examples.iter().map(|example| (example.id, example.response)).collect();
        let batch = TokenBatch::new(&rows, pad)?;
        Ok(Self { ids: examples.iter().map(|example| example.id).collect(), batch })
    }
}

impl TokenBatch {
    fn new(items: &[(u64, ResponseView<'_>)], pad: u32) -> Result<Self, BatchError> {
        let rows = items.len();
        let width = items.iter().map(|(_, row)| row.tokens.len()).max().ok_or(BatchError::Empty)?;
        let cells = rows
            .checked_mul(width)
            .filter(|&cells| i32::try_from(cells).is_ok())
            .ok_or(BatchError::TooLarge { rows, width })?;
        let pad = to_i32(pad, items[0].0)?;
        let mut tokens = Vec::with_capacity(cells);
        for &(id, row) in items {
            if !row.is_sound() {
                return Err(BatchError::Unsound {
                    id,
                    prompt_len: row.prompt_len,
                    len: row.tokens.len(),
                });
            }
            for &token in row.tokens {
                tokens.push(to_i32(token, id)?);
            }
            tokens.resize(tokens.len() + width - row.tokens.len(), pad);
        }
        Ok(Self {
            tokens,
            rows,
            width,
            prompt_lens: items.iter().map(|(_, row)| row.prompt_len).collect(),
            lens: items.iter().map(|(_, row)| row.tokens.len()).collect(),
        })
    }

    /// The tokens of a row without its padding.
    pub fn row(&self, row: usize) -> &[i32] {
        &self.tokens[row * self.width..][..self.lens[row]]
    }

    /// Response tokens of each row, `[rows]`: the divisor of a mean log-probability. Never 0.
    pub fn response_counts(&self) -> Vec<usize> {
        self.lens.iter().zip(&self.prompt_lens).map(|(len, prompt)| len - prompt).collect()
    }

    /// Total response tokens.
    pub fn response_tokens(&self) -> usize {
        self.response_counts().iter().sum()
    }

    /// Total tokens without padding.
    pub fn real_tokens(&self) -> usize {
        self.lens.iter().sum()
    }
}

fn to_i32(token: u32, id: u64) -> Result<i32, BatchError> {
    i32::try_from(token).map_err(|_| BatchError::TokenId { id, token })
}

#[cfg(test)]
mod tests;
