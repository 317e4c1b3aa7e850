//! HH-RLHF's dialogues: `\n\nHuman: …\n\nAssistant: …`, and prompts to and from that form.

use super::{Message, Prompt};

const ASSISTANT: &str = "\n\nAssistant:";
const SPEAKERS: [(&str, &str); 3] =
    [("\n\nHuman:", "user"), (ASSISTANT, "assistant"), ("\n\nSystem:", "system")];

impl Prompt {
    /// As a conversation: a text is one user message.
    pub fn to_messages(&self) -> Vec<Message> {
        match self {
            Self::Text(text) => vec![Message { role: "user".to_owned(), content: text.clone() }],
            Self::Messages(messages) => messages.clone(),
        }
    }

    /// As a text: messages become a dialogue in HH-RLHF's form that ends in `\n\nAssistant: `, where the response continues it.
    pub fn to_text(&self) -> String {
        let messages = match self {
            Self::Text(text) => return text.clone(),
            Self::Messages(messages) => messages,
        };
        let mut text = String::new();
        for message in messages {
            let speaker = SPEAKERS.iter().find(|(_, role)| *role == message.role);
            match speaker {
                Some((speaker, _)) => text += speaker,
                None => text.extend(["\n\n", &message.role, ":"]),
            }
            text.extend([" ", &message.content]);
        }
        text + ASSISTANT + " "
    }
}

/// Splits two dialogues into the prompt that they share and a response each.
///
/// Responses begin at the last `\n\nAssistant:` that both dialogues have in common and that follows a turn of the user's. In
/// well-formed pairs that is the last one of each; the few others (in harmless-base 5 of 2,312, where one dialogue goes on for longer)
/// keep their further turns inside the response.
pub(super) fn split_pair(chosen: &str, rejected: &str) -> Option<(Vec<Message>, [String; 2])> {
    let shared = chosen.bytes().zip(rejected.bytes()).take_while(|(a, b)| a == b).count();
    let shared = chosen.floor_char_boundary(shared);
    let mut end = shared;
    while let Some(split) = chosen[..end].rfind(ASSISTANT) {
        let messages = parse(&chosen[..split])?;
        if messages.last().is_some_and(|message| message.role == "user") {
            let response =
                |dialogue: &str| trim_one_space(&dialogue[split + ASSISTANT.len()..]).to_owned();
            return Some((messages, [response(chosen), response(rejected)]));
        }
        end = split;
    }
    None
}

/// Turns of a dialogue. Turns of the same speaker in a row become one message, for chat templates want them to alternate.
fn parse(dialogue: &str) -> Option<Vec<Message>> {
    let mut messages: Vec<Message> = Vec::new();
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
        match messages.last_mut().filter(|last| last.role == *role) {
            Some(last) => last.content.extend(["\n\n", content]),
            None => {
                messages.push(Message { role: (*role).to_owned(), content: content.to_owned() })
            }
        }
        rest = &rest[end..];
    }
    Some(messages)
}

/// The space behind `Human:` belongs to the form, any further one to the text.
fn trim_one_space(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}
