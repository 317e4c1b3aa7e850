//! Markdown in an answer, counted as Arena-Hard counts it for its style control.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

/// What Python's `\s` matches beside Unicode's white space.
const SPACE: &str = r"[\s\x1c-\x1f]";

static CODE: LazyLock<Regex> = LazyLock::new(|| regex("```([^`]*)```"));
static HEADERS: LazyLock<[Regex; 6]> =
    LazyLock::new(|| [1, 2, 3, 4, 5, 6].map(|level| regex(&format!("(?m)^#{{{level}}}{SPACE}"))));
static ORDERED: LazyLock<Regex> = LazyLock::new(|| regex(&format!(r"(?m)^{SPACE}*\d+\.{SPACE}")));
static UNORDERED: LazyLock<Regex> = LazyLock::new(|| regex(&format!(r"(?m)^{SPACE}*[-*+]{SPACE}")));
static STARS: LazyLock<Regex> = LazyLock::new(|| regex(r"\*\*[^*\n]+\*\*"));
static UNDERSCORES: LazyLock<Regex> = LazyLock::new(|| regex(r"__[^_\n]+__"));

/// The `metadata` of an answer in Arena-Hard's file: its length in tokens, and its headers, items of lists and bold texts outside
/// of code. As in Arena-Hard's code (`utils/add_markdown_info.py`), whatever stands between two fences is taken out wherever it
/// occurs.
pub fn counts(answer: &str, tokens: usize) -> Value {
    let mut text = answer.to_owned();
    for block in CODE.captures_iter(answer) {
        text = text.replace(&block[1], "");
    }
    let count = |regex: &Regex| regex.find_iter(&text).count();
    let [h1, h2, h3, h4, h5, h6] = HEADERS.each_ref().map(count);
    json!({
        "token_len": tokens,
        "header_count": { "h1": h1, "h2": h2, "h3": h3, "h4": h4, "h5": h5, "h6": h6 },
        "list_count": { "ordered": count(&ORDERED), "unordered": count(&UNORDERED) },
        "bold_count": { "**": count(&STARS), "__": count(&UNDERSCORES) },
    })
}

#[allow(clippy::expect_used, reason = "the patterns stand above")]
fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of this file")
}
