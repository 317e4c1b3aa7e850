//! A single token as a person can read it.

use super::Tokenizer;

impl Tokenizer {
    /// The text of a token. Bytes that are only a part of a character are written as `\xE2`, not as the replacement character, which is
    /// the same for all of them.
    pub fn show(&self, id: u32) -> String {
        let text = self.decode(&[id], false).unwrap_or_default();
        if !text.is_empty() && !text.contains('\u{FFFD}') {
            return text;
        }
        let Some(entry) = self.token(id) else { return text };
        match bytes_of(&entry) {
            Some(bytes) => readable(&bytes),
            None if text.is_empty() => entry,
            None => text,
        }
    }
}

/// The bytes of a vocabulary's entry: `<0xE2>` where bytes are a fallback, or an alphabet in which each character stands for a byte.
fn bytes_of(entry: &str) -> Option<Vec<u8>> {
    if let Some(hex) = entry.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
        return u8::from_str_radix(hex, 16).ok().map(|byte| vec![byte]);
    }
    entry.chars().map(byte_of).collect()
}

/// GPT-2's alphabet: printable bytes of Latin-1 stand for themselves, all others follow from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => {
            let mut others = (0..=255).filter(|&byte| !printable(byte));
            others.nth(usize::try_from(code - 0x100).ok()?)
        }
    }
}

/// Characters as they are, and what is none as `\xE2`.
fn readable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02X}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle: UTF-8 and GPT-2's `bytes_to_unicode`, by hand: `Ġ` is the space, `â` 0xE2, `Ģ` 0x80.
    #[test]
    fn parts_of_characters_are_told_apart() {
        for (entry, expected) in [
            ("<0xE2>", r"\xE2"),
            ("<0x41>", "A"),
            ("âĢ", r"\xE2\x80"),
            ("Ġthe", " the"),
            ("Ġâ", r" \xE2"),
            ("Ċ", "\n"),
        ] {
            assert_eq!(bytes_of(entry).map(|bytes| readable(&bytes)).as_deref(), Some(expected));
        }
        assert_eq!(bytes_of("漢字"), None);
        let all: Vec<u8> = (0..0x180).filter_map(|code| byte_of(char::from_u32(code)?)).collect();
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>(), "each byte has one character");
    }
}
