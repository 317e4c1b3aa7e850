//! Text as its tokens come.

use super::{Tokenizer, TokenizerError};

/// What a decoder writes for bytes that aren't, or aren't yet, a character.
const REPLACEMENT: char = '\u{FFFD}';

/// Decodes an answer while it is being generated. A character whose bytes are spread over several tokens comes once it is whole.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Bytes of the text that were handed out.
    told: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), told: 0 }
    }

    /// The text that a further token makes certain; it may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, true)?;
        let certain = text.trim_end_matches(REPLACEMENT).len();
        Ok(self.tell(&text[..certain]))
    }

    /// What is left once no token follows.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode(&self.ids, true)?;
        Ok(self.tell(&text))
    }

    fn tell(&mut self, text: &str) -> String {
        let new = text.get(self.told..).unwrap_or_default().to_owned();
        self.told += new.len();
        new
    }
}
