//! Standard streams: printing that fails like any other writing, `-` as a file, and outputs that don't destroy inputs.

use std::{
    fs,
    io::{self, Read, Write, copy, stderr, stdin, stdout},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use fpo_data::{atomic, checkpoints::METRICS_FILE};
use tempfile::TempDir;

/// Where standard output is as a file.
const STDOUT: &str = "/dev/stdout";

/// What was read from standard input or a pipe, as files, because commands read their inputs more than once.
static SPOOL: Mutex<Option<TempDir>> = Mutex::new(None);

/// Prints a line to standard output.
macro_rules! out {
    ($($text:tt)*) => { $crate::streams::print(&format!($($text)*)) };
}

/// Prints a line to standard error. Nobody who reads is no reason to stop.
macro_rules! say {
    ($($text:tt)*) => { $crate::streams::tell(&format!($($text)*)) };
}

pub(crate) use {out, say};

/// See [`out`].
pub fn print(line: &str) -> Result<()> {
    write(format!("{line}\n").as_bytes())
}

/// Writes to standard output, at once.
pub fn write(bytes: &[u8]) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("standard output")
}

/// See [`say`].
pub fn tell(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

/// Whether an error is that nobody reads what is written: the program then ends without a word, as `head` expects.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(closed))
}

/// An error with its causes on one line. A cause that the message before it already tells is left out.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if text.is_empty() || cause.starts_with(&text) {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The value of an argument that names a file to read. `-` is standard input. What can be read only once is copied to a temporary file.
pub fn input(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let copied = match text {
        "-" => spool("standard input", &mut stdin().lock()),
        _ => match fs::metadata(path) {
            Ok(found) if !found.is_file() && !found.is_dir() => fs::File::open(path)
                .map_err(anyhow::Error::from)
                .and_then(|mut file| spool(text, &mut file)),
            // What isn't there is refused by who reads it.
            _ => Ok(path.to_owned()),
        },
    };
    copied.map_err(|error| format!("{error:#}"))
}

/// The value of an argument that names a file to write. `-` is standard output.
#[allow(clippy::unnecessary_wraps, reason = "clap takes a function that may fail")]
pub fn output(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(if text == "-" { STDOUT } else { text }))
}

/// Whether what is written there goes to standard output, so that nothing else may.
pub fn is_stdout(path: &Path) -> bool {
    path == Path::new(STDOUT)
}

/// A line about what was written: to standard error where the result itself goes to standard output.
pub fn report(out: &Path, line: &str) -> Result<()> {
    match is_stdout(out) {
        true => {
            tell(line);
            Ok(())
        }
        false => print(line),
    }
}

/// Endings of files in an input's folder that may be replaced: pages, tables and lines of results.
const RESULTS: [&str; 3] = ["html", "csv", "jsonl"];

/// Refuses an output that would replace an input, a folder with an input in it, or a part of an input's folder.
pub fn keep_apart(out: &Path, inputs: &[&Path]) -> Result<()> {
    let Ok(target) = fs::canonicalize(out) else { return Ok(()) };
    let is_result = target.extension().is_some_and(|e| RESULTS.iter().any(|ending| e == *ending))
        && target.file_name().is_none_or(|name| name != METRICS_FILE);
    for input in inputs {
        let Ok(source) = fs::canonicalize(input) else { continue };
        let is_part = target.starts_with(&source) && !is_result;
        if source.starts_with(&target) || is_same_file(&target, &source) || is_part {
            bail!(
                "{} would replace the input {}; choose another name for the output",
                out.display(),
                input.display()
            );
        }
    }
    Ok(())
}

/// Refuses a file that can't be written, before the work that it is for.
pub fn check_file(out: &Path) -> Result<()> {
    match is_stdout(out) {
        true => Ok(()),
        false => Ok(atomic::check_file(out)?),
    }
}

/// Whether two names lead to one file, as hard links do.
#[cfg(unix)]
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id =
        |path: &Path| fs::metadata(path).ok().filter(|m| m.is_file()).map(|m| (m.dev(), m.ino()));
    id(a).is_some() && id(a) == id(b)
}

#[cfg(not(unix))]
fn is_same_file(_a: &Path, _b: &Path) -> bool {
    false
}

