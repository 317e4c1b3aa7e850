//! The verdict file: JSON lines, the settings first, then each verdict as it comes.
//!
//! A line is written whole and synced before the next is asked for, so a process that is killed loses only replies that were
//! still on their way. A line that a crash left half written is cut off when the file is opened again.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fpo_files::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::verdict::Verdict;

const VERSION: u32 = 1;

/// An open verdict file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

#[derive(Serialize, Deserialize)]
struct Head {
    fpo_judge: u32,
    settings: Fingerprint,
}

impl Journal {
    /// Opens a verdict file, or begins one, and returns what it holds.
    ///
    /// # Errors
    /// A file that isn't a verdict file, was begun with other settings, or is being written by another process. It is left as it
    /// is.
    pub fn open(path: &Path, settings: &Fingerprint) -> Result<(Self, Vec<Verdict>), Error> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(Error::io(path))?;
        if !file.metadata().map_err(Error::io(path))?.is_file() {
            return Err(Error::file(path, "isn't a file that verdicts can be kept in"));
        }
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: path.to_owned() }),
            // Some network file systems can't lock.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io(path))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let (found, rest) = (&bytes[..whole], &bytes[whole..]);
        if found.is_empty() && !rest.is_empty() && !rest.starts_with(b"{\"fpo_judge\"") {
            return Err(not_ours(path));
        }
        let verdicts = read(path, found, settings)?;
        let mut journal = Self { path: path.to_owned(), file };
        journal.file.set_len(whole as u64).map_err(Error::io(path))?;
        journal.file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
        if found.is_empty() {
            journal.line(&Head { fpo_judge: VERSION, settings: settings.clone() })?;
        }
        Ok((journal, verdicts))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a verdict.
    ///
    /// # Errors
    /// A disk that doesn't take it.
    pub fn add(&mut self, verdict: &Verdict) -> Result<(), Error> {
        self.line(verdict)
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let line = serde_json::to_vec(value).map_err(std::io::Error::from);
        let written = line.and_then(|mut line| {
            line.push(b'\n');
            self.file.write_all(&line)?;
            self.file.sync_data()
        });
        written.map_err(Error::io(&self.path))
    }
}

fn not_ours(path: &Path) -> Error {
    Error::file(
        path,
        "isn't a verdict file of this version of fpo judge; choose another name for --out",
    )
}

/// Reads whole lines and holds their settings against these.
fn read(path: &Path, bytes: &[u8], settings: &Fingerprint) -> Result<Vec<Verdict>, Error> {
    let mut lines =
        bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    let Some((_, head)) = lines.next() else { return Ok(Vec::new()) };
    let head: Head = serde_json::from_slice(head).map_err(|_| not_ours(path))?;
    if head.fpo_judge != VERSION {
        return Err(not_ours(path));
    }
    let changed: Vec<String> = head
        .settings
        .differences(settings)
        .into_iter()
        .map(|difference| {
            let show = |value: Option<String>| value.unwrap_or_else(|| "nothing".to_owned());
            format!(
                "{}: {} then, {} now",
                difference.item,
                show(difference.expected),
                show(difference.found)
            )
        })
        .collect();
    if !changed.is_empty() {
        return Err(Error::SettingsChanged { path: path.to_owned(), changed: changed.join("; ") });
    }
    lines
        .map(|(number, line)| {
            serde_json::from_slice(line)
                .map_err(|error| Error::row(path, number + 1, format!("isn't a verdict: {error}")))
        })
        .collect()
}
