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
        // Bytes that follow one another are decoded together: one more may undo the characters of those before it.
        if self.tokenizer.token(id).is_some_and(|entry| is_byte(&entry)) {
            return Ok(String::new());
        }
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

/// Whether a vocabulary's entry is a single byte, such as `<0xE2>`, into which characters that the vocabulary lacks are split.
fn is_byte(entry: &str) -> bool {
    let hex = entry.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Oracle: decoding the whole at once, as transformers does.
    #[test]
    fn bytes_are_told_as_they_are_decoded_together() {
        let folder = tempfile::tempdir().unwrap();
        let entries = ["<eos>", "a", "<0xE2>", "<0x82>", "<0xAC>", "<0xFF>"];
        let vocab: serde_json::Map<_, _> = entries
            .iter()
            .enumerate()
            .map(|(id, entry)| ((*entry).to_owned(), json!(id)))
            .collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "vocab": vocab, "merges": []},
        });
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        // A whole character, then a byte that makes all four of them none.
        for ids in [&[1, 2, 3, 4, 1][..], &[1, 2, 3, 4, 5, 1], &[2, 3, 4, 5], &[5], &[2, 1, 3]] {
            let mut stream = tokenizer.text_stream();
            let told: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            let told = told + &stream.finish().unwrap();
            assert_eq!(told, tokenizer.decode(ids, true).unwrap(), "{ids:?}");
        }
    }
}
