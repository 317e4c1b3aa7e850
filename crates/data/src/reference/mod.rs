//! The offline reference cache: what the frozen reference model says of every pair, written before training and read during it.
//!
//! A cache is a folder of Parquet shards (`part-00000-of-00004.parquet`), one row per pair: `id` u64, and for each of `chosen_` and
//! `rejected_`: `log_prob` f32 (the sum over the response's tokens), `shared_log_prob` f32 (over as many
//! of its first tokens as the pair's shorter response has), `tokens` u32 (their number), `feature_index` list of u32 and
//! `feature_value` list of f32 (the pooled activations that aren't zero). Every shard bears the fingerprint of all that made the cache,
//! and a cache that doesn't match is refused with every difference named: it is never used silently.

mod cache;
mod columns;
mod pass;
mod shared;
mod sparse;
mod writer;

pub use cache::ReferenceCache;
pub use pass::{BLOCK, Pass, ROWS_PER_SHARD};
pub use shared::SharedCache;
pub use sparse::{SparseFeatures, SparseView};
pub use writer::{ReferenceWriter, ShardWriter};

use crate::atomic::AtomicError;
use crate::fingerprint::Difference;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What the reference model says of one response.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceResponse {
    /// Log-probability, summed over the response's tokens, in nats. At most 0.
    pub log_prob: f32,
    /// The same over as many of its first tokens as the shorter response of the pair has.
    pub shared_log_prob: f32,
    /// Number of the response's tokens. At least 1.
    pub tokens: u32,
    /// Pooled activations of a vector `[d_sae]`.
    pub features: SparseFeatures,
}

/// What the reference model says of one pair.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceRow {
    /// The pair's id.
    pub id: u64,
    /// The preferred response.
    pub chosen: ReferenceResponse,
    /// The other response.
    pub rejected: ReferenceResponse,
}

/// A [`ReferenceResponse`] in a cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceResponseView<'a> {
    /// Log-probability, summed over the response's tokens, in nats.
    pub log_prob: f32,
    /// The same over as many of its first tokens as the shorter response of the pair has.
    pub shared_log_prob: f32,
    /// Number of the response's tokens.
    pub tokens: u32,
    /// Pooled activations of a vector `[d_sae]`.
    pub features: SparseView<'a>,
}

/// A [`ReferenceRow`] in a cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceView<'a> {
    /// The pair's id.
    pub id: u64,
    /// The preferred response.
    pub chosen: ReferenceResponseView<'a>,
    /// The other response.
    pub rejected: ReferenceResponseView<'a>,
}

/// Which pooled activations are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredFeatures {
    /// Every one that isn't zero: the constraint stays exact.
    All,
    /// The n largest of each response, for very large sets; the error is bounded by [`ReferenceCache::dropped_at_most`].
    Top(NonZeroUsize),
}

/// Size of a cache to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Number of pairs: exactly so many rows have to be pushed.
    pub pairs: usize,
    /// Length of the pooled vectors; 0 for a cache of log-probabilities alone.
    pub d_sae: usize,
    /// Which pooled activations are stored.
    pub stored: StoredFeatures,
    /// Rows of a shard.
    pub rows_per_shard: NonZeroUsize,
}