/// Removes the copies of inputs.
pub fn clean() {
    SPOOL.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// Copies an input into a file whose ending says what it is: Parquet and gzip by their first bytes, else lines of JSON or text.
fn spool(name: &str, reader: &mut dyn Read) -> Result<PathBuf> {
    let mut spool = SPOOL.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = match spool.as_ref() {
        Some(folder) => folder,
        None => spool.insert(TempDir::new().context("creating a temporary folder")?),
    };
    let mut head = [0; 64];
    let mut filled = 0;
    while filled < head.len() {
        match reader.read(&mut head[filled..]).with_context(|| name.to_owned())? {
            0 => break,
            read => filled += read,
        }
    }
    let head = &head[..filled];
    let first = head.iter().find(|byte| !byte.is_ascii_whitespace());
    let ending = match (head, first) {
        ([b'P', b'A', b'R', b'1', ..], _) => "parquet",
        ([0x1f, 0x8b, ..], _) => "jsonl.gz",
        (_, Some(_)) if is_safetensors(head) => "safetensors",
        (_, Some(b'{')) => "jsonl",
        (_, Some(b'[')) => "json",
        (_, Some(_)) => "txt",
        (_, None) => "jsonl",
    };
    let number = fs::read_dir(folder.path()).map_or(0, Iterator::count);
    let path = folder.path().join(format!("stdin-{number}.{ending}"));
    let mut file = fs::File::create(&path).with_context(|| name.to_owned())?;
    let copied = file.write_all(head).and_then(|()| copy(reader, &mut file));
    copied.with_context(|| name.to_owned())?;
    Ok(path)
}

/// A length in eight bytes, then JSON.
fn is_safetensors(head: &[u8]) -> bool {
    head.len() > 9 && head[6..8] == [0, 0] && head[8] == b'{'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_inputs_are_named_by_their_content() {
        for (content, ending) in [
            (&b"PAR1rest"[..], "parquet"),
            (&[0x1f, 0x8b, 8], "gz"),
            (b"  {\"prompt\": 1}", "jsonl"),
            (b"[{}]", "json"),
            (b"Say hi.\n", "txt"),
            (b"", "jsonl"),
            (b"\x40\0\0\0\0\0\0\0{\"a\":1}", "safetensors"),
        ] {
            let path = spool("input", &mut &content[..]).unwrap();
            assert_eq!(path.extension().unwrap(), ending);
            assert_eq!(fs::read(path).unwrap(), content);
        }
        clean();
    }

    #[test]
    fn a_cause_is_told_once() {
        let missing = io::Error::from_raw_os_error(2);
        let inner = anyhow::anyhow!("data.jsonl: {missing}").context("line 3");
        let error = anyhow::Error::new(missing).context("data.jsonl").context("reading");
        assert_eq!(
            message(&inner),
            format!("line 3: data.jsonl: {}", io::Error::from_raw_os_error(2))
        );
        assert_eq!(message(&error).matches("os error 2").count(), 1);
        #[derive(Debug, thiserror::Error)]
        #[error("{path}: {source}")]
        struct Twice {
            path: &'static str,
            source: io::Error,
        }
        let twice = Twice { path: "x", source: io::Error::from_raw_os_error(2) };
        assert_eq!(message(&twice.into()).matches("os error 2").count(), 1);
    }

    #[test]
    fn an_output_is_kept_apart_from_inputs() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("data"), "x").unwrap();
        fs::hard_link(path("data"), path("same")).unwrap();
        fs::create_dir(path("folder")).unwrap();
        for name in ["data", "page.html", "metrics.jsonl"] {
            fs::write(path("folder").join(name), "y").unwrap();
        }
        for (out, input, kept_apart) in [
            ("data", "data", false),
            ("same", "data", false),
            ("folder", "folder/data", false),
            ("folder/data", "folder", false),
            ("folder/page.html", "folder", true),
            ("folder/new", "folder", true),
            ("folder/metrics.jsonl", "folder", false),
            ("other", "data", true),
            ("data", "missing", true),
        ] {
            assert_eq!(
                keep_apart(&path(out), &[&path(input)]).is_ok(),
                kept_apart,
                "{out} {input}"
            );
        }
    }
}
