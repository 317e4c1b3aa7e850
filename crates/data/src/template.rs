//! Chat templates: Jinja, rendered the way Hugging Face renders it.

mod generation;
mod python;
mod system;

pub use system::System;

use crate::hash::hash_bytes;
use crate::source::{self, Conversation, Message, Prompt, Response};
use minijinja::Environment;
use serde_json::{Map, Value};
use std::ops::Range;
use std::sync::Arc;

const NAME: &str = "chat_template";

/// The built-in template: Gemma's turns (`<start_of_turn>user\n…<end_of_turn>\n`), roles in any order.
pub const PLAIN: &str = "\
{{ bos_token }}{% for message in messages %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' + message['content'] | trim \
+ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}";

/// Why a chat template can't be read or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The tokenizer configuration isn't a JSON object.
    #[error("tokenizer_config.json isn't a JSON object")]
    Config(#[source] serde_json::Error),
    /// `chat_template` is neither a string nor a list with a template named `default`.
    #[error(
        "tokenizer_config.json: `chat_template` is neither a text nor a list of {{name, template}} with the name `default`"
    )]
    Shape,
    /// The template isn't Jinja.
    #[error("the chat template isn't valid Jinja")]
    Syntax(#[source] Box<minijinja::Error>),
    /// The template failed, or rejected the messages.
    #[error("the chat template rejected a conversation with the roles [{roles}]")]
    Render {
        /// Roles of the messages.
        roles: String,
        /// The template's error.
        source: Box<minijinja::Error>,
    },
    /// A system message that the template takes no turn of.
    #[error(
        "the chat template has no system turn, and the conversation begins with one; \
         to make it the beginning of the first user turn, set data.system = \"fold\" (--system fold)"
    )]
    System {
        /// The template's error.
        source: Box<minijinja::Error>,
    },
    /// Two responses that differ in something that the template leaves out.
    #[error(
        "the chat template writes both responses alike, because it leaves out `{key}`; use a template that writes it, or remove the row"
    )]
    Alike {
        /// The key of a message.
        key: &'static str,
    },
    /// What the model said beside its text, without a template that could write it.
    #[error("a message has `{key}`, which only a chat template can write; the tokenizer has none")]
    NeedsTemplate {
        /// The key of the message.
        key: &'static str,
    },
    /// A turn that is written differently once others follow, so where it is in the whole conversation is unknown.
    #[error(
        "the chat template writes turn {turn} differently once later turns follow (they differ after {shared:?}), so the assistant's \
         turns can't be told apart; use a template that marks them with {{% generation %}}, or set sft.turns = \"last\""
    )]
    TurnDiffers {
        /// The turn, counted from 1.
        turn: usize,
        /// The last characters that both share.
        shared: String,
    },
    /// A template that changes what it has marked.
    #[error(
        "the chat template changes the text between {{% generation %}} and {{% endgeneration %}} after it has marked it, so the \
         assistant's turns can't be told apart; correct the template, or set sft.turns = \"last\""
    )]
    Marks,
    /// The text with the response doesn't start with the text of the prompt, so the start of the response is unknown.
    #[error(
        "the chat template writes a prompt differently once a response follows (they differ after {shared:?}); \
         use a template whose generation prompt is the start of an assistant turn"
    )]
    NotAPrefix {
        /// The last characters that both share.
        shared: String,
    },
}

/// A chat template with the special tokens it may write.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: String,
    bos_token: String,
    eos_token: String,
    marks_generation: bool,
    system: System,
}

/// A chat template, or none.
#[derive(Debug, Clone)]
pub enum TemplateChoice {
    /// A chat template. A text prompt is one user message.
    Chat(ChatTemplate),
    /// Prompt and response are concatenated as they are. Messages become `\n\nHuman: …\n\nAssistant: …`, as in HH-RLHF.
    None,
}

/// A rendered text, and which of its bytes the assistant wrote, if the template marks them.
pub type Marked = (String, Option<Vec<Range<usize>>>);

impl ChatTemplate {
    /// The built-in template [`PLAIN`], for models without one.
    ///
    /// # Errors
    /// None in practice: the template is a constant.
    pub fn plain(bos_token: &str) -> Result<Self, TemplateError> {
        Self::from_source(PLAIN, bos_token, "")
    }

    /// Compiles a template from its Jinja source and the special tokens it may write.
    ///
    /// # Errors
    /// Invalid Jinja.
    pub fn from_source(
        jinja: &str,
        bos_token: &str,
        eos_token: &str,
    ) -> Result<Self, TemplateError> {
        let syntax = |error: minijinja::Error| TemplateError::Syntax(error.into());
        let mut environment = python::environment().map_err(syntax)?;
        // Jinja reads every kind of line end as `\n`.
        let lines = jinja.replace("\r\n", "\n").replace('\r', "\n");
        let (rewritten, marks_generation) = generation::with_filter_blocks(&lines);
        generation::add_filter(&mut environment);
        environment.add_template_owned(NAME, rewritten).map_err(syntax)?;
        Ok(Self {
            environment: Arc::new(environment),
            source: jinja.to_owned(),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            marks_generation,
            system: System::Keep,
        })
    }

