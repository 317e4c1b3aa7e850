//! Methods compared as they should be: every method tuned with the same number of trials on validation prompts, then measured on test
//! prompts with several seeds.
//!
//! A [`Plan`] says what is compared. [`Study::open`] opens its folder, [`Progress::of`] finds out what is done, [`carry_out`] does the
//! rest, and [`Results`] are what comes out of it.
//!
//! # Invariants
//! * Every run is a run like any other: its stages are those of `fpo-trainer`, with their fingerprints. What is done follows from what
//!   lies on the disk, so a study can be stopped at any time.
//! * No prompt that decides which trial is the best is measured afterwards.
//! * Nothing that was made from another plan is removed unless the caller says so.
//! * The numbers follow from the plan and the seeds. What is never the same twice, time and memory, is kept apart from them.
//! * Prints nothing.

mod change;
mod cost;
mod drawing;
mod flow;
pub mod interval;
mod item;
mod measure;
pub mod plan;
mod progress;
mod results;
pub mod select;
mod split;
mod start;
mod study;
mod trial;

use std::{io::Write, path::Path};

use anyhow::{Context, Result};
use fpo_data::atomic;
use serde::Serialize;

pub use change::Change;
pub use cost::Cost;
pub use drawing::{Drawn, draw};
pub use flow::carry_out;
pub use interval::Mean;
pub use item::{Item, Part, State};
pub use measure::{Answer, KL, Measured, OfKind, Point};
pub use plan::{Plan, PlanError};
pub use progress::Progress;
pub use results::Results;
pub use split::{Half, Kind, Kinds, Split, TooFew};
pub use study::Study;
pub use trial::Trial;

/// Writes a file, whole or not at all.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    write(path, &(text + "\n"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    atomic::write_file(path, |file| -> Result<()> { Ok(file.write_all(text.as_bytes())?) })
        .with_context(|| format!("writing {}", path.display()))
}
