//! From cells to texts and messages: OpenAI's `{role, content}` and ShareGPT's `{from, value}`.

use super::cells::{Cell, Row, kind};
use super::{Conversation, Message, Prompt, RowProblem};
use serde_json::{Map, Value, json};

type Parsed<T> = Result<T, RowProblem>;

/// ShareGPT's speakers, in lower case, with the roles of chat templates.
const SPEAKERS: [(&str, &str); 12] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    ("function_call", "assistant"),
    ("tool_call", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
];

/// A text or messages.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Turns {
    Text(String),
    Messages(Vec<Message>),
}

impl Turns {
    /// Reads a cell. An object is a list of one message.
    pub fn read(column: &'static str, cell: Cell) -> Parsed<Self> {
        match cell {
            Cell::Json(Value::String(text)) => Ok(Self::Text(text)),
            Cell::Json(message @ Value::Object(_)) if is_message(&message) => {
                Ok(Self::Messages(vec![message_of(column, 0, message)?]))
            }
            Cell::Json(Value::Array(messages)) => {
                let messages = messages.into_iter().enumerate();
                let messages = messages.map(|(index, value)| message_of(column, index, value));
                Ok(Self::Messages(messages.collect::<Parsed<_>>()?))
            }
            other => Err(RowProblem::Kind {
                column,
                expected: "a text or a list of messages",
                found: other.kind(),
            }),
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Messages(_) => "a list of messages",
        }
    }
}

fn is_message(value: &Value) -> bool {
    value.get("role").is_some() || value.get("from").is_some()
}

/// Checks a message: who speaks is a text, and what is said is a text, a list of parts, or null beside tool calls.
fn message_of(column: &'static str, index: usize, value: Value) -> Parsed<Message> {
    let problem = |what: String| RowProblem::Message { column, index, what };
    let Value::Object(mut keys) = value else {
        return Err(problem(format!("it is {}, not an object", kind(&value))));
    };
    if !keys.contains_key("role") && keys.contains_key("from") {
        keys = from_sharegpt(keys).map_err(problem)?;
    }
    match keys.get("role") {
        Some(Value::String(_)) => {}
        Some(other) => return Err(problem(format!("its `role` is {}, not a text", kind(other)))),
        None => return Err(problem("missing field `role`".to_owned())),
    }
    let calls = ["tool_calls", "function_call"].map(|key| keys.get(key));
    let calls = calls.into_iter().flatten().any(|calls| !calls.is_null() && *calls != json!([]));
    match keys.get("content") {
        Some(Value::String(_) | Value::Array(_)) => {}
        Some(Value::Null) | None if calls => {}
        Some(Value::Null) => {
            return Err(problem(
                "its `content` is null, which is legal beside `tool_calls` alone".to_owned(),
            ));
        }
        Some(other) => {
            return Err(problem(format!("its `content` is {}, not a text", kind(other))));
        }
        None => return Err(problem("missing field `content`".to_owned())),
    }
    Ok(Message::of_keys(keys))
}

/// `from` and `value` become `role` and `content`; the JSON of a function call becomes `tool_calls`. Other keys stay.
fn from_sharegpt(mut keys: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let Some(Value::String(from)) = keys.remove("from") else {
        return Err("its `from` isn't a text".to_owned());
    };
    let speaker = SPEAKERS.iter().find(|(speaker, _)| from.eq_ignore_ascii_case(speaker));
    let Some(&(speaker, role)) = speaker else {
        return Err(format!(
            "its `from` is {from:?}; human, gpt, system, function_call and observation are known"
        ));
    };
    let value = keys.remove("value").ok_or("missing field `value`")?;
    let mut message = Map::new();
    message.insert("role".to_owned(), role.into());
    if speaker.ends_with("_call") {
        let calls = value.as_str().and_then(|text| serde_json::from_str(text).ok());
        let calls = match calls {
            Some(Value::Array(calls)) => calls,
            Some(call @ Value::Object(_)) => vec![call],
            _ => {
                return Err(format!("its `value` isn't the JSON of a call, as {speaker} needs it"));
            }
        };
        let calls = calls.into_iter().map(|call| json!({"type": "function", "function": call}));
        message.insert("content".to_owned(), Value::Null);
        message.insert("tool_calls".to_owned(), calls.collect());
    } else {
        message.insert("content".to_owned(), value);
    }
    message.extend(keys);
    Ok(message)
}

/// What a template gets beside the messages: the row's `tools` and `chat_template_kwargs`.
pub(super) struct Beside {
    tools: Option<Value>,
    variables: Map<String, Value>,
}

impl Beside {
    /// Takes the columns out of a row. Both may be JSON in a text, as in sets whose rows have different tools.
    pub fn take(row: &mut Row) -> Parsed<Self> {
        let tools = match json_of(row, "tools")? {
            tools @ (None | Some(Value::Array(_))) => tools,
            Some(_) => return Err(RowProblem::NotJson { column: "tools", expected: "a list" }),
        };
        let column = "chat_template_kwargs";
        let variables = match json_of(row, column)? {
            None => Map::new(),
            Some(Value::Object(variables)) => variables,
            Some(_) => return Err(RowProblem::NotJson { column, expected: "an object" }),
        };
        Ok(Self { tools: tools.filter(|tools| *tools != json!([])), variables })
    }

    pub fn has_tools(&self) -> bool {
        self.tools.is_some()
    }

    /// A prompt with these.
    ///
    /// # Errors
    /// A text beside tools: as a text it may have been through a template already, and only messages can say that it hasn't.
    pub fn prompt(self, turns: Turns) -> Parsed<Prompt> {
        match turns {
            Turns::Text(_) if self.tools.is_some() => Err(RowProblem::ToolsBesideText),
            Turns::Text(text) => Ok(Prompt::Text(text)),
            Turns::Messages(messages) => {
                let Self { tools, variables } = self;
                Ok(Prompt::Messages(Conversation { messages, tools, variables }))
            }
        }
    }
}

fn json_of(row: &mut Row, column: &'static str) -> Parsed<Option<Value>> {
    match row.take(column) {
        None => Ok(None),
        Some(Cell::Json(Value::String(text))) if text.trim().is_empty() => Ok(None),
        Some(Cell::Json(Value::String(text))) => match serde_json::from_str(&text) {
            Ok(Value::Null) => Ok(None),
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(RowProblem::NotJson { column, expected: "JSON" }),
        },
        Some(Cell::Json(value)) => Ok(Some(value)),
        Some(other @ Cell::Other(_)) => {
            Err(RowProblem::Kind { column, expected: "JSON", found: other.kind() })
        }
    }
}
