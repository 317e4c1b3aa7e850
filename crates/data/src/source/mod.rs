//! Preference pairs and fine-tuning examples from JSONL (plain or gzip) and Parquet files.
//!
//! The first bytes of a file determine its format, the columns of a row its schema:
//!
//! | `prompt` | `chosen`, `rejected` | as in |
//! |---|---|---|
//! | text | texts | plain pairs |
//! | text | messages that start with the prompt | ultrafeedback_binarized |
//! | messages | messages of the response | TRL, conversational |
//! | messages | texts | |
//! | none | messages with a common start | TRL, implicit prompt |
//! | none | texts that are whole dialogues (`\n\nHuman: …\n\nAssistant: …`) | HH-RLHF |
//!
//! For fine-tuning: `messages`, or `prompt` with `response` or `completion`, or the chosen side of a pair. [`read_items`] also
//! accepts `text`, and the lines of a `.txt` file.

mod cells;
mod dialogue;
mod jsonl;
mod mixed;
mod parquet;
mod schema;

pub use mixed::{Item, read_items, read_prompts};
pub use schema::RowProblem;

use cells::Row;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `user`, `assistant` or `system`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// What a response responds to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text. For a chat template, it is one user message.
    Text(String),
    /// A conversation, up to the last message before the response.
    Messages(Vec<Message>),
}

/// A preference pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Row in the source, 0-based, counted over all its files in order.
    pub id: u64,
    /// The prompt of both responses.
    pub prompt: Prompt,
    /// The preferred response.
    pub chosen: String,
    /// The rejected response.
    pub rejected: String,
}

/// A prompt with one response, for supervised fine-tuning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftExample {
    /// Row in the source, 0-based, counted over all its files in order.
    pub id: u64,
    /// The prompt of the response.
    pub prompt: Prompt,
    /// The response.
    pub response: String,
}

/// What to do with a row that has an empty response. Public sets have a few (4 of 2,312 in HH-RLHF's harmless-base test set).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnEmpty {
    /// Drop rows of whole dialogues (no `prompt` column), whose last answer may be missing; refuse others, where an empty response
    /// is a mistake.
    #[default]
    Auto,
    /// Stop with an error that names file and row.
    Refuse,
    /// Drop the row and count it.
    Drop,
    /// Keep the row: its response consists of the end token alone.
    Keep,
}

/// Counts of what was read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReadSummary {
    /// Files read.
    pub files: usize,
    /// Rows read, dropped ones included.
    pub rows: usize,
    /// Rows dropped because of an empty response.
    pub dropped_empty: usize,
}

/// The place of a row in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Line of a text file, 1-based.
    Line(usize),
    /// Row of a table, 0-based.
    Row(usize),
}

/// Why a source can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file or folder is missing or can't be opened.
    #[error("{}: can't be read", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A truncated file, or damaged compression.
    #[error("{}: {place}: can't be read; is the file complete?", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where reading stopped.
        place: Place,
        /// The error of the system or the decompressor.
        source: io::Error,
    },
    /// A folder without files of a known format.
    #[error("{}: contains no .jsonl, .json, .ndjson (plain or .gz) or .parquet file", path.display())]
    NoFiles {
        /// The folder.
        path: PathBuf,
    },
    /// No rows.
    #[error("{}: contains no rows", path.display())]
    NoRows {
        /// The file or folder.
        path: PathBuf,
    },
    /// A line that isn't JSON.
    #[error("{}: line {line}: isn't a JSON object; the file must contain one object per line", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The line, 1-based.
        line: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A line too long to be an example.
    #[error("{}: line {line}: is longer than {limit} bytes; is this a JSONL file?", path.display())]
    LineTooLong {
        /// The file.
        path: PathBuf,
        /// The line, 1-based.
        line: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A Parquet file that can't be decoded.
    #[error("{}: is not a complete Parquet file ({what})", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The decoder's error.
        what: String,
    },
    /// A row with missing or unexpected content.
    #[error("{}: {place}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row.
        place: Place,
        /// What is wrong with it.
        problem: RowProblem,
    },
}

