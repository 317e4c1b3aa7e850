//! The checkpoints of one training: folders `step-00000100`, each whole or absent, beside a log with one JSON line per step.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::atomic::{self, AtomicError};

/// The log of a training stage: one JSON object per step.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// The part of a checkpoint that is not a tensor.
pub const STATE_FILE: &str = "state.json";

/// Why checkpoints can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder can't be accessed.
    #[error("{path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A checkpoint's state is not what was written.
    #[error("{path} is damaged ({source}); remove {}, and the training resumes from an earlier state", path.parent().unwrap_or(path).display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A line of a log is not a JSON object.
    #[error("{}: line {line} is not a JSON object; the file is damaged", path.display())]
    Line {
        /// The log.
        path: PathBuf,
        /// The line, 1-based.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The checkpoint can't be put in place.
    #[error(transparent)]
    Atomic(#[from] AtomicError),
}

/// Which checkpoints stay beside a new one. By default none does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Older {
    /// So many of the newest ones.
    pub newest: usize,
    /// The one of this step.
    pub step: Option<usize>,
}

/// The folder that holds the checkpoints of a training, and its log.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// In a folder that exists.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The log.
    pub fn metrics(&self) -> PathBuf {
        self.folder.join(METRICS_FILE)
    }

    /// All of them, oldest first.
    ///
    /// # Errors
    /// The folder can't be listed.
    pub fn all(&self) -> Result<Vec<PathBuf>, CheckpointError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(in_path(&self.folder))? {
            let path = entry.map_err(in_path(&self.folder))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-")) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// The newest one and its state; none at the start of a training.
    ///
    /// # Errors
    /// The folder can't be listed, or the state can't be read.
    pub fn latest<S: DeserializeOwned>(&self) -> Result<Option<(PathBuf, S)>, CheckpointError> {
        let Some(folder) = self.all()?.pop() else { return Ok(None) };
        let path = folder.join(STATE_FILE);
        let text = fs::read_to_string(&path).map_err(in_path(&path))?;
        let state = serde_json::from_str(&text)
            .map_err(|source| CheckpointError::Damaged { path, source })?;
        Ok(Some((folder, state)))
    }

    /// The checkpoint of a step, whether or not it is there.
    pub fn at(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Writes a checkpoint: what `fill` puts into its folder, and the state. Then removes the older ones.
    ///
    /// # Errors
    /// Those of `fill`, or the disk's.
    pub fn write<E: From<CheckpointError> + From<AtomicError>>(
        &self,
        step: usize,
        state: &impl Serialize,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        self.write_beside(step, state, Older::default(), fill)
    }

    /// The same, but some of the older ones stay.
    ///
    /// # Errors
    /// Those of [`Self::write`].
    pub fn write_beside<E: From<CheckpointError> + From<AtomicError>>(
        &self,
        step: usize,
        state: &impl Serialize,
        stay: Older,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let folder = self.at(step);
        let mut older = self.all()?;
        older.retain(|old| *old != folder);
        atomic::replace_dir(&folder, |output| -> Result<(), E> {
            fill(output)?;
            let path = output.join(STATE_FILE);
            let text = serde_json::to_string(state)
                .map_err(|source| CheckpointError::Damaged { path: path.clone(), source })?;
            Ok(fs::write(&path, text).map_err(in_path(&path))?)
        })?;
        older.truncate(older.len().saturating_sub(stay.newest));
        let chosen = stay.step.map(|step| self.at(step));
        for old in older.iter().filter(|old| Some(*old) != chosen.as_ref()) {
            fs::remove_dir_all(old).map_err(in_path(old))?;
        }
        Ok(folder)
    }

    /// Opens the log to append to it, cut to its length at a checkpoint, 0 at the start of a training. A log that a crash left
    /// shorter than that stays as it is.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn open_log(&self, bytes: u64) -> Result<MetricsLog, CheckpointError> {
        let path = self.metrics();
        let open = || {
            // Not in append mode, in which Windows refuses to shorten a file.
            let mut file =
                OpenOptions::new().create(true).write(true).truncate(false).open(&path)?;
            file.set_len(bytes.min(file.metadata()?.len()))?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(in_path(&path))?;
        Ok(MetricsLog { path, file })
    }

    /// Copies the log into the folder of a result.
    ///
    /// # Errors
    /// A file that can't be read or written.
    pub fn copy_log(&self, folder: &Path) -> Result<(), CheckpointError> {
        let path = self.metrics();
        fs::copy(&path, folder.join(METRICS_FILE)).map_err(in_path(&path))?;
        Ok(())
    }
}

/// The open log of a training.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Appends the line of a step.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&mut self, line: &Value) -> Result<(), CheckpointError> {
        writeln!(self.file, "{line}").map_err(in_path(&self.path))
    }

    /// Its length in bytes, for a checkpoint: what it counts is on the disk before the checkpoint is.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn saved_bytes(&self) -> Result<u64, CheckpointError> {
        let length = self.file.sync_data().and_then(|()| self.file.metadata());
        Ok(length.map_err(in_path(&self.path))?.len())
    }
}

