//! The layout before PyTorch 1.6: five pickles (a magic number, the format's version, the machine's properties, the objects, the
//! keys of the storages), then the storages, each after its number of elements.

use std::{collections::HashMap, ops::Range};

use crate::{Problem, Value, pickle};

/// The first pickle: 0x1950a86a20f9469cfc6c.
pub(crate) const MAGIC: [u8; 15] = *b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// The second one.
const VERSION: i64 = 1001;

pub(crate) fn parse(file: &[u8]) -> Result<Value, Problem> {
    let mut at = MAGIC.len();
    let mut next = || {
        let (objects, length) = pickle::run(&file[at..])?;
        at += length;
        Ok(objects)
    };
    let nowhere = |_: &str| None::<Range<usize>>;
    let damaged = |message: &str| Problem::Damaged(message.into());
    if next()?.value(&nowhere)? != Value::Int(VERSION) {
        return Err(damaged("the version of torch.save's older layout is not 1001"));
    }
    if next()?.value(&nowhere)?.get("little_endian") != Some(&Value::Bool(true)) {
        return Err(damaged("its byte order is big-endian; only little is read"));
    }
    let objects = next()?;
    let Value::List(keys) = next()?.value(&nowhere)? else {
        return Err(damaged("the list of storages is missing"));
    };
    let mut storages: HashMap<String, Range<usize>> = HashMap::new();
    for key in keys {
        let storage = key.as_text().and_then(|key| objects.storage(key));
        let storage = storage.ok_or_else(|| damaged("a storage that no tensor has"))?;
        let size = storage.elements.checked_mul(storage.dtype.size());
        // Eight bytes for the number of elements, which the pickle said as well.
        let range = size.and_then(|size| Some(at + 8..(at + 8).checked_add(size)?));
        let range = range.filter(|range| range.end <= file.len()).ok_or_else(|| {
            Problem::Damaged(format!(
                "the file ends within storage `{}`: it is cut short",
                storage.key
            ))
        })?;
        let count = file[at..at + 8].as_chunks().0.first().map(|b| u64::from_le_bytes(*b));
        if count != Some(storage.elements as u64) {
            return Err(Problem::Damaged(format!(
                "storage `{}` has another number of elements than the pickle says",
                storage.key
            )));
        }
        at = range.end;
        storages.insert(storage.key.to_string(), range);
    }
    objects.value(&|key| storages.get(key).cloned())
}
