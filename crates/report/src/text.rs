//! Makes hidden characters in untrusted text visible.

/// Replaces characters that are invisible or change the direction of text by escapes such as `\u{202e}`.
///
/// Newlines and tabs are kept; [`visible_inline`] replaces them too.
pub fn visible(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '\n' | '\t' => out.push(c),
            // Controls, zero-width characters, line separators, and direction marks.
            '\0'..='\x1f'
            | '\x7f'..='\u{9f}'
            | '\u{ad}'
            | '\u{200b}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' => out.extend(c.escape_unicode()),
            _ => out.push(c),
        }
        out
    })
}

/// Like [`visible`], with `↵` and `⇥` for newlines and tabs, for text on a single line.
pub fn visible_inline(text: &str) -> String {
    visible(text).replace('\n', "↵").replace('\t', "⇥")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_escaped() {
        let cases = [
            ("plain text", "plain text"),
            ("a\nb\tc", "a↵b⇥c"),
            ("\0\x1b[31m\x7f", r"\u{0}\u{1b}[31m\u{7f}"),
            ("abc\u{202e}fed", "abc\\u{202e}fed"),
            ("\u{feff}x\u{200b}", "\\u{feff}x\\u{200b}"),
            ("naïve 漢字 👩\u{200d}🔬", "naïve 漢字 👩\u{200d}🔬"),
        ];
        for (text, expected) in cases {
            assert_eq!(visible_inline(text), expected);
        }
        assert_eq!(visible("a\r\nb"), "a\\u{d}\nb");
    }
}
