//! Which words two answers don't share.

use maud::{Markup, html};
use similar::{ChangeTag, TextDiff};

use crate::text::visible;

/// Words of either answer above which they aren't compared: the time grows with their product.
const MOST_WORDS: usize = 5000;
/// Long answers that share less of their letters than this are other answers, and marks would be confetti.
const LEAST_SHARED: f64 = 0.2;
/// Letters from which an answer is long.
const LONG: usize = 80;

/// What became of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is the same.
    Same,
    /// Some words differ.
    Marked {
        /// The answer before; what is gone is marked.
        before: Vec<Piece>,
        /// The answer after; what is new is marked.
        after: Vec<Piece>,
    },
    /// Hardly a word is the same, so nothing is marked.
    Rewritten,
    /// The answers are too long to be compared.
    TooLong,
}

/// A stretch of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    text: String,
    changed: bool,
}

/// Compares two answers word by word. Words are Unicode's, so that text without spaces has some too.
pub(super) fn compare(before: &str, after: &str) -> Change {
    if before == after {
        return Change::Same;
    }
    let (before, after) = (visible(before), visible(after));
    // Most words are longer than two bytes, so this bounds the memory too.
    if before.len().max(after.len()) > 8 * MOST_WORDS {
        return Change::TooLong;
    }
    let diff = TextDiff::from_unicode_words(&before, &after);
    if diff.old_len().max(diff.new_len()) > MOST_WORDS {
        return Change::TooLong;
    }
    let mut parts: Vec<(ChangeTag, String)> = Vec::new();
    for change in diff.iter_all_changes() {
        match parts.last_mut() {
            Some((tag, text)) if *tag == change.tag() => text.push_str(change.value()),
            _ => parts.push((change.tag(), change.value().to_owned())),
        }
    }
    let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).count();
    let shared: usize = parts
        .iter()
        .filter(|(tag, _)| *tag == ChangeTag::Equal)
        .map(|(_, text)| letters(text))
        .sum();
    let most = letters(&before).max(letters(&after));
    if shared == 0 || most >= LONG && (shared as f64) < LEAST_SHARED * most as f64 {
        return Change::Rewritten;
    }
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for (at, (tag, text)) in parts.iter().enumerate() {
        // A space or a comma between two words that changed belongs to the change.
        let between = at > 0 && at + 1 < parts.len() && letters(text) == 0 && !text.contains('\n');
        let (in_old, in_new, changed) = match tag {
            ChangeTag::Equal => (true, true, between),
            ChangeTag::Delete => (true, false, true),
            ChangeTag::Insert => (false, true, true),
        };
        for (side, holds) in [(&mut old, in_old), (&mut new, in_new)] {
            if holds {
                push(side, text, changed);
            }
        }
    }
    Change::Marked { before: trim(old), after: trim(new) }
}

fn push(pieces: &mut Vec<Piece>, text: &str, changed: bool) {
    match pieces.last_mut() {
        Some(last) if last.changed == changed => last.text.push_str(text),
        _ => pieces.push(Piece { text: text.to_owned(), changed }),
    }
}

/// Leaves spaces around a change unmarked, also where one side has no word between them.
fn trim(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut trimmed = Vec::new();
    for Piece { text, changed } in pieces {
        let core = text.trim();
        if !changed || core.is_empty() {
            push(&mut trimmed, &text, false);
            continue;
        }
        let start = text.len() - text.trim_start().len();
        for (part, changed) in
            [(&text[..start], false), (core, true), (&text[start + core.len()..], false)]
        {
            if !part.is_empty() {
                push(&mut trimmed, part, changed);
            }
        }
    }
    trimmed
}

/// How a piece is marked.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    /// What is gone.
    Gone,
    /// What is new.
    New,
}

/// A long text is scrolled, which takes the focus of the keyboard.
fn focus(bytes: usize) -> Option<&'static str> {
    (bytes > 1000).then_some("0")
}

