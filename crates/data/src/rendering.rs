//! Prompt and response as one text: through the chat template, or as they are.

use crate::source::Prompt;
use crate::template::{ChatTemplate, TemplateChoice, TemplateError};
use crate::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};
use std::str::FromStr;

/// What goes through the chat template, and how a response ends.
///
/// | | a text prompt and its response | a list of messages and its response |
/// |---|---|---|
/// | `auto` | as `template` where the tokenizer has a chat template, as `none` where it has none; a prompt that already carries the template's special tokens is *left as it is* | as `template` |
/// | `template` | a user turn and an assistant turn, written by the template | turns, written by the template |
/// | `none` | joined as they are and ended by EOS: TRL's rule for plain text | exactly what the template writes: transformers' rule |
///
/// * Under `template`, a row ends where the response's turn ends (`<end_of_turn>`): a model that has ended its turn has nothing more
///   to learn, so white space behind it is left out. EOS is added where the template writes neither an end of turn nor EOS. A
///   response that brought its own end of turn doesn't get a second one.
/// * *Left as it is*: prompt and response are joined as under `none`, and EOS is added unless the response ends with EOS or an end of
///   turn. A prompt counts as carrying the template's special tokens if it begins with BOS, or if anywhere in it stands a special token
///   of the tokenizer (BOS aside) that the template writes around a user's or an assistant's turn.
/// * Message lists go through the template under all three. Where the tokenizer has no template they become HH-RLHF's
///   `\n\nHuman: …\n\nAssistant: …` and end with EOS; `template` is then an error.
/// * BOS stands in front once, also where the template or the text writes it.
/// * Texts without a response ([`crate::Preparer::tokenize_text`]) are no turns and never go through the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rendering {
    /// The chat template where there is one, except for prompts that already went through it.
    #[default]
    Auto,
    /// Always the chat template.
    Template,
    /// Texts as they are.
    None,
}

/// Every rendering, by name.
const RENDERINGS: [(&str, Rendering); 3] =
    [("auto", Rendering::Auto), ("template", Rendering::Template), ("none", Rendering::None)];

impl Display for Rendering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = RENDERINGS.iter().find(|(_, rendering)| rendering == self);
        f.pad(name.map_or("", |(name, _)| name))
    }
}

impl FromStr for Rendering {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = RENDERINGS.iter().find(|(name, _)| *name == text);
        found
            .map(|&(_, rendering)| rendering)
            .ok_or_else(|| format!("no rendering `{text}`; it is auto, template or none"))
    }
}

/// How a row became one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the chat template.
    Templated,
    /// As it was, because its prompt carries the template's special tokens.
    AlreadyTemplated,
    /// As it was.
    AsGiven,
}

/// How a row ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// With EOS or the end of a turn, once; EOS is added where there is neither.
    Turn,
    /// With EOS, which is added where it is missing.
    Eos,
    /// As the text does.
    AsWritten,
}

/// Prompt and response as one text.
pub(crate) struct Joined {
    pub text: String,
    /// Bytes of it that are the prompt.
    pub boundary: usize,
    pub end: End,
    pub way: Way,
}

/// Writes prompts and responses as texts, under one [`Rendering`].
#[derive(Debug, Clone)]
pub(crate) struct Renderer<'a> {
    template: &'a TemplateChoice,
    rendering: Rendering,
    /// BOS, if there is one.
    bos: Option<String>,
    /// The special tokens that the template writes around turns, BOS aside.
    markers: Vec<String>,
}

impl<'a> Renderer<'a> {
    pub fn new(tokenizer: &Tokenizer, template: &'a TemplateChoice, rendering: Rendering) -> Self {
        let bos = tokenizer.bos_id().and_then(|id| tokenizer.token(id));
        let markers = match template {
            TemplateChoice::Chat(chat) => tokenizer
                .special_tokens_in(&probe(chat))
                .into_iter()
                .filter(|token| Some(token) != bos.as_ref())
                .collect(),
            TemplateChoice::None => Vec::new(),
        };
        Self { template, rendering, bos, markers }
    }

    pub fn template(&self) -> &'a TemplateChoice {
        self.template
    }

    pub fn rendering(&self) -> Rendering {
        self.rendering
    }

    /// A prompt without its response, as generation begins with it.
    pub fn prompt(&self, prompt: &Prompt) -> Result<String, TemplateError> {
        match self.through(prompt) {
            Ok(chat) => chat.prompt_text(prompt),
            Err(_) => Ok(prompt.to_text()),
        }
    }

    pub fn join(&self, prompt: &Prompt, response: &str) -> Result<Joined, TemplateError> {
        let chat = match self.through(prompt) {
            Ok(chat) => chat,
            Err(way) => {
                let prompt = prompt.to_text();
                let boundary = prompt.len();
                let end = if way == Way::AlreadyTemplated { End::Turn } else { End::Eos };
                return Ok(Joined { text: prompt + response, boundary, end, way });
            }
        };
        let ((text, boundary), end) = match self.rendering {
            Rendering::None => (chat.rendered(prompt, response)?, End::AsWritten),
            _ => (chat.turn(prompt, response)?, End::Turn),
        };
        Ok(Joined { text, boundary, end, way: Way::Templated })
    }

    /// The template that a prompt goes through, or the way it takes instead.
    fn through(&self, prompt: &Prompt) -> Result<&'a ChatTemplate, Way> {
        let TemplateChoice::Chat(chat) = self.template else { return Err(Way::AsGiven) };
        match (prompt, self.rendering) {
            (Prompt::Text(_), Rendering::None) => Err(Way::AsGiven),
            (Prompt::Text(text), Rendering::Auto) if self.is_templated(text) => {
                Err(Way::AlreadyTemplated)
            }
            _ => Ok(chat),
        }
    }

    fn is_templated(&self, text: &str) -> bool {
        self.bos.as_ref().is_some_and(|bos| text.starts_with(bos))
            || self.markers.iter().any(|marker| text.contains(marker))
    }
}

/// What a template writes around a user's and an assistant's turn, as far as it lets itself be rendered: one that refuses these turns
/// refuses the data with a better message.
fn probe(chat: &ChatTemplate) -> String {
    let user = Prompt::Text("a".to_owned());
    let prompt = chat.prompt_text(&user).unwrap_or_default();
    prompt + &chat.full_text(&user, "b").unwrap_or_default()
}

#[cfg(test)]
mod tests;
