//! Reading a cache: everything is checked before anything is used.

use super::columns::{self, BOUND_KEY, Columns, INFO_KEY, ROWS_PER_GROUP, ShardInfo};
use super::{ReferenceError, ReferenceView, StoredFeatures};
use crate::{Fingerprint, parquet_file};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Number of missing pairs named in an error.
const SHOWN: usize = 5;

/// Largest number of shards that file names have digits for.
const MAX_SHARDS: usize = 100_000;

/// A reference cache in memory: 8 bytes per stored activation and about 50 per pair.
#[derive(Debug)]
pub struct ReferenceCache {
    folder: PathBuf,
    info: ShardInfo,
    dropped_at_most: f32,
    groups: Vec<Columns>,
    /// Row group and row of each pair.
    places: HashMap<u64, (u32, u32)>,
}

impl ReferenceCache {
    /// The fingerprint of the cache in a folder, read from its first shard.
    ///
    /// # Errors
    /// No shards, or one that can't be read.
    pub fn made_from(folder: &Path) -> Result<Fingerprint, ReferenceError> {
        Ok(Shard::open(&any_shard(folder)?)?.info.fingerprint)
    }

    /// Opens a cache, which must have the fingerprint `expected`, and checks every row.
    ///
    /// # Errors
    /// Another fingerprint (the error names every difference), missing shards, damaged or truncated files, missing or duplicate
    /// pairs, and impossible values.
    pub fn open(folder: &Path, expected: &Fingerprint) -> Result<Self, ReferenceError> {
        let first = any_shard(folder)?;
        let info = Shard::open(&first)?.info;
        let differences = expected.differences(&info.fingerprint);
        if !differences.is_empty() {
            return Err(ReferenceError::Fingerprint { folder: folder.to_owned(), differences });
        }
        let names: Vec<String> =
            (0..info.shards).map(|shard| columns::shard_name(shard, info.shards)).collect();
        let missing: Vec<String> =
            names.iter().filter(|name| !folder.join(name).is_file()).cloned().collect();
        if !missing.is_empty() {
            return Err(ReferenceError::MissingShards { folder: folder.to_owned(), missing });
        }

        let folder_path = folder.to_owned();
        let mut cache = Self {
            folder: folder_path,
            info,
            dropped_at_most: 0.0,
            groups: Vec::new(),
            places: HashMap::new(),
        };
        for name in names {
            cache.add(Shard::open(&folder.join(name))?)?;
        }
        let (expected, found) = (cache.info.pairs, cache.places.len());
        if expected != found {
            return Err(ReferenceError::Count { folder: folder.to_owned(), expected, found });
        }
        Ok(cache)
    }

    fn add(&mut self, shard: Shard) -> Result<(), ReferenceError> {
        let Shard { path, info, dropped_at_most, reader } = shard;
        let damaged = |what: String| ReferenceError::Damaged { path: path.clone(), what };
        if info != self.info {
            let differences = self.info.fingerprint.differences(&info.fingerprint);
            let named: Vec<String> = differences.iter().map(ToString::to_string).collect();
            let of = match named.is_empty() {
                true => String::new(),
                false => format!(": {}", named.join(", ")),
            };
            return Err(damaged(format!("it belongs to another cache than the first shard{of}")));
        }
        self.dropped_at_most = self.dropped_at_most.max(dropped_at_most);
        for columns in groups(&path, info.d_sae, reader) {
            let columns = columns?;
            for row in 0..columns.len() {
                let view = columns.get(row);
                match self.places.entry(view.id) {
                    Entry::Vacant(place) => place.insert((self.groups.len() as u32, row as u32)),
                    Entry::Occupied(_) => {
                        return Err(ReferenceError::Duplicate { path: path.clone(), id: view.id });
                    }
                };
            }
            self.groups.push(columns);
        }
        Ok(())
    }

