//! What can be wrong with a benchmark's files.

use std::{io, path::PathBuf};

use fpo_files::atomic::AtomicError;

use crate::Benchmark;

/// What was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is longer than any of its kind.
    #[error("{}: it is longer than {limit} MiB; is it a file of {kind}?", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in MiB.
        limit: u64,
        /// What it should be.
        kind: &'static str,
    },
    /// A file that isn't JSON lines or a JSON array of objects.
    #[error("{}: {place}: not a JSON object: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Such as `line 3`.
        place: String,
        /// The parser's message.
        source: serde_json::Error,
    },
    /// A file without a question.
    #[error("{}: there is no question in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The questions of something else.
    #[error("{}: {place}: these are not the questions of {}: they look like {looks}{advice}", path.display(), wanted.title())]
    Other {
        /// The file.
        path: PathBuf,
        /// Such as `line 1`.
        place: String,
        /// The benchmark that was asked for.
        wanted: Benchmark,
        /// What they look like.
        looks: &'static str,
        /// What to do, with the semicolon before it; empty where nothing can be said.
        advice: String,
    },
    /// A question or answer that isn't as it has to be.
    #[error("{}: {place}: {message}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Such as `line 3`.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// Answers of another model, or made under other settings.
    #[error(
        "{}: its answers were made differently: {changes}; repeat the call as it was, or choose another --out",
        path.display()
    )]
    Changed {
        /// The answer file.
        path: PathBuf,
        /// Setting by setting.
        changes: String,
    },
    /// Nothing says how the answers in a file were made.
    #[error(
        "{}: there are answers in it, but not {}, which says how they were made, so they can't be completed; \
         choose another --out, or move them away",
        path.display(),
        settings.display()
    )]
    NoSettings {
        /// The answer file.
        path: PathBuf,
        /// The file beside it.
        settings: PathBuf,
    },
    /// A file can't be written.
    #[error(transparent)]
    Write(#[from] AtomicError),
}
