//! The runs of a study: what they are, and how far they can be.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use fpo_losses::Method;

use crate::{change::Change, measure::Measured, trial::Trial};

/// The parts of a study.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Every trial of every method on validation prompts, with the first seed.
    Tune,
    /// The best trial of every method on test prompts, with every seed.
    Measure,
    /// One change at a time in a best trial, on test prompts, with the first seed.
    Ablate,
    /// Features of a kind of prompts held or released, on test prompts, with the first seed.
    Control,
}

impl Part {
    /// All parts in their order.
    pub const ALL: [Self; 4] = [Self::Tune, Self::Measure, Self::Ablate, Self::Control];

    /// As on the command line, and the folder of its runs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tune => "tune",
            Self::Measure => "measure",
            Self::Ablate => "ablate",
            Self::Control => "control",
        }
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is a part of.
    pub part: Part,
    /// The method.
    pub method: Method,
    /// Its constants.
    pub trial: Trial,
    /// What is different from that, if anything is.
    pub change: Option<Change>,
    /// The seed.
    pub seed: u64,
}

impl Item {
    /// Its folder below the study's.
    pub fn folder(&self) -> PathBuf {
        let Self { part, method, trial, change, seed } = self;
        let mut folder = Path::new(part.name()).join(method.name()).join(trial.folder());
        folder.extend(change.as_ref().map(Change::folder));
        folder.join(format!("seed-{seed}"))
    }
}

/// For a person: `fpo, learning rate 0.0003, alpha 0.5, seed 0`.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, trial, change, seed, .. } = self;
        write!(f, "{method}, {trial}")?;
        if let Some(change) = change {
            write!(f, "; {change}")?;
        }
        write!(f, ", seed {seed}")
    }
}

/// How far a run is.
#[derive(Clone, Debug)]
pub enum State {
    /// Measured.
    Finished(Measured),
    /// Its loss or a gradient became infinite; the message says when.
    Diverged(String),
    /// Not begun, or begun.
    Missing,
    /// Made from other settings or data: what differs.
    Stale(String),
}

impl State {
    /// What was measured.
    pub fn measured(&self) -> Option<&Measured> {
        match self {
            Self::Finished(measured) => Some(measured),
            _ => None,
        }
    }

    /// Whether there is nothing left to do.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Finished(_) | Self::Diverged(_))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
