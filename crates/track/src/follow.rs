//! Reading the logs of a run while another process writes them, or once it has ended.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::SystemTime,
};

use fpo_files::checkpoints::METRICS_FILE;
use serde_json::{Map, Value};

use crate::{SAMPLES, numbers, step};

/// The stages that have a log, in their order.
const STAGES: [&str; 3] = ["sft", "sae", "align"];
/// A log is refused above this size: it isn't one.
const LARGEST: u64 = 4 << 30;
/// Bytes read at once.
const BLOCK: usize = 1 << 20;

/// Why a run can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// A folder that isn't a run's.
    #[error("{} is not the folder of a run: it has no run.toml and no checkpoints", .0.display())]
    NotARun(PathBuf),
    /// A file can't be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A line of a log is not a JSON object.
    #[error("{}: line {line} is not a JSON object; the file is damaged", path.display())]
    Line {
        /// The log.
        path: PathBuf,
        /// The line, 1-based.
        line: usize,
    },
    /// A file that is too large for a log.
    #[error("{} has {bytes} bytes, too many for a log", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// A run and the logs of its trainings.
#[derive(Debug)]
pub struct Follower {
    run: PathBuf,
    logs: Vec<StageLog>,
}

/// What the log of one training has so far.
#[derive(Debug, Default)]
pub struct StageLog {
    /// The stage.
    pub stage: &'static str,
    /// Whether it stands; else it is under way or was interrupted.
    pub finished: bool,
    /// Steps done.
    pub steps: u64,
    /// When its last line was written, as far as the system says.
    pub written: Option<SystemTime>,
    /// Every metric, in the order in which they appear.
    pub series: Vec<Series>,
    /// The answers of the last evaluation that has any.
    pub samples: Option<Samples>,
    path: PathBuf,
    read: u64,
    lines: usize,
}

/// The values of one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its key in the log.
    pub key: String,
    /// (step, value), in the order of the log.
    pub points: Vec<(f64, f64)>,
}

/// Answers of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// When, in steps done.
    pub step: u64,
    /// Prompts and responses.
    pub answers: Vec<(String, String)>,
}

/// The answers in the line of an evaluation; none where it has none.
pub fn samples(line: &Map<String, Value>) -> Option<Samples> {
    let text = |answer: &Value, name: &str| Some(answer.get(name)?.as_str()?.to_owned());
    let both = |answer| Some((text(answer, "prompt")?, text(answer, "response")?));
    let answers: Vec<_> = line.get(SAMPLES)?.as_array()?.iter().filter_map(both).collect();
    (!answers.is_empty()).then(|| Samples { step: step(line), answers })
}

impl Follower {
    /// Reads the logs of a run as they are now.
    ///
    /// # Errors
    /// A folder that isn't a run's, or a log that can't be read.
    pub fn open(run: &Path) -> Result<Self, FollowError> {
        if !["run.toml", "checkpoints"].iter().any(|name| run.join(name).exists()) {
            return Err(FollowError::NotARun(run.to_owned()));
        }
        let mut follower = Self { run: run.to_owned(), logs: Vec::new() };
        follower.refresh()?;
        Ok(follower)
    }

    /// The logs of the trainings that have begun, in the order of the stages.
    pub fn logs(&self) -> &[StageLog] {
        &self.logs
    }

    /// Reads what was added since. Whether anything was.
    ///
    /// # Errors
    /// A log that can't be read.
    pub fn refresh(&mut self) -> Result<bool, FollowError> {
        let mut changed = false;
        for stage in STAGES {
            let done = self.run.join(stage).join(METRICS_FILE);
            let under_way = self.run.join("checkpoints").join(stage).join(METRICS_FILE);
            // A stage that is made again has both, and the one under way is what there is to see.
            let (path, finished) = match under_way.is_file() {
                true => (under_way, false),
                false => (done, true),
            };
            let at = self.logs.iter().position(|log| log.stage == stage);
            if !path.is_file() {
                if let Some(at) = at {
                    self.logs.remove(at);
                    changed = true;
                }
                continue;
            }
            let at = at.unwrap_or_else(|| {
                // The stages before it are all there is before it.
                let known = |log: &StageLog| STAGES.iter().position(|name| *name == log.stage);
                let order = STAGES.iter().position(|name| *name == stage);
                let at = self.logs.iter().filter(|log| known(log) < order).count();
                self.logs.insert(at, StageLog { stage, ..StageLog::default() });
                at
            });
            changed |= self.logs[at].refresh(path, finished)?;
        }
        Ok(changed)
    }
}

