//! Dialogues as in HH-RLHF, `\n\nHuman: …\n\nAssistant: …`, and the conversion of prompts to and from them.

use super::{Message, Prompt, Response};
use std::borrow::Cow;

const ASSISTANT: &str = "\n\nAssistant:";
const SPEAKERS: [(&str, &str); 3] =
    [("\n\nHuman:", "user"), (ASSISTANT, "assistant"), ("\n\nSystem:", "system")];

impl Prompt {
    /// As a text: messages become a dialogue as in HH-RLHF, ending with `\n\nAssistant: ` for the response to continue.
    pub fn to_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Messages(conversation) => turns(&conversation.messages) + ASSISTANT + " ",
        }
    }
}

impl Response {
    /// As a text: of several messages, the ones after the first are turns as in HH-RLHF.
    pub fn to_text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Messages(messages) => match messages.split_first() {
                Some((first, rest)) if self.begins_with_assistant() => {
                    (first.text().into_owned() + &turns(rest)).into()
                }
                _ => turns(messages).into(),
            },
        }
    }
}

/// A prompt and its response as one text, and the length of the prompt in it, in bytes.
pub(crate) fn joined(prompt: &Prompt, response: &Response) -> (String, usize) {
    let before = match prompt {
        Prompt::Messages(conversation) if !response.begins_with_assistant() => {
            turns(&conversation.messages)
        }
        _ => prompt.to_text(),
    };
    let boundary = before.len();
    (before + &response.to_text(), boundary)
}

/// Messages as a dialogue.
fn turns(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        let speaker = SPEAKERS.iter().find(|(_, role)| *role == message.role());
        match speaker {
            Some((speaker, _)) => text += speaker,
            None => text.extend(["\n\n", message.role(), ":"]),
        }
        text.extend([" ", &message.text()]);
    }
    text
}

/// Splits two dialogues into their common prompt and one response each.
///
/// Responses start at the last common `\n\nAssistant:` that follows a user turn. In well-formed pairs that is the last one of each
/// dialogue; in the few others (5 of 2,312 in harmless-base, where one dialogue is longer) the extra turns stay in the response.
pub(super) fn split_pair(chosen: &str, rejected: &str) -> Option<(Vec<Message>, [String; 2])> {
    let shared = chosen.bytes().zip(rejected.bytes()).take_while(|(a, b)| a == b).count();
    let shared = chosen.floor_char_boundary(shared);
    let mut end = shared;
    while let Some(split) = chosen[..end].rfind(ASSISTANT) {
        let messages = parse(&chosen[..split])?;
        if messages.last().is_some_and(|message| message.role() == "user") {
            let response =
                |dialogue: &str| trim_one_space(&dialogue[split + ASSISTANT.len()..]).to_owned();
            return Some((messages, [response(chosen), response(rejected)]));
        }
        end = split;
    }
    None
}

/// The turns of a dialogue. Consecutive turns of the same speaker become one message, because chat templates expect roles to
/// alternate.
fn parse(dialogue: &str) -> Option<Vec<Message>> {
    let mut turns: Vec<(&str, String)> = Vec::new();
    let mut rest = dialogue;
    while !rest.is_empty() {
        let (speaker, role) = SPEAKERS.iter().find(|(speaker, _)| rest.starts_with(speaker))?;
        rest = &rest[speaker.len()..];
        let end = SPEAKERS
            .iter()
            .filter_map(|(speaker, _)| rest.find(speaker))
            .min()
            .unwrap_or(rest.len());
        let content = trim_one_space(&rest[..end]);
        match turns.last_mut().filter(|(last, _)| last == role) {
            Some((_, last)) => last.extend(["\n\n", content]),
            None => turns.push((role, content.to_owned())),
        }
        rest = &rest[end..];
    }
    Some(turns.into_iter().map(|(role, content)| Message::new(role, content)).collect())
}

/// The space after `Human:` belongs to the format, any further one to the text.
fn trim_one_space(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}
