//! What is wrong with a source or a row of it.

use std::fmt::{self, Display};
use std::io;
use std::path::PathBuf;

/// The place of a row in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Line of a text file, 1-based.
    Line(usize),
    /// Row of a table or element of a JSON array, 0-based.
    Row(usize),
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row} (counted from 0)"),
        }
    }
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
    #[error(
        "{}: contains no .jsonl, .json, .ndjson (plain or .gz) or .parquet file; \
         a set saved with `save_to_disk` is read once `to_parquet` has written it",
        path.display()
    )]
    NoFiles {
        /// The folder.
        path: PathBuf,
    },
    /// A folder with several splits for training.
    #[error("{}: contains the splits {splits}; name one, as in {}", path.display(), example.display())]
    Splits {
        /// The folder.
        path: PathBuf,
        /// The splits.
        splits: String,
        /// The path of one of them.
        example: PathBuf,
    },
    /// No rows.
    #[error("{}: contains no rows", path.display())]
    NoRows {
        /// The file or folder.
        path: PathBuf,
    },
    /// Rows, but none that can be used.
    #[error("{}: none of the {rows} rows can be used; the first one skipped: {first}", path.display())]
    NoneUsable {
        /// The file or folder.
        path: PathBuf,
        /// Rows read.
        rows: usize,
        /// The place of the first row that was skipped, and what is wrong with it.
        first: String,
    },
    /// A line or an element of an array that isn't a JSON object.
    #[error(
        "{}: {place}: isn't a JSON object; the file must contain one object per line, or an array of objects",
        path.display()
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// The line or the element.
        place: Place,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A row too long to be an example.
    #[error("{}: {place}: is longer than {limit} bytes; is this a JSONL file?", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The line or the element.
        place: Place,
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
    #[error("{}: {place}: {problem}{}", path.display(), problem.remedy())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row.
        place: Place,
        /// What is wrong with it.
        problem: RowProblem,
    },
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    /// Columns are missing.
    #[error("needs {needed}; it has the columns [{found}]")]
    Columns {
        /// The columns needed.
        needed: &'static str,
        /// The row's columns.
        found: String,
    },
    /// A column of an unexpected type.
    #[error("column `{column}` must be {expected}, but is {found}")]
    Kind {
        /// The column.
        column: &'static str,
        /// The type expected.
        expected: &'static str,
        /// The type found.
        found: String,
    },
    /// A message that isn't one.
    #[error(
        "column `{column}` must be a text or a list of messages, but is wrong in message {index}: {what}"
    )]
    Message {
        /// The column.
        column: &'static str,
        /// The message, counted from 0.
        index: usize,
        /// What is wrong with it.
        what: String,
    },
    /// JSON, or a text with JSON, that isn't as expected.
    #[error("column `{column}` isn't {expected}, or a text with the JSON of it")]
    NotJson {
        /// The column.
        column: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// Tools beside a prompt that is a text.
    #[error(
        "column `tools` needs a prompt that is a list of messages, so that the chat template can write both; give the prompt as \
         messages, or remove `tools`"
    )]
    ToolsBesideText,
    /// An empty response.
    #[error(
        "column `{column}` contains an empty response; remove the row, or set data.on_empty to \"drop\" or \"keep\""
    )]
    Empty {
        /// The column.
        column: &'static str,
    },
    /// Two conversations with different prompts.
    #[error("`chosen` and `rejected` have different prompts")]
    PromptsDiffer,
    /// A conversation that doesn't end with an assistant message.
    #[error("column `{column}` must end with one assistant message")]
    NoResponse {
        /// The column.
        column: &'static str,
    },
    /// Bytes that aren't UTF-8.
    #[error("isn't UTF-8 text")]
    NotText,
    /// Texts that have no prompt, no common beginning and aren't dialogues.
    #[error(
        "without a `prompt` column, `chosen` and `rejected` must have a common beginning followed by different answers, or be \
         dialogues (\\n\\nHuman: … \\n\\nAssistant: …) that are equal up to an answer"
    )]
    NoDialogue,
}

impl RowProblem {
    /// What to do about it besides repairing the row.
    fn remedy(&self) -> &'static str {
        match self {
            // It names its own setting, or is the whole file's.
            Self::Empty { .. } | Self::Columns { .. } | Self::NotText => "",
            _ => "; remove the row, or have such rows left out of a run (data.on_error = \"skip\")",
        }
    }
}
