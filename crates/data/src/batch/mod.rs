//! Batches in host memory: rows of tokens, padded on the right, and the positions that losses and pooling use.

mod epochs;
mod plan;
mod positions;

pub use epochs::{Epochs, NoStep};
pub use plan::Batches;
pub use positions::{Pooling, Positions};

use crate::tokens::{ExampleView, PairView};

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
    /// Positions after the prompt that aren't learned, of each row, ascending: no log-probability is asked for there. `[rows]`
    pub context: Vec<Vec<u32>>,
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
        let row = |id, response| ExampleView { id, response, context: &[] };
        let chosen = pairs.iter().map(|pair| row(pair.id, pair.chosen));
        let rejected = pairs.iter().map(|pair| row(pair.id, pair.rejected));
        let batch = TokenBatch::new(&chosen.chain(rejected).collect::<Vec<_>>(), pad)?;
        Ok(Self { ids: pairs.iter().map(|pair| pair.id).collect(), batch })
    }

    /// A number for each row that no other row of the data has. `[2 · pairs]`
    pub fn row_keys(&self) -> impl Iterator<Item = u64> {
        let of = |side: u64| self.ids.iter().map(move |id| id.wrapping_mul(2) + side);
        of(0).chain(of(1))
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
        let batch = TokenBatch::new(examples, pad)?;
        Ok(Self { ids: examples.iter().map(|example| example.id).collect(), batch })
    }
}

impl TokenBatch {
    fn new(items: &[ExampleView<'_>], pad: u32) -> Result<Self, BatchError> {
        let rows = items.len();
        let lens: Vec<usize> = items.iter().map(|item| item.response.tokens.len()).collect();
        let width = lens.iter().copied().max().ok_or(BatchError::Empty)?;
        let cells = rows
            .checked_mul(width)
            .filter(|&cells| i32::try_from(cells).is_ok())
            .ok_or(BatchError::TooLarge { rows, width })?;
        let pad = to_i32(pad, items[0].id)?;
        let mut tokens = Vec::with_capacity(cells);
        for item in items {
            let (id, row) = (item.id, item.response);
            if !item.is_sound() {
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
            prompt_lens: items.iter().map(|item| item.response.prompt_len).collect(),
            lens,
            context: items.iter().map(|item| item.context.to_vec()).collect(),
        })
    }

    /// The tokens of a row without its padding.
    pub fn row(&self, row: usize) -> &[i32] {
        &self.tokens[row * self.width..][..self.lens[row]]
    }

    /// Response tokens of each row, without context, `[rows]`: the divisor of a mean log-probability. Never 0.
    pub fn response_counts(&self) -> Vec<usize> {
        let rows = 0..self.rows;
        rows.map(|row| self.lens[row] - self.prompt_lens[row] - self.context[row].len()).collect()
    }

    /// The positions of a row's response tokens, without context.
    fn learned(&self, row: usize) -> impl Iterator<Item = usize> {
        let context = &self.context[row];
        let is_context = move |t: usize| context.binary_search(&(t as u32)).is_ok();
        (self.prompt_lens[row]..self.lens[row]).filter(move |&t| !is_context(t))
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