    /// The template in the JSON text of a `tokenizer_config.json`; `None` if it has none.
    ///
    /// # Errors
    /// Not a JSON object, a `chat_template` of an unknown shape, or invalid Jinja.
    pub fn from_tokenizer_config(json: &str) -> Result<Option<Self>, TemplateError> {
        let config: serde_json::Map<String, Value> =
            serde_json::from_str(json).map_err(TemplateError::Config)?;
        let jinja = match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(jinja)) => jinja,
            Some(Value::Array(named)) => named
                .iter()
                .find(|entry| entry["name"] == "default")
                .and_then(|entry| entry["template"].as_str())
                .ok_or(TemplateError::Shape)?,
            Some(_) => return Err(TemplateError::Shape),
        };
        let token = |key| config.get(key).and_then(token_text).unwrap_or_default();
        Self::from_source(jinja, token("bos_token"), token("eos_token")).map(Some)
    }

    /// Whether it marks what the assistant wrote, with `{% generation %}`.
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Renders a conversation; `add_generation_prompt` appends the start of an assistant turn.
    ///
    /// # Errors
    /// What the template raises, for instance for an unknown role.
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let context = self.context(conversation, add_generation_prompt);
        render(&self.environment, &context).map_err(|error| self.refusal(conversation, error))
    }

    /// Renders a conversation, and tells which bytes of the text the assistant wrote, as the template marks them; `None` if it
    /// doesn't mark them.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_marked(&self, conversation: &Conversation) -> Result<Marked, TemplateError> {
        let text = self.render(conversation, false)?;
        if !self.marks_generation {
            return Ok((text, None));
        }
        let context = self.context(conversation, false);
        let marked = generation::marked(&self.environment, &text, |env| render(env, &context));
        let ranges = marked.map_err(|error| self.refusal(conversation, error))?;
        Ok((text, ranges))
    }

    fn context(&self, conversation: &Conversation, add_generation_prompt: bool) -> Value {
        let mut messages = conversation.messages.clone();
        if self.system == System::Fold {
            messages = system::folded(messages);
        }
        let messages = messages.iter().map(for_template).collect();
        // Hugging Face passes None for tools and documents, and templates check for it.
        let tools = conversation.tools.clone().unwrap_or(Value::Null);
        let mut context = Map::from_iter([
            ("bos_token".to_owned(), Value::from(&*self.bos_token)),
            ("eos_token".to_owned(), Value::from(&*self.eos_token)),
            ("documents".to_owned(), Value::Null),
        ]);
        context.extend(conversation.variables.clone());
        context.insert("messages".to_owned(), messages);
        context.insert("tools".to_owned(), tools);
        context.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        Value::Object(context)
    }

    /// Why a conversation can't be rendered.
    fn refusal(&self, conversation: &Conversation, error: minijinja::Error) -> TemplateError {
        let source = Box::new(error);
        if conversation.messages.first().is_some_and(|first| first.role() == "system") {
            let mut without = conversation.clone();
            without.messages = system::folded(without.messages);
            if render(&self.environment, &self.context(&without, true)).is_ok() {
                return TemplateError::System { source };
            }
        }
        let roles: Vec<&str> = conversation.messages.iter().map(Message::role).collect();
        TemplateError::Render { roles: roles.join(", "), source }
    }

    /// The text before a response: the prompt with the start of an assistant turn.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn prompt_text(&self, prompt: &Prompt) -> Result<String, TemplateError> {
        self.render(&prompt.to_conversation(), true)
    }

    /// Prompt, response and the end of its turn; starts with [`Self::prompt_text`]. White space after the end of the turn is
    /// dropped: a model that has ended its turn has nothing more to learn.
    ///
    /// # Errors
    /// As [`Self::render`], or a template that rewrites the prompt once a response follows.
    pub fn full_text(&self, prompt: &Prompt, response: &Response) -> Result<String, TemplateError> {
        Ok(self.turn(prompt, response)?.0)
    }

    /// [`Self::full_text`] and the length of the prompt in it, in bytes.
    ///
    /// # Errors
    /// As [`Self::full_text`].
    pub fn turn(
        &self,
        prompt: &Prompt,
        response: &Response,
    ) -> Result<(String, usize), TemplateError> {
        let (mut text, boundary) = self.rendered(prompt, response)?;
        text.truncate(text.trim_end().len().max(boundary));
        Ok((text, boundary))
    }

    /// Prompt and response exactly as the template writes them, and the length of the prompt in bytes.
    ///
    /// # Errors
    /// As [`Self::full_text`].
    pub fn rendered(
        &self,
        prompt: &Prompt,
        response: &Response,
    ) -> Result<(String, usize), TemplateError> {
        let conversation = prompt.to_conversation();
        let prompt_text = self.render(&conversation, true)?;
        let text = self.render(&conversation.followed_by(response), false)?;
        if text.starts_with(&prompt_text) {
            return Ok((text, prompt_text.len()));
        }
        let shared = shared(&text, &prompt_text);
        if response.begins_with_assistant() {
            return Err(TemplateError::NotAPrefix { shared: last_characters(shared) });
        }
        // The prompt's last turn is followed by another one than the assistant's; as in TRL, the prompt is what both texts share.
        let boundary = shared.len();
        Ok((text, boundary))
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// `None` becomes [`TemplateChoice::None`].
impl From<Option<ChatTemplate>> for TemplateChoice {
    fn from(template: Option<ChatTemplate>) -> Self {
        template.map_or(Self::None, Self::Chat)
    }
}

impl TemplateChoice {
    /// The same template, with system messages treated like this.
    #[must_use]
    pub fn with_system(self, system: System) -> Self {
        match self {
            Self::Chat(chat) => Self::Chat(ChatTemplate { system, ..chat }),
            Self::None => Self::None,
        }
    }

    /// Content hash (hex) for fingerprints; `"none"` without a template.
    pub fn hash(&self) -> String {
        match self {
            Self::Chat(chat) => {
                let mut parts = vec![&*chat.source, &*chat.bos_token, &*chat.eos_token];
                if chat.system == System::Fold {
                    parts.push("system: fold");
                }
                hash_bytes(parts.join("\0").as_bytes())
            }
            Self::None => "none".to_owned(),
        }
    }

    /// The text before a response: the prompt with the start of an assistant turn.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn prompt_text(&self, prompt: &Prompt) -> Result<String, TemplateError> {
        match self {
            Self::Chat(chat) => chat.prompt_text(prompt),
            Self::None => Ok(without_template(prompt, &Response::Messages(Vec::new()))?.0),
        }
    }

    /// Prompt and response as one text; starts with [`Self::prompt_text`].
    ///
    /// # Errors
    /// As [`ChatTemplate::full_text`].
    pub fn full_text(&self, prompt: &Prompt, response: &Response) -> Result<String, TemplateError> {
        match self {
            Self::Chat(chat) => chat.full_text(prompt, response),
            Self::None => Ok(without_template(prompt, response)?.0),
        }
    }
}