    /// Checks that the cache has all of these pairs.
    ///
    /// # Errors
    /// [`ReferenceError::MissingPairs`] with the number of missing pairs and the first of them.
    pub fn require(&self, ids: impl IntoIterator<Item = u64>) -> Result<(), ReferenceError> {
        let missing: Vec<u64> =
            ids.into_iter().filter(|id| !self.places.contains_key(id)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let (folder, count) = (self.folder.clone(), missing.len());
        Err(ReferenceError::MissingPairs {
            folder,
            count,
            first: missing.into_iter().take(SHOWN).collect(),
        })
    }

    /// The row of a pair; `None` if the cache doesn't have it.
    pub fn get(&self, id: u64) -> Option<ReferenceView<'_>> {
        let &(group, row) = self.places.get(&id)?;
        Some(self.groups[group as usize].get(row as usize))
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Length of the pooled vectors.
    pub fn d_sae(&self) -> usize {
        self.info.d_sae
    }

    /// Which pooled activations are stored.
    pub fn stored(&self) -> StoredFeatures {
        self.info.stored
    }

    /// Upper bound on the activations that aren't stored; 0 if all are stored.
    pub fn dropped_at_most(&self) -> f32 {
        self.dropped_at_most
    }

    /// What the cache was made from, as given when it was written.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.info.fingerprint
    }
}

/// A shard whose footer has been read.
pub(super) struct Shard {
    path: PathBuf,
    pub(super) info: ShardInfo,
    dropped_at_most: f32,
    reader: ParquetRecordBatchReaderBuilder<File>,
}

/// The rows of a shard, one group at a time, all of them checked.
fn groups(
    path: &Path,
    d_sae: usize,
    reader: ParquetRecordBatchReaderBuilder<File>,
) -> impl Iterator<Item = Result<Columns, ReferenceError>> {
    parquet_file::batches(reader, ROWS_PER_GROUP).map(move |batch| {
        let damaged = |what| ReferenceError::Damaged { path: path.to_owned(), what };
        let columns = batch.and_then(|batch| Columns::new(&batch)).map_err(damaged)?;
        for view in (0..columns.len()).map(|row| columns.get(row)) {
            view.check(d_sae).map_err(|problem| ReferenceError::Row {
                path: path.to_owned(),
                id: view.id,
                problem,
            })?;
        }
        Ok(columns)
    })
}

impl Shard {
    /// Reads and checks all rows without keeping them.
    pub(super) fn groups(self) -> impl Iterator<Item = Result<(), ReferenceError>> {
        let Self { path, info, reader, .. } = self;
        let checked: Vec<_> =
            groups(&path, info.d_sae, reader).map(|group| group.map(drop)).collect();
        checked.into_iter()
    }

    pub(super) fn open(path: &Path) -> Result<Self, ReferenceError> {
        let damaged = |what: String| ReferenceError::Damaged { path: path.to_owned(), what };
        let file = File::open(path)
            .map_err(|source| ReferenceError::Io { path: path.to_owned(), source })?;
        let reader = parquet_file::open(file).map_err(damaged)?;
        let metadata = reader.metadata().file_metadata().key_value_metadata();
        let value = |key: &str| {
            let entry = metadata.into_iter().flatten().find(|entry| entry.key == key);
            entry
                .and_then(|entry| entry.value.as_deref())
                .ok_or_else(|| damaged(format!("its metadata lacks `{key}`")))
        };
        let info = serde_json::from_str(value(INFO_KEY)?);
        let info: ShardInfo =
            info.map_err(|error| damaged(format!("its metadata is unreadable: {error}")))?;
        if info.shards > MAX_SHARDS {
            return Err(damaged(format!("its metadata claims {} shards", info.shards)));
        }
        let bound = value(BOUND_KEY)?.parse::<f32>();
        let dropped_at_most =
            bound.map_err(|error| damaged(format!("its metadata is unreadable: {error}")))?;
        Ok(Self { path: path.to_owned(), info, dropped_at_most, reader })
    }
}

/// The shards in a folder, sorted by name.
pub(super) fn shard_paths(folder: &Path) -> Result<Vec<PathBuf>, ReferenceError> {
    let io = |source| ReferenceError::Io { path: folder.to_owned(), source };
    let mut shards = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("part-") && name.ends_with(".parquet") {
            shards.push(path);
        }
    }
    shards.sort();
    Ok(shards)
}

/// The first shard by name, from which to read the cache's metadata.
fn any_shard(folder: &Path) -> Result<PathBuf, ReferenceError> {
    shard_paths(folder)?.into_iter().next().ok_or_else(|| ReferenceError::MissingShards {
        folder: folder.to_owned(),
        missing: vec![columns::shard_name(0, 1).replace("00001", "?????")],
    })
}
