//! The folder of a run. A stage appears in it whole or not at all, with a fingerprint of what it was made from, and is skipped as long
//! as that fingerprint is the same.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use fpo_config::Settings;
use fpo_data::{Fingerprint, atomic};
use fpo_device::{guard, progress::Reporter, sync};
use fpo_plan::{advice, check_precision};
use fpo_transformer::Placement;
use serde::{Deserialize, Serialize};

const STAGE_FILE: &str = "stage.json";

/// The note in a finished stage's folder: what it was made from.
#[derive(Serialize, Deserialize)]
struct StageFile {
    stage: String,
    fingerprint: Fingerprint,
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
    /// Resumes an interrupted stage from its checkpoint.
    resume: bool,
    /// Held while the run lasts, so that two processes never write into one folder.
    _lock: File,
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
}

impl Workspace {
    /// In folders that exist.
    pub fn new(output: PathBuf, checkpoints: PathBuf, reporter: Reporter) -> Self {
        Self { output, checkpoints, reporter, at: RefCell::new(None) }
    }

    /// Notes how far the stage is, such as `step 12`: an error will say so, whatever fails.
    pub fn at(&self, place: String) {
        self.at.replace(Some(place));
    }
}

impl Run {
    /// Opens or creates a run's folder and writes its resolved settings there.
    ///
    /// # Errors
    /// A precision that the device lacks, a folder in use by another process, or the disk's.
    pub fn open(
        folder: &Path,
        settings: Settings,
        device: Device,
        resume: bool,
        reporter: Reporter,
    ) -> Result<Self> {
        check_precision(&device, settings.model.precision).context("model")?;
        fs::create_dir_all(folder)
            .with_context(|| format!("creating the run's folder {}", folder.display()))?;
        let lock_path = folder.join(".lock");
        let lock = File::create(&lock_path)
            .with_context(|| format!("creating {}", lock_path.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "{} is in use by another process; wait for it or choose another --run",
                folder.display()
            );
        }
        let text = settings.to_toml()?;
        atomic::write_file(&folder.join("run.toml"), |file| -> Result<()> {
            Ok(file.write_all(text.as_bytes())?)
        })?;
        Ok(Self { folder: folder.to_owned(), settings, device, reporter, resume, _lock: lock })
    }

    /// The same run with other settings, in a folder below it: what `compare` uses.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn nested(&self, name: &str, settings: Settings) -> Result<Self> {
        let (device, reporter) = (self.device.clone(), self.reporter.clone());
        Self::open(&self.folder.join(name), settings, device, self.resume, reporter)
    }

    /// Device and precision of models that are not trained.
    pub fn placement(&self) -> Placement {
        Placement::new(self.device.clone(), self.settings.model.precision)
    }

    /// Does a stage's work unless its folder already stands with the same fingerprint.
    ///
    /// # Errors
    /// Those of the work; where the device failed, with settings that would make it fit.
    pub fn stage(
        &self,
        name: &str,
        fingerprint: Fingerprint,
        work: impl FnOnce(&Workspace) -> Result<()>,
    ) -> Result<Stage> {
        let folder = self.folder.join(name);
        let stage = Stage { folder: folder.clone(), hash: fingerprint.hash() };
        if read_fingerprint(&folder.join(STAGE_FILE)).is_some_and(|found| found == fingerprint) {
            self.reporter.note(name, "up to date");
            return Ok(stage);
        }
        remove_leftovers(&self.folder, name)?;
        let checkpoints = self.prepare_checkpoints(name, &fingerprint)?;
        atomic::replace_dir(&folder, |output| -> Result<()> {
            let reporter = self.reporter.clone();
            let workspace = Workspace::new(output.to_owned(), checkpoints.clone(), reporter);
            let done = guard(|| work(&workspace).and_then(|()| sync(&self.device)));
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
        Ok(stage)
    }

    /// The folder of a stage's checkpoints: kept with `--resume`, else emptied.
    ///
    /// # Errors
    /// `--resume` with checkpoints that were made from other settings or data: they are not deleted unasked.
    fn prepare_checkpoints(&self, name: &str, fingerprint: &Fingerprint) -> Result<PathBuf> {
        let folder = self.folder.join("checkpoints").join(name);
        let path = folder.join(STAGE_FILE);
        let found = read_fingerprint(&path);
        match (found.as_ref() == Some(fingerprint), self.resume) {
            (true, true) => return Ok(folder),
            (true, false) => {
                self.reporter
                    .note(name, "starts over; --resume would have resumed from its checkpoint");
            }
            (false, true) if holds_work(&folder)? => bail!(
                "the checkpoint in {} was made from other settings or data ({}); resume with those, or leave out --resume to start the \
                 stage over",
                folder.display(),
                found
                    .map_or("which ones can't be read".into(), |found| fingerprint.changes(&found))
            ),
            (false, _) => {}
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("removing {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        write_fingerprint(&path, name, fingerprint)?;
        Ok(folder)
    }
}

/// Whether a folder holds checkpoints, not only the note of what they would be made from.
fn holds_work(folder: &Path) -> Result<bool> {
    if !folder.exists() {
        return Ok(false);
    }
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        if entry?.file_name() != STAGE_FILE {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_fingerprint(path: &Path) -> Option<Fingerprint> {
    // Whatever is wrong with the file, the stage is then simply made again.
    let text = fs::read_to_string(path).ok()?;
    serde_json::from_str::<StageFile>(&text).ok().map(|file| file.fingerprint)
}

fn write_fingerprint(path: &Path, stage: &str, fingerprint: &Fingerprint) -> Result<()> {
    let file = StageFile { stage: stage.to_owned(), fingerprint: fingerprint.clone() };
    let text = serde_json::to_string_pretty(&file)?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

/// Removes the unfinished folder that a killed process left behind.
fn remove_leftovers(run: &Path, stage: &str) -> Result<()> {
    let prefix = format!(".{stage}.");
    for entry in fs::read_dir(run).with_context(|| format!("listing {}", run.display()))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)) {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}
