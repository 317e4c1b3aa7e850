//! System messages, for templates that have no turn for them.

use crate::source::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::{self, Display};
use std::str::FromStr;

/// What becomes of a system message at the start of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// The template gets it as it is, and may refuse it.
    #[default]
    Keep,
    /// It becomes the beginning of the first user message, with a blank line after it.
    Fold,
}

impl Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "keep",
            Self::Fold => "fold",
        })
    }
}

impl FromStr for System {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "keep" => Ok(Self::Keep),
            "fold" => Ok(Self::Fold),
            _ => Err(format!("no treatment of system messages `{text}`; choose keep or fold")),
        }
    }
}

/// The messages with a system message at their start moved into the first user message.
pub(super) fn folded(messages: Vec<Message>) -> Vec<Message> {
    let is = |role: &'static str| move |message: &Message| message.role() == role;
    let [system, rest @ ..] = &messages[..] else { return messages };
    let Some(user) = rest.iter().position(is("user")).filter(|_| is("system")(system)) else {
        return messages;
    };
    let mut rest = rest.to_vec();
    let before = system.text().trim_end().to_owned() + "\n\n";
    let content = match rest[user].keys().get("content") {
        Some(Value::Array(parts)) => {
            let text = json!({"type": "text", "text": before});
            Value::Array(std::iter::once(text).chain(parts.iter().cloned()).collect())
        }
        _ => Value::String(before + &rest[user].text()),
    };
    rest[user] = rest[user].clone().with_content(content);
    rest
}
