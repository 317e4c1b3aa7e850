use std::io;
use std::path::{Path, PathBuf};

use fpo_files::{atomic::AtomicError, journal::JournalError};

use crate::endpoint::EndpointError;

/// Why answers could not be compared. What was received before is in the verdict file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that could not be replaced.
    #[error(transparent)]
    Write(#[from] AtomicError),
    /// A file that isn't what it is taken for.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A row that can't be used.
    #[error("{}: row {row}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Its row, from 1: an element of the array, or a line.
        row: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Two files that don't belong together.
    #[error("{problem}")]
    Mismatch {
        /// What differs, and what to do.
        problem: String,
    },
    /// The verdict file.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The endpoint could not be asked.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// It stopped because it was asked to.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }

    pub(crate) fn row(path: &Path, row: usize, problem: impl Into<String>) -> Self {
        Self::Row { path: path.to_owned(), row, problem: problem.into() }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), problem: problem.into() }
    }
}