/// An answer in its pieces.
pub(super) fn pieces(pieces: &[Piece], mark: Mark) -> Markup {
    html! {
        div.text dir="auto" tabindex=[focus(pieces.iter().map(|piece| piece.text.len()).sum())] {
            @for Piece { text, changed } in pieces {
                @match (*changed, mark) {
                    (false, _) => { (text) }
                    (true, Mark::Gone) => { del { (text) } }
                    (true, Mark::New) => { ins { (text) } }
                }
            }
        }
    }
}

/// An answer as it is.
pub(super) fn plain(text: &str) -> Markup {
    html! {
        @if text.is_empty() { p.empty { "empty" } } @else {
            div.text dir="auto" tabindex=[focus(text.len())] { (visible(text)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both sides with marks as `[-gone-]` and `{+new+}`.
    fn shown(before: &str, after: &str) -> Option<(String, String)> {
        let Change::Marked { before, after } = compare(before, after) else { return None };
        let text = |pieces: &[Piece], open: &str, close: &str| -> String {
            let of = |p: &Piece| match p.changed {
                true => format!("{open}{}{close}", p.text),
                false => p.text.clone(),
            };
            pieces.iter().map(of).collect()
        };
        Some((text(&before, "[-", "-]"), text(&after, "{+", "+}")))
    }

    /// By reading the texts.
    #[test]
    fn words_that_differ_are_marked() {
        for (before, after, gone, new) in [
            (
                "- quatre\n- six\n- sept",
                "- four\n- six\n- seven",
                "- [-quatre-]\n- six\n- [-sept-]",
                "- {+four+}\n- six\n- {+seven+}",
            ),
            (
                "The owl is a bird.",
                "The owl is a small grey bird.",
                "The owl is a bird.",
                "The owl is a {+small grey+} bird.",
            ),
            // What stands between two changes belongs to them.
            ("one two three four", "one 2 3 four", "one [-two three-] four", "one {+2 3+} four"),
            // Without spaces, and with characters of several bytes.
            ("今天天气很好", "今天天气不好", "今天天气[-很-]好", "今天天气{+不+}好"),
            ("naïve café", "naïve thé", "naïve [-café-]", "naïve {+thé+}"),
            // Case counts, and so do numbers.
            ("It is 42 now", "it is 43 now", "[-It-] is [-42-] now", "{+it+} is {+43+} now"),
        ] {
            let expected = Some((gone.to_owned(), new.to_owned()));
            assert_eq!(shown(before, after), expected, "{before:?} {after:?}");
        }
    }

    #[test]
    fn what_has_no_marks_says_why() {
        assert_eq!(compare("a b", "a b"), Change::Same);
        assert_eq!(compare("", ""), Change::Same);
        assert_eq!(compare("Yes, at once.", "Nobody knows that today"), Change::Rewritten);
        let (one, other) =
            ("The first of two long answers ".repeat(4), "Nobody expects long words ".repeat(4));
        assert_eq!(compare(&one, &other), Change::Rewritten);
        assert!(matches!(compare(&one, &one[1..]), Change::Marked { .. }));
        assert_eq!(compare("", "four"), Change::Rewritten);
        assert_eq!(compare("four", ""), Change::Rewritten);
        assert_eq!(compare(&"a ".repeat(30_000), "a"), Change::TooLong);
        assert_eq!(compare(&"word ".repeat(2501), "word"), Change::TooLong);
    }

    /// Joined, the pieces are the answers.
    #[test]
    fn nothing_is_lost() {
        let texts =
            ["a b c, d", "a  c\n\nd e", "b c, d e f", " a b c", "a, b, c\td ", "\u{202e}a b c d"];
        for before in texts {
            for after in texts {
                if let Change::Marked { before: old, after: new } = compare(before, after) {
                    let join = |p: Vec<Piece>| p.into_iter().map(|p| p.text).collect::<String>();
                    assert_eq!((join(old), join(new)), (visible(before), visible(after)));
                }
            }
        }
    }
}
