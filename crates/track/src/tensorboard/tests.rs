//! Oracle: event files that TensorBoard's own package wrote (`tests/fixtures/tensorboard`), which its reader reads as `found.json`
//! says.

use serde_json::json;

use super::*;
use crate::line;

const FIRST: &[u8] = include_bytes!("../../../../tests/fixtures/tensorboard/first.events");
const RESUMED: &[u8] = include_bytes!("../../../../tests/fixtures/tensorboard/resumed.events");

fn lines() -> Vec<Map<String, Value>> {
    [
        json!({ "step": 1, "loss": std::f64::consts::LN_2, "rewards/chosen": 0.0 }),
        json!({ "step": 2, "loss": 0.5, "rewards/chosen": -1.25e-3 }),
        json!({ "step": 2, "eval_loss": 0.625, "eval_samples": ["x"], "eval_rewards/accuracies": 0.75 }),
        json!({ "step": 300, "loss": 7, "grad_norm": null }),
    ]
    .map(line)
    .to_vec()
}

fn third() -> Map<String, Value> {
    line(json!({ "step": 3, "loss": 0.375 }))
}

#[test]
fn bytes_are_those_of_tensorboard() {
    let at = Duration::from_secs_f64;
    let times = [1_700_000_001.5, 1_700_000_002.5, 1_700_000_002.75, 1_700_000_003.5].map(at);
    let mut first = record(&version(at(1_700_000_000.25)));
    for (time, line) in times.into_iter().zip(lines()) {
        first.extend(record(&scalars(time, &line)));
    }
    assert!(first == FIRST);
    let resumed = [
        record(&version(at(1_700_000_100.25))),
        record(&session_start(at(1_700_000_100.25), 3)),
        record(&scalars(at(1_700_000_101.5), &third())),
    ];
    assert!(resumed.concat() == RESUMED);
}

/// The records of a file without their times, which come first.
fn events(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<8>() {
        let (event, rest) = rest[4..].split_at(u64::from_le_bytes(*length) as usize);
        found.push(event[9..].to_vec());
        bytes = &rest[4..];
    }
    found
}

fn files(folder: &Path) -> Vec<Vec<Vec<u8>>> {
    event_files(folder).unwrap().iter().map(|path| events(&fs::read(path).unwrap())).collect()
}

#[test]
fn a_resumed_training_takes_back_what_it_repeats() {
    let folder = tempfile::tempdir().unwrap();
    let lines = lines();
    let mut file = EventFile::open(folder.path(), &[]).unwrap();
    lines.iter().for_each(|line| file.write(line).unwrap());
    assert_eq!(files(folder.path()), [events(FIRST)]);
    let mut file = EventFile::open(folder.path(), &lines[..3]).unwrap();
    file.write(&third()).unwrap();
    assert_eq!(files(folder.path()), [events(FIRST), events(RESUMED)]);
    // A training that begins anew leaves nothing of the one before.
    drop(EventFile::open(folder.path(), &[]).unwrap());
    assert_eq!(files(folder.path()), [events(FIRST)[..1].to_vec()]);
}

#[test]
fn a_tracker_that_comes_later_has_the_lines_before() {
    let folder = tempfile::tempdir().unwrap();
    let lines = lines();
    let mut file = EventFile::open(folder.path(), &lines[..2]).unwrap();
    lines[2..].iter().for_each(|line| file.write(line).unwrap());
    assert_eq!(files(folder.path()), [events(FIRST)]);
}
