//! The folder of a run. A stage appears in it whole or not at all, with a fingerprint of what it was made from, and is skipped as long
//! as that fingerprint is the same.
//!
//! # Invariants
//! * Work that was made from other settings or data is only replaced where the caller says so ([`Existing::Overwrite`]).
//! * `run.toml` describes what is in the folder: it is written once the first stage stands, and other settings replace it only after
//!   they were held against every finished stage.
//! * A call that is refused leaves the folder as it was, and no folder where there was none.

mod discard;
mod disk;
mod folder;
mod inputs;
pub mod timing;

use std::{
    cell::{Cell, RefCell},
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use burn::tensor::Device;
use fpo_config::Settings;
use fpo_data::{Fingerprint, atomic};
use fpo_device::{
    guard, hardware,
    host::{forget_peak_rss, peak_rss_mib},
    interrupt,
    progress::Reporter,
    sync,
};
use fpo_plan::{advice, check_precision};
use fpo_transformer::Placement;

pub use discard::Stale;
use folder::{Folder, STAGE_FILE, read_note, write_fingerprint};
pub use folder::{made_from, saved_settings};
use timing::StageTiming;

/// What happens to work in the folder that was made from other settings or data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It is kept, and a call that would discard it is refused.
    Keep,
    /// It is made again.
    Overwrite,
}

/// What [`Run::stage`] does with a stage that isn't up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Makes it.
    Work,
    /// Fails with [`Stale`], so that nothing is made.
    Probe,
}

/// A run in progress.
pub struct Run {
    /// Holds a folder per stage.
    pub folder: PathBuf,
    /// Resolved and checked.
    pub settings: Settings,
    /// The device, without autodiff.
    pub device: Device,
    /// Told what the stages do.
    pub reporter: Reporter,
    existing: Existing,
    mode: Cell<Mode>,
    /// The folder's own settings; none in a new one.
    saved: RefCell<Option<Settings>>,
    /// Locked while the run lasts.
    files: Folder,
}

/// A finished stage.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Its files.
    pub folder: PathBuf,
    /// Hash of everything that it was made from, which enters the fingerprints of later stages.
    pub hash: String,
}

/// Where a stage writes while it runs.
pub struct Workspace {
    /// Becomes the stage's folder once the stage is finished.
    pub output: PathBuf,
    /// Outlasts a crash; removed when the stage is finished.
    pub checkpoints: PathBuf,
    /// Told what the stage does.
    pub reporter: Reporter,
    /// What an error should say about where it happened.
    at: RefCell<Option<String>>,
    /// Tokens that went through the model.
    tokens: Cell<usize>,
}

impl Workspace {
    /// In folders that exist.
    pub fn new(output: PathBuf, checkpoints: PathBuf, reporter: Reporter) -> Self {
        Self { output, checkpoints, reporter, at: RefCell::new(None), tokens: Cell::new(0) }
    }

    /// Notes how far the stage is, such as `step 12`: an error will say so, whatever fails.
    pub fn at(&self, place: String) {
        self.at.replace(Some(place));
    }

    /// Counts tokens that went through the model.
    pub fn count_tokens(&self, tokens: usize) {
        self.tokens.set(self.tokens.get() + tokens);
    }
}

impl Run {
    /// Opens or creates a run's folder. Nothing but its lock is written before the first stage stands.
    ///
    /// # Errors
    /// A precision that the device lacks, files that the settings name and that aren't there, too little room on the disk, a folder in
    /// use by another process, or one that can't be written.
    pub fn open(
        folder: &Path,
        settings: Settings,
        device: Device,
        existing: Existing,
        reporter: Reporter,
    ) -> Result<Self> {
        check_precision(&device, settings.model.precision).context("model")?;
        inputs::check(&settings)?;
        let saved = saved_settings(folder)?;
        disk::check(folder, &settings)?;
        let files = Folder::lock(folder, saved.is_some())?;
        files.clean()?;
        Ok(Self {
            folder: folder.to_owned(),
            settings,
            device,
            reporter,
            existing,
            mode: Cell::new(Mode::Work),
            saved: RefCell::new(saved),
            files,
        })
    }

