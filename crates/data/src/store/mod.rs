//! The prepared store: tokenised data in memory-mapped Arrow IPC files.
//!
//! A store is written once, atomically, and then only read. Reading copies nothing: the tokens of a view lie in the mapping, so a
//! data set far larger than memory costs only the pages in use. Every record is checked when a store is opened.

mod ipc;
mod records;

use crate::Fingerprint;
use crate::atomic::AtomicError;
use crate::tokens::{ExampleView, PairView, TokenizedExample, TokenizedPair};
use records::{Record, Records};
use std::path::{Path, PathBuf};

/// Why a store can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file can't be opened or mapped.
    #[error("{}: can't be read", path.display())]
    Io {
        /// The store.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The file can't be written.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// Arrow can't encode the records.
    #[error("{}: can't be encoded", path.display())]
    Encode {
        /// The store.
        path: PathBuf,
        /// Arrow's error.
        source: arrow_schema::ArrowError,
    },
    /// Not an Arrow IPC file, truncated, or damaged.
    #[error("{}: is not a complete Arrow IPC file ({what}); prepare the data again", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// An Arrow file with other columns.
    #[error("{}: has the columns [{found}], but [{expected}] are needed; it is another kind of store", path.display())]
    Columns {
        /// The store.
        path: PathBuf,
        /// The columns needed.
        expected: String,
        /// The columns found.
        found: String,
    },
    /// A record that violates `1 ≤ prompt_len < tokens.len()`.
    #[error("{}: record {index} (id {id}) has {prompt_len} prompt tokens of {len} in total; prepare the data again", path.display())]
    Unsound {
        /// The store.
        path: PathBuf,
        /// Index of the record.
        index: usize,
        /// Its id.
        id: u64,
        /// Number of prompt tokens.
        prompt_len: usize,
        /// Number of tokens, prompt included.
        len: usize,
    },
    /// An index beyond the end.
    #[error("{}: there is no record {index}; the store has {len}", path.display())]
    OutOfRange {
        /// The store.
        path: PathBuf,
        /// The index.
        index: usize,
        /// Number of records in the store.
        len: usize,
    },
}

/// Tokenised preference pairs in one Arrow IPC file.
///
/// Columns: `id` u64, `chosen_tokens` list of u32, `chosen_prompt_len` u32, `rejected_tokens`, `rejected_prompt_len`.
#[derive(Debug)]
pub struct PairStore(Records<2>);

/// Tokenised examples for supervised fine-tuning in one Arrow IPC file.
///
/// Columns: `id` u64, `tokens` list of u32, `prompt_len` u32.
#[derive(Debug)]
pub struct SequenceStore(Records<1>);

/// A store of either kind.
#[derive(Debug)]
pub enum Store {
    /// Preference pairs.
    Pairs(PairStore),
    /// Examples.
    Examples(SequenceStore),
}

impl Store {
    /// Opens a store, whichever it is.
    ///
    /// # Errors
    /// As [`PairStore::open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        match PairStore::open(path) {
            Err(StoreError::Columns { .. }) => SequenceStore::open(path).map(Self::Examples),
            pairs => pairs.map(Self::Pairs),
        }
    }
}

const PAIR_SIDES: [&str; 2] = ["chosen_", "rejected_"];
const SEQUENCE_SIDES: [&str; 1] = [""];

impl PairStore {
    /// Writes pairs in order, atomically; returns their number. See [`crate::Preparer::fingerprint`] for the fingerprint.
    ///
    /// # Errors
    /// A pair that violates `1 ≤ prompt_len < tokens.len()`, or a file that can't be written.
    pub fn write(
        path: &Path,
        fingerprint: &Fingerprint,
        pairs: impl IntoIterator<Item = TokenizedPair>,
    ) -> Result<usize, StoreError> {
        let records = pairs
            .into_iter()
            .map(|pair| Record { id: pair.id, sides: [pair.chosen, pair.rejected] });
        records::write(path, PAIR_SIDES, fingerprint, records)
    }