/// What two texts begin with.
pub(crate) fn shared<'a>(text: &'a str, other: &str) -> &'a str {
    let same = text.chars().zip(other.chars()).take_while(|(a, b)| a == b);
    &text[..same.map(|(char, _)| char.len_utf8()).sum()]
}

/// The end of a text, for messages.
pub(crate) fn last_characters(text: &str) -> String {
    let skipped = text.chars().count().saturating_sub(20);
    text.chars().skip(skipped).collect()
}

/// A special token's text: in a configuration it is a string or `{"content": …}`.
pub(crate) fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// Prompt and response as one text without a template, and the length of the prompt in it, in bytes.
///
/// # Errors
/// Messages with more than a text can hold, such as tool calls.
pub(crate) fn without_template(
    prompt: &Prompt,
    response: &Response,
) -> Result<(String, usize), TemplateError> {
    let (messages, tools) = match prompt {
        Prompt::Text(_) => (&[][..], None),
        Prompt::Messages(conversation) => (&conversation.messages[..], conversation.tools.as_ref()),
    };
    let answers = match response {
        Response::Text(_) => &[][..],
        Response::Messages(messages) => &messages[..],
    };
    let beyond = messages.iter().chain(answers).find_map(Message::beyond_text);
    match beyond.or(tools.map(|_| "tools")) {
        Some(key) => Err(TemplateError::NeedsTemplate { key }),
        None => Ok(source::joined(prompt, response)),
    }
}

fn render(environment: &Environment<'_>, context: &Value) -> Result<String, minijinja::Error> {
    environment.get_template(NAME)?.render(minijinja::value::Serde(context))
}

/// A message as transformers hands it to a template: without keys that are null, and with the model's reasoning under all the names
/// that templates read.
fn for_template(message: &Message) -> Value {
    let keys = || message.keys().iter().filter(|(_, value)| !value.is_null());
    let reasoning = ["reasoning_content", "thinking", "reasoning"];
    let reasoning =
        reasoning.into_iter().find_map(|key| message.keys().get(key).filter(|v| !v.is_null()));
    let mut named = Map::new();
    if let Some(reasoning) = reasoning {
        named.insert("thinking".to_owned(), reasoning.clone());
    }
    named.extend(keys().map(|(key, value)| (key.clone(), value.clone())));
    if let Some(reasoning) = reasoning {
        named.insert("reasoning_content".to_owned(), reasoning.clone());
    }
    Value::Object(named)
}

#[cfg(test)]
mod tests;
