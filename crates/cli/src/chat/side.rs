//! A model with its own memory of the conversation.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use fpo_data::{Message, Prompt, Rendering, System, tokenizer::TextStream};
use fpo_transformer::{GenerationOptions, LanguageModel, Placement, Request};

use crate::{
    loaded::{Loaded, ModelFolder},
    sampling::Sampling,
    terminal::reporter,
};

pub struct Side {
    pub name: String,
    pub options: GenerationOptions,
    loaded: Loaded,
    /// User and assistant in turns.
    history: Vec<Message>,
}

impl Side {
    pub fn open(
        path: &Path,
        name: String,
        placement: &Placement,
        system: System,
        sampling: &Sampling,
        max_new_tokens: usize,
    ) -> Result<Self> {
        let folder = ModelFolder::open(path)?.with_system(system);
        let options = sampling.options(&folder, max_new_tokens)?;
        Ok(Self { name, options, loaded: folder.loaded(placement)?, history: Vec::new() })
    }

    pub fn model(&self) -> &LanguageModel {
        &self.loaded.model
    }

    pub fn text_stream(&self) -> TextStream<'_> {
        self.loaded.tokenizer.text_stream()
    }

    /// The conversation so far.
    pub fn messages(&self, system: Option<&str>) -> Vec<Message> {
        let system = system.map(|text| Message::new("system", text));
        system.into_iter().chain(self.history.iter().cloned()).collect()
    }

    pub fn reset(&mut self) {
        self.history.clear();
    }

    /// Adds a message, and returns what the model is asked: the whole conversation, or as much of its end as there is room for.
    pub fn ask(&mut self, text: &str, system: Option<&str>, stream: u64) -> Result<Request> {
        self.history.push(Message::new("user", text));
        let preparer = self.loaded.preparer(Rendering::Auto)?;
        let positions = self.loaded.config.max_position_embeddings;
        // Old turns make room for an answer of full length, but not for one that would leave no turn.
        let wanted = self.options.max_new_tokens.min(positions / 2);
        let mut dropped = 0;
        let prompt = loop {
            let prompt = Prompt::Messages(self.messages(system).into());
            let tokens = preparer.tokenize_prompt(&prompt).with_context(|| self.name.clone())?;
            if tokens.len() + wanted <= positions || self.history.len() == 1 {
                break tokens;
            }
            drop_oldest_turn(&mut self.history);
            dropped += 1;
        };
        if dropped > 0 {
            let text = format!(
                "{}: the conversation no longer fits into the model's {positions} positions; \
                 turns forgotten from its start: {dropped}",
                self.name
            );
            reporter().note("chat", text);
        }
        let left = positions.saturating_sub(prompt.len());
        ensure!(
            left > 0,
            "{}: the message has {} tokens with its template, too many for the model's {positions} positions; shorten it",
            self.name,
            prompt.len()
        );
        let max_new_tokens = self.options.max_new_tokens.min(left);
        Ok(Request { prompt, stream, max_new_tokens })
    }

    /// Forgets a message that wasn't answered.
    pub fn take_back(&mut self) {
        if self.history.last().is_some_and(|last| last.role() == "user") {
            self.history.pop();
        }
    }

    /// Remembers what it answered.
    pub fn hear_itself(&mut self, said: &[u32]) -> Result<()> {
        let text = self.loaded.tokenizer.decode(said, true)?;
        self.history.push(Message::new("assistant", text.trim()));
        Ok(())
    }
}

/// Forgets the first message and the answer to it.
fn drop_oldest_turn(history: &mut Vec<Message>) {
    let next = history.iter().skip(1).position(|message| message.role() == "user");
    history.drain(..next.map_or(0, |next| next + 1));
}
