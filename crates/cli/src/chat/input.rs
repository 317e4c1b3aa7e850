//! What a user says, a line at a time.

use std::{
    io::{BufRead, IsTerminal, Read, stdin, stdout},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use console::Term;

use crate::streams;

/// The longest line, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Message(String),
    System(String),
    Save(PathBuf),
    Reset,
    Help,
    Quit,
    Unknown(String),
}

impl Line {
    /// `None` for an empty line.
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else {
            return (!line.is_empty()).then(|| Self::Message(line.to_owned()));
        };
        if command.starts_with('/') {
            return Some(Self::Message(command.to_owned()));
        }
        let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        Some(match (word, rest.is_empty()) {
            ("system", _) => Self::System(rest.to_owned()),
            ("save", false) => Self::Save(PathBuf::from(rest)),
            ("reset", true) => Self::Reset,
            ("help", true) => Self::Help,
            ("quit" | "exit", true) => Self::Quit,
            _ => Self::Unknown(line.to_owned()),
        })
    }
}

/// Where lines come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A person at a terminal.
    Typed,
    /// A file or a pipe.
    Lines,
}

impl Input {
    /// Standard input.
    pub fn open() -> Self {
        match stdin().is_terminal() && stdout().is_terminal() {
            true => Self::Typed,
            false => Self::Lines,
        }
    }

    pub fn is_typed(self) -> bool {
        self == Self::Typed
    }

    /// Width of the terminal that answers are printed on.
    pub fn columns(self) -> Option<usize> {
        match self {
            Self::Typed => Term::stdout().size_checked().map(|(_, columns)| usize::from(columns)),
            Self::Lines => None,
        }
    }

    /// The next line that says something; `None` at the end.
    pub fn next(self) -> Result<Option<Line>> {
        loop {
            let Some(line) = self.read()? else { return Ok(None) };
            if let Some(line) = Line::parse(&line) {
                return Ok(Some(line));
            }
        }
    }

    fn read(self) -> Result<Option<String>> {
        if self.is_typed() {
            streams::write(b"> ")?;
        }
        let mut line = String::new();
        let read = stdin().lock().take(MAX_LINE).read_line(&mut line);
        let read = read.context("standard input")?;
        ensure!((read as u64) < MAX_LINE, "standard input: a line is longer than 1 MiB");
        if read == 0 && self.is_typed() {
            streams::write(b"\n")?;
        }
        Ok((read > 0).then_some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let message = |text: &str| Some(Line::Message(text.into()));
        for (line, expected) in [
            ("", None),
            (" \t ", None),
            ("Hello, you. ", message("Hello, you.")),
            ("//etc is a folder", message("/etc is a folder")),
            ("1/2", message("1/2")),
            ("/reset", Some(Line::Reset)),
            (" /quit ", Some(Line::Quit)),
            ("/help", Some(Line::Help)),
            ("/system Be  brief. ", Some(Line::System("Be  brief.".into()))),
            ("/system", Some(Line::System(String::new()))),
            ("/save my talk.jsonl", Some(Line::Save("my talk.jsonl".into()))),
            ("/save", Some(Line::Unknown("/save".into()))),
            ("/reset now", Some(Line::Unknown("/reset now".into()))),
            ("/", Some(Line::Unknown("/".into()))),
            ("/systems x", Some(Line::Unknown("/systems x".into()))),
        ] {
            assert_eq!(Line::parse(line), expected, "{line:?}");
        }
    }
}
