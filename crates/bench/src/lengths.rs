//! Tokens of the pairs that a step is measured on: alike in all of them, or as a file says.

use std::{
    io,
    path::{Path, PathBuf},
};

use fpo_data::read_at_most;
use serde::Deserialize;

/// The largest file that is read, in MiB: room for several hundred thousand pairs.
const LARGEST: u64 = 16;
/// The most tokens of a prompt or a response, more than any model reads; with these, no sum of a pair's counts overflows.
const MOST: usize = 1 << 24;

/// Tokens of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PairLengths {
    /// Of the prompt, which both responses share.
    pub prompt: usize,
    /// Of the chosen response, after the prompt.
    pub chosen: usize,
    /// Of the rejected response, after the prompt.
    pub rejected: usize,
}

/// Why a file of lengths is refused.
#[derive(Debug, thiserror::Error)]
pub enum LengthsError {
    /// It can't be read.
    #[error("{}: can't read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// More than any list of pairs needs.
    #[error("{}: it is larger than {LARGEST} MiB; keep fewer of its lines", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A line that isn't a pair.
    #[error(
        "{}, line {line}: {problem}; each line must be like {{\"prompt\": 31, \"chosen\": 120, \"rejected\": 84}}, in tokens \
         from 1 to {MOST}",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, 1-based.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Not even one batch.
    #[error("{}: it has {found} pairs for --pairs {wanted}; add lines or lower --pairs", path.display())]
    TooFew {
        /// The file.
        path: PathBuf,
        /// Its pairs.
        found: usize,
        /// Pairs of a batch.
        wanted: usize,
    },
}

impl PairLengths {
    /// Tokens of both rows, with the prompt in each.
    pub fn in_rows(&self) -> usize {
        2 * self.prompt + self.responses()
    }

    /// Tokens that pass through the model: the prompt's once.
    pub fn computed(&self) -> usize {
        self.prompt + self.responses()
    }

    /// Tokens of both responses.
    pub fn responses(&self) -> usize {
        self.chosen + self.rejected
    }

    fn of_line(line: &[u8]) -> Result<Self, String> {
        let lengths: Self = serde_json::from_slice(line).map_err(|error| {
            // The position that follows is that within the line, "at line 1 column 12".
            let message = error.to_string();
            message.split(" at line ").next().unwrap_or_default().to_owned()
        })?;
        let named = [
            ("prompt", lengths.prompt),
            ("chosen", lengths.chosen),
            ("rejected", lengths.rejected),
        ];
        match named.into_iter().find(|(_, tokens)| !(1..=MOST).contains(tokens)) {
            Some((name, tokens)) => Err(format!("`{name}` is {tokens}")),
            None => Ok(lengths),
        }
    }
}

/// A count of tokens, over all pairs.
pub(crate) fn sum(pairs: &[PairLengths], of: fn(&PairLengths) -> usize) -> usize {
    pairs.iter().map(of).sum()
}

