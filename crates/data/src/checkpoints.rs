//! The checkpoints of a training: folders `step-00000200`, of which the newest is kept.
//!
//! ```
//! use fpo_data::checkpoints::{Checkpoints, truncate};
//! # let folder = tempfile::tempdir()?;
//! # let (folder, metrics) = (folder.path(), folder.path().join("metrics.jsonl"));
//! let checkpoints = Checkpoints::new(folder);
//! let begin = match checkpoints.latest()? {
//!     Some(checkpoint) => checkpoint.step, // and restore from `checkpoint.folder`
//!     None => 0,
//! };
//! // The file of metrics is longer than at the checkpoint if the training ran on from there before it was interrupted.
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

/// The folder in which a training keeps its checkpoints. Other files may lie beside them.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// A checkpoint that stands whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Steps done when it was written.
    pub step: usize,
    /// Its folder.
    pub folder: PathBuf,
}

impl Checkpoints {
    /// Those in `folder`; nothing is read or created yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// All checkpoints, oldest first; none where the folder doesn't exist.
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

    /// The checkpoint of the most steps.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn latest(&self) -> Result<Option<Checkpoint>, AtomicError> {
        Ok(self.list()?.pop())
    }

    /// Writes the checkpoint of `step`, whole or not at all, then removes all others and what killed processes left of theirs. `fill`
    /// writes into an empty folder. Returns the checkpoint's folder.
    ///
    /// # Errors
    /// Whatever `fill` returns, or an [`AtomicError`]; the checkpoints there were still stand.
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

    /// The folders in the folder.
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

/// Cuts a file, such as that of the metrics, to its length at a checkpoint; creates it, and the folder it lies in, if need be. A file
/// that is shorter (a crash may have cost it its last lines) stays as it is.
///
/// # Errors
/// A file that can't be opened or cut.
pub fn truncate(path: &Path, bytes: u64) -> Result<(), AtomicError> {
    if let Some(parent) = path.parent() {
        atomic::context(parent, "create it", fs::create_dir_all(parent))?;
    }
    let cut = || {
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        file.set_len(bytes.min(file.metadata()?.len()))
    };
    atomic::context(path, "cut it to its length", cut())
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
    fn a_new_checkpoint_takes_the_place_of_older_ones() {
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
    fn steps_are_ordered_by_number_and_what_is_no_checkpoint_stays() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str| fs::create_dir_all(root.path().join(name)).unwrap();
        // What a process leaves that is killed while it writes or removes, and what others put there.
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
    fn a_failed_checkpoint_leaves_the_one_before_it() {
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
    fn a_folder_that_cant_be_listed_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Checkpoints::new(&file).latest().unwrap_err().to_string();
        assert!(error.contains("file: can't list it"), "{error}");
    }

    #[test]
    fn files_are_cut_but_never_filled_up() {
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
