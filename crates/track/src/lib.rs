//! Where a training's measurements go beside its log, what they decide, and reading them while they are written.
//!
//! A training writes one JSON object a line to its log; the objects of an evaluation have keys that begin with `eval_`, as TRL's
//! have. [`Trackers`] write the numbers of these lines in other formats, [`Standing`] tells the best evaluation and when to stop,
//! and [`follow`] reads a run's logs while another process writes them.
//!
//! # Invariants
//! * What a tracker holds follows from the log: one that is missing or behind is filled from it, and a resumed training leaves in it
//!   what an undisturbed one would.
//! * Decisions follow from the lines of the log alone, so that a resumed training repeats them.
//! * Never changes a log, and knows no tensor, model or setting.
//!
//! ```
//! use fpo_track::{Direction, Rule, Rules, Standing};
//! use serde_json::json;
//!
//! let loss = Rule { key: "eval_loss".into(), better: Direction::Lower };
//! let rules = Rules { keep_best: Some(loss), early_stopping: None };
//! let mut standing = Standing::default();
//! for (step, loss) in [(10, 0.6), (20, 0.5), (30, 0.55)] {
//!     let line = json!({ "eval_loss": loss });
//!     standing.judge(&rules, step, line.as_object().unwrap())?;
//! }
//! assert_eq!(standing.best.unwrap().step, 20);
//! # Ok::<(), fpo_track::NotMeasured>(())
//! ```

mod csv;
pub mod follow;
mod standing;
mod tensorboard;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use fpo_files::atomic::AtomicError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use standing::{Best, Direction, NotMeasured, Patience, Rule, Rules, Standing, Verdict};

use csv::CsvFile;
use tensorboard::EventFile;

/// What the keys of an evaluation's line begin with.
pub const EVAL: &str = "eval_";
/// The key of its sampled answers: a list of objects with `prompt` and `response`.
pub const SAMPLES: &str = "eval_samples";

/// A format in which measurements are written beside the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tracker {
    /// Event files, which TensorBoard shows while they grow.
    TensorBoard,
    /// One table, a row for each line of the log.
    Csv,
}

/// Why a tracker's files can't be written.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// A file or folder can't be accessed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file can't be put in place.
    #[error(transparent)]
    Atomic(#[from] AtomicError),
}

fn in_path(path: &Path) -> impl FnOnce(io::Error) -> TrackError + '_ {
    |source| TrackError::Io { path: path.to_owned(), source }
}

/// The open trackers of one training.
#[derive(Debug)]
pub struct Trackers(Vec<Writer>);

#[derive(Debug)]
enum Writer {
    TensorBoard(EventFile),
    Csv(CsvFile),
}

impl Trackers {
    /// Opens trackers in `folder`, which is created. `lines` are those of the log so far: none at the start of a training, and what
    /// an earlier one left in the folder is then removed.
    ///
    /// # Errors
    /// Files that can't be read, written or removed.
    pub fn open(
        kinds: &[Tracker],
        folder: &Path,
        lines: &[Map<String, Value>],
    ) -> Result<Self, TrackError> {
        let mut writers = Vec::new();
        if !kinds.is_empty() {
            fs::create_dir_all(folder).map_err(in_path(folder))?;
        }
        for kind in kinds {
            writers.push(match kind {
                Tracker::TensorBoard => Writer::TensorBoard(EventFile::open(folder, lines)?),
                Tracker::Csv => Writer::Csv(CsvFile::open(folder, lines)?),
            });
        }
        Ok(Self(writers))
    }

    /// Adds a line of the log.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn write(&mut self, line: &Map<String, Value>) -> Result<(), TrackError> {
        self.0.iter_mut().try_for_each(|writer| match writer {
            Writer::TensorBoard(file) => file.write(line),
            Writer::Csv(file) => file.write(line),
        })
    }
}

/// The step of a line; 0 where it has none.
fn step(line: &Map<String, Value>) -> u64 {
    line.get("step").and_then(Value::as_u64).unwrap_or(0)
}

/// The numbers of a line beside its step, in its order.
fn numbers(line: &Map<String, Value>) -> impl Iterator<Item = (&str, f64)> {
    line.iter()
        .filter(|(key, _)| *key != "step")
        .filter_map(|(key, value)| Some((key.as_str(), value.as_f64()?)))
}

#[cfg(test)]
pub(crate) fn line(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(line) => line,
        other => panic!("{other} is not a line"),
    }
}
