//! The stages of a run, each a file: prepare → sft → sae → reference → align → evaluate → report.

pub mod align;
pub mod card;
mod during;
pub mod evaluate;
pub mod prepare;
pub mod reference;
pub mod report;
pub mod sae;
pub mod sft;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result};
use fpo_data::{Fingerprint, Tokenizer, hash};
use fpo_plan::work;
use fpo_track::Tracker;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::run::{Run, Stage};

/// The stages in their order, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StageName {
    /// Data and tokenizer.
    Prepare,
    /// Supervised fine-tuning, which makes the reference model.
    Sft,
    /// The sparse autoencoder.
    Sae,
    /// The offline reference.
    Reference,
    /// Preference alignment.
    Align,
    /// Measuring before and after.
    Evaluate,
    /// The page that shows it all.
    Report,
}

impl StageName {
    /// All stages, in their order.
    pub const ALL: [Self; 7] = [
        Self::Prepare,
        Self::Sft,
        Self::Sae,
        Self::Reference,
        Self::Align,
        Self::Evaluate,
        Self::Report,
    ];

    /// As it is written on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Sft => "sft",
            Self::Sae => "sae",
            Self::Reference => "reference",
            Self::Align => "align",
            Self::Evaluate => "evaluate",
            Self::Report => "report",
        }
    }
}

impl StageName {
    /// The stage's folder in the run's.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Prepare => "prepared",
            other => other.name(),
        }
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for StageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|stage| stage.name() == text);
        found.ok_or_else(|| {
            format!("no stage `{text}`: there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// Runs the stages up to and including `until`. What the report says, if it was reached.
///
/// # Errors
/// Those of the stages.
pub fn run(run: &Run, until: StageName) -> Result<Option<report::Finished>> {
    run.settle(|| walk(run, StageName::Evaluate).map(drop))?;
    walk(run, until)
}

/// The stages one after the other.
pub(crate) fn walk(run: &Run, until: StageName) -> Result<Option<report::Finished>> {
    let Some(base) = Base::make(run, until, run.settings.features())? else { return Ok(None) };
    if until < StageName::Align {
        return Ok(None);
    }
    let align = align::align(run, &base)?;
    if until < StageName::Evaluate {
        return Ok(None);
    }
    let evaluation = evaluate::evaluate(run, &base, &align)?;
    if until < StageName::Report {
        return Ok(None);
    }
    report::report(run, &base, &align, &evaluation).map(Some)
}

/// What every method starts from.
pub struct Base {
    /// Data and tokenizer.
    pub prepared: prepare::Prepared,
    /// The reference model's stage.
    pub sft: Stage,
    /// The autoencoder's stage, where features are used.
    pub sae: Option<Stage>,
    /// The reference caches, and the reader of features.
    pub caches: reference::Caches,
}

impl Base {
    /// The stages before alignment, the autoencoder's only with `features`; none if `until` ends among them.
    ///
    /// # Errors
    /// Those of the stages.
    pub fn make(run: &Run, until: StageName, features: bool) -> Result<Option<Self>> {
        let prepared = prepare::prepare(run)?;
        // An estimate, without which a run goes on.
        if let Ok(work) = work(&run.settings, &prepared.counts()) {
            run.reporter.outline(&work);
        }
        if until < StageName::Sft {
            return Ok(None);
        }
        let sft = sft::sft(run, &prepared)?;
        if until < StageName::Sae {
            return Ok(None);
        }
        let sae = features.then(|| sae::sae(run, &prepared, &sft)).transpose()?;
        if sae.is_none() {
            run.reporter.note(
                "sae",
                "left out: nothing uses features; evaluate.features = true measures them",
            );
        }
        if until < StageName::Reference {
            return Ok(None);
        }
        let caches = reference::reference(run, &prepared, &sft, sae.as_ref())?;
        Ok(Some(Self { prepared, sft, sae, caches }))
    }
}

/// Settings that change how a stage computes but not what, apart from rounding: an interrupted stage may resume with others. What
/// `turns` changes is in the hash of the prepared examples.
const MAY_CHANGE: [&str; 6] = [
    "micro_batch_size",
    "checkpoint_every",
    "checkpoint_activations",
    "optimizer_in_backward",
    "keep_last",
    "turns",
];

/// Settings of `evaluate` that concern alignment alone, which notes them itself.
const DURING: [&str; 3] = ["every", "subset", "samples"];

/// Files of `align` that a fingerprint knows by their contents, wherever they lie: feature weights, and the autoencoders of further
/// sites, through the reference.
const BY_CONTENT: [&str; 2] = ["feature_weights", "sae"];

/// Settings that didn't exist when older runs were made, with what held then, in JSON.
const NEWER: [(&str, &str); 8] = [
    ("rendering", "\"auto\""),
    ("on_error", "\"refuse\""),
    ("system", "\"keep\""),
    ("max_steps", "null"),
    ("warmup_ratio", "null"),
    ("betas", "[0.9,0.999]"),
    ("keep_best", "null"),
    ("early_stopping", "null"),
];

/// A settings section as an item of a fingerprint.
fn section(settings: &impl Serialize) -> Result<String> {
    fn prune(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|key, value| {
                    let text = value.to_string();
                    let as_before = NEWER.iter().any(|(newer, then)| key == newer && text == *then);
                    let is_file = BY_CONTENT.contains(&key.as_str()) && value.is_string();
                    let key = key.as_str();
                    !(as_before || is_file || MAY_CHANGE.contains(&key) || DURING.contains(&key))
                });
                fields.values_mut().for_each(prune);
            }
            Value::Array(items) => items.iter_mut().for_each(prune),
            _ => {}
        }
    }
    let mut section = serde_json::to_value(settings)?;
    prune(&mut section);
    Ok(section.to_string())
}

/// The formats in which a stage's log is written too, and the folder for them.
fn track<'a>(run: &'a Run, stage: &str) -> (&'a [Tracker], PathBuf) {
    (&run.settings.track, run.folder.join("track").join(stage))
}

/// The content of a file or folder as an item of a fingerprint.
///
/// # Errors
/// It can't be read.
pub fn content(path: &Path) -> Result<String> {
    let hash = match path.is_dir() {
        true => hash::hash_folder(path),
        false => fpo_data::source::hash(path),
    };
    hash.with_context(|| format!("reading {}", path.display()))
}

/// The items that every stage's fingerprint begins with.
fn fingerprint(run: &Run) -> Fingerprint {
    Fingerprint::default()
        .with("version", env!("CARGO_PKG_VERSION"))
        .with("seed", run.settings.seed)
}

/// The same for the stages that compute with a model.
fn fingerprint_of_model(run: &Run) -> Fingerprint {
    fingerprint(run).with("precision", run.settings.model.precision)
}

/// Writes the tokenizer into a stage's folder, unless the model's base brought its files along.
fn save_tokenizer(tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    match folder.join("tokenizer.json").exists() {
        true => Ok(()),
        false => Ok(tokenizer.save(folder)?),
    }
}

/// Writes a value as JSON into a stage's unfinished folder.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

/// Reads a value that [`write_json`] wrote.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}
