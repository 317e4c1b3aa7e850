//! Which turns of a conversation are learned.

use super::{End, Joined, Renderer, Way};
use crate::source::{Conversation, Message, Prompt, Response, SftExample};
use crate::template::{ChatTemplate, TemplateChoice, TemplateError, last_characters, shared};
use serde::{Deserialize, Serialize};

/// Which of the assistant's turns supervised fine-tuning teaches. Plain texts have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Turns {
    /// All of a conversation. Where the chat template marks them with `{% generation %}`, they are the tokens of transformers'
    /// `return_assistant_tokens_mask`, and rows are exactly what the template writes. Other templates are rendered up to each turn,
    /// which tells where it is; an assistant's greeting, which nothing precedes, is context then.
    All,
    /// The response alone.
    Last,
}

impl Turns {
    /// As a setting says, or by default.
    pub fn of(setting: Option<Self>, template: &TemplateChoice) -> Self {
        setting.unwrap_or(match template {
            TemplateChoice::Chat(chat) if chat.marks_generation() => Self::All,
            _ => Self::Last,
        })
    }
}

/// A conversation in two parts: what comes before the first of the assistant's turns that is learned, and the rest.
pub(crate) struct Split {
    pub prompt: Prompt,
    pub rest: Response,
}

impl Split {
    /// Of an example; `None` for a plain text.
    pub fn of(example: &SftExample) -> Option<Self> {
        let Prompt::Messages(conversation) = &example.prompt else { return None };
        let mut whole = conversation.clone().followed_by(&example.response);
        let first = whole.messages.iter().skip(1).position(is_assistant)? + 1;
        let rest = whole.messages.split_off(first);
        Some(Self { prompt: Prompt::Messages(whole), rest: Response::Messages(rest) })
    }
}

impl Renderer<'_> {
    /// Joins a prompt and the turns that follow it, of which the assistant's are learned.
    pub fn join_turns(&self, prompt: &Prompt, rest: &Response) -> Result<Joined, TemplateError> {
        match self.through(prompt) {
            Ok(chat) if chat.marks_generation() => {
                marked(chat, prompt.to_conversation().followed_by(rest))
            }
            _ => self.found(prompt, rest),
        }
    }

    /// The turns by rendering the conversation up to the end of each.
    fn found(&self, prompt: &Prompt, rest: &Response) -> Result<Joined, TemplateError> {
        let joined = self.join(prompt, rest)?;
        let first = prompt.to_messages().len();
        let whole = prompt.to_conversation().followed_by(rest);
        let turns = whole.messages.iter().enumerate().skip(first);
        let mut learned = Vec::new();
        for (index, turn) in turns.filter(|(_, turn)| is_assistant(turn)) {
            let messages = whole.messages[..index].to_vec();
            let before = Prompt::Messages(Conversation { messages, ..whole.clone() });
            let upto = self.join(&before, &Response::Messages(vec![turn.clone()]))?;
            if !joined.text.starts_with(&upto.text) {
                let shared = last_characters(shared(&joined.text, &upto.text));
                return Err(TemplateError::TurnDiffers { turn: index + 1, shared });
            }
            // A token across the boundary of the first turn is learned, however it is cut.
            let begin = if learned.is_empty() { 0 } else { upto.boundary };
            learned.push(begin..upto.text.len());
        }
        Ok(Joined { learned, ..joined })
    }
}

/// The turns as the template marks them, and the text exactly as it writes it.
fn marked(chat: &ChatTemplate, conversation: Conversation) -> Result<Joined, TemplateError> {
    let (text, ranges) = chat.render_marked(&conversation)?;
    let mut learned = ranges.ok_or(TemplateError::Marks)?;
    if learned.is_empty() {
        // Nothing to learn: a prompt without a response.
        learned.push(text.len()..text.len());
    }
    let boundary = learned[0].start;
    Ok(Joined { text, boundary, learned, end: End::AsWritten, way: Way::Templated })
}

fn is_assistant(message: &Message) -> bool {
    message.role() == "assistant"
}
