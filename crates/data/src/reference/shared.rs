//! A cache that is written in parts, by several processes on several machines.

use super::cache::{Shard, shard_paths};
use super::columns::{self, ShardInfo};
use super::{CacheShape, ReferenceError, ShardWriter};
use crate::Fingerprint;
use crate::atomic::{self, AtomicError};
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// A folder to which shards are added one by one, in any order and by anyone who makes them from the same things.
///
/// A shard appears whole or not at all, so that nothing is lost but the shard at hand when a process ends before its time.
#[derive(Debug)]
pub struct SharedCache {
    folder: PathBuf,
    info: ShardInfo,
}

impl SharedCache {
    /// Opens a folder, which is created if need be, for a cache in so many `shards`. Without a number it is the one of the shards that are
    /// there already, else as many as `shape` wants.
    ///
    /// # Errors
    /// A folder that holds shards of another cache (every item that differs is named) or of another number of them.
    pub fn open(
        folder: &Path,
        fingerprint: &Fingerprint,
        shape: CacheShape,
        shards: Option<NonZeroUsize>,
    ) -> Result<Self, ReferenceError> {
        atomic::context(folder, "create it", fs::create_dir_all(folder))?;
        let mut info = ShardInfo {
            fingerprint: fingerprint.clone(),
            pairs: shape.pairs,
            d_sae: shape.d_sae,
            shards: shards.map_or(shape.shards(), NonZeroUsize::get),
            stored: shape.stored,
        };
        // One that can't be read will be made again when its turn comes.
        let there = shard_paths(folder)?;
        if let Some(shard) = there.iter().find_map(|path| Shard::open(path).ok()) {
            if shards.is_none() {
                info.shards = shard.info.shards;
            }
            check_same(folder, &info, &shard.info)?;
        }
        Ok(Self { folder: folder.to_owned(), info })
    }

    /// Number of shards of the whole cache.
    pub fn shards(&self) -> usize {
        self.info.shards
    }

    /// Whether a shard is there and every row of it can be read. One that is damaged counts as missing.
    ///
    /// # Errors
    /// A shard of another cache.
    pub fn has(&self, shard: usize) -> Result<bool, ReferenceError> {
        let path = self.folder.join(columns::shard_name(shard, self.info.shards));
        let Ok(found) = Shard::open(&path) else { return Ok(false) };
        check_same(&self.folder, &self.info, &found.info)?;
        Ok(found.groups().all(|group| group.is_ok()))
    }

    /// Begins a shard anew, and removes what an earlier attempt may have left of it.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn writer(&self, shard: usize) -> Result<ShardWriter, ReferenceError> {
        let name = columns::shard_name(shard, self.info.shards);
        let leftover = format!(".{name}.");
        for entry in atomic::context(&self.folder, "list it", fs::read_dir(&self.folder))? {
            let path = atomic::context(&self.folder, "list it", entry)?.path();
            let hidden = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if hidden.starts_with(&leftover) {
                atomic::context(&path, "remove it", fs::remove_file(&path))?;
            }
        }
        Ok(ShardWriter::new(&self.folder, &self.info, shard))
    }
}

/// Refuses shards that can't belong to one cache.
fn check_same(folder: &Path, ours: &ShardInfo, found: &ShardInfo) -> Result<(), ReferenceError> {
    let differences = ours.fingerprint.differences(&found.fingerprint);
    if !differences.is_empty() {
        return Err(ReferenceError::Fingerprint { folder: folder.to_owned(), differences });
    }
    let refuse = |what: String| {
        let source = io::Error::new(io::ErrorKind::AlreadyExists, what);
        Err(AtomicError { path: folder.to_owned(), action: "add a shard to it", source }.into())
    };
    if ours.shards != found.shards {
        return refuse(format!(
            "it holds shards of a cache in {} parts, and this is one in {}",
            found.shards, ours.shards
        ));
    }
    if ours != found {
        return refuse("it holds shards of a cache of another size".to_owned());
    }
    Ok(())
}
