//! What a reply says: which answer is better, or nothing. It is never guessed.

use fpo_files::journal::Kind;
use serde::{Deserialize, Serialize};

use crate::endpoint::{Reply, Token, Usage};

/// The file of verdicts, as a [`Journal`](crate::Journal).
pub const VERDICTS: Kind = Kind { name: "fpo_judge", version: 1, entries: "verdicts" };

/// Whose answer the judge sees first. Both orders are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A is the baseline's answer.
    BaselineFirst,
    /// A is the model's answer.
    ModelFirst,
}

impl Order {
    /// Both.
    pub const ALL: [Self; 2] = [Self::BaselineFirst, Self::ModelFirst];
}

/// How a verdict was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadFrom {
    /// The probabilities of both letters.
    Logprobs,
    /// The letter alone.
    Letter,
}

/// Why a reply is no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoVerdict {
    /// The judge refuses in the protocol's own field, or a filter stopped it.
    Refusal,
    /// Its text ends at the limit of tokens before a letter.
    CutOff,
    /// Its text has no letter where one has to stand: a refusal in words, another language, nonsense.
    NoLetter,
}

/// A line of the verdict file: what the judge said to one question in one order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The question's identity, or its number in the baseline's file from 0.
    pub question: String,
    /// Whose answer came first.
    pub order: Order,
    /// Hash of the question and both answers.
    pub texts: String,
    /// Probability that the model's answer is better than the baseline's.
    pub preference: Option<f64>,
    /// How it was read.
    pub read_from: Option<ReadFrom>,
    /// Why there is no preference.
    pub no_verdict: Option<NoVerdict>,
    /// The last reply, or its beginning.
    pub reply: String,
    /// How often the judge replied.
    pub replies: u32,
    /// Tokens of all replies, where the endpoint counts them.
    pub usage: Option<Usage>,
    /// The model that answered, by the endpoint's own name.
    pub judge: Option<String>,
}

/// Probability that the first answer is better, by a reply.
///
/// The letter has to stand alone: as the whole text, on its first line, or on its last after a deliberation.
///
/// # Errors
/// A reply that is no verdict.
pub fn read(reply: &Reply) -> Result<(f64, ReadFrom), NoVerdict> {
    if reply.refusal.is_some() {
        return Err(NoVerdict::Refusal);
    }
    let mut lines = reply.text.lines().filter(|line| !line.trim().is_empty());
    let (first, last) = (lines.next().and_then(letter), lines.next_back().and_then(letter));
    let found = match (first, last) {
        (Some(a), Some(b)) if a != b => None,
        (a, b) => a.or(b),
    };
    let Some(found) = found else {
        return Err(if reply.is_cut_off { NoVerdict::CutOff } else { NoVerdict::NoLetter });
    };
    let is_it = |token: &&Token| letter(&token.text) == Some(found);
    let token = match first {
        Some(_) => reply.tokens.iter().find(is_it),
        None => reply.tokens.iter().rev().find(is_it),
    };
    let mass = |wanted: Letter| -> f64 {
        let top = token.into_iter().flat_map(|token| &token.top);
        top.filter(|(text, _)| letter(text) == Some(wanted)).map(|(_, log)| log.exp()).sum()
    };
    let (a, b) = (mass(Letter::A), mass(Letter::B));
    // The judge's own letter is among the likely ones, unless the endpoint gives something else than it generates from.
    let own = if found == Letter::A { a } else { b };
    match own > 0.0 && (a + b).is_finite() {
        true => Ok((a / (a + b), ReadFrom::Logprobs)),
        false => Ok((if found == Letter::A { 1.0 } else { 0.0 }, ReadFrom::Letter)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Letter {
    A,
    B,
}

/// The letter that stands alone, but for spaces, quotes, brackets and emphasis.
fn letter(text: &str) -> Option<Letter> {
    match text.trim_matches(|c: char| c.is_whitespace() || "*_`\"'“”‘’[](){}<>.:#".contains(c))
    {
        "A" => Some(Letter::A),
        "B" => Some(Letter::B),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Reply {
        Reply { text: text.to_owned(), ..Reply::default() }
    }

    /// By reading the texts.
    #[test]
    fn only_a_letter_that_stands_alone_is_a_verdict() {
        for (text, expected) in [
            ("A", Some(1.0)),
            (" **B**.\n", Some(0.0)),
            ("[[A]]", Some(1.0)),
            ("A\n\nThe first answer names all three.", Some(1.0)),
            ("The first is wrong about the year.\n\nB", Some(0.0)),
            ("A\nOn reflection:\nB", None),
            ("A good answer would be shorter.", None),
            ("Answer A is better", None),
            ("Die zweite Antwort ist besser.", None),
            ("第二个回答更好", None),
            ("А", None), // Cyrillic
            ("C", None),
            ("a", None),
            ("AB", None),
            ("A B", None),
            ("I'm sorry, but I can't compare these.", None),
            ("", None),
        ] {
            let found = read(&reply(text));
            assert_eq!(found.ok().map(|(p, _)| p), expected, "{text:?}");
            if expected.is_none() {
                assert_eq!(found, Err(NoVerdict::NoLetter), "{text:?}");
            }
        }
        let refused = Reply { refusal: Some("no".to_owned()), ..reply("A") };
        assert_eq!(read(&refused), Err(NoVerdict::Refusal));
        let cut = Reply { is_cut_off: true, ..reply("Let me think about") };
        assert_eq!(read(&cut), Err(NoVerdict::CutOff));
    }

    /// The probabilities by hand: those of both letters, in all their spellings, scaled to one.
    #[test]
    fn probabilities_are_those_of_both_letters() {
        let token = |text: &str, top: &[(&str, f64)]| Token {
            text: text.to_owned(),
            top: top.iter().map(|(text, p)| ((*text).to_owned(), p.ln())).collect(),
        };
        let top = [("A", 0.5), (" A", 0.1), ("B", 0.2), ("The", 0.1), ("Answer", 0.05)];
        let with = |text: &str, tokens: Vec<Token>| Reply { tokens, ..reply(text) };
        let (p, by) = read(&with("A", vec![token("A", &top)])).unwrap();
        assert!((p - 0.75).abs() < 1e-12 && by == ReadFrom::Logprobs);
        let thought = [token("Hm", &[]), token("\n", &[]), token("B", &[("B", 0.9), ("A", 0.1)])];
        let (p, _) = read(&with("Hm\nB", thought.into())).unwrap();
        assert!((p - 0.1).abs() < 1e-12);
        // Probabilities that don't know the letter that was generated aren't used.
        let (p, by) = read(&with("B", vec![token("B", &[("A", 0.3), ("x", 0.7)])])).unwrap();
        assert_eq!((p, by), (0.0, ReadFrom::Letter));
    }
}