/// The lines of a training's log.
///
/// # Errors
/// A file that can't be read, or a line that isn't a JSON object.
pub fn read_log(path: &Path) -> Result<Vec<Map<String, Value>>, CheckpointError> {
    let text = fs::read_to_string(path).map_err(in_path(path))?;
    let lines = text.lines().enumerate().map(|(index, line)| {
        serde_json::from_str(line).map_err(|source| CheckpointError::Line {
            path: path.to_owned(),
            line: index + 1,
            source,
        })
    });
    lines.collect()
}

fn in_path(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    |source| CheckpointError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(checkpoints: &Checkpoints, step: usize) -> Result<PathBuf, CheckpointError> {
        checkpoints.write(step, &step, |folder| {
            fs::write(folder.join("weights"), "x").map_err(in_path(folder))
        })
    }

    #[test]
    fn the_newest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        assert_eq!(checkpoints.latest::<usize>().unwrap(), None);
        for step in [9, 10, 100] {
            write(&checkpoints, step).unwrap();
        }
        let (path, step) = checkpoints.latest::<usize>().unwrap().unwrap();
        assert_eq!((step, checkpoints.all().unwrap()), (100, vec![path.clone()]));
        assert_eq!(fs::read_to_string(path.join("weights")).unwrap(), "x");
        // Again, as after a resume.
        write(&checkpoints, 100).unwrap();
        assert_eq!(checkpoints.all().unwrap(), [path]);
    }

    #[test]
    fn what_fails_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        let before = write(&checkpoints, 1).unwrap();
        let failed = checkpoints
            .write(2, &2, |_| Err(in_path(Path::new("x"))(io::ErrorKind::StorageFull.into())));
        assert!(failed.is_err());
        assert_eq!(checkpoints.all().unwrap(), std::slice::from_ref(&before));
        fs::write(before.join(STATE_FILE), "{").unwrap();
        let message = checkpoints.latest::<usize>().unwrap_err().to_string();
        assert!(message.contains("is damaged"), "{message}");
    }

    #[test]
    fn older_ones_stay_where_they_are_asked_for() {
        let cases = [
            (Older::default(), vec![5]),
            (Older { newest: 2, step: None }, vec![3, 4, 5]),
            (Older { newest: 1, step: Some(2) }, vec![2, 4, 5]),
            (Older { newest: 9, step: Some(9) }, vec![1, 2, 3, 4, 5]),
        ];
        for (stay, expected) in cases {
            let folder = tempfile::tempdir().unwrap();
            let checkpoints = Checkpoints::new(folder.path());
            let everything = Older { newest: 9, step: None };
            let nothing = |_: &Path| Ok::<(), CheckpointError>(());
            for step in 1..5 {
                checkpoints.write_beside(step, &step, everything, nothing).unwrap();
            }
            // One that is written again.
            checkpoints.write_beside(4, &4, everything, nothing).unwrap();
            checkpoints.write_beside(5, &5, stay, nothing).unwrap();
            let expected: Vec<_> = expected.into_iter().map(|step| checkpoints.at(step)).collect();
            assert_eq!(checkpoints.all().unwrap(), expected, "{stay:?}");
        }
    }

    #[test]
    fn the_log_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path());
        let mut log = checkpoints.open_log(0).unwrap();
        log.write(&Value::from(1)).unwrap();
        let bytes = log.saved_bytes().unwrap();
        log.write(&Value::from(2)).unwrap();
        let text = || fs::read_to_string(checkpoints.metrics()).unwrap();
        assert_eq!((text().as_str(), bytes), ("1\n2\n", 2));
        let error = read_log(&checkpoints.metrics()).unwrap_err().to_string();
        assert!(error.contains("line 1 is not a JSON object"), "{error}");
        let mut log = checkpoints.open_log(bytes).unwrap();
        assert_eq!(text(), "1\n");
        log.write(&Value::from(3)).unwrap();
        assert_eq!(text(), "1\n3\n");
        // Shorter than at the checkpoint.
        checkpoints.open_log(9).unwrap();
        assert_eq!(text(), "1\n3\n");
        checkpoints.open_log(0).unwrap();
        assert_eq!(text(), "");
    }
}
