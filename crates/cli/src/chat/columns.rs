//! Two answers side by side, row by row as both have come so far.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns of a terminal from which on two answers fit beside each other.
const WIDE_ENOUGH: usize = 100;
const BETWEEN: &str = " │ ";

/// Text that a terminal shows and doesn't obey: a model may write anything.
pub fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(shown).collect()
}

pub struct Columns {
    /// Of one of the two.
    width: usize,
    texts: [String; 2],
    ended: [bool; 2],
    /// Rows printed so far.
    told: usize,
}

impl Columns {
    /// Two columns for a terminal of this width; none if it is too narrow.
    pub fn fit(terminal: usize) -> Option<Self> {
        let width = terminal.checked_sub(BETWEEN.width() + 1)? / 2;
        (terminal >= WIDE_ENOUGH).then(|| Self {
            width,
            texts: [String::new(), String::new()],
            ended: [false; 2],
            told: 0,
        })
    }

    /// The names above the answers, with a line under them.
    pub fn heading(&self, names: [&str; 2]) -> String {
        let [left, right] = names.map(|name| wrap(&printable(name), self.width).swap_remove(0));
        let line = "─".repeat(self.width);
        format!("{}{line}─┼─{line}\n", self.row(&left, &right))
    }

    pub fn push(&mut self, column: usize, text: &str) {
        self.texts[column] += &printable(text).replace('\t', "    ");
    }

    /// The answer in this column is complete.
    pub fn end(&mut self, column: usize) {
        self.ended[column] = true;
    }

    pub fn is_done(&self) -> bool {
        self.ended == [true; 2]
    }

    /// The rows that are new and no longer change.
    pub fn rows(&mut self) -> String {
        let wrapped = self.texts.each_ref().map(|text| wrap(text, self.width));
        // The last row of an answer that goes on may still change.
        let certain = |column: usize| match self.ended[column] {
            true => usize::MAX,
            false => wrapped[column].len() - 1,
        };
        let longest = wrapped[0].len().max(wrapped[1].len());
        let until = certain(0).min(certain(1)).min(longest);
        let cell = |column: usize, row: usize| wrapped[column].get(row).map_or("", String::as_str);
        let rows = (self.told..until).map(|row| self.row(cell(0, row), cell(1, row))).collect();
        self.told = self.told.max(until);
        rows
    }

    fn row(&self, left: &str, right: &str) -> String {
        let padding = " ".repeat(self.width.saturating_sub(left.width()));
        format!("{left}{padding}{BETWEEN}{right}").trim_end().to_owned() + "\n"
    }
}

/// Breaks lines between words, and words only where they are longer than a line. At least one row. As text is added, only the last
/// row changes.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut rows = Vec::new();
    for line in text.split('\n') {
        let (mut row, mut used) = (String::new(), 0);
        for word in line.split_inclusive(' ') {
            // A space may hang over the edge.
            if used + word.trim_end().width() > width && used > 0 {
                rows.push(std::mem::take(&mut row));
                used = 0;
            }
            for c in word.chars() {
                let wide = c.width().unwrap_or(0);
                if used + wide > width && c != ' ' {
                    rows.push(std::mem::take(&mut row));
                    used = 0;
                }
                row.push(c);
                used += wide;
            }
        }
        rows.push(row);
    }
    rows.iter_mut().for_each(|row| row.truncate(row.trim_end().len()));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        for (text, expected) in [
            ("", &[""][..]),
            ("one two three", &["one two", "three"]),
            ("one two  ", &["one two"]),
            ("  in\n\nout", &["  in", "", "out"]),
            ("abcdefghijk", &["abcdefgh", "ijk"]),
            ("ab abcdefghijk", &["ab", "abcdefgh", "ijk"]),
            ("日本語日本語", &["日本語日", "本語"]),
        ] {
            assert_eq!(wrap(text, 8), expected, "{text:?}");
        }
    }

    /// Oracle: the whole at once.
    #[test]
    fn rows_come_as_both_answers_have_them() {
        let answers = ["one two three four five", "A\nlist:\n\n- of\n- seven\n- rows\n- 日本"];
        let columns = |width| Columns { width, ..Columns::fit(200).unwrap() };
        for width in [4, 8, 20] {
            let mut whole = columns(width);
            for (column, answer) in answers.iter().enumerate() {
                whole.push(column, answer);
                whole.end(column);
            }
            let whole = whole.rows();
            assert_eq!(
                whole.lines().count(),
                wrap(answers[0], width).len().max(wrap(answers[1], width).len())
            );
            // One faster than the other.
            for (fast, slow) in [(0, 1), (1, 0)] {
                let (mut parts, mut told) = (columns(width), String::new());
                let mut slower = answers[slow].chars();
                for c in answers[fast].chars() {
                    parts.push(fast, &c.to_string());
                    parts.push(slow, &slower.next().map(String::from).unwrap_or_default());
                    told += &parts.rows();
                    assert!(whole.starts_with(&told), "{told}");
                }
                parts.end(fast);
                for c in slower {
                    parts.push(slow, &c.to_string());
                    told += &parts.rows();
                    assert!(whole.starts_with(&told), "{told}");
                }
                parts.end(slow);
                assert_eq!(told + &parts.rows(), whole);
            }
        }
        assert!(Columns::fit(99).is_none() && Columns::fit(0).is_none());
    }

    #[test]
    fn a_terminal_obeys_no_answer() {
        assert_eq!(
            printable("a\x1b[2Jb\r\x07\u{9b}c\n\td"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c\n\td"
        );
    }
}
