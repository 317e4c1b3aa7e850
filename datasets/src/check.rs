//! The checker: says whether an answer is right and in the format asked for, and if not, what is wrong with it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::format::Shape;
use crate::task::Task;

/// What [`check`] found. Each kind of [`Corruption`](crate::Corruption) has its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Right and in the format asked for: the only verdict that counts as right.
    Right,
    /// Nothing but white space.
    Empty,
    /// In the format asked for, but something else.
    WrongContent,
    /// Right and in the shape asked for, but in the other language.
    WrongLanguage,
    /// Right, in the language asked for, but in another shape.
    WrongFormat {
        /// The shape that it has.
        found: Shape,
    },
    /// The right answer in the right format, with words before or after it.
    Rambling,
    /// Neither in the format asked for nor the right answer in another one.
    Unreadable,
}

impl Verdict {
    /// Whether the answer is right and in the format asked for.
    pub fn is_right(self) -> bool {
        self == Self::Right
    }

    /// Whether the answer has the shape asked for, right or not.
    pub fn in_format(self) -> bool {
        matches!(self, Self::Right | Self::WrongContent | Self::WrongLanguage)
    }

    /// Whether the right answer is in it, in whatever shape or language.
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
            Self::WrongContent => "in the format asked for, but wrong",
            Self::WrongLanguage => "right, but in the wrong language",
            Self::WrongFormat { found } => {
                return write!(formatter, "right, but as {}", found.name());
            }
            Self::Rambling => "right, but not alone",
            Self::Unreadable => "not in the format asked for",
        })
    }
}

/// Judges `answer` as an answer to `task`.
///
/// White space around the answer is forgiven, and what [`Shape`] leaves free; nothing else is.
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

/// The beginnings and the ends of `text`, cut at white space.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let cuts = text.match_indices(char::is_whitespace);
    cuts.flat_map(|(at, space)| [&text[..at], &text[at + space.len()..]])
}
