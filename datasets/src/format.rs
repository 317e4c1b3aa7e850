//! Answer formats: how answers are written in them and read back.
//!
//! A format is a language and a shape. Every shape has exactly one right spelling, except for the spacing of JSON and the bullet
//! character, and no text has two shapes: otherwise a program couldn't tell that an answer is in the wrong format.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::words::Language;

/// The format requested in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// No request: an English sentence.
    Plain,
    /// A JSON object with the single key `answer`.
    Json,
    /// A bullet list, one item per line.
    Bullets,
    /// Upper-case letters only.
    Upper,
    /// Lower-case letters only, without a full stop.
    Lower,
    /// In double quotes.
    Quoted,
    /// A French sentence.
    French,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 7] = [
        Self::Plain,
        Self::Json,
        Self::Bullets,
        Self::Upper,
        Self::Lower,
        Self::Quoted,
        Self::French,
    ];

    /// The language of a right answer.
    pub fn language(self) -> Language {
        match self {
            Self::French => Language::French,
            _ => Language::English,
        }
    }

    /// The shape of a right answer.
    pub fn shape(self) -> Shape {
        match self {
            Self::Plain | Self::French => Shape::Sentence,
            Self::Json => Shape::Json,
            Self::Bullets => Shape::Bullets,
            Self::Upper => Shape::Upper,
            Self::Lower => Shape::Lower,
            Self::Quoted => Shape::Quoted,
        }
    }
}

/// The layout of an answer's items, independent of the language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// `Red, blue.` One capital letter at the start, a full stop at the end.
    Sentence,
    /// `{"answer": "red"}`, or `{"answer": ["red", "blue"]}` for several items, with any spacing.
    Json,
    /// `- red`, one line per item. The bullet may be `-`, `*` or `•`.
    Bullets,
    /// `RED, BLUE`
    Upper,
    /// `red, blue`
    Lower,
    /// `"red, blue"`, with letters in any case.
    Quoted,
}

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 6] =
        [Self::Sentence, Self::Json, Self::Bullets, Self::Upper, Self::Lower, Self::Quoted];

    /// Writes lower-case `items` in this shape.
    pub fn render(self, items: &[String]) -> String {
        let list = items.join(", ");
        match self {
            Self::Sentence => format!("{}.", capitalized(&list)),
            Self::Json => match items {
                [item] => format!("{{\"answer\": {}}}", Value::from(item.as_str())),
                _ => {
                    let items: Vec<String> =
                        items.iter().map(|item| Value::from(item.as_str()).to_string()).collect();
                    format!("{{\"answer\": [{}]}}", items.join(", "))
                }
            },
            Self::Bullets => format!("- {}", items.join("\n- ")),
            Self::Upper => list.to_uppercase(),
            Self::Lower => list,
            Self::Quoted => format!("\"{list}\""),
        }
    }

    /// The items of `text` in lower case, if it has exactly this shape.
    pub fn parse(self, text: &str) -> Option<Vec<String>> {
        match self {
            Self::Sentence => {
                let list = text.strip_suffix('.')?;
                let mut letters = list.chars();
                let well_cased =
                    !letters.next()?.is_lowercase() && !letters.any(char::is_uppercase);
                well_cased.then(|| list_items(list))?
            }
            Self::Json => json_items(text),
            Self::Bullets => text.split('\n').map(bullet_item).collect(),
            Self::Upper => (!text.contains(char::is_lowercase)).then(|| list_items(text))?,
            Self::Lower => (!text.contains(char::is_uppercase)).then(|| list_items(text))?,
            Self::Quoted => list_items(text.strip_prefix('"')?.strip_suffix('"')?),
        }
    }

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sentence => "a sentence",
            Self::Json => "JSON",
            Self::Bullets => "a bullet list",
            Self::Upper => "upper case",
            Self::Lower => "lower case",
            Self::Quoted => "a quotation",
        }
    }
}

/// `text` with its first letter capitalised.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The items of `one, two words, three`.
fn list_items(text: &str) -> Option<Vec<String>> {
    text.split(", ").map(item).collect()
}

/// An item consists of words of letters and digits, separated by single spaces. Rejecting everything else keeps shapes apart.
fn item(text: &str) -> Option<String> {
    let is_word = |word: &str| !word.is_empty() && word.chars().all(char::is_alphanumeric);
    text.split(' ').all(is_word).then(|| text.to_lowercase())
}

fn bullet_item(line: &str) -> Option<String> {
    item(line.strip_prefix(['-', '*', '•'])?.strip_prefix(' ')?)
}

fn json_items(text: &str) -> Option<Vec<String>> {
    let Value::Object(object) = serde_json::from_str(text).ok()? else {
        return None;
    };
    // An object with more keys has another shape.
    if !object.keys().eq(["answer"]) {
        return None;
    }
    match object.get("answer")? {
        Value::String(one) => Some(vec![item(one)?]),
        Value::Array(several) if several.len() > 1 => {
            several.iter().map(|value| item(value.as_str()?)).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shape_reads_only_what_it_wrote() {
        for list in [vec!["red"], vec!["7 pièces"], vec!["red", "owl", "storm", "six"]] {
            let items: Vec<String> = list.into_iter().map(str::to_owned).collect();
            for written in Shape::ALL {
                let text = written.render(&items);
                for read in Shape::ALL {
                    let expected = (read == written).then(|| items.clone());
                    assert_eq!(
                        read.parse(&text),
                        expected,
                        "{written:?} {text:?} read as {read:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn awkward_texts() {
        let cases = [
            (Shape::Sentence, "Red, blue", None),
            (Shape::Sentence, "red, blue.", None),
            (Shape::Sentence, "Red, Blue.", None),
            (Shape::Sentence, ".", None),
            (Shape::Sentence, "", None),
            (Shape::Sentence, " Red.", None),
            (Shape::Sentence, "Red. Blue.", None),
            (Shape::Json, r#"{"answer":"Red"}"#, Some("red")),
            (Shape::Json, "{ \"answer\" :\n\"red\" }", Some("red")),
            (Shape::Json, r#"{"answer": "red", "why": "so"}"#, None),
            (Shape::Json, r#"{"Answer": "red"}"#, None),
            (Shape::Json, r#"{"answer": ["red"]}"#, None),
            (Shape::Json, r#"{"answer": ["red", 7]}"#, None),
            (Shape::Json, r#"{"answer": "red"} Done."#, None),
            (Shape::Json, r#"["red", "blue"]"#, None),
            (Shape::Bullets, "* red\n• blue", Some("red|blue")),
            (Shape::Bullets, "-red", None),
            (Shape::Bullets, "- red\n\n- blue", None),
            (Shape::Bullets, "- red, blue", None),
            (Shape::Upper, "RED, Blue", None),
            (Shape::Upper, "RED,BLUE", None),
            (Shape::Lower, "red,  blue", None),
            (Shape::Lower, "red, blue, ", None),
            (Shape::Quoted, "\"Red, blue\"", Some("red|blue")),
            (Shape::Quoted, "'red'", None),
            (Shape::Quoted, "\"", None),
            (Shape::Quoted, "\"\"", None),
        ];
        for (shape, text, expected) in cases {
            let items = shape.parse(text).map(|items| items.join("|"));
            assert_eq!(items.as_deref(), expected, "{shape:?} {text:?}");
        }
    }
}
