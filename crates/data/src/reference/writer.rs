//! Writing a cache, shard by shard.

use super::columns::{self, BOUND_KEY, INFO_KEY, ROWS_PER_GROUP, ShardInfo};
use super::{CacheShape, ReferenceError, ReferenceRow, StoredFeatures};
use crate::Fingerprint;
use crate::atomic::{self, AtomicError};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A log-probability above 0 by at most this much is a rounding error of a sum over many tokens, and is stored as 0.
const ROUNDING: f32 = 1e-4;

/// Writes a reference cache shard by shard. Shards are written atomically; the rows of the current one are kept in memory.
///
/// If a writer is dropped before [`Self::finish`], [`super::ReferenceCache::open`] refuses the cache. To replace a cache
/// atomically, write into the folder that [`crate::atomic::replace_dir`] provides. For caches written by several processes, see
/// [`super::SharedCache`].
#[derive(Debug)]
pub struct ReferenceWriter {
    folder: PathBuf,
    shape: CacheShape,
    info: ShardInfo,
    /// The current shard.
    shard: ShardWriter,
    /// Ids of the pairs in all shards.
    ids: HashSet<u64>,
    next_shard: usize,
}

impl ReferenceWriter {
    /// Starts a cache in a folder, which is created if needed and must be empty.
    ///
    /// # Errors
    /// A folder that can't be created, or that isn't empty.
    pub fn create(
        folder: &Path,
        fingerprint: &Fingerprint,
        shape: CacheShape,
    ) -> Result<Self, ReferenceError> {
        atomic::context(folder, "create it", fs::create_dir_all(folder))?;
        let mut entries = atomic::context(folder, "list it", fs::read_dir(folder))?;
        if entries.next().is_some() {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, "the folder isn't empty");
            return Err(AtomicError {
                path: folder.to_owned(),
                action: "write a cache into it",
                source,
            }
            .into());
        }
        let info = ShardInfo {
            fingerprint: fingerprint.clone(),
            pairs: shape.pairs,
            d_sae: shape.d_sae,
            shards: shape.shards(),
            stored: shape.stored,
        };
        let (folder, ids) = (folder.to_owned(), HashSet::with_capacity(shape.pairs));
        let shard = ShardWriter::new(&folder, &info, 0);
        Ok(Self { folder, shape, info, shard, ids, next_shard: 0 })
    }

    /// Appends a row, keeping as many features as [`CacheShape::stored`] says.
    ///
    /// # Errors
    /// Impossible values, a second row of a pair, more rows than announced, or a shard that can't be written.
    pub fn push(&mut self, row: ReferenceRow) -> Result<(), ReferenceError> {
        let id = row.id;
        self.shard.push(row)?;
        if !self.ids.insert(id) {
            return Err(ReferenceError::Duplicate { path: self.folder.clone(), id });
        }
        if self.ids.len() > self.shape.pairs {
            return Err(self.wrong_count());
        }
        if self.shard.len() == self.shape.rows_per_shard.get() {
            self.write_shard()
        } else {
            Ok(())
        }
    }

    /// Writes the last shard.
    ///
    /// # Errors
    /// Fewer rows than announced, or a shard that can't be written.
    pub fn finish(mut self) -> Result<(), ReferenceError> {
        if self.ids.len() != self.shape.pairs {
            return Err(self.wrong_count());
        }
        // An empty cache has one empty shard for its fingerprint.
        if self.shard.len() > 0 || self.next_shard == 0 { self.write_shard() } else { Ok(()) }
    }

    fn wrong_count(&self) -> ReferenceError {
        ReferenceError::Count {
            folder: self.folder.clone(),
            expected: self.shape.pairs,
            found: self.ids.len(),
        }
    }

    fn write_shard(&mut self) -> Result<(), ReferenceError> {
        self.next_shard += 1;
        let next = ShardWriter::new(&self.folder, &self.info, self.next_shard);
        std::mem::replace(&mut self.shard, next).finish()
    }
}

/// One shard of a cache. Its rows are kept in memory until [`Self::finish`] writes the file, atomically.
#[derive(Debug)]
pub struct ShardWriter {
    folder: PathBuf,
    path: PathBuf,
    info: ShardInfo,
    rows: Vec<ReferenceRow>,
    ids: HashSet<u64>,
    /// Upper bound on all dropped values.
    dropped_at_most: f32,
}

impl ShardWriter {
    pub(super) fn new(folder: &Path, info: &ShardInfo, shard: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            path: folder.join(columns::shard_name(shard, info.shards)),
            info: info.clone(),
            rows: Vec::new(),
            ids: HashSet::new(),
            dropped_at_most: 0.0,
        }
    }

    /// Number of rows so far.
    fn len(&self) -> usize {
        self.rows.len()
    }

    /// Appends a row, keeping as many features as [`CacheShape::stored`] says.
    ///
    /// # Errors
    /// Impossible values, or a second row of a pair.
    pub fn push(&mut self, mut row: ReferenceRow) -> Result<(), ReferenceError> {
        for response in [&mut row.chosen, &mut row.rejected] {
            for value in [&mut response.log_prob, &mut response.shared_log_prob] {
                if *value > 0.0 && *value <= ROUNDING {
                    *value = 0.0;
                }
            }
        }
        let (path, id) = (&self.folder, row.id);
        row.view().check(self.info.d_sae).map_err(|problem| ReferenceError::Row {
            path: path.clone(),
            id,
            problem,
        })?;
        if !self.ids.insert(id) {
            return Err(ReferenceError::Duplicate { path: path.clone(), id });
        }
        if let StoredFeatures::Top(n) = self.info.stored {
            for response in [&mut row.chosen, &mut row.rejected] {
                self.dropped_at_most =
                    self.dropped_at_most.max(response.features.keep_top(n.get()));
            }
        }
        self.rows.push(row);
        Ok(())
    }

    /// Writes the shard.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn finish(self) -> Result<(), ReferenceError> {
        let path = &self.path;
        let failed = |error: ParquetError| encode_error(path, error);
        let info = serde_json::to_string(&self.info)
            .map_err(|error| failed(ParquetError::External(error.into())))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
            .set_key_value_metadata(Some(vec![
                KeyValue::new(INFO_KEY.to_owned(), info),
                KeyValue::new(BOUND_KEY.to_owned(), self.dropped_at_most.to_string()),
            ]))
            .build();
        atomic::write_file(path, |file| {
            let mut writer =
                ArrowWriter::try_new(file, columns::schema(), Some(properties)).map_err(failed)?;
            for rows in self.rows.chunks(ROWS_PER_GROUP) {
                let batch = columns::encode(rows).map_err(|error| failed(error.into()))?;
                writer.write(&batch).map_err(failed)?;
            }
            writer.close().map_err(failed).map(drop)
        })
    }
}

/// Unwraps I/O errors, such as a full disk, from Parquet's errors.
fn encode_error(path: &Path, error: ParquetError) -> ReferenceError {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(source) => {
                AtomicError { path: path.to_owned(), action: "write", source: *source }.into()
            }
            Err(inner) => ReferenceError::Encode {
                path: path.to_owned(),
                source: ParquetError::External(inner),
            },
        },
        source => ReferenceError::Encode { path: path.to_owned(), source },
    }
}