/// The batches of a file, JSON lines: its pairs in their order, `pairs` at a time. What is left at the end is no batch.
///
/// # Errors
/// A file that can't be read or is too large, a line that isn't a pair, or fewer pairs than a batch has.
pub(crate) fn read(path: &Path, pairs: usize) -> Result<Vec<Vec<PairLengths>>, LengthsError> {
    let failed = |source| LengthsError::Read { path: path.to_owned(), source };
    let limit = LARGEST << 20;
    let Some(bytes) = read_at_most(path, limit).map_err(failed)? else {
        return Err(LengthsError::TooLarge { path: path.to_owned() });
    };
    let mut found = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if !line.trim_ascii().is_empty() {
            found.push(PairLengths::of_line(line).map_err(|problem| LengthsError::Line {
                path: path.to_owned(),
                line: index + 1,
                problem,
            })?);
        }
    }
    if found.len() < pairs {
        let (path, found) = (path.to_owned(), found.len());
        return Err(LengthsError::TooFew { path, found, wanted: pairs });
    }
    Ok(found.chunks_exact(pairs).map(<[_]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: impl AsRef<[u8]>, pairs: usize) -> Result<Vec<Vec<PairLengths>>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lengths.jsonl");
        std::fs::write(&path, text).unwrap();
        read(&path, pairs).map_err(|error| {
            let message = error.to_string();
            assert!(message.contains("lengths.jsonl"), "{message}");
            message
        })
    }

    #[test]
    fn pairs_are_taken_in_order_and_an_incomplete_batch_is_left_out() {
        let text = "{\"prompt\": 1, \"chosen\": 2, \"rejected\": 3}\r\n\
                    {\"rejected\":6,\"prompt\":4,\"chosen\":5}\n\n\
                    {\"prompt\": 7, \"chosen\": 8, \"rejected\": 16777216}";
        let [a, b, c] = [[1, 2, 3], [4, 5, 6], [7, 8, 1 << 24]]
            .map(|[prompt, chosen, rejected]| PairLengths { prompt, chosen, rejected });
        assert_eq!(read_text(text, 1), Ok(vec![vec![a], vec![b], vec![c]]));
        assert_eq!(read_text(text, 2), Ok(vec![vec![a, b]]));
        assert_eq!(read_text(text, 3), Ok(vec![vec![a, b, c]]));
        assert_eq!((a.in_rows(), a.computed(), a.responses()), (7, 6, 5));
    }

    #[test]
    fn what_is_no_pair_is_refused_with_its_line() {
        let good = "{\"prompt\": 1, \"chosen\": 2, \"rejected\": 3}\n";
        for (line, problem) in [
            ("{\"prompt\": 1, \"chosen\": 0, \"rejected\": 3}", "`chosen` is 0"),
            ("{\"prompt\": 16777217, \"chosen\": 1, \"rejected\": 3}", "`prompt` is 16777217"),
            ("{\"prompt\": -1, \"chosen\": 1, \"rejected\": 3}", "invalid value: integer `-1`"),
            ("{\"prompt\": 1.5, \"chosen\": 1, \"rejected\": 3}", "floating point `1.5`"),
            ("{\"prompt\": \"1\", \"chosen\": 1, \"rejected\": 3}", "invalid type: string \"1\""),
            ("{\"prompt\": 1e400, \"chosen\": 1, \"rejected\": 3}", "number out of range"),
            ("{\"prompt\": 1, \"chosen\": 2}", "missing field `rejected`"),
            ("{\"prompt\": 1, \"chosen\": 2, \"rejected\": 3, \"id\": 4}", "unknown field `id`"),
            ("{\"prompt\": 1, \"prompt\": 1, \"chosen\": 2}", "duplicate field `prompt`"),
            ("{\"prompt\": 1, \"chosen\": 2, \"rejected\": 3} {}", "trailing characters"),
            ("31 120 84", "invalid type: integer `31`"),
            ("{\"prompt\": 1,", "EOF while parsing"),
        ] {
            let message = read_text(format!("{good}\n{line}\n{good}"), 1).unwrap_err();
            for says in
                [", line 3: ", problem, "must be like {\"prompt\": 31", "from 1 to 16777216"]
            {
                assert!(message.contains(says), "no {says:?} in: {message}");
            }
            assert!(!message.contains("column"), "{message}");
        }
        let message = read_text([good.as_bytes(), b"{\"prompt\xff\": 1}"].concat(), 1).unwrap_err();
        assert!(message.contains("line 2: "), "{message}");
    }

    #[test]
    fn too_few_pairs_too_large_a_file_and_no_file_are_refused() {
        let good = "{\"prompt\": 1, \"chosen\": 2, \"rejected\": 3}\n";
        for (text, pairs, says) in [
            (String::new(), 1, "it has 0 pairs for --pairs 1; add lines or lower --pairs"),
            (good.repeat(7), 8, "it has 7 pairs for --pairs 8; add lines or lower --pairs"),
            (" ".repeat((16 << 20) + 1), 1, "it is larger than 16 MiB; keep fewer of its lines"),
        ] {
            let message = read_text(text, pairs).unwrap_err();
            assert!(message.ends_with(says), "{message}");
        }
        let error = read(Path::new("no/such.jsonl"), 1).unwrap_err();
        assert_eq!(error.to_string(), "no/such.jsonl: can't read it");
    }
}
