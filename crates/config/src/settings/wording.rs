//! Messages about values, in words of the settings rather than of the program's types.

/// Words of the deserialiser and ours.
const WORDS: [(&str, &str); 12] = [
    ("a nonzero usize", "a whole number of at least 1"),
    ("a nonzero u64", "a whole number of at least 1"),
    ("expected usize", "expected a whole number"),
    ("expected u64", "expected a whole number"),
    ("expected u32", "expected a whole number"),
    ("expected f64", "expected a number"),
    ("expected f32", "expected a number"),
    ("expected a boolean", "expected true or false"),
    ("expected path string", "expected a path in quotes"),
    ("invalid type: ", "got "),
    ("invalid value: ", "got "),
    ("got string ", "got the text "),
];

/// The deserialiser's message in one line, without the names of types.
pub(super) fn readable(message: &str) -> String {
    let mut text = message.trim_end().replace('\n', ", ");
    for (theirs, ours) in WORDS {
        text = text.replace(theirs, ours);
    }
    while let Some(start) = text.find("struct ") {
        let end = text[start + 7..]
            .find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
            .map_or(text.len(), |length| start + 7 + length);
        text.replace_range(start..end, "a table of settings");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_not_named() {
        for (theirs, ours) in [
            (
                "invalid type: string \"x\", expected usize",
                "got the text \"x\", expected a whole number",
            ),
            (
                "invalid value: integer `0`, expected a nonzero usize",
                "got integer `0`, expected a whole number of at least 1",
            ),
            (
                "invalid type: integer `3`, expected struct LoraConfig\n",
                "got integer `3`, expected a table of settings",
            ),
            ("expected struct a::B\nin `x`\n", "expected a table of settings, in `x`"),
        ] {
            assert_eq!(readable(theirs), ours);
        }
    }
}