    /// Maps a store into memory and checks every record. The file must not be changed while it is open.
    ///
    /// # Errors
    /// A missing, truncated or damaged file, or one of another kind.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Records::open(path, PAIR_SIDES).map(Self)
    }

    /// What the store was made from, as given to [`Self::write`].
    pub fn fingerprint(&self) -> &Fingerprint {
        self.0.fingerprint()
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pair `index`, borrowed from the mapping.
    ///
    /// # Errors
    /// An index not below [`Self::len`].
    pub fn get(&self, index: usize) -> Result<PairView<'_>, StoreError> {
        let (id, [chosen, rejected]) = self.0.get(index)?;
        Ok(PairView { id, chosen, rejected })
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = PairView<'_>> {
        self.0.iter().map(|(id, [chosen, rejected])| PairView { id, chosen, rejected })
    }

    /// The pairs of one batch, for [`crate::PairBatch::new`].
    ///
    /// # Errors
    /// An index not below [`Self::len`].
    pub fn views(&self, indices: &[usize]) -> Result<Vec<PairView<'_>>, StoreError> {
        indices.iter().map(|&index| self.get(index)).collect()
    }

    /// The largest token id of all pairs: what a model's table of embeddings must hold.
    pub fn largest_token(&self) -> Option<u32> {
        let pairs = self.iter().flat_map(|pair| [pair.chosen, pair.rejected]);
        pairs.flat_map(|response| response.tokens).max().copied()
    }

    /// Length of the longer row of each pair, prompt included, as [`crate::Batches::shuffled`] takes it. `[pairs]`
    pub fn lengths(&self) -> Vec<usize> {
        self.iter().map(|pair| pair.longest()).collect()
    }
}

impl SequenceStore {
    /// Writes examples in order, atomically; returns their number. See [`crate::Preparer::fingerprint_of_examples`] for the
    /// fingerprint.
    ///
    /// # Errors
    /// An example that violates `1 ≤ prompt_len < tokens.len()`, or a file that can't be written.
    pub fn write(
        path: &Path,
        fingerprint: &Fingerprint,
        examples: impl IntoIterator<Item = TokenizedExample>,
    ) -> Result<usize, StoreError> {
        let records = examples
            .into_iter()
            .map(|example| Record { id: example.id, sides: [example.response] });
        records::write(path, SEQUENCE_SIDES, fingerprint, records)
    }

    /// Maps a store into memory and checks every record. The file must not be changed while it is open.
    ///
    /// # Errors
    /// A missing, truncated or damaged file, or one of another kind.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Records::open(path, SEQUENCE_SIDES).map(Self)
    }

    /// What the store was made from, as given to [`Self::write`].
    pub fn fingerprint(&self) -> &Fingerprint {
        self.0.fingerprint()
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are no examples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Example `index`, borrowed from the mapping.
    ///
    /// # Errors
    /// An index not below [`Self::len`].
    pub fn get(&self, index: usize) -> Result<ExampleView<'_>, StoreError> {
        let (id, [response]) = self.0.get(index)?;
        Ok(ExampleView { id, response })
    }

    /// All examples in order.
    pub fn iter(&self) -> impl Iterator<Item = ExampleView<'_>> {
        self.0.iter().map(|(id, [response])| ExampleView { id, response })
    }

    /// The examples of one batch, for [`crate::SequenceBatch::new`].
    ///
    /// # Errors
    /// An index not below [`Self::len`].
    pub fn views(&self, indices: &[usize]) -> Result<Vec<ExampleView<'_>>, StoreError> {
        indices.iter().map(|&index| self.get(index)).collect()
    }

    /// The largest token id of all examples: what a model's table of embeddings must hold.
    pub fn largest_token(&self) -> Option<u32> {
        self.iter().flat_map(|example| example.response.tokens).max().copied()
    }

    /// Length of each example, as [`crate::Batches::shuffled`] takes it. `[examples]`
    pub fn lengths(&self) -> Vec<usize> {
        self.iter().map(|example| example.response.tokens.len()).collect()
    }
}

#[cfg(test)]
mod tests;
