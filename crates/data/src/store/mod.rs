//! The prepared store: tokenised data in Arrow IPC files, memory-mapped for reading.
//!
//! A store is written once, whole or not at all, and then only read. Reading copies nothing: a view's tokens lie in the mapping,
//! so a data set far larger than memory costs only the pages in use. Every record is checked when the store is opened.

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
        /// What the system said.
        source: std::io::Error,
    },
    /// The file can't be written.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// Arrow refused to encode the records.
    #[error("{}: can't be encoded", path.display())]
    Encode {
        /// The store.
        path: PathBuf,
        /// What Arrow said.
        source: arrow_schema::ArrowError,
    },
    /// Not an Arrow IPC file, truncated, or damaged.
    #[error("{}: is not a whole Arrow IPC file ({what}); prepare the data again", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// An Arrow file of something else.
    #[error("{}: holds the columns [{found}] where [{expected}] are needed; it is another kind of store", path.display())]
    Columns {
        /// The store.
        path: PathBuf,
        /// The columns needed.
        expected: String,
        /// The columns there.
        found: String,
    },
    /// A record that breaks `1 ≤ prompt_len < tokens.len()`.
    #[error("{}: record {index} (id {id}) has {prompt_len} prompt tokens of {len} in all; prepare the data again", path.display())]
    Unsound {
        /// The store.
        path: PathBuf,
        /// Index of the record.
        index: usize,
        /// Its id.
        id: u64,
        /// Tokens of its prompt.
        prompt_len: usize,
        /// Tokens in all.
        len: usize,
    },
    /// An index behind the end.
    #[error("{}: record {index} asked for, but the store holds {len}", path.display())]
    OutOfRange {
        /// The store.
        path: PathBuf,
        /// The index.
        index: usize,
        /// Records of the store.
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

const PAIR_SIDES: [&str; 2] = ["chosen_", "rejected_"];
const SEQUENCE_SIDES: [&str; 1] = [""];

impl PairStore {
    /// Writes pairs in their order, whole or not at all; returns how many.
    ///
    /// # Errors
    /// A pair that breaks `1 ≤ prompt_len < tokens.len()`, or whatever the disk says.
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

    /// Maps a store and checks every record of it. The file must not be changed while it is open.
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

    /// Whether it holds no pair.
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

    /// Tokens of each pair's longer response, prompt included: what [`crate::Batches::shuffled`] takes. `[pairs]`
    pub fn lengths(&self) -> Vec<usize> {
        self.iter().map(|pair| pair.longest()).collect()
    }
}

impl SequenceStore {
    /// Writes examples in their order, whole or not at all; returns how many.
    ///
    /// # Errors
    /// An example that breaks `1 ≤ prompt_len < tokens.len()`, or whatever the disk says.
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

    /// Maps a store and checks every record of it. The file must not be changed while it is open.
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

    /// Whether it holds no example.
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

    /// Tokens of each example: what [`crate::Batches::shuffled`] takes. `[examples]`
    pub fn lengths(&self) -> Vec<usize> {
        self.iter().map(|example| example.response.tokens.len()).collect()
    }
}

#[cfg(test)]
mod tests;