/// Reads preference pairs from a file, or from a folder's files in the order of their names.
///
/// # Errors
/// Any file that can't be read, and any row that isn't as expected: see [`SourceError`].
pub fn read_pairs(path: &Path, on_empty: OnEmpty) -> Result<(Vec<Pair>, ReadSummary), SourceError> {
    read(path, on_empty, |id, row| {
        let (prompt, [chosen, rejected]) = schema::pair(row)?;
        if on_empty != OnEmpty::Keep {
            schema::refuse_empty("chosen", &chosen)?;
            schema::refuse_empty("rejected", &rejected)?;
        }
        Ok(Pair { id, prompt, chosen, rejected })
    })
}

/// Reads fine-tuning examples from a file, or from a folder's files in the order of their names. Pairs yield their prompts and
/// chosen responses.
///
/// # Errors
/// Any file that can't be read, and any row that isn't as expected: see [`SourceError`].
pub fn read_sft(
    path: &Path,
    on_empty: OnEmpty,
) -> Result<(Vec<SftExample>, ReadSummary), SourceError> {
    read(path, on_empty, |id, row| {
        let (prompt, response) = schema::example(row)?;
        if on_empty != OnEmpty::Keep {
            schema::refuse_empty("response", &response)?;
        }
        Ok(SftExample { id, prompt, response })
    })
}

/// Reads every row of every file; `convert` gets a row's id and its cells.
fn read<T>(
    path: &Path,
    on_empty: OnEmpty,
    convert: impl Fn(u64, Row) -> Result<T, RowProblem>,
) -> Result<(Vec<T>, ReadSummary), SourceError> {
    let files = files(path)?;
    let mut summary = ReadSummary { files: files.len(), ..Default::default() };
    let mut items = Vec::new();
    for file in &files {
        read_file(file, &mut |row| {
            let drops = match on_empty {
                OnEmpty::Auto => !row.columns.iter().any(|column| column == "prompt"),
                OnEmpty::Refuse | OnEmpty::Keep => false,
                OnEmpty::Drop => true,
            };
            let converted = convert(summary.rows as u64, row);
            summary.rows += 1;
            match converted {
                Ok(item) => items.push(item),
                Err(RowProblem::Empty { .. }) if drops => summary.dropped_empty += 1,
                Err(problem) => return Err(problem),
            }
            Ok(())
        })?;
    }
    if summary.rows == 0 {
        return Err(SourceError::NoRows { path: path.to_owned() });
    }
    Ok((items, summary))
}

/// Reads every row of every file, up to the first error.
fn read_rows<T>(
    path: &Path,
    convert: impl Fn(u64, Row) -> Result<T, RowProblem>,
) -> Result<Vec<T>, SourceError> {
    read(path, OnEmpty::Refuse, convert).map(|(items, _)| items)
}

/// Receives the rows of a file.
type Sink<'a> = &'a mut dyn FnMut(Row) -> Result<(), RowProblem>;

fn read_file(path: &Path, sink: Sink<'_>) -> Result<(), SourceError> {
    let io = |source| SourceError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(io)?;
    file.rewind().map_err(io)?;
    match magic[..] {
        [b'P', b'A', b'R', b'1'] => parquet::read(path, file, sink),
        [0x1f, 0x8b, ..] => jsonl::read(path, flate2::read::MultiGzDecoder::new(file), sink),
        _ => jsonl::read(path, file, sink),
    }
}

/// The file itself, or a folder's data files sorted by name.
fn files(path: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let io = |source| SourceError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(io)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(io)?;
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(io)?;
    files.retain(|file| file.is_file() && is_data(file));
    files.sort();
    if files.is_empty() {
        return Err(SourceError::NoFiles { path: path.to_owned() });
    }
    Ok(files)
}

fn is_data(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    // A leading dot marks files that are still being written, by this program or others.
    !name.starts_with('.')
        && [".jsonl", ".json", ".ndjson", ".parquet"].iter().any(|ending| name.ends_with(ending))
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row} (counted from 0)"),
        }
    }
}

#[cfg(test)]
mod tests;
