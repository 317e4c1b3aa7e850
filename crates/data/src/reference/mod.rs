//! The offline reference cache: log-probabilities and features of every pair under the frozen reference model, computed before
//! training.
//!
//! A cache is a folder of Parquet shards (`part-00000-of-00004.parquet`) with one row per pair: `id` u64, and for each of `chosen_`
//! and `rejected_`: `log_prob` f32 (sum over the response's tokens), `shared_log_prob` f32 (over its first n tokens, where n is the
//! length of the shorter response), `tokens` u32 (number of response tokens), `feature_index` list of u32 and `feature_value` list
//! of f32 (the non-zero pooled activations). Every shard contains the fingerprint of everything that the cache depends on. A cache
//! with another fingerprint is refused, and the error names every difference.

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

/// One response under the reference model.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceResponse {
    /// Log-probability of the response in nats, summed over its tokens. At most 0.
    pub log_prob: f32,
    /// The same over the first n tokens, where n is the length of the pair's shorter response.
    pub shared_log_prob: f32,
    /// Number of response tokens. At least 1.
    pub tokens: u32,
    /// Pooled activations, a sparse vector `[d_sae]`.
    pub features: SparseFeatures,
}

/// One pair under the reference model.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceRow {
    /// The pair's id.
    pub id: u64,
    /// The chosen response.
    pub chosen: ReferenceResponse,
    /// The rejected response.
    pub rejected: ReferenceResponse,
}

/// A borrowed [`ReferenceResponse`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceResponseView<'a> {
    /// Log-probability of the response in nats, summed over its tokens.
    pub log_prob: f32,
    /// The same over the first n tokens, where n is the length of the pair's shorter response.
    pub shared_log_prob: f32,
    /// Number of response tokens.
    pub tokens: u32,
    /// Pooled activations, a sparse vector `[d_sae]`.
    pub features: SparseView<'a>,
}

/// A borrowed [`ReferenceRow`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceView<'a> {
    /// The pair's id.
    pub id: u64,
    /// The chosen response.
    pub chosen: ReferenceResponseView<'a>,
    /// The rejected response.
    pub rejected: ReferenceResponseView<'a>,
}

/// Which pooled activations are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredFeatures {
    /// All non-zero ones: the constraint stays exact.
    All,
    /// The n largest per response, for very large sets; [`ReferenceCache::dropped_at_most`] bounds the error.
    Top(NonZeroUsize),
}

/// The size of a cache to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Number of pairs, which is also the number of rows to push.
    pub pairs: usize,
    /// Length of the pooled vectors; 0 for a cache of log-probabilities only.
    pub d_sae: usize,
    /// Which pooled activations are stored.
    pub stored: StoredFeatures,
    /// Rows per shard.
    pub rows_per_shard: NonZeroUsize,
}

impl CacheShape {
    /// Number of shards. At least one: an empty cache has a fingerprint too.
    pub fn shards(&self) -> usize {
        self.pairs.div_ceil(self.rows_per_shard.get()).max(1)
    }
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RowProblem {
    /// A value that can't be a log-probability.
    #[error("{side} log-probability is {value}; it must be finite and at most 0")]
    LogProb {
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The value.
        value: f32,
    },
    /// A response without tokens.
    #[error("{side} response has no tokens")]
    NoTokens {
        /// `chosen` or `rejected`.
        side: &'static str,
    },
    /// A feature index beyond the autoencoder's width.
    #[error("{side} feature index {index} isn't below the autoencoder's width {d_sae}")]
    Index {
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The index.
        index: u32,
        /// Width of the autoencoder.
        d_sae: usize,
    },
    /// Features out of order, or duplicates.
    #[error("{side} feature indices aren't strictly ascending at {index}")]
    Order {
        /// `chosen` or `rejected`.
        side: &'static str,
        /// The first index that isn't above its predecessor.
        index: u32,
    },
    /// Unequal numbers of indices and values.
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
        /// The I/O error.
        source: std::io::Error,
    },
    /// A shard can't be written.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// Parquet can't encode the rows.
    #[error("{}: can't be encoded", path.display())]
    Encode {
        /// The shard.
        path: PathBuf,
        /// The encoder's error.
        source: parquet::errors::ParquetError,
    },
    /// A truncated or damaged shard, or another kind of file.
    #[error("{}: is not a whole shard of a reference cache ({what}); make the cache again", path.display())]
    Damaged {
        /// The shard.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A cache with another fingerprint.
    #[error(
        "{}: this reference cache was made from something else; make it again, or undo these differences:\n  {}",
        folder.display(),
        differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
    )]
    Fingerprint {
        /// The cache.
        folder: PathBuf,
        /// Every item that differs.
        differences: Vec<Difference>,
    },
    /// Missing shards.
    #[error("{}: shards are missing: {}; add them, or make the cache again", folder.display(), missing.join(", "))]
    MissingShards {
        /// The cache.
        folder: PathBuf,
        /// Names of the missing files.
        missing: Vec<String>,
    },
    /// A row with impossible values.
    #[error("{}: pair {id}: {problem}", path.display())]
    Row {
        /// The shard, or the folder when writing.
        path: PathBuf,
        /// The pair.
        id: u64,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// A pair that is stored twice.
    #[error("{}: pair {id} is stored twice; make the cache again", path.display())]
    Duplicate {
        /// The shard, or the folder when writing.
        path: PathBuf,
        /// The pair.
        id: u64,
    },
    /// A wrong number of rows.
    #[error("{}: has {found} pairs instead of {expected}; make the cache again", folder.display())]
    Count {
        /// The cache.
        folder: PathBuf,
        /// Number of pairs expected.
        expected: usize,
        /// Number of pairs found.
        found: usize,
    },
    /// Pairs of the training set that are missing.
    #[error(
        "{}: lacks {count} of the pairs asked for, the first of them {}; make the cache again for this data",
        folder.display(),
        first.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
    )]
    MissingPairs {
        /// The cache.
        folder: PathBuf,
        /// Number of missing pairs.
        count: usize,
        /// The first few of their ids.
        first: Vec<u64>,
    },
}

impl ReferenceRow {
    /// A borrowed view.
    pub fn view(&self) -> ReferenceView<'_> {
        ReferenceView { id: self.id, chosen: self.chosen.view(), rejected: self.rejected.view() }
    }
}

impl ReferenceResponse {
    /// A borrowed view.
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
    /// Checks that the values are possible.
    pub(crate) fn check(&self, d_sae: usize) -> Result<(), RowProblem> {
        self.chosen.check("chosen", d_sae)?;
        self.rejected.check("rejected", d_sae)
    }
}

impl ReferenceResponseView<'_> {
    /// Length-normalised log-probability: [`Self::log_prob`] divided by [`Self::tokens`], in nats.
    pub fn mean_log_prob(&self) -> f32 {
        self.log_prob / self.tokens as f32
    }

    fn check(&self, side: &'static str, d_sae: usize) -> Result<(), RowProblem> {
        // NaN fails this comparison too.
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
        // Indices ascend, so the last is the largest.
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
