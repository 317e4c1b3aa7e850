//! What may be cut from a prompt that is too long: the content of its turns, oldest first, and never what is written around them.

use super::Renderer;
use crate::source::{Conversation, Message, Prompt};
use crate::template::TemplateChoice;
use std::ops::Range;

/// How a prompt can be made shorter.
pub(crate) struct Cuts {
    /// The parts of its text that may be cut, in bytes, in the order in which they are: the content of its first exchange, which is
    /// a user turn and what follows it up to the next one. In the last exchange, the content of turns before it too.
    pub content: Vec<Range<usize>>,
    /// The prompt without its first exchange, if there is another one.
    pub rest: Option<Prompt>,
}

impl Cuts {
    /// Of a text whose turns aren't known.
    fn anywhere(text: &str) -> Self {
        Self { content: std::iter::once(0..text.len()).collect(), rest: None }
    }
}

impl Renderer<'_> {
    /// Where a prompt that was rendered as `text` may be cut. A template that rewrites the content of messages hides where they are:
    /// its text may be cut anywhere.
    pub fn cuts(&self, prompt: &Prompt, text: &str) -> Cuts {
        let found = match (prompt, self.through(prompt)) {
            (Prompt::Text(given), Err(_)) if self.is_templated(given) => {
                self.cuts_of_templated(text)
            }
            (Prompt::Text(_), Err(_)) => None,
            _ => self.cuts_of_messages(prompt, text),
        };
        found.unwrap_or_else(|| Cuts::anywhere(text))
    }

    fn cuts_of_messages(&self, prompt: &Prompt, text: &str) -> Option<Cuts> {
        let messages = prompt.to_messages();
        let frames = self.frames(prompt)?;
        let mut contents = Vec::with_capacity(messages.len());
        let mut at = 0;
        for (message, around) in messages.iter().zip(frames.windows(2)) {
            at += text[at..].starts_with(&around[0]).then_some(around[0].len())?;
            let follows = |content: &&str| {
                let rest = text[at..].strip_prefix(content);
                rest.is_some_and(|rest| rest.starts_with(&around[1]))
            };
            // Templates write content as it is, or trimmed.
            let content = message.text();
            let content = [&*content, content.trim()].into_iter().find(follows)?;
            contents.push(at..at + content.len());
            at += content.len();
        }
        let mut users = (0..messages.len()).filter(|&i| messages[i].role() == "user");
        let (first, second) = (users.next().unwrap_or(0), users.next());
        Some(match second {
            Some(second) => Cuts {
                content: contents[first..second].to_vec(),
                rest: Some(with_messages(
                    prompt,
                    [&messages[..first], &messages[second..]].concat(),
                )),
            },
            None => {
                contents.rotate_left(first);
                Cuts { content: contents, rest: None }
            }
        })
    }

    /// See [`Renderer::turn`]. None if the template writes nothing on one of the sides.
    pub(super) fn around_a_turn(&self) -> Option<[String; 2]> {
        let TemplateChoice::Chat(_) = self.template else { return None };
        let user = Message::new("user", "");
        let frames = self.frames(&Prompt::Messages(vec![user].into()))?;
        let [before, after] = &frames[..] else { return None };
        let before = before.trim_start_matches(self.bos.as_deref().unwrap_or_default()).trim();
        let sides = [before.to_owned(), after.trim().to_owned()];
        sides.iter().all(|side| !side.is_empty()).then_some(sides)
    }

    /// What is written before, between and after the contents of a prompt's messages.
    fn frames(&self, prompt: &Prompt) -> Option<Vec<String>> {
        // From a private area of Unicode, so that no template takes them for anything.
        let mark = |index: usize| format!("\u{F8FF}{index}\u{F8FF}");
        let messages = prompt.to_messages();
        let count = messages.len();
        let marked = messages.into_iter().enumerate();
        let marked =
            marked.map(|(index, message)| message.with_content(mark(index).into())).collect();
        let text = self.prompt(&with_messages(prompt, marked)).ok()?;
        let (mut frames, mut rest) = (Vec::with_capacity(count + 1), text.as_str());
        for index in 0..count {
            let (frame, after) = rest.split_once(&mark(index))?;
            frames.push(frame.to_owned());
            rest = after;
        }
        frames.push(rest.to_owned());
        Some(frames)
    }

    /// The same of a text that already carries the template's turns: what the template writes around turns is looked for.
    fn cuts_of_templated(&self, text: &str) -> Option<Cuts> {
        let turns = ["user", "assistant", "user"];
        let turns = turns.map(|role| Message::new(role, ""));
        let frames = self.frames(&Prompt::Messages(turns.to_vec().into()))?;
        let [begin, answer, next, end] = &frames[..] else { return None };
        let begin = begin.trim_start_matches(self.bos.as_deref().unwrap_or_default());
        // The start of a user turn, without the end of the turn before it.
        let same = begin.bytes().rev().zip(next.bytes().rev()).take_while(|(a, b)| a == b).count();
        let opening = begin.get(begin.len() - same..).filter(|opening| !opening.is_empty())?;
        let first = text.find(opening)?;

        let frame_at = |at: usize| {
            let there = |frame: &&str| !frame.is_empty() && text[at..].starts_with(frame);
            let frames = [begin, opening, answer, next, end].into_iter();
            frames.filter(there).map(str::len).max()
        };
        let (mut content, mut at, mut since) = (Vec::new(), first, first);
        let mut second = None;
        while let Some(char) = text[at..].chars().next() {
            let Some(len) = frame_at(at) else {
                at += char.len_utf8();
                continue;
            };
            content.push(since..at);
            if at > first && text[at..at + len].ends_with(opening) {
                second = Some(at + len - opening.len());
                break;
            }
            at += len;
            since = at;
        }
        if second.is_none() {
            content.push(since..text.len());
        }
        let rest = second.map(|second| Prompt::Text([&text[..first], &text[second..]].concat()));
        Some(Cuts { content, rest })
    }
}

/// The same prompt with other messages.
fn with_messages(prompt: &Prompt, messages: Vec<Message>) -> Prompt {
    Prompt::Messages(Conversation { messages, ..prompt.to_conversation() })
}
