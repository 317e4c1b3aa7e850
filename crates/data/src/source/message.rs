//! Messages, and what prompts and responses consist of.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Keys of a message that hold what the model said beside its text.
const BEYOND_TEXT: [&str; 4] = ["tool_calls", "function_call", "reasoning_content", "reasoning"];

/// One message of a conversation with every key that its file gives it: a template may read more than `role` and `content`, such as
/// `tool_calls`, `name`, `tool_call_id` or `reasoning_content`. The order of the keys doesn't matter for equality.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

/// Messages, and what else a chat template gets beside them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
    /// The tools on offer, as in a row's `tools` column: a list of JSON schemas.
    pub tools: Option<Value>,
    /// Variables of the template, as in a row's `chat_template_kwargs` column; for instance `enable_thinking`.
    pub variables: Map<String, Value>,
}

/// What a response responds to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text. For a chat template, it is one user message.
    Text(String),
    /// A conversation, up to the last message before the response.
    Messages(Conversation),
}

/// What responds to a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// A text. For a chat template, it is one assistant message.
    Text(String),
    /// Messages that a text can't express: with tool calls, or several of them because two conversations part early.
    Messages(Vec<Message>),
}

impl Message {
    /// A message of a role and a text alone.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let role = ("role".to_owned(), Value::String(role.into()));
        Self(Map::from_iter([role, ("content".to_owned(), Value::String(content.into()))]))
    }

    /// A message with these keys, which the caller has checked.
    pub(super) fn of_keys(keys: Map<String, Value>) -> Self {
        Self(keys)
    }

    /// Who speaks: `user`, `assistant`, `system`, `tool`.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text; of content that consists of parts, the texts of its parts. Empty if the content is null, as beside tool calls.
    pub fn text(&self) -> Cow<'_, str> {
        match self.0.get("content") {
            Some(Value::String(text)) => Cow::Borrowed(text),
            Some(Value::Array(parts)) => {
                parts.iter().filter_map(|part| part.get("text")?.as_str()).collect()
            }
            _ => Cow::Borrowed(""),
        }
    }

    /// Every key.
    pub fn keys(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The value of a key, unless it is null, empty or missing.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !is_empty(value))
    }

    /// The first key with something that the model said and that isn't its text.
    pub(crate) fn beyond_text(&self) -> Option<&'static str> {
        BEYOND_TEXT.into_iter().find(|key| self.get(key).is_some())
    }

    /// The text of a message that has nothing else: no further key with a value, no content but text.
    pub(crate) fn plain_text(&self) -> Option<&str> {
        let beside = |(key, value): (&String, &Value)| {
            !matches!(key.as_str(), "role" | "content") && !value.is_null()
        };
        let text = self.0.get("content")?.as_str()?;
        (!self.0.iter().any(beside)).then_some(text)
    }

    /// The same message with another content.
    pub(crate) fn with_content(mut self, content: Value) -> Self {
        self.0.insert("content".to_owned(), content);
        self
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

impl Conversation {
    /// The conversation continued by a response.
    #[must_use]
    pub fn followed_by(mut self, response: &Response) -> Self {
        match response {
            Response::Text(text) => self.messages.push(Message::new("assistant", text)),
            Response::Messages(messages) => self.messages.extend_from_slice(messages),
        }
        self
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

impl Prompt {
    /// As a conversation: a text becomes one user message.
    pub fn to_conversation(&self) -> Conversation {
        match self {
            Self::Text(text) => vec![Message::new("user", text)].into(),
            Self::Messages(conversation) => conversation.clone(),
        }
    }

    /// As a list of messages: a text becomes one user message.
    pub fn to_messages(&self) -> Vec<Message> {
        self.to_conversation().messages
    }
}

impl Prompt {
    /// What is said in it: the text, or the text of each message.
    pub fn texts(&self) -> Vec<Cow<'_, str>> {
        match self {
            Self::Text(text) => vec![Cow::Borrowed(text)],
            Self::Messages(conversation) => {
                conversation.messages.iter().map(Message::text).collect()
            }
        }
    }

    /// As a reader sees it: messages with their roles.
    pub fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Messages(conversation) => {
                let turn = |message: &Message| format!("{}: {}", message.role(), message.text());
                conversation.messages.iter().map(turn).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

impl Response {
    /// An assistant message with nothing but a text becomes that text.
    pub(super) fn from_messages(messages: Vec<Message>) -> Self {
        match &messages[..] {
            [only] if only.role() == "assistant" => match only.plain_text() {
                Some(text) => Self::Text(text.to_owned()),
                None => Self::Messages(messages),
            },
            _ => Self::Messages(messages),
        }
    }

    /// The first key of its messages with something that the model said and that isn't their text.
    pub(crate) fn beyond_text(&self) -> Option<&'static str> {
        match self {
            Self::Text(_) => None,
            Self::Messages(messages) => messages.iter().find_map(Message::beyond_text),
        }
    }

    /// Whether it says nothing: no text but white space, no tool call, no reasoning.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.trim().is_empty(),
            Self::Messages(messages) => messages
                .last()
                .is_none_or(|last| last.text().trim().is_empty() && last.beyond_text().is_none()),
        }
    }

    /// Whether it begins with the assistant's turn, which is what a generation prompt opens. Where two conversations part before a
    /// user turn, it doesn't.
    pub(crate) fn begins_with_assistant(&self) -> bool {
        match self {
            Self::Text(_) => true,
            Self::Messages(messages) => messages.first().is_none_or(|m| m.role() == "assistant"),
        }
    }
}

impl From<&str> for Response {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Response {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