impl StageLog {
    /// The metric with this key.
    pub fn metric(&self, key: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.key == key)
    }

    fn refresh(&mut self, path: PathBuf, finished: bool) -> Result<bool, FollowError> {
        let in_path = |source| FollowError::Io { path: path.clone(), source };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            // It has just been moved to its place; the next look finds it there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(in_path(error)),
        };
        let found = file.metadata().map_err(in_path)?;
        if found.len() > LARGEST {
            return Err(FollowError::TooLarge { path, bytes: found.len() });
        }
        if path != self.path || found.len() < self.read {
            // Another file, or one that was cut to its length at a checkpoint.
            *self = Self { stage: self.stage, path: path.clone(), ..Self::default() };
        }
        self.written = found.modified().ok();
        let mut changed = self.finished != finished;
        self.finished = finished;
        file.seek(SeekFrom::Start(self.read)).map_err(in_path)?;
        let mut pending = Vec::new();
        let mut block = vec![0; BLOCK];
        loop {
            let count = file.read(&mut block).map_err(in_path)?;
            if count == 0 {
                return Ok(changed);
            }
            pending.extend_from_slice(&block[..count]);
            // What comes after the last line's end is still being written.
            let Some(end) = pending.iter().rposition(|&byte| byte == b'\n') else { continue };
            for line in pending[..end].split(|&byte| byte == b'\n') {
                self.lines += 1;
                match serde_json::from_slice(line) {
                    Ok(line) => self.add(&line),
                    Err(_) => return Err(FollowError::Line { path, line: self.lines }),
                }
            }
            self.read += end as u64 + 1;
            pending.drain(..=end);
            changed = true;
        }
    }

    fn add(&mut self, line: &Map<String, Value>) {
        let at = step(line);
        self.steps = self.steps.max(at);
        for (key, value) in numbers(line) {
            let point = (at as f64, value);
            match self.series.iter_mut().find(|series| series.key == key) {
                Some(series) => series.points.push(point),
                None => self.series.push(Series { key: key.to_owned(), points: vec![point] }),
            }
        }
        self.samples = samples(line).or(self.samples.take());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn points(follower: &Follower, stage: &str, key: &str) -> Vec<(f64, f64)> {
        let log = follower.logs().iter().find(|log| log.stage == stage).unwrap();
        log.metric(key).map(|series| series.points.clone()).unwrap_or_default()
    }

    #[test]
    fn a_log_is_followed_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        assert!(matches!(Follower::open(run), Err(FollowError::NotARun(_))));
        write(&run.join("run.toml"), "");
        let mut follower = Follower::open(run).unwrap();
        assert!(follower.logs().is_empty() && !follower.refresh().unwrap());

        let path = run.join("checkpoints/align").join(METRICS_FILE);
        write(&path, "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"lo");
        assert!(follower.refresh().unwrap());
        assert_eq!(points(&follower, "align", "loss"), [(1.0, 0.5)]);
        assert!(!follower.refresh().unwrap());
        let mut file = File::options().append(true).open(&path).unwrap();
        let rest = "ss\":0.25}\n{\"step\":2,\"eval_loss\":0.75,\"eval_samples\":[{\"prompt\":\"p\",\"response\":\"r\"}]}\n";
        file.write_all(rest.as_bytes()).unwrap();
        assert!(follower.refresh().unwrap());
        assert_eq!(points(&follower, "align", "loss"), [(1.0, 0.5), (2.0, 0.25)]);
        assert_eq!(points(&follower, "align", "eval_loss"), [(2.0, 0.75)]);
        let log = &follower.logs()[0];
        let samples = Samples { step: 2, answers: vec![("p".into(), "r".into())] };
        assert_eq!((log.steps, log.finished, log.samples.as_ref()), (2, false, Some(&samples)));

        // Cut to a checkpoint, as a resumed training finds it.
        write(&path, "{\"step\":1,\"loss\":0.5}\n");
        assert!(follower.refresh().unwrap());
        assert_eq!(points(&follower, "align", "loss"), [(1.0, 0.5)]);

        // Finished, and another stage's log comes before it.
        fs::remove_dir_all(run.join("checkpoints")).unwrap();
        write(&run.join("align").join(METRICS_FILE), "{\"step\":1,\"loss\":0.5}\n");
        write(&run.join("sft").join(METRICS_FILE), "{\"step\":9,\"loss\":null}\n");
        assert!(follower.refresh().unwrap());
        let stages: Vec<_> = follower.logs().iter().map(|l| (l.stage, l.finished)).collect();
        assert_eq!(stages, [("sft", true), ("align", true)]);
        assert!(points(&follower, "sft", "loss").is_empty());

        write(&run.join("sft").join(METRICS_FILE), "{\"step\":9}\nnonsense\n{}\n");
        let error = Follower::open(run).unwrap_err().to_string();
        assert!(error.ends_with("line 2 is not a JSON object; the file is damaged"), "{error}");
    }
}
