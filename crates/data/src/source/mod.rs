//! Preference pairs and fine-tuning examples from JSON (plain or gzip) and Parquet files.
//!
//! The first bytes of a file determine its format (one object per line, an array of objects, Parquet), the columns of a row its
//! schema:
//!
//! | prompt | `chosen`, `rejected` | as in |
//! |---|---|---|
//! | `prompt`: text | texts | plain pairs |
//! | `prompt`: text | messages that start with the prompt | ultrafeedback_binarized |
//! | `prompt`: messages | messages of the response | TRL, conversational |
//! | `prompt`: messages | texts | |
//! | `conversations` | `{from, value}` | ShareGPT |
//! | `instruction`, `input` | texts | Alpaca |
//! | none | messages with a common start | TRL, implicit prompt |
//! | none | texts that are whole dialogues (`\n\nHuman: …\n\nAssistant: …`) | HH-RLHF |
//! | none | texts with a common start | TRL, implicit prompt |
//!
//! For fine-tuning: `messages` or `conversations`, or a prompt with `response`, `completion` or `output`, or the chosen side of a pair.
//! [`read_items`] also accepts `text`, and the lines of a `.txt` file.
//!
//! A message is `{role, content, …}` or ShareGPT's `{from, value}`; templates get every key of it, and the row's `tools` and
//! `chat_template_kwargs`.
//!
//! Of a folder with several splits, those functions read the training split; `FOLDER/SPLIT` names another one.

mod cells;
mod dialogue;
mod folder;
mod json;
mod message;
mod mixed;
mod parquet;
mod problem;
mod schema;
mod turns;

pub(crate) use dialogue::joined;
pub use message::{Conversation, Message, Prompt, Response};
pub use mixed::{Item, read_items, read_prompts};
pub use problem::{Place, RowProblem, SourceError};

use crate::hash::{hash_bytes, hash_file};
use cells::Row;
use folder::Part;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

/// A preference pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Row in the source, 0-based, counted over all its files in order.
    pub id: u64,
    /// The prompt of both responses.
    pub prompt: Prompt,
    /// The preferred response.
    pub chosen: Response,
    /// The rejected response.
    pub rejected: Response,
}

/// A prompt with one response, for supervised fine-tuning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftExample {
    /// Row in the source, 0-based, counted over all its files in order.
    pub id: u64,
    /// The prompt of the response.
    pub prompt: Prompt,
    /// The response.
    pub response: Response,
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

/// What to do with a row that can't be used: no answer, a message without content, columns of other types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// Stop with an error that names file and row.
    #[default]
    Refuse,
    /// Leave the row out and count it.
    Skip,
}

/// What to do with rows that aren't as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowPolicy {
    /// Rows with an empty response.
    pub on_empty: OnEmpty,
    /// Rows that can't be used.
    pub on_error: OnError,
}

impl From<OnEmpty> for RowPolicy {
    fn from(on_empty: OnEmpty) -> Self {
        Self { on_empty, ..Self::default() }
    }
}

/// Counts of what was read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadSummary {
    /// Files read.
    pub files: usize,
    /// The split that was read, of a folder with several.
    pub split: Option<String>,
    /// Rows read, dropped and skipped ones included.
    pub rows: usize,
    /// Rows dropped because of an empty response.
    pub dropped_empty: usize,
    /// Rows skipped because they can't be used.
    pub skipped: usize,
    /// The place of the first row that was skipped, and what is wrong with it.
    pub first_skipped: Option<String>,
}

/// Content hash (hex) of a file, or of the files of a split (`FOLDER/SPLIT`).
///
/// # Errors
/// I/O errors; the message contains the path.
pub fn hash(path: &Path) -> io::Result<String> {
    match folder::files(path, Part::Train) {
        Ok(files) if !path.exists() => {
            let hashes =
                files.iter().map(|file| hash_file(file)).collect::<io::Result<Vec<_>>>()?;
            Ok(hash_bytes(hashes.concat().as_bytes()))
        }
        _ => hash_file(path),
    }
}

/// Whether there is a file or folder, or a split of a folder (`FOLDER/SPLIT`).
pub fn exists(path: &Path) -> bool {
    path.exists() || folder::files(path, Part::Train).is_ok()
}

impl ReadSummary {
    /// What a person should know of it: which split was read, and how many rows are left out.
    pub fn notes(&self) -> Vec<String> {
        let Self { rows, dropped_empty, skipped, .. } = self;
        let mut notes = Vec::new();
        if let Some(split) = &self.split {
            notes.push(format!("trained on is the split {split} of the folder, and no other"));
        }
        if *dropped_empty > 0 {
            notes.push(format!(
                "{dropped_empty} of {rows} rows have an empty response and are left out"
            ));
        }
        if let Some(first) = &self.first_skipped {
            notes.push(format!(
                "{skipped} of {rows} rows can't be used and are left out (data.on_error = \"skip\"); the first: {first}"
            ));
        }
        notes
    }
}

