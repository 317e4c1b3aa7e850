//! Streaming decoding.

use super::{Tokenizer, TokenizerError};

/// What decoders write for bytes that aren't (yet) a character.
const REPLACEMENT: char = '\u{FFFD}';

/// Decodes an answer while it is being generated. A character spread over several tokens is returned once it is complete.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Bytes of the text returned so far.
    told: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), told: 0 }
    }

    /// Adds a token and returns the text that is now complete, which may be empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, true)?;
        let certain = text.trim_end_matches(REPLACEMENT).len();
        Ok(self.tell(&text[..certain]))
    }

    /// Ends the stream and returns the remaining text.
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
