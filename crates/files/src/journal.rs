//! A file of entries that are made one after the other, each of which costs too much to be made twice: JSON lines, first what the
//! entries depend on.
//!
//! Entries are written whole and synced before the next are made, so a process that is killed loses only what it was making. A line
//! that a crash left half written is cut off when the file is opened again.

use std::{
    fs::{File, OpenOptions, TryLockError, create_dir_all},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::Fingerprint;

/// What a journal holds.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// A word for it in the file's first line.
    pub name: &'static str,
    /// The version of its entries.
    pub version: u32,
    /// What its entries are called in messages, such as `verdicts`.
    pub entries: &'static str,
}

/// Why a journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file that can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another file than a journal of this kind.
    #[error("{}: isn't a file of {entries} of this version of fpo; choose another name for --out", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        entries: &'static str,
    },
    /// A line that is no entry.
    #[error("{}: row {row}: isn't one of its {entries}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        row: usize,
        /// What it should hold.
        entries: &'static str,
        /// What is wrong with it.
        problem: serde_json::Error,
    },
    /// It was begun with other settings.
    #[error(
        "{}: its {entries} were made with other settings ({changed}): use those again, or another --out; nothing was changed",
        path.display()
    )]
    SettingsChanged {
        /// The file.
        path: PathBuf,
        /// What it holds.
        entries: &'static str,
        /// Each setting with its old and its new value.
        changed: String,
    },
    /// Another process writes to it.
    #[error("{}: another fpo is writing to it", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

impl JournalError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

/// The key of the settings in the first line.
const SETTINGS: &str = "settings";

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens a journal, or begins one, and returns the entries that it holds. One without entries is begun again.
    ///
    /// # Errors
    /// A file of another kind, begun with other settings, or being written by another process. It is left as it is.
    pub fn open<T: DeserializeOwned>(
        path: &Path,
        kind: Kind,
        settings: &Fingerprint,
    ) -> Result<(Self, Vec<T>), JournalError> {
        if let Some(folder) = path.parent() {
            create_dir_all(folder).map_err(JournalError::io(folder))?;
        }
        let foreign = || JournalError::Foreign { path: path.to_owned(), entries: kind.entries };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(JournalError::io(path))?;
        if !file.metadata().map_err(JournalError::io(path))?.is_file() {
            return Err(foreign());
        }
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::Busy { path: path.to_owned() });
            }
            // Some network file systems can't lock.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(JournalError::io(path))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let (found, rest) = (&bytes[..whole], &bytes[whole..]);
        let begins = format!("{{\"{}\"", kind.name);
        if found.is_empty() && !rest.is_empty() && !rest.starts_with(begins.as_bytes()) {
            return Err(foreign());
        }
        let entries = read(path, found, kind, settings)?;
        let mut journal = Self { path: path.to_owned(), file };
        let length = if entries.is_empty() { 0 } else { whole as u64 };
        journal.file.set_len(length).map_err(JournalError::io(path))?;
        journal.file.seek(SeekFrom::End(0)).map_err(JournalError::io(path))?;
        if entries.is_empty() {
            let version = (kind.name.to_owned(), json!(kind.version));
            let settings = (SETTINGS.to_owned(), json!(settings));
            journal.add(&[Map::from_iter([version, settings])])?;
        }
        Ok((journal, entries))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds entries.
    ///
    /// # Errors
    /// A disk that doesn't take them.
    pub fn add(&mut self, entries: &[impl Serialize]) -> Result<(), JournalError> {
        let mut lines = Vec::new();
        let written = entries.iter().try_for_each(|entry| {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
            Ok(())
        });
        let written = written.and_then(|()| {
            self.file.write_all(&lines)?;
            self.file.sync_data()
        });
        written.map_err(JournalError::io(&self.path))
    }
}

/// Reads whole lines and holds their settings against these.
fn read<T: DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
    kind: Kind,
    settings: &Fingerprint,
) -> Result<Vec<T>, JournalError> {
    let entries = kind.entries;
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    let mut lines = lines.filter(|(_, line)| !line.is_empty());
    let Some((_, head)) = lines.next() else { return Ok(Vec::new()) };
    let head: Option<Map<String, Value>> = serde_json::from_slice(head).ok();
    let head = head.filter(|head| head.get(kind.name) == Some(&json!(kind.version)));
    let then = head.and_then(|mut head| head.remove(SETTINGS));
    let then: Option<Fingerprint> = then.and_then(|then| serde_json::from_value(then).ok());
    let Some(then) = then else {
        return Err(JournalError::Foreign { path: path.to_owned(), entries });
    };
    let mut lines = lines.peekable();
    if lines.peek().is_none() {
        return Ok(Vec::new());
    }
    let shown = |value: Option<String>| value.unwrap_or_else(|| "nothing".to_owned());
    let changed = then.differences(settings).into_iter().map(|difference| {
        let (then, now) = (shown(difference.expected), shown(difference.found));
        format!("{}: {then} then, {now} now", difference.item)
    });
    let changed: Vec<String> = changed.collect();
    if !changed.is_empty() {
        let (path, changed) = (path.to_owned(), changed.join("; "));
        return Err(JournalError::SettingsChanged { path, entries, changed });
    }
    let entry = |(row, line): (usize, &[u8])| {
        let problem =
            |problem| JournalError::Row { path: path.to_owned(), row: row + 1, entries, problem };
        serde_json::from_slice(line).map_err(problem)
    };
    lines.map(entry).collect()
}
