//! Rendering: how a prompt and a response become one text.

mod frame;
mod turns;

pub(crate) use frame::Cuts;
pub(crate) use turns::Split;
pub use turns::Turns;

use crate::source::{Prompt, Response};
use crate::template::{ChatTemplate, TemplateChoice, TemplateError, without_template};
use crate::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};
use std::ops::Range;
use std::str::FromStr;

/// What is rendered with the chat template, and how a response ends.
///
/// * `template`: a text prompt becomes a user turn and its response the assistant turn, rendered with the chat template.
/// * `none`: a text prompt and its response are concatenated as they are and ended by EOS, as in TRL.
/// * `auto`: like `template` if the tokenizer has a chat template and like `none` if not, except that a prompt that already
///   contains the template's special tokens is left as it is.
///
/// Message lists are rendered with the chat template under all three: `none` keeps exactly what the template writes, as
/// transformers does; the others end the row as described below. Without a template, message lists become dialogues as in HH-RLHF
/// (`\n\nHuman: …\n\nAssistant: …`) and end with EOS; `template` is then an error.
///
/// In detail:
/// * Where the template is used under `template` or `auto`, a row ends with the end of the response's turn (`<end_of_turn>`). White
///   space after it is dropped: a model that has ended its turn has nothing more to learn. If the template writes neither an end of
///   turn nor EOS, EOS is added. A response that already ends its turn doesn't get a second end of turn.
/// * *Left as it is*: prompt and response are concatenated as under `none`, and EOS is added unless the response ends with EOS or
///   an end of turn. This applies to prompts that start with BOS, that contain any other special token of the tokenizer which the
///   template writes around a user or assistant turn, or that begin and end as the template's own prompt of one user turn does.
/// * Every row starts with exactly one BOS, whether or not the template or the text writes it.
/// * Texts without a response ([`crate::Preparer::tokenize_text`]) are never rendered with the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rendering {
    /// With the chat template if there is one, except for prompts that already contain its special tokens.
    #[default]
    Auto,
    /// Always with the chat template.
    Template,
    /// Texts as they are; only message lists are rendered with the template.
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
            .ok_or_else(|| format!("no rendering `{text}`; choose auto, template or none"))
    }
}

/// How a row became one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Rendered with the chat template.
    Templated,
    /// Left as it was, because its prompt already contains the template's special tokens.
    AlreadyTemplated,
    /// Concatenated as it was.
    AsGiven,
}

/// How a row ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// With one EOS or end of turn; EOS is added if there is neither.
    Turn,
    /// With EOS, which is added if missing.
    Eos,
    /// As the text does.
    AsWritten,
}

/// Prompt and response as one text.
pub(crate) struct Joined {
    pub text: String,
    /// Length of the prompt, in bytes.
    pub boundary: usize,
    /// What is learned of the rest, in bytes; all of it if empty.
    pub learned: Vec<Range<usize>>,
    pub end: End,
    pub way: Way,
}

/// Joins prompts and responses under a [`Rendering`].
#[derive(Debug, Clone)]
pub(crate) struct Renderer<'a> {
    template: &'a TemplateChoice,
    rendering: Rendering,
    /// BOS, if the tokenizer has one.
    bos: Option<String>,
    /// Special tokens that the template writes around turns, except BOS.
    markers: Vec<String>,
    /// What the template writes before and after a user turn that awaits its response, without white space at its ends; for
    /// templates that write no special tokens.
    turn: Option<[String; 2]>,
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
        let mut renderer = Self { template, rendering, bos, markers, turn: None };
        renderer.turn = renderer.around_a_turn();
        renderer
    }

    pub fn template(&self) -> &'a TemplateChoice {
        self.template
    }

    pub fn rendering(&self) -> Rendering {
        self.rendering
    }

    /// The text of a prompt alone, from which generation starts.
    pub fn prompt(&self, prompt: &Prompt) -> Result<String, TemplateError> {
        match self.through(prompt) {
            Ok(chat) => chat.prompt_text(prompt),
            Err(_) => TemplateChoice::None.prompt_text(prompt),
        }
    }

    pub fn join(&self, prompt: &Prompt, response: &Response) -> Result<Joined, TemplateError> {
        let chat = match self.through(prompt) {
            Ok(chat) => chat,
            Err(way) => {
                let (text, boundary) = without_template(prompt, response)?;
                let end = if way == Way::AlreadyTemplated { End::Turn } else { End::Eos };
                return Ok(Joined { text, boundary, learned: Vec::new(), end, way });
            }
        };
        let ((text, boundary), end) = match self.rendering {
            Rendering::None => (chat.rendered(prompt, response)?, End::AsWritten),
            _ => (chat.turn(prompt, response)?, End::Turn),
        };
        Ok(Joined { text, boundary, learned: Vec::new(), end, way: Way::Templated })
    }

    /// The template to render a prompt with, or what is done instead.
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
            || self.turn.as_ref().is_some_and(|[before, after]| {
                let text = text.trim();
                text.len() >= before.len() + after.len()
                    && text.starts_with(before)
                    && text.ends_with(after)
            })
    }
}

/// What a template writes around a user and an assistant turn. Errors are ignored: a template that rejects these turns will reject
/// the data too, with a better message.
fn probe(chat: &ChatTemplate) -> String {
    let user = Prompt::Text("a".to_owned());
    let prompt = chat.prompt_text(&user).unwrap_or_default();
    prompt + &chat.full_text(&user, &"b".into()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
