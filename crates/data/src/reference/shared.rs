//! A cache written by several processes, on one or more machines.

use super::cache::{Shard, shard_paths};
use super::columns::{self, ShardInfo};
use super::{CacheShape, ReferenceError, ShardWriter};
use crate::Fingerprint;
use crate::atomic::{self, AtomicError};
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// A folder to which processes add shards in any order, as long as their fingerprints are equal.
///
/// Shards are written atomically: a process that is killed loses only the shard it is working on.
#[derive(Debug)]
pub struct SharedCache {
    folder: PathBuf,
    info: ShardInfo,
}

impl SharedCache {
    /// Opens a folder, created if needed, for a cache in `shards` shards. The number defaults to that of the existing shards, or
    /// else to [`CacheShape::shards`].
    ///
    /// # Errors
    /// A folder with shards of another cache (the error names every difference), or with another number of shards.
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
        // Unreadable shards are made again in their turn.
        let there = shard_paths(folder)?;
        if let Some(shard) = there.iter().find_map(|path| Shard::open(path).ok()) {
            if shards.is_none() {
                info.shards = shard.info.shards;
            }
            check_same(folder, &info, &shard.info)?;
        }
        Ok(Self { folder: folder.to_owned(), info })
    }

    /// Number of shards in the whole cache.
    pub fn shards(&self) -> usize {
        self.info.shards
    }

    /// Whether a shard exists and all of its rows can be read. A damaged shard counts as missing.
    ///
    /// # Errors
    /// A shard of another cache.
    pub fn has(&self, shard: usize) -> Result<bool, ReferenceError> {
        let path = self.folder.join(columns::shard_name(shard, self.info.shards));
        let Ok(found) = Shard::open(&path) else { return Ok(false) };
        check_same(&self.folder, &self.info, &found.info)?;
        Ok(found.groups().all(|group| group.is_ok()))
    }

    /// Starts writing a shard, and removes leftovers of earlier attempts.
    ///
    /// # Errors
    /// A folder that can't be listed, or leftovers that can't be removed.
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

/// Refuses shards that don't belong to the same cache.
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
            "it has shards of a cache in {} parts, and this one is in {}",
            found.shards, ours.shards
        ));
    }
    if ours != found {
        return refuse("it has shards of a cache of another size".to_owned());
    }
    Ok(())
}
