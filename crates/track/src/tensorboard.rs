//! TensorBoard's event files: records as TFRecord frames them, each an `Event` in protobuf's encoding.
//!
//! Scalars are summaries with a `simple_value`, as PyTorch's `SummaryWriter` writes them, and their tags are those of transformers:
//! `train/loss`, `eval/loss`. Sources: `tensorflow/core/lib/io/record_writer.cc`, `tensorboard/compat/proto/{event,summary}.proto`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value};

use crate::{EVAL, TrackError, in_path, numbers, step};

/// What the names of event files begin with; TensorBoard reads a folder's in their order.
const PREFIX: &str = "events.out.tfevents.";
/// The version that every file begins with.
const VERSION: &str = "brain.Event:2";

/// An open event file.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in `folder`, which goes on after the last of `lines`. What earlier files have of later steps is taken back by
    /// the event with which a session starts; without earlier files `lines` are written first.
    pub(crate) fn open(folder: &Path, lines: &[Map<String, Value>]) -> Result<Self, TrackError> {
        let mut earlier = event_files(folder)?;
        if lines.is_empty() {
            for path in earlier.drain(..) {
                fs::remove_file(&path).map_err(in_path(&path))?;
            }
        }
        let (path, file) = create(folder)?;
        let mut events = Self { path, file };
        let now = now();
        events.append(&version(now))?;
        match earlier.is_empty() {
            true => lines.iter().try_for_each(|line| events.append(&scalars(now, line)))?,
            false => {
                let next = lines.last().map_or(0, step) + 1;
                events.append(&session_start(now, next))?;
            }
        }
        Ok(events)
    }

    /// Adds the numbers of a line.
    pub(crate) fn write(&mut self, line: &Map<String, Value>) -> Result<(), TrackError> {
        self.append(&scalars(now(), line))
    }

    fn append(&mut self, event: &[u8]) -> Result<(), TrackError> {
        // In one piece, so that a reader sees whole records.
        self.file.write_all(&record(event)).map_err(in_path(&self.path))
    }
}

/// Those in a folder, in their order.
fn event_files(folder: &Path) -> Result<Vec<PathBuf>, TrackError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(in_path(folder))? {
        let path = entry.map_err(in_path(folder))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A file with a name of its own, after those that are there.
fn create(folder: &Path) -> Result<(PathBuf, File), TrackError> {
    let mut second = now().as_secs();
    if let Some(last) = event_files(folder)?.last() {
        let name = last.file_name().map(|name| name.to_string_lossy().into_owned());
        let last = name.and_then(|name| name[PREFIX.len()..].split('.').next()?.parse().ok());
        second = second.max(last.map_or(0, |last: u64| last.saturating_add(1)));
    }
    loop {
        let path = folder.join(format!("{PREFIX}{second:010}.fpo"));
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => second += 1,
            Err(error) => return Err(in_path(&path)(error)),
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A record: length and content, each with its masked CRC-32C.
fn record(content: &[u8]) -> Vec<u8> {
    let masked = |bytes: &[u8]| {
        let crc = crc32c::crc32c(bytes);
        crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
    };
    let length = (content.len() as u64).to_le_bytes();
    [&length, &masked(&length)[..], content, &masked(content)].concat()
}

/// `Event { wall_time, file_version }`.
fn version(time: Duration) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, time.as_secs_f64());
    event.bytes(3, VERSION.as_bytes());
    event.0
}

/// `Event { wall_time, step, session_log { status: START } }`: the reader drops what it has of this step and later ones.
fn session_start(time: Duration, step: u64) -> Vec<u8> {
    let mut log = Message::default();
    log.varint(1, 1);
    let mut event = Message::default();
    event.double(1, time.as_secs_f64());
    event.varint(2, step);
    event.bytes(7, &log.0);
    event.0
}

/// `Event { wall_time, step, summary { value { tag, simple_value } … } }`.
fn scalars(time: Duration, line: &Map<String, Value>) -> Vec<u8> {
    let mut summary = Message::default();
    for (key, number) in numbers(line) {
        let mut value = Message::default();
        value.bytes(1, tag(key).as_bytes());
        value.float(2, number as f32);
        summary.bytes(1, &value.0);
    }
    let mut event = Message::default();
    event.double(1, time.as_secs_f64());
    event.varint(2, step(line));
    event.bytes(5, &summary.0);
    event.0
}

/// As transformers' `rewrite_logs` names it.
fn tag(key: &str) -> String {
    match key.strip_prefix(EVAL) {
        Some(name) => format!("eval/{name}"),
        None => format!("train/{key}"),
    }
}

/// A protobuf message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, wire_type: u64) {
        self.raw_varint(field << 3 | wire_type);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Zero is the default, which isn't written.
    fn varint(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.key(field, 0);
            self.raw_varint(value);
        }
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    /// A field of a `oneof` is written whatever its value.
    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }
}

#[cfg(test)]
mod tests;
