//! Chat templates: Jinja, rendered the way Hugging Face renders it.

use crate::hash::hash_bytes;
use crate::source::{Message, Prompt};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, context};
use serde_json::Value;
use std::sync::Arc;

/// Limit on instructions per rendering: a template from an untrusted model folder must not run forever.
const FUEL: u64 = 20_000_000;
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
}

/// A chat template, or none.
#[derive(Debug, Clone)]
pub enum TemplateChoice {
    /// A chat template. A text prompt is one user message.
    Chat(ChatTemplate),
    /// Prompt and response are concatenated as they are. Messages become `\n\nHuman: …\n\nAssistant: …`, as in HH-RLHF.
    None,
}

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
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax(error.into()))?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.set_fuel(Some(FUEL));
        environment
            .add_template_owned(NAME, jinja.to_owned())
            .map_err(|error| TemplateError::Syntax(error.into()))?;
        Ok(Self {
            environment: Arc::new(environment),
            source: jinja.to_owned(),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
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

    /// Renders messages; `add_generation_prompt` appends the start of an assistant turn.
    ///
    /// # Errors
    /// What the template raises, for instance for an unknown role.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let message = |message: &Message| context! { role => message.role.as_str(), content => message.content.as_str() };
        let context = context! {
            messages => messages.iter().map(message).collect::<Vec<_>>(),
            add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            // Hugging Face passes None for these, and templates check for it.
            tools => (),
            documents => (),
        };
        let template = self.environment.get_template(NAME);
        template.and_then(|template| template.render(context)).map_err(|error| {
            TemplateError::Render {
                roles: messages
                    .iter()
                    .map(|message| message.role.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
                source: error.into(),
            }
        })
    }

    /// The text before a response: the prompt with the start of an assistant turn.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn prompt_text(&self, prompt: &Prompt) -> Result<String, TemplateError> {
        self.render(&prompt.to_messages(), true)
    }

    /// Prompt, response and the end of its turn; starts with [`Self::prompt_text`]. White space after the end of the turn is
    /// dropped: a model that has ended its turn has nothing more to learn.
    ///
    /// # Errors
    /// As [`Self::render`], or a template that rewrites the prompt once a response follows.
    pub fn full_text(&self, prompt: &Prompt, response: &str) -> Result<String, TemplateError> {
        Ok(self.turn(prompt, response)?.0)
    }

    /// [`Self::full_text`] and the length of the prompt in it, in bytes.
    ///
    /// # Errors
    /// As [`Self::full_text`].
    pub fn turn(&self, prompt: &Prompt, response: &str) -> Result<(String, usize), TemplateError> {
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
        response: &str,
    ) -> Result<(String, usize), TemplateError> {
        let mut messages = prompt.to_messages();
        let prompt_text = self.render(&messages, true)?;
        messages.push(Message { role: "assistant".to_owned(), content: response.to_owned() });
        let text = self.render(&messages, false)?;
        if !text.starts_with(&prompt_text) {
            let same = text.chars().zip(prompt_text.chars()).take_while(|(a, b)| a == b).count();
            let shared = text.chars().take(same).skip(same.saturating_sub(20)).collect();
            return Err(TemplateError::NotAPrefix { shared });
        }
        Ok((text, prompt_text.len()))
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
    /// Content hash (hex) for fingerprints; `"none"` without a template.
    pub fn hash(&self) -> String {
        match self {
            Self::Chat(chat) => hash_bytes(
                [&*chat.source, &*chat.bos_token, &*chat.eos_token].join("\0").as_bytes(),
            ),
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
            Self::None => Ok(prompt.to_text()),
        }
    }

    /// Prompt and response as one text; starts with [`Self::prompt_text`].
    ///
    /// # Errors
    /// As [`ChatTemplate::full_text`].
    pub fn full_text(&self, prompt: &Prompt, response: &str) -> Result<String, TemplateError> {
        match self {
            Self::Chat(chat) => chat.full_text(prompt, response),
            Self::None => Ok(prompt.to_text() + response),
        }
    }
}

/// A special token's text: in a configuration it is a string or `{"content": …}`.
pub(crate) fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn raise_exception(message: String) -> Result<minijinja::Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

#[cfg(test)]
mod tests;