    /// The same run with other settings, in a folder below it: what `compare` uses.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn nested(&self, name: &str, settings: Settings) -> Result<Self> {
        let (device, reporter) = (self.device.clone(), self.reporter.clone());
        Self::open(&self.folder.join(name), settings, device, self.existing, reporter)
    }

    /// Device and precision of models that are not trained.
    pub fn placement(&self) -> Placement {
        Placement::new(self.device.clone(), self.settings.model.precision)
    }

    /// Where the settings differ from the folder's own: finds out by a walk through all stages, which makes nothing, what they would
    /// discard. To be called before the first stage.
    ///
    /// # Errors
    /// Work that would be discarded, unless it may be overwritten; or those of the walk.
    pub fn settle(&self, walk: impl FnOnce() -> Result<()>) -> Result<()> {
        let changes = match &*self.saved.borrow() {
            Some(saved) => self.settings.changes(saved),
            None => return Ok(()),
        };
        if changes.is_empty() {
            return Ok(());
        }
        for change in &changes {
            self.reporter.note("settings", change);
        }
        match self.probe(walk) {
            Ok(()) => {}
            Err(error) => match error.downcast::<Stale>() {
                Ok(stale) if stale.discards.is_empty() => {}
                Ok(stale) if self.existing == Existing::Keep => {
                    return Err(Stale { changes: changes.join("\n  "), ..stale }.into());
                }
                Ok(stale) => self.reporter.note("run", stale.overwrites()),
                // A walk that can't be made: without finished stages to hold the settings against, or with damaged ones.
                Err(error) if self.existing == Existing::Keep => return Err(error),
                Err(_) => {}
            },
        }
        self.save_settings()
    }

    /// A walk through the stages on which nothing is made.
    ///
    /// # Errors
    /// [`Stale`] for the first stage that isn't up to date, or those of the walk.
    pub fn probe<T>(&self, walk: impl FnOnce() -> Result<T>) -> Result<T> {
        self.mode.set(Mode::Probe);
        let outcome = walk();
        self.mode.set(Mode::Work);
        outcome
    }

    /// Does a stage's work unless its folder already stands with the same fingerprint.
    ///
    /// # Errors
    /// Those of the work; where the device failed, with settings that would make it fit. Work that the stage would discard.
    pub fn stage(
        &self,
        name: &str,
        fingerprint: Fingerprint,
        work: impl FnOnce(&Workspace) -> Result<()>,
    ) -> Result<Stage> {
        let folder = self.folder.join(name);
        let stage = Stage { folder: folder.clone(), hash: fingerprint.hash() };
        let note = read_note(&folder.join(STAGE_FILE));
        if let Some(note) = note.filter(|note| note.fingerprint == fingerprint) {
            note.check_whole(&folder).with_context(|| format!("stage {name}"))?;
            if self.mode.get() == Mode::Work {
                self.reporter.note(name, "up to date");
                self.save_first_settings()?;
            }
            return Ok(stage);
        }
        let stale = self.files.stale(name, &fingerprint)?;
        if self.mode.get() == Mode::Probe
            || !stale.discards.is_empty() && self.existing == Existing::Keep
        {
            return Err(stale.into());
        }
        if interrupt::requested() {
            return Err(interrupt::Interrupted.into());
        }
        let checkpoints = self.files.checkpoints(name, &fingerprint)?;
        let begun = Instant::now();
        forget_peak_rss();
        let mut tokens = 0;
        atomic::replace_dir(&folder, |output| -> Result<()> {
            let reporter = self.reporter.clone();
            let workspace = Workspace::new(output.to_owned(), checkpoints.clone(), reporter);
            let done = guard(|| work(&workspace).and_then(|()| sync(&self.device)));
            tokens = workspace.tokens.get();
            if let Some(refusal) = fpo_ops::take_product_refusal() {
                self.reporter.warn(format!("slower matrix products: {refusal}"));
            }
            match workspace.at.take() {
                Some(place) => done.context(place)?,
                None => done?,
            }
            write_fingerprint(&output.join(STAGE_FILE), name, &fingerprint)
        })
        .map_err(|error| advice::of_stage(error, name, &self.settings, &self.device))
        .with_context(|| format!("stage {name}"))?;
        fs::remove_dir_all(&checkpoints)
            .with_context(|| format!("removing {}", checkpoints.display()))?;
        self.save_first_settings()?;
        let seconds = begun.elapsed().as_secs_f64();
        let tokens = (tokens > 0).then_some(tokens);
        let timing = StageTiming {
            hardware: hardware(&self.device),
            seconds,
            tokens,
            tokens_per_second: tokens.map(|tokens| tokens as f64 / seconds),
            peak_memory_mib: peak_rss_mib(),
        };
        timing::add(&self.folder, name, timing)?;
        Ok(stage)
    }

    /// Writes `run.toml` where there is none. Others replace it only after [`Self::settle`].
    fn save_first_settings(&self) -> Result<()> {
        if self.saved.borrow().is_some() {
            return Ok(());
        }
        self.save_settings()
    }

    /// Writes `run.toml`, unless it says the same already.
    fn save_settings(&self) -> Result<()> {
        if self.saved.borrow().as_ref() == Some(&self.settings) {
            return Ok(());
        }
        self.files.save(&self.settings)?;
        self.saved.replace(Some(self.settings.clone()));
        Ok(())
    }
}
