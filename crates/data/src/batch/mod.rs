//! Batches in host memory: rows of tokens that lie flat, without padding, and the positions that losses and pooling use.

mod epochs;
mod plan;
mod positions;

pub use epochs::{Epochs, NoStep};
pub use plan::Batches;
pub use positions::{Pooling, Positions};

use std::ops::Range;

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

/// Rows of tokens of different lengths. Their tokens lie flat: one row after another, without padding. What both rows of a pair begin
/// with is there once, because a causal model makes the same of it in both: the prompt, and a common beginning of the responses.
///
/// `1 ≤ prompt_len < len` holds in every row, so every row has at least one predicting position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// Token ids, `[tokens]`.
    pub tokens: Vec<i32>,
    /// Where in `tokens` each row's are: those of the first range, then those of the second. `[rows]`
    pub places: Vec<[Range<usize>; 2]>,
    /// Prompt tokens of each row, `[rows]`.
    pub prompt_lens: Vec<usize>,
    /// Tokens of each row, `[rows]`.
    pub lens: Vec<usize>,
    /// Positions after the prompt that aren't learned, of each row, ascending: no log-probability is asked for there. `[rows]`
    pub context: Vec<Vec<u32>>,
}

/// Preference pairs as `2 · pairs` rows: first all chosen responses, then all rejected ones in the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairBatch {
    /// Pair ids, `[pairs]`. Row `i` is the chosen response of `ids[i]`, row `pairs + i` the rejected one.
    pub ids: Vec<u64>,
    /// The rows.
    pub batch: TokenBatch,
}

/// Examples for supervised fine-tuning, one row each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceBatch {
    /// Example ids, `[rows]`.
    pub ids: Vec<u64>,
    /// The rows.
    pub batch: TokenBatch,
}

impl PairBatch {
    /// Lays out pairs as a batch.
    ///
    /// # Errors
    /// No pairs, an unsound row, or a token id or batch too large for `i32`.
    pub fn new(pairs: &[PairView<'_>]) -> Result<Self, BatchError> {
        let shared: Vec<usize> = pairs.iter().map(PairView::shared).collect();
        let row = |id, response| ExampleView { id, response, context: &[] };
        let chosen = pairs.iter().map(|pair| row(pair.id, pair.chosen));
        let rejected = pairs.iter().map(|pair| row(pair.id, pair.rejected));
        let batch = TokenBatch::new(&chosen.chain(rejected).collect::<Vec<_>>(), &shared)?;
        Ok(Self { ids: pairs.iter().map(|pair| pair.id).collect(), batch })
    }

    /// For each token a number of its row that no other row of the data has, and its position there. A token that both rows of a pair
    /// begin with counts as the chosen row's. `[tokens]`
    pub fn token_keys(&self) -> Vec<(u64, usize)> {
        let pairs = self.pairs();
        let key = |row: usize| self.ids[row % pairs].wrapping_mul(2) + u64::from(row >= pairs);
        let tokens = self.batch.in_rows().into_iter();
        tokens.map(|(row, position)| (key(row), position)).collect()
    }

    /// Number of pairs: half the rows.
    pub fn pairs(&self) -> usize {
        self.ids.len()
    }
}

impl SequenceBatch {
    /// Lays out examples as a batch.
    ///
    /// # Errors
    /// As [`PairBatch::new`].
    pub fn new(examples: &[ExampleView<'_>]) -> Result<Self, BatchError> {
        let batch = TokenBatch::new(examples, &vec![0; examples.len()])?;
        Ok(Self { ids: examples.iter().map(|example| example.id).collect(), batch })
    }

    /// For each token the id of its row, and its position there. `[tokens]`
    pub fn token_keys(&self) -> Vec<(u64, usize)> {
        let tokens = self.batch.in_rows().into_iter();
        tokens.map(|(row, position)| (self.ids[row], position)).collect()
    }
}

impl TokenBatch {
    /// The first rows have partners after them, in the same order, and each shares so many of its first tokens with its own.
    fn new(items: &[ExampleView<'_>], shared: &[usize]) -> Result<Self, BatchError> {
        let rows = items.len();
        let lens: Vec<usize> = items.iter().map(|item| item.response.tokens.len()).collect();
        let width = lens.iter().copied().max().ok_or(BatchError::Empty)?;
        // Attention pads rows to the longest.
        let cells = rows.checked_mul(width).filter(|&cells| i32::try_from(cells).is_ok());
        cells.ok_or(BatchError::TooLarge { rows, width })?;
        let mut tokens = Vec::with_capacity(lens.iter().sum());
        let mut places: Vec<[Range<usize>; 2]> = Vec::with_capacity(rows);
        for (index, item) in items.iter().enumerate() {
            let (id, row) = (item.id, item.response);
            if !item.is_sound() {
                return Err(BatchError::Unsound {
                    id,
                    prompt_len: row.prompt_len,
                    len: row.tokens.len(),
                });
            }
            let mut add = |row: &[u32]| {
                let first = tokens.len();
                for &token in row {
                    tokens.push(to_i32(token, id)?);
                }
                Ok(first..tokens.len())
            };
            let beginning = match index.checked_sub(shared.len()) {
                None => add(&row.tokens[..shared[index]])?,
                Some(partner) => places[partner][0].clone(),
            };
            let rest = add(&row.tokens[beginning.len()..])?;
            places.push([beginning, rest]);
        }
        Ok(Self {
            tokens,
            places,
            prompt_lens: items.iter().map(|item| item.response.prompt_len).collect(),
            lens,
            context: items.iter().map(|item| item.context.to_vec()).collect(),
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.places.len()
    }

    /// Where in `tokens` the token at a position of a row is.
    fn at(&self, row: usize, position: usize) -> usize {
        let [beginning, rest] = &self.places[row];
        match position.checked_sub(beginning.len()) {
            None => beginning.start + position,
            Some(position) => rest.start + position,
        }
    }

    /// For each token the first row that it is in, and its position there. `[tokens]`
    pub fn in_rows(&self) -> Vec<(usize, usize)> {
        let mut found = vec![None; self.tokens.len()];
        for row in 0..self.rows() {
            for position in 0..self.lens[row] {
                found[self.at(row, position)].get_or_insert((row, position));
            }
        }
        found.into_iter().flatten().collect()
    }

    /// Response tokens of each row, without context, `[rows]`: the divisor of a mean log-probability. Never 0.
    pub fn response_counts(&self) -> Vec<usize> {
        let rows = 0..self.rows();
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

    /// Total tokens of all rows; those that two rows share count in both.
    pub fn real_tokens(&self) -> usize {
        self.lens.iter().sum()
    }
}

fn to_i32(token: u32, id: u64) -> Result<i32, BatchError> {
    i32::try_from(token).map_err(|_| BatchError::TokenId { id, token })
}

#[cfg(test)]
mod tests;