impl CacheShape {
    /// Number of shards: at least one, for an empty cache too must be bound to what made it.
    pub fn shards(&self) -> usize {
        self.pairs.div_ceil(self.rows_per_shard.get()).max(1)
    }
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RowProblem {
    /// Not a log-probability.
    #[error("{side} log-probability is {value}; it must be finite and at most 0")]
    LogProb {
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The value.
        value: f32,
    },
    /// No tokens to average over.
    #[error("{side} response has no tokens")]
    NoTokens {
        /// `chosen` or `rejected`.
        side: &'static str,
    },
    /// A feature that the autoencoder doesn't have.
    #[error("{side} feature index {index} isn't below the autoencoder's width {d_sae}")]
    Index {
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The index.
        index: u32,
        /// Width of the autoencoder.
        d_sae: usize,
    },
    /// Features out of order or twice.
    #[error("{side} feature indices aren't strictly ascending at {index}")]
    Order {
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The index that isn't above the one before it.
        index: u32,
    },
    /// Different numbers of indices and values.
    #[error("{side} response has {indices} feature indices but {values} values")]
    Lengths {
        /// `chosen` or `rejected`.
        side: &'static str,
        /// Number of indices.
        indices: usize,
        /// Number of values.
        values: usize,
    },
    /// NaN or infinity.
    #[error("{side} feature {index} is {value}")]
    Value {
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The feature.
        index: u32,
        /// Its value.
        value: f32,
    },
}

/// Why a cache can't be written or used.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// A shard or the folder can't be read.
    #[error("{}: can't be read", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A shard can't be written.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// Parquet refused to encode rows.
    #[error("{}: can't be encoded", path.display())]
    Encode {
        /// The shard.
        path: PathBuf,
        /// What the encoder said.
        source: parquet::errors::ParquetError,
    },
    /// A shard is truncated, damaged, or something else.
    #[error("{}: is not a whole shard of a reference cache ({what}); make the cache again", path.display())]
    Damaged {
        /// The shard.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The cache was made from something else.
    #[error(
        "{}: this reference cache was made from something else; make it again, or restore what differs:\n  {}",
        folder.display(),
        differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
    )]
    Fingerprint {
        /// The cache.
        folder: PathBuf,
        /// Every item that differs.
        differences: Vec<Difference>,
    },
    /// No shards, or not all.
    #[error("{}: shards are missing: {}; add them, or make the cache again", folder.display(), missing.join(", "))]
    MissingShards {
        /// The cache.
        folder: PathBuf,
        /// Names of the missing files.
        missing: Vec<String>,
    },
    /// A row that can't be right.
    #[error("{}: pair {id}: {problem}", path.display())]
    Row {
        /// The shard, or the folder when writing.
        path: PathBuf,
        /// The pair.
        id: u64,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// A pair stored twice.
    #[error("{}: pair {id} is stored twice; make the cache again", path.display())]
    Duplicate {
        /// The shard, or the folder when writing.
        path: PathBuf,
        /// The pair.
        id: u64,
    },
    /// Not as many rows as there should be.
    #[error("{}: holds {found} pairs where {expected} belong; make the cache again", folder.display())]
    Count {
        /// The cache.
        folder: PathBuf,
        /// Pairs that belong in it.
        expected: usize,
        /// Pairs found.
        found: usize,
    },
    /// Pairs of the training set that aren't there.
    #[error(
        "{}: lacks {count} of the pairs asked for, the first of them {}; make the cache again for this data",
        folder.display(),
        first.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
    )]
    MissingPairs {
        /// The cache.
        folder: PathBuf,
        /// How many are missing.
        count: usize,
        /// The first few of them.
        first: Vec<u64>,
    },
}

impl ReferenceRow {
    /// Borrows it.
    pub fn view(&self) -> ReferenceView<'_> {
        ReferenceView { id: self.id, chosen: self.chosen.view(), rejected: self.rejected.view() }
    }
}

impl ReferenceResponse {
    /// Borrows it.
    pub fn view(&self) -> ReferenceResponseView<'_> {
        ReferenceResponseView {
            log_prob: self.log_prob,
            shared_log_prob: self.shared_log_prob,
            tokens: self.tokens,
            features: self.features.view(),
        }
    }
}

impl ReferenceView<'_> {
    /// Checks that the row can be right.
    pub(crate) fn check(&self, d_sae: usize) -> Result<(), RowProblem> {
        self.chosen.check("chosen", d_sae)?;
        self.rejected.check("rejected", d_sae)
    }
}

impl ReferenceResponseView<'_> {
    /// Length-normalised log-probability: the sum divided by the number of tokens.
    pub fn mean_log_prob(&self) -> f32 {
        self.log_prob / self.tokens as f32
    }

    fn check(&self, side: &'static str, d_sae: usize) -> Result<(), RowProblem> {
        // Written so that NaN fails too.
        for value in [self.log_prob, self.shared_log_prob] {
            if !(value.is_finite() && value <= 0.0) {
                return Err(RowProblem::LogProb { side, value });
            }
        }
        if self.tokens == 0 {
            return Err(RowProblem::NoTokens { side });
        }
        let SparseView { indices, values } = self.features;
        if indices.len() != values.len() {
            return Err(RowProblem::Lengths { side, indices: indices.len(), values: values.len() });
        }
        if let Some(window) = indices.windows(2).find(|window| window[0] >= window[1]) {
            return Err(RowProblem::Order { side, index: window[1] });
        }
        // The last is the largest: they ascend.
        if let Some(&index) = indices.last().filter(|&&index| index as usize >= d_sae) {
            return Err(RowProblem::Index { side, index, d_sae });
        }
        if let Some((&index, &value)) =
            indices.iter().zip(values).find(|(_, value)| !value.is_finite())
        {
            return Err(RowProblem::Value { side, index, value });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
