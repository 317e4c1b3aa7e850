//! The stages of a run, each a file: prepare → sft → sae → reference → align → evaluate → report.

pub mod align;
pub mod evaluate;
pub mod prepare;
pub mod reference;
pub mod report;
pub mod sae;
pub mod sft;

use std::path::Path;

use anyhow::{Context, Result};
use fpo_data::{Fingerprint, hash};
use serde::Serialize;

use crate::run::{Run, Stage};

/// The stages in their order, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum StageName {
    /// Data and tokenizer.
    Prepare,
    /// The reference model.
    Sft,
    /// The sparse autoencoder.
    Sae,
    /// The offline reference.
    Reference,
    /// Preference alignment.
    Align,
    /// Before and after.
    Evaluate,
    /// The page.
    Report,
}

/// Runs the stages up to and including `until`.
pub fn run(run: &Run, until: StageName) -> Result<()> {
    let Some(base) = Base::make(run, until)? else { return Ok(()) };
    if until >= StageName::Align {
        align_and_report(run, &base, until)?;
    }
    Ok(())
}

/// What every method starts from.
pub struct Base {
    /// Data and tokenizer.
    pub prepared: prepare::Prepared,
    /// The reference model's stage.
    pub sft: Stage,
    /// The autoencoder's stage.
    pub sae: Stage,
    /// The cache's stage.
    pub reference: Stage,
}

impl Base {
    /// The stages before alignment; `None` if `until` ends among them.
    pub fn make(run: &Run, until: StageName) -> Result<Option<Self>> {
        let prepared = prepare::prepare(run)?;
        if until == StageName::Prepare {
            return Ok(None);
        }
        let sft = sft::sft(run, &prepared)?;
        if until == StageName::Sft {
            return Ok(None);
        }
        let sae = sae::sae(run, &prepared, &sft)?;
        if until == StageName::Sae {
            return Ok(None);
        }
        let reference = reference::reference(run, &prepared, &sft, &sae)?;
        Ok(Some(Self { prepared, sft, sae, reference }))
    }
}

/// The stages that depend on the method. Returns what was measured, if evaluation was reached.
pub fn align_and_report(
    run: &Run,
    base: &Base,
    until: StageName,
) -> Result<Option<evaluate::Evaluation>> {
    let align = align::align(run, base)?;
    if until == StageName::Align {
        return Ok(None);
    }
    let evaluate = evaluate::evaluate(run, base, &align)?;
    let evaluation = evaluate::Evaluation::load(&evaluate.folder)?;
    if until == StageName::Report {
        report::report(run, base, &align, &evaluation)?;
    }
    Ok(Some(evaluation))
}

/// Settings that say how a thing is computed and not what, but for rounding: an interrupted stage may go on with others.
const MAY_CHANGE: [&str; 3] = ["micro_batch_size", "checkpoint_every", "checkpoint_activations"];

/// A settings section as an item of a fingerprint.
fn section(settings: &impl Serialize) -> Result<String> {
    let mut section = serde_json::to_value(settings)?;
    if let Some(fields) = section.as_object_mut() {
        fields.retain(|key, _| !MAY_CHANGE.contains(&key.as_str()));
        // Runs made before there was this setting had its default.
        if fields.get("rendering").is_some_and(|rendering| rendering == "auto") {
            fields.remove("rendering");
        }
    }
    Ok(section.to_string())
}

/// The content of a file or folder as an item of a fingerprint.
pub(crate) fn content(path: &Path) -> Result<String> {
    let hash = match path.is_dir() {
        true => hash::hash_folder(path),
        false => hash::hash_file(path),
    };
    hash.with_context(|| format!("reading {}", path.display()))
}

/// The items that every stage's fingerprint begins with.
fn fingerprint(run: &Run) -> Fingerprint {
    Fingerprint::default()
        .with("version", env!("CARGO_PKG_VERSION"))
        .with("seed", run.settings.seed)
}

/// The same for the stages that compute something with a model.
fn fingerprint_of_model(run: &Run) -> Fingerprint {
    fingerprint(run).with("precision", run.settings.model.precision)
}

/// Writes a value as JSON into a stage's unfinished folder.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

/// Reads a value that [`write_json`] wrote.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}
