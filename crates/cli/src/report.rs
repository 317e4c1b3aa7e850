//! `fpo report`: the page of a run again, or one page of several.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use fpo_data::atomic;
use fpo_pages::{RunFiles, curves_csv, page, side_by_side};
use fpo_report::{render, render_runs};

use crate::streams::{self, say};

/// The page of several runs, where no other is named.
const RUNS_PAGE: &str = "runs.html";

/// Writes a run's report again, or one page with several runs side by side
///
/// Nothing is computed: the page shows what is in the folders, also for runs that are unfinished or were interrupted. With several
/// runs it shows the settings that differ, metrics and their differences, all curves in the same charts, answers to the same
/// prompts, the features that moved (if the autoencoders are the same), time and memory. No difference is shown for what can't be
/// compared, such as metrics on different data; the top of the page lists it.
///
/// Examples:
///   fpo report runs/tiny
///   fpo report runs/beta-0.1 runs/beta-0.5 --out betas.html --csv betas.csv
///   fpo report runs/tiny/compare/*
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Report {
    /// Folders of runs.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page [default: report.html in the run's folder, runs.html of several].
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    out: Option<PathBuf>,
    /// Writes the numbers of all curves too: run, stage, step, metric, value.
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    csv: Option<PathBuf>,
}

impl Report {
    pub fn run(self) -> Result<()> {
        let names = self.names()?;
        let runs: Vec<RunFiles> =
            self.runs.iter().map(|run| RunFiles::read(run)).collect::<Result<_, _>>()?;
        let (html, warnings, default) = match &runs[..] {
            [run] => {
                let report = page(run)?;
                (render(&report), report.warnings, run.folder.join("report.html"))
            }
            runs => {
                let report = side_by_side(&names, runs);
                (render_runs(&report), report.warnings, PathBuf::from(RUNS_PAGE))
            }
        };
        let out = self.out.unwrap_or(default);
        let inputs: Vec<&Path> = self.runs.iter().map(PathBuf::as_path).collect();
        for output in std::iter::once(&out).chain(&self.csv) {
            streams::keep_apart(output, &inputs)?;
        }
        if self.csv.as_ref() == Some(&out) {
            bail!("{}: the page and the table of curves can't be the same file", out.display());
        }
        let (csv, all) = (self.csv.map(|path| (path, curves_csv(&names, &runs))), (out, html));
        for (path, text) in [Some(all), csv].into_iter().flatten() {
            atomic::write_file(&path, |file| -> Result<()> {
                Ok(file.write_all(text.as_bytes())?)
            })?;
            streams::report(&path, &format!("wrote {}", path.display()))?;
        }
        warnings.iter().for_each(|warning| say!("  warning  {warning}"));
        Ok(())
    }

    /// What the runs are called: the names of their folders, or where two have the same, their paths.
    fn names(&self) -> Result<Vec<String>> {
        let mut known = BTreeSet::new();
        let mut names = Vec::new();
        for run in &self.runs {
            let path = run.canonicalize().with_context(|| format!("{}", run.display()))?;
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            if !known.insert(path) {
                bail!("{} is given twice", run.display());
            }
            names.push(name);
        }
        let twice = |name: &String| names.iter().filter(|other| *other == name).count() > 1;
        let paths = self.runs.iter().map(|run| run.display().to_string());
        Ok(names
            .iter()
            .zip(paths)
            .map(|(name, path)| if twice(name) { path } else { name.clone() })
            .collect())
    }
}