/// Reads preference pairs from a file, or from a folder's files in the order of their names.
///
/// # Errors
/// Any file that can't be read, and any row that isn't as expected: see [`SourceError`].
pub fn read_pairs(
    path: &Path,
    policy: impl Into<RowPolicy>,
) -> Result<(Vec<Pair>, ReadSummary), SourceError> {
    pairs(path, Part::Train, policy.into())
}

/// Reads the pairs that a folder holds out: those of its validation split, or else of its test split. `None` if it has neither, or
/// nothing else.
///
/// # Errors
/// As [`read_pairs`].
pub fn read_held_out(
    path: &Path,
    policy: impl Into<RowPolicy>,
) -> Result<Option<(Vec<Pair>, ReadSummary)>, SourceError> {
    match folder::files(path, Part::HeldOut)?.is_empty() {
        true => Ok(None),
        false => pairs(path, Part::HeldOut, policy.into()).map(Some),
    }
}

fn pairs(
    path: &Path,
    part: Part,
    policy: RowPolicy,
) -> Result<(Vec<Pair>, ReadSummary), SourceError> {
    read(path, part, policy, |id, row| {
        let (prompt, [chosen, rejected]) = schema::pair(row)?;
        if policy.on_empty != OnEmpty::Keep {
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
    policy: impl Into<RowPolicy>,
) -> Result<(Vec<SftExample>, ReadSummary), SourceError> {
    let policy = policy.into();
    read(path, Part::Train, policy, |id, row| {
        let (prompt, response) = schema::example(row)?;
        if policy.on_empty != OnEmpty::Keep {
            schema::refuse_empty("response", &response)?;
        }
        Ok(SftExample { id, prompt, response })
    })
}

/// Reads every row of every file; `convert` gets a row's id and its cells.
fn read<T>(
    path: &Path,
    part: Part,
    policy: RowPolicy,
    convert: impl Fn(u64, Row) -> Result<T, RowProblem>,
) -> Result<(Vec<T>, ReadSummary), SourceError> {
    let files = folder::files(path, part)?;
    let split = files.first().and_then(|file| folder::split_of(path, file));
    let mut summary = ReadSummary { files: files.len(), split, ..Default::default() };
    let mut items = Vec::new();
    for file in &files {
        read_file(file, &mut |place, row| {
            let drops = match policy.on_empty {
                OnEmpty::Auto => !row.columns.iter().any(|column| column == "prompt"),
                OnEmpty::Refuse | OnEmpty::Keep => false,
                OnEmpty::Drop => true,
            };
            let converted = convert(summary.rows as u64, row);
            summary.rows += 1;
            match converted {
                Ok(item) => items.push(item),
                Err(RowProblem::Empty { .. }) if drops => summary.dropped_empty += 1,
                Err(problem) if policy.on_error == OnError::Skip => {
                    summary.skipped += 1;
                    let first = || format!("{}: {place}: {problem}", file.display());
                    summary.first_skipped.get_or_insert_with(first);
                }
                Err(problem) => return Err(problem),
            }
            Ok(())
        })?;
    }
    match (summary.rows, &summary.first_skipped) {
        (0, _) => Err(SourceError::NoRows { path: path.to_owned() }),
        (rows, Some(first)) if items.is_empty() => {
            Err(SourceError::NoneUsable { path: path.to_owned(), rows, first: first.clone() })
        }
        _ => Ok((items, summary)),
    }
}

/// Reads every row of every file, up to the first error.
fn read_rows<T>(
    path: &Path,
    convert: impl Fn(u64, Row) -> Result<T, RowProblem>,
) -> Result<Vec<T>, SourceError> {
    read(path, Part::Train, OnEmpty::Refuse.into(), convert).map(|(items, _)| items)
}

/// Receives the rows of a file, each with its place.
type Sink<'a> = &'a mut dyn FnMut(Place, Row) -> Result<(), RowProblem>;

fn read_file(path: &Path, sink: Sink<'_>) -> Result<(), SourceError> {
    let io = |source| SourceError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(io)?;
    file.rewind().map_err(io)?;
    match magic[..] {
        [b'P', b'A', b'R', b'1'] => parquet::read(path, file, sink),
        [0x1f, 0x8b, ..] => json::read(path, flate2::read::MultiGzDecoder::new(file), sink),
        _ => json::read(path, file, sink),
    }
}

#[cfg(test)]
mod tests;
