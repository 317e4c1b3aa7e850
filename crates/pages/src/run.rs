//! What of a run's folder can be read, finished or not.

use std::{
    io,
    path::{Path, PathBuf},
};

use fpo_config::Settings;
use fpo_data::{
    PairStore, PrepareSummary, checkpoints::METRICS_FILE, hash::hash_file, read_at_most,
};
use fpo_run::{
    made_from, saved_settings,
    timing::{self, Timing},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::Evaluation;

/// Holds [`Kept`], in the folder of a training's result.
pub const KEPT_FILE: &str = "kept.json";
/// A file that is larger isn't one of a run's.
const LARGEST: u64 = 4 << 30;

/// Why a run can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// A folder that isn't a run's, or one whose first stage isn't finished.
    #[error(
        "{} is not the folder of a run: it has no run.toml, which is there once the first stage is finished",
        .0.display()
    )]
    NotARun(PathBuf),
    /// Settings that this version doesn't understand.
    #[error(
        "{}: the settings can't be read, so nothing is shown of this run; was it made by another version of fpo? ({why})",
        folder.display()
    )]
    Settings {
        /// The run.
        folder: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file can't be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that isn't what was written.
    #[error("{} is damaged, or of another version of fpo: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The result that `keep_best` chose.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// The metric that decided.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// The step after which it was measured.
    pub step: usize,
}

/// The log of a training.
#[derive(Clone, Debug)]
pub struct Training {
    /// The stage.
    pub stage: &'static str,
    /// Whether it stands; else it is under way or was interrupted.
    pub finished: bool,
    /// The lines of the log.
    pub lines: Vec<Map<String, Value>>,
}

impl Training {
    /// Steps done.
    pub fn steps(&self) -> u64 {
        let step = |line: &Map<String, Value>| line.get("step")?.as_u64();
        self.lines.iter().filter_map(step).max().unwrap_or(0)
    }
}

/// Everything that pages show of a run.
#[derive(Clone, Debug)]
pub struct RunFiles {
    /// Its folder.
    pub folder: PathBuf,
    /// Resolved; what an older version didn't have is as by default.
    pub settings: Settings,
    /// The version that made its last stage, as far as that says.
    pub version: Option<String>,
    /// Trainings that have begun, in the order of the stages.
    pub trainings: Vec<Training>,
    /// Of the alignment that stands; none before it was measured.
    pub evaluation: Option<Evaluation>,
    /// What became of the training pairs and of the held-out ones.
    pub pairs: Option<[PrepareSummary; 2]>,
    /// How good the autoencoder is, where the run uses one.
    pub quality: Option<Map<String, Value>>,
    /// The result that `keep_best` chose.
    pub kept: Option<Kept>,
    /// Wall clock and hardware.
    pub timing: Timing,
    /// What the training pairs are, and the held-out ones: equal for equal tokens.
    pub data: Option<[String; 2]>,
    /// What the model before alignment was made from.
    pub reference: Option<String>,
    /// Hash of the autoencoder.
    pub autoencoder: Option<String>,
}

/// The part of `prepared/summary.json` that pages show.
#[derive(Deserialize)]
struct Summary {
    train: PrepareSummary,
    held_out: PrepareSummary,
}

