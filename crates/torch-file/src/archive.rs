//! The layout since PyTorch 1.6: a zip archive with `NAME/data.pkl` and one uncompressed entry `NAME/data/KEY` per storage.

use std::{
    collections::HashMap,
    io::{Cursor, Read},
    ops::Range,
};

use zip::{CompressionMethod, ZipArchive, read::ZipFile};

use crate::{
    Problem, Value,
    pickle::{self, LARGEST_PICKLE},
};

/// Entries of an archive, at most.
const MOST_ENTRIES: usize = 1 << 20;

pub(crate) fn parse(file: &[u8]) -> Result<Value, Problem> {
    let damaged = |message: String| Problem::Damaged(message);
    let mut archive = ZipArchive::new(Cursor::new(file))
        .map_err(|e| damaged(format!("not a readable zip archive, perhaps cut short: {e}")))?;
    if archive.len() > MOST_ENTRIES {
        return Err(damaged(format!("{} entries, at most {MOST_ENTRIES} are read", archive.len())));
    }
    let (mut pickle, mut storages) = (None, HashMap::new());
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index);
        let entry = entry.map_err(|e| damaged(format!("entry {index} of the archive: {e}")))?;
        // Everything is in a folder named after the file.
        let Some((_, name)) = entry.name().split_once('/') else { continue };
        match (name, name.strip_prefix("data/")) {
            ("data.pkl", _) => pickle = Some(index),
            ("constants.pkl", _) => {
                let what = "a TorchScript program (`constants.pkl`)";
                return Err(Problem::Refused(what.into()));
            }
            ("byteorder", _) if whole(&entry, file)? != b"little" => {
                return Err(damaged("its byte order is big-endian; only little is read".into()));
            }
            (_, Some(key)) => {
                storages.insert(key.to_owned(), place(&entry, file)?);
            }
            _ => {}
        }
    }
    let pickle = pickle.ok_or_else(|| damaged("the zip archive has no `data.pkl`".into()))?;
    // Through the library's reader, which checks the sum.
    let mut entry = archive.by_index(pickle).map_err(|e| damaged(format!("data.pkl: {e}")))?;
    if entry.size() > LARGEST_PICKLE as u64 {
        return Err(damaged(format!(
            "data.pkl has {} bytes, at most {LARGEST_PICKLE} are read",
            entry.size()
        )));
    }
    let mut bytes = Vec::new();
    let limit = LARGEST_PICKLE as u64;
    entry
        .by_ref()
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|e| damaged(format!("data.pkl: {e}")))?;
    let (objects, _) = pickle::run(&bytes)?;
    objects.value(&|key| storages.get(key).cloned())
}

fn whole<'a>(entry: &ZipFile, file: &'a [u8]) -> Result<&'a [u8], Problem> {
    place(entry, file).map(|range| &file[range])
}

/// The bytes of the file that are an entry's content.
fn place(entry: &ZipFile, file: &[u8]) -> Result<Range<usize>, Problem> {
    let damaged = |what: &str| Problem::Damaged(format!("`{}` {what}", entry.name()));
    if entry.compression() != CompressionMethod::Stored {
        return Err(damaged("is compressed, which torch.save never does"));
    }
    let start = usize::try_from(entry.data_start()).ok();
    let size = usize::try_from(entry.size()).ok();
    let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
    range.filter(|range| range.end <= file.len()).ok_or_else(|| damaged("lies outside the file"))
}
