//! The page of a run, and the table that ends it.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Result;
use fpo_data::atomic;
use fpo_metrics::table;
use fpo_pages::{RunFiles, page};
use fpo_report::{TableRow, render};

use super::{Base, StageName, card, evaluate::Evaluation};
use crate::run::{Run, Stage};

/// What a finished run has to show.
pub struct Finished {
    /// Metrics before and after alignment.
    pub table: Vec<TableRow>,
    /// The aligned model's folder.
    pub model: PathBuf,
    /// The page.
    pub page: PathBuf,
}

/// Writes `report.html`, as [`fpo_pages`] makes it from the run's files.
///
/// # Errors
/// A metrics file that can't be read, or the disk's.
pub fn report(run: &Run, base: &Base, align: &Stage, evaluation: &Evaluation) -> Result<Finished> {
    let table = table(&run.settings.align.objective(), &evaluation.before, &evaluation.after);
    card::write(run, &base.prepared, StageName::Align, &align.folder, &table)?;
    let path = run.folder.join("report.html");
    write_page(&path, &render(&page(&RunFiles::read(&run.folder)?)?))?;
    Ok(Finished { table, model: align.folder.clone(), page: path })
}

/// Puts a page in its place, whole or not at all.
///
/// # Errors
/// The disk's.
pub fn write_page(path: &Path, page: &str) -> Result<()> {
    atomic::write_file(path, |file| -> Result<()> { Ok(file.write_all(page.as_bytes())?) })
}
