//! The prepared store: tokenised data in memory-mapped Arrow IPC files.
//!
//! A store is written once, atomically, and then only read. Reading copies nothing: the tokens of a view lie in the mapping, so a
//! data set far larger than memory costs only the pages in use. Every record is checked when a store is opened.

mod ipc;
mod records;

use crate::Fingerprint;
use crate::atomic::AtomicError;
use crate::tokens::{ExampleView, PairView, TokenizedExample, TokenizedPair};
use records::{Columns, Record, RecordView, Records};
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
    /// Context that isn't where it may be: ascending positions after the first learned token.
    #[error(
        "{}: record {index} (id {id}) has context at its start, beyond its end or out of order; prepare the data again",
        path.display()
    )]
    Context {
        /// The store.
        path: PathBuf,
        /// Index of the record.
        index: usize,
        /// Its id.
        id: u64,
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
/// Columns: `id` u64, `tokens` list of u32, `prompt_len` u32; and `context` list of u32 where an example has tokens after its prompt
/// that aren't learned.
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

const PAIRS: Columns<2> = Columns { sides: ["chosen_", "rejected_"], context: false };
const EXAMPLES: Columns<1> = Columns { sides: [""], context: false };
const EXAMPLES_WITH_CONTEXT: Columns<1> = Columns { context: true, ..EXAMPLES };

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
        let records = pairs.into_iter().map(|pair| Record {
            id: pair.id,
            sides: [pair.chosen, pair.rejected],
            context: Vec::new(),
        });
        records::write(path, PAIRS, fingerprint, records)
    }

    /// Maps a store into memory and checks every record. The file must not be changed while it is open.
    ///
    /// # Errors
    /// A missing, truncated or damaged file, or one of another kind.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Records::open(path, PAIRS).map(Self)
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
        Ok(pair_view(self.0.get(index)?))
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = PairView<'_>> {
        self.0.iter().map(pair_view)
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
    /// An example that violates `1 ≤ prompt_len < tokens.len()` or has context, or a file that can't be written.
    pub fn write(
        path: &Path,
        fingerprint: &Fingerprint,
        examples: impl IntoIterator<Item = TokenizedExample>,
    ) -> Result<usize, StoreError> {
        records::write(path, EXAMPLES, fingerprint, examples.into_iter().map(record))
    }

    /// The same for examples that may have context. Without any, the file is that of [`Self::write`].
    ///
    /// # Errors
    /// An example that isn't [sound](ExampleView::is_sound), or a file that can't be written.
    pub fn write_with_context(
        path: &Path,
        fingerprint: &Fingerprint,
        examples: Vec<TokenizedExample>,
    ) -> Result<usize, StoreError> {
        let columns = match examples.iter().any(|example| !example.context.is_empty()) {
            true => EXAMPLES_WITH_CONTEXT,
            false => EXAMPLES,
        };
        records::write(path, columns, fingerprint, examples.into_iter().map(record))
    }

    /// Maps a store into memory and checks every record. The file must not be changed while it is open.
    ///
    /// # Errors
    /// A missing, truncated or damaged file, or one of another kind.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        match Records::open(path, EXAMPLES) {
            Err(error @ StoreError::Columns { .. }) => {
                match Records::open(path, EXAMPLES_WITH_CONTEXT) {
                    Err(StoreError::Columns { .. }) => Err(error),
                    records => records,
                }
            }
            records => records,
        }
        .map(Self)
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
        Ok(example_view(self.0.get(index)?))
    }

    /// All examples in order.
    pub fn iter(&self) -> impl Iterator<Item = ExampleView<'_>> {
        self.0.iter().map(example_view)
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

fn record(example: TokenizedExample) -> Record<1> {
    Record { id: example.id, sides: [example.response], context: example.context }
}

fn pair_view(record: RecordView<'_, 2>) -> PairView<'_> {
    let [chosen, rejected] = record.sides;
    PairView { id: record.id, chosen, rejected }
}

fn example_view(record: RecordView<'_, 1>) -> ExampleView<'_> {
    let RecordView { id, sides: [response], context } = record;
    ExampleView { id, response, context }
}

#[cfg(test)]
mod tests;
