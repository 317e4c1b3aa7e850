//! `{% generation %} … {% endgeneration %}`: the tags with which a template marks what the assistant wrote.
//!
//! transformers turns the tags into a call with the text between them, and keeps where that text ends up. Here they become a filter
//! block, which keeps the templates' white space as it is; to find the places, the filter puts a character around the text that
//! occurs nowhere else.

use minijinja::{Environment, Error};
use std::ops::Range;

/// The name of the filter; no template has it.
const FILTER: &str = "__generation";
/// The marks: noncharacters, which Unicode never assigns.
const MARKS: Range<char> = '\u{fdd0}'..'\u{fdef}';

/// The template with the tags as filter blocks, and whether it has any.
pub(super) fn with_filter_blocks(jinja: &str) -> (String, bool) {
    let mut rewritten = String::with_capacity(jinja.len());
    let mut found = false;
    let mut rest = jinja;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        rewritten += before;
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let name = tag[2..end].trim_matches(['-', '+']).trim();
        let filter = match name {
            "generation" => format!("filter {FILTER}"),
            "endgeneration" => "endfilter".to_owned(),
            _ => name.to_owned(),
        };
        found |= name == "generation";
        rewritten += &if filter == name { tag.to_owned() } else { tag.replace(name, &filter) };
        rest = after;
    }
    (rewritten + rest, found)
}

/// Adds the filter; it leaves the text alone.
pub(super) fn add_filter(environment: &mut Environment<'static>) {
    environment.add_filter(FILTER, |text: String| text);
}

/// Renders with marks; returns the text without them and the ranges between them, in bytes.
///
/// # Errors
/// What `render` returns.
pub(super) fn marked(
    environment: &Environment<'static>,
    plain: &str,
    render: impl FnOnce(&Environment<'static>) -> Result<String, Error>,
) -> Result<Option<Vec<Range<usize>>>, Error> {
    let Some(mark) = MARKS.clone().find(|&mark| !plain.contains(mark)) else { return Ok(None) };
    let mut environment = environment.clone();
    environment.add_filter(FILTER, move |text: String| format!("{mark}{text}{mark}"));
    let marked = render(&environment)?;
    let mut text = String::with_capacity(plain.len());
    let mut places = Vec::new();
    for part in marked.split(mark) {
        text += part;
        places.push(text.len());
    }
    places.pop();
    // A template that trims or measures what it has marked writes another text with marks.
    let ranges = places.chunks_exact(2).map(|place| place[0]..place[1]).collect();
    Ok((text == plain && places.len().is_multiple_of(2)).then_some(ranges))
}
