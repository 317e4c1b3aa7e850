//! Training checkpoints: folders named `step-00000200`, of which only the newest is kept.
//!
//! ```
//! use fpo_data::checkpoints::{Checkpoints, truncate};
//! # let folder = tempfile::tempdir()?;
//! # let (folder, metrics) = (folder.path(), folder.path().join("metrics.jsonl"));
//! let checkpoints = Checkpoints::new(folder);
//! let begin = match checkpoints.latest()? {
//!     Some(checkpoint) => checkpoint.step, // restore from `checkpoint.folder`
//!     None => 0,
//! };
//! // Metrics logged after the checkpoint are logged again.
//! truncate(&metrics, 0)?;
//! let write = |folder: &std::path::Path| std::fs::write(folder.join("state.json"), "{}");
//! # let write = |folder: &std::path::Path| fpo_data::atomic::context(folder, "write", write(folder));
//! checkpoints.write(begin + 200, write)?;
//! assert_eq!(checkpoints.latest()?.map(|checkpoint| checkpoint.step), Some(200));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::atomic::{self, AtomicError};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

const PREFIX: &str = "step-";

/// A folder of checkpoints. It may contain other files too.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// A complete checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Training steps done when it was written.
    pub step: usize,
    /// The folder with its files.
    pub folder: PathBuf,
}

impl Checkpoints {
    /// The checkpoints in `folder`, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// All checkpoints, oldest first; empty if the folder doesn't exist.
    ///
    /// # Errors
    /// A folder that can't be listed.
    pub fn list(&self) -> Result<Vec<Checkpoint>, AtomicError> {
        let step = |name: &str| name.strip_prefix(PREFIX)?.parse().ok();
        let checkpoints = self.folders()?.into_iter().filter_map(|folder| {
            let step = step(&folder.file_name()?.to_string_lossy())?;
            Some(Checkpoint { step, folder })
        });
        let mut checkpoints: Vec<Checkpoint> = checkpoints.collect();
        checkpoints.sort_by_key(|checkpoint| checkpoint.step);
        Ok(checkpoints)
    }

    /// The checkpoint with the most steps.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn latest(&self) -> Result<Option<Checkpoint>, AtomicError> {
        Ok(self.list()?.pop())
    }

    /// Writes the checkpoint of `step` atomically, then removes all others, including incomplete ones left by killed processes.
    /// `fill` writes into an empty folder. Returns the checkpoint's folder.
    ///
    /// # Errors
    /// The error of `fill`, or an [`AtomicError`]; earlier checkpoints are then still there.
    pub fn write<E: From<AtomicError>>(
        &self,
        step: usize,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let name = format!("{PREFIX}{step:08}");
        let folder = self.folder.join(&name);
        atomic::replace_dir(&folder, fill)?;
        let others = self.list()?.into_iter().filter(|checkpoint| checkpoint.step != step);
        let unfinished = format!(".{PREFIX}");
        let is_unfinished = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&unfinished))
        };
        let remains = self.folders()?.into_iter().filter(is_unfinished);
        for old in others.map(|checkpoint| checkpoint.folder).chain(remains) {
            atomic::context(&old, "remove it", fs::remove_dir_all(&old))?;
        }
        Ok(folder)
    }

    /// All subfolders.
    fn folders(&self) -> Result<Vec<PathBuf>, AtomicError> {
        let list = || -> io::Result<Vec<PathBuf>> {
            let mut folders = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                }
            }
            Ok(folders)
        };
        match list() {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            listed => atomic::context(&self.folder, "list it", listed),
        }
    }
}

/// Truncates a file of metrics to its length at a checkpoint, in bytes. Creates it and its parent folder if needed. A shorter file
/// (a crash may have lost its last lines) is left as it is.
///
/// # Errors
/// A file that can't be opened or truncated.
pub fn truncate(path: &Path, bytes: u64) -> Result<(), AtomicError> {
    if let Some(parent) = path.parent() {
        atomic::context(parent, "create it", fs::create_dir_all(parent))?;
    }
    let cut = || {
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        file.set_len(bytes.min(file.metadata()?.len()))
    };
    atomic::context(path, "truncate it", cut())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(checkpoints: &Checkpoints, step: usize) -> PathBuf {
        let fill = |folder: &Path| {
            let path = folder.join("state.json");
            atomic::context(&path, "write", fs::write(&path, step.to_string()))
        };
        checkpoints.write(step, fill).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_checkpoint_replaces_older_ones() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("deep/checkpoints");
        let checkpoints = Checkpoints::new(&folder);
        assert_eq!((checkpoints.list().unwrap(), checkpoints.latest().unwrap()), (vec![], None));
        for step in [200, 400, 123_456_789] {
            let written = write(&checkpoints, step);
            let latest = Checkpoint { step, folder: written };
            assert_eq!(
                fs::read_to_string(latest.folder.join("state.json")).unwrap(),
                step.to_string()
            );
            assert_eq!(checkpoints.list().unwrap(), [latest]);
        }
        // The same step again replaces it.
        write(&checkpoints, 123_456_789);
        assert_eq!(names(&folder), ["step-123456789"]);
    }

    #[test]
    fn steps_are_ordered_by_number_and_other_entries_stay() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str| fs::create_dir_all(root.path().join(name)).unwrap();
        // Leftovers of a process killed while writing or removing, and a folder that is no checkpoint.
        ["step-00000100", "step-100000000", "step-99999999", ".step-00000300.a1", "step-mine"]
            .into_iter()
            .for_each(folder);
        fs::write(root.path().join("metrics.jsonl"), "").unwrap();
        fs::write(root.path().join("step-00000007"), "a file").unwrap();
        let checkpoints = Checkpoints::new(root.path());
        let steps = |list: Vec<Checkpoint>| list.iter().map(|c| c.step).collect::<Vec<_>>();
        assert_eq!(steps(checkpoints.list().unwrap()), [100, 99_999_999, 100_000_000]);
        assert_eq!(checkpoints.latest().unwrap().unwrap().step, 100_000_000);
        write(&checkpoints, 300);
        assert_eq!(
            names(root.path()),
            ["metrics.jsonl", "step-00000007", "step-00000300", "step-mine"]
        );
    }

    #[test]
    fn a_failed_write_keeps_the_previous_checkpoint() {
        let root = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(root.path());
        write(&checkpoints, 5);
        let full = |path: &Path| AtomicError {
            path: path.to_owned(),
            action: "write",
            source: ErrorKind::StorageFull.into(),
        };
        let failed: Result<_, AtomicError> = checkpoints.write(6, |folder| Err(full(folder)));
        assert!(failed.unwrap_err().to_string().contains("the disk is full"));
        assert_eq!(names(root.path()), ["step-00000005"]);
    }

    #[test]
    fn an_unlistable_folder_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Checkpoints::new(&file).latest().unwrap_err().to_string();
        assert!(error.contains("file: can't list it"), "{error}");
    }

    #[test]
    fn files_are_truncated_but_never_extended() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new/metrics.jsonl");
        truncate(&path, 7).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        fs::write(&path, "first\nsecond\n").unwrap();
        for (bytes, left) in [(100, "first\nsecond\n"), (6, "first\n"), (0, "")] {
            truncate(&path, bytes).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), left);
        }
    }
}