impl RunFiles {
    /// Reads a run's folder as it is now.
    ///
    /// # Errors
    /// A folder that isn't a run's, settings of another version, or a file that can't be read.
    pub fn read(folder: &Path) -> Result<Self, PageError> {
        let settings = saved_settings(folder).map_err(|error| PageError::Settings {
            folder: folder.to_owned(),
            why: format!("{error:#}"),
        })?;
        let settings = settings.ok_or_else(|| PageError::NotARun(folder.to_owned()))?;
        let base = base(folder);
        let prepared = base.join("prepared");
        // A model that is given and not trained comes with no curves of this run.
        let with_sft = settings.model.path.is_none() || settings.sft.epochs != 0.0;
        let mut trainings = Vec::new();
        for (stage, of, used) in [
            ("sft", &*base, with_sft),
            ("sae", &*base, settings.features() || base != folder),
            ("align", folder, true),
        ] {
            if used && let Some(training) = training(of, stage)? {
                trainings.push(training);
            }
        }
        let aligned = folder.join("align");
        let stands = trainings.iter().any(|one| one.stage == "align" && one.finished);
        let evaluate = folder.join("evaluate");
        let of_this = made_from(&evaluate).is_none_or(|found| {
            let align = made_from(&aligned).map(|fingerprint| fingerprint.hash());
            found.0.get("align").is_none_or(|hash| Some(hash) == align.as_ref())
        });
        let evaluation = match stands && of_this {
            true => json(&evaluate.join("evaluation.json"))?,
            false => None,
        };
        let sae = trainings.iter().any(|one| one.stage == "sae" && one.finished)
            || settings.features() && base.join("sae").is_dir();
        let weights = base.join("sae/sae_weights.safetensors");
        let (autoencoder, quality) = match sae && weights.is_file() {
            true => (
                Some(hash_file(&weights).map_err(in_path(&weights))?),
                json(&base.join("sae/quality.json"))?,
            ),
            false => (None, None),
        };
        let summary: Option<Summary> = json(&prepared.join("summary.json"))?;
        let made = ["evaluate", "align", "reference", "sft", "prepared"];
        let version = made.iter().find_map(|stage| {
            let here = [folder.join(stage), base.join(stage)];
            here.iter().find_map(|path| made_from(path)?.0.get("version").cloned())
        });
        let begun = [aligned.clone(), folder.join("checkpoints/align")];
        let reference =
            begun.iter().rev().find_map(|path| made_from(path)?.0.get("model").cloned());
        let mut timing = timing::read(&base);
        timing.extend(timing::read(folder));
        Ok(Self {
            folder: folder.to_owned(),
            version,
            evaluation,
            pairs: summary.map(|summary| [summary.train, summary.held_out]),
            quality,
            kept: if stands { json(&aligned.join(KEPT_FILE))? } else { None },
            timing,
            data: data(&prepared),
            reference,
            autoencoder,
            trainings,
            settings,
        })
    }

    /// The log of a training that has begun.
    pub fn training(&self, stage: &str) -> Option<&Training> {
        self.trainings.iter().find(|training| training.stage == stage)
    }

    /// What is missing of the run, in a sentence; none where it is finished.
    pub fn unfinished(&self) -> Option<String> {
        if self.evaluation.is_some() {
            return None;
        }
        let under_way = self.trainings.iter().find(|training| !training.finished);
        Some(match (under_way, self.training("align")) {
            (Some(training), _) => format!(
                "it was interrupted, or is still being made, after step {} of stage {}",
                training.steps(),
                training.stage
            ),
            (None, Some(_)) => "the aligned model isn't measured yet".to_owned(),
            (None, None) => "alignment hasn't begun".to_owned(),
        })
    }
}

/// The folder with the stages before alignment: that of the run, but above it for a run of `fpo compare`.
fn base(folder: &Path) -> PathBuf {
    let above = folder.parent().filter(|above| above.file_name().is_some_and(|n| n == "compare"));
    match above.and_then(Path::parent) {
        Some(base) if !folder.join("prepared").exists() => base.to_owned(),
        _ => folder.to_owned(),
    }
}

/// The log of a stage; of the training under way where there is one.
fn training(folder: &Path, stage: &'static str) -> Result<Option<Training>, PageError> {
    let under_way = folder.join("checkpoints").join(stage).join(METRICS_FILE);
    let done = folder.join(stage).join(METRICS_FILE);
    let (path, finished) = if under_way.is_file() { (under_way, false) } else { (done, true) };
    let Some(text) = text(&path)? else { return Ok(None) };
    // What comes after the last line's end is still being written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |(at, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|_| PageError::Damaged {
            path: path.clone(),
            problem: format!("line {} is not a JSON object", at + 1),
        })
    };
    let lines = whole.lines().enumerate().map(line).collect::<Result<_, _>>()?;
    Ok(Some(Training { stage, finished, lines }))
}

/// What identifies training and held-out pairs; none where a store can't be read, such as one of another version.
fn data(prepared: &Path) -> Option<[String; 2]> {
    let of = |name: &str| Some(PairStore::open(&prepared.join(name)).ok()?.fingerprint().hash());
    Some([of("train.arrow")?, of("held_out.arrow")?])
}

/// A file's text; none where there is none.
fn text(path: &Path) -> Result<Option<String>, PageError> {
    let damaged = |problem: String| PageError::Damaged { path: path.to_owned(), problem };
    let bytes = match read_at_most(path, LARGEST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(in_path(path)(error)),
    };
    let bytes = bytes.ok_or_else(|| damaged(format!("it is larger than {LARGEST} bytes")))?;
    String::from_utf8(bytes).map(Some).map_err(|error| damaged(error.to_string()))
}

/// A value in JSON; none where there is no such file.
fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, PageError> {
    let Some(text) = text(path)? else { return Ok(None) };
    let damaged = |error: serde_json::Error| PageError::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    serde_json::from_str(&text).map(Some).map_err(damaged)
}

fn in_path(path: &Path) -> impl FnOnce(io::Error) -> PageError {
    let path = path.to_owned();
    |source| PageError::Io { path, source }
}
