//! The checker: is an answer right and in the requested format, and if not, what is wrong with it?

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::format::Shape;
use crate::task::Task;

/// The result of [`check`]. Every kind of [`Corruption`](crate::Corruption) has a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Right and in the requested format; no other verdict counts as right.
    Right,
    /// Empty or white space.
    Empty,
    /// In the requested format, but wrong.
    WrongContent,
    /// Right and in the requested shape, but in the other language.
    WrongLanguage,
    /// Right and in the requested language, but in another shape.
    WrongFormat {
        /// The shape of the answer.
        found: Shape,
    },
    /// The right answer in the requested format, with text before or after it.
    Rambling,
    /// Neither in the requested format nor the right answer in another one.
    Unreadable,
}

impl Verdict {
    /// Whether the answer is right and in the requested format.
    pub fn is_right(self) -> bool {
        self == Self::Right
    }

    /// Whether the answer has the requested shape, right or not.
    pub fn in_format(self) -> bool {
        matches!(self, Self::Right | Self::WrongContent | Self::WrongLanguage)
    }

    /// Whether it contains the right answer, in any shape or language.
    pub fn has_right_content(self) -> bool {
        matches!(
            self,
            Self::Right | Self::WrongLanguage | Self::WrongFormat { .. } | Self::Rambling
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Right => "right",
            Self::Empty => "empty",
            Self::WrongContent => "in the requested format, but wrong",
            Self::WrongLanguage => "right, but in the wrong language",
            Self::WrongFormat { found } => {
                return write!(formatter, "right, but as {}", found.name());
            }
            Self::Rambling => "right, but not alone",
            Self::Unreadable => "not in the requested format",
        })
    }
}

/// Judges `answer` as an answer to `task`.
///
/// White space around the answer is ignored, and what [`Shape`] leaves open is accepted; nothing else is.
pub fn check(task: &Task, answer: &str) -> Verdict {
    let text = answer.trim();
    if text.is_empty() {
        return Verdict::Empty;
    }
    let (shape, language) = (task.format.shape(), task.format.language());
    let right = task.answer_items(language);
    let is_right = |shape: Shape, text: &str| shape.parse(text).is_some_and(|items| items == right);

    let items = shape.parse(text);
    if items.as_ref() == Some(&right) {
        Verdict::Right
    } else if items.as_ref() == Some(&task.answer_items(language.other())) {
        Verdict::WrongLanguage
    } else if let Some(found) = Shape::ALL.into_iter().find(|other| is_right(*other, text)) {
        Verdict::WrongFormat { found }
    } else if parts(text).any(|part| is_right(shape, part)) {
        Verdict::Rambling
    } else if items.is_some() {
        Verdict::WrongContent
    } else {
        Verdict::Unreadable
    }
}

/// All prefixes and suffixes of `text` that end or start at white space.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let cuts = text.match_indices(char::is_whitespace);
    cuts.flat_map(|(at, space)| [&text[..at], &text[at + space.len()..]])
}
