//! What lies in a run's folder: its lock, its settings, the fingerprints of its stages, and what a killed process left behind.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use fpo_config::{Base, Settings};
use fpo_data::{Fingerprint, atomic};
use serde::{Deserialize, Serialize};

use crate::{
    discard::{ORDER, Stale},
    timing::TIMING_FILE,
};

/// The note in a finished stage's folder.
pub(crate) const STAGE_FILE: &str = "stage.json";
/// The resolved settings.
const SETTINGS_FILE: &str = "run.toml";
const LOCK_FILE: &str = ".lock";
/// Files that are written beside the stages.
const FILES: [&str; 6] =
    [SETTINGS_FILE, TIMING_FILE, "report.html", "compare.html", "drift.html", "drift.csv"];

/// What a stage was made from.
#[derive(Serialize, Deserialize)]
pub(crate) struct StageFile {
    stage: String,
    pub fingerprint: Fingerprint,
    /// Bytes of the weights and tables in the folder, once the stage has ended. Notes of earlier versions have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    sizes: BTreeMap<String, u64>,
}

/// The settings that a run's folder was made with; none where there are none.
///
/// # Errors
/// A `run.toml` that can't be read or holds settings that can't work.
pub fn saved_settings(folder: &Path) -> Result<Option<Settings>> {
    let path = folder.join(SETTINGS_FILE);
    match path.is_file() {
        true => Settings::resolve_on(Base::Saved(&path), None, &[]).map(Some),
        false => Ok(None),
    }
}

/// A locked folder, so that two processes never write into one.
pub(crate) struct Folder {
    path: PathBuf,
    /// The topmost folder that was created for it.
    created: Option<PathBuf>,
    /// Whether it describes itself, so that it stays when the run ends.
    settled: Cell<bool>,
    _lock: File,
}

impl Folder {
    /// Creates the folder if it isn't there.
    pub fn lock(path: &Path, settled: bool) -> Result<Self> {
        let missing = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        let created = missing.last().map(Path::to_owned);
        fs::create_dir_all(path)
            .with_context(|| format!("creating the run's folder {}", path.display()))?;
        let file = path.join(LOCK_FILE);
        let lock = File::create(&file).with_context(|| format!("creating {}", file.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "{} is in use by another process; wait for it or choose another --run",
                path.display()
            );
        }
        Ok(Self { path: path.to_owned(), created, settled: Cell::new(settled), _lock: lock })
    }

    /// Removes the temporary files and folders of a killed process. A stage that was moved aside when it was killed is put back.
    pub fn clean(&self) -> Result<()> {
        let ours: Vec<&str> = ORDER.into_iter().chain(FILES).collect();
        for name in ORDER {
            let prefix = format!(".{name}.old-");
            let target = self.path.join(name);
            for aside in entries(&self.path)?.into_iter().filter(|n| n.starts_with(&prefix)) {
                let kept = self.path.join(aside).join("replaced");
                if !target.exists() && kept.join(STAGE_FILE).is_file() {
                    fs::rename(&kept, &target)
                        .with_context(|| format!("putting back {}", target.display()))?;
                }
            }
        }
        remove_temporaries(&self.path, |name| ours.contains(&name))?;
        let checkpoints = self.path.join("checkpoints");
        for stage in ORDER {
            remove_temporaries(&checkpoints.join(stage), |name| name.starts_with("step-"))?;
        }
        Ok(())
    }

    pub fn save(&self, settings: &Settings) -> Result<()> {
        let text = settings.to_toml()?;
        atomic::write_file(&self.path.join(SETTINGS_FILE), |file| -> Result<()> {
            Ok(file.write_all(text.as_bytes())?)
        })?;
        self.settled.set(true);
        Ok(())
    }

    /// What making a stage would discard, and why: the stage itself and those after it, and checkpoints made from other things.
    pub fn stale(&self, name: &str, fingerprint: &Fingerprint) -> Result<Stale> {
        let folder = self.path.join(name);
        let checkpoints = self.checkpoint_folder(name);
        let of_stage = folder.exists().then(|| read_fingerprint(&folder.join(STAGE_FILE)));
        let of_checkpoint = match holds_work(&checkpoints)? {
            true => Some(read_fingerprint(&checkpoints.join(STAGE_FILE)))
                .filter(|found| found.as_ref() != Some(fingerprint)),
            false => None,
        };
        let mut discards: Vec<String> = Vec::new();
        if of_checkpoint.is_some() {
            discards.push(format!("checkpoints/{name}"));
        }
        if of_stage.is_some() {
            let position = ORDER.iter().position(|stage| *stage == name).unwrap_or(0);
            let later = ORDER[position..].iter().filter(|stage| self.path.join(stage).exists());
            discards.extend(later.map(|stage| stage.to_string()));
        }
        let changes = match of_stage.or(of_checkpoint).flatten() {
            Some(found) => fingerprint.changes(&found),
            None => "what it was made from can't be read".into(),
        };
        Ok(Stale { stage: name.to_owned(), folder: self.path.clone(), changes, discards })
    }

    /// The folder of a stage's checkpoints, without those that were made from other things.
    pub fn checkpoints(&self, name: &str, fingerprint: &Fingerprint) -> Result<PathBuf> {
        let folder = self.checkpoint_folder(name);
        let path = folder.join(STAGE_FILE);
        if read_fingerprint(&path).as_ref() == Some(fingerprint) {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("removing {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        write_fingerprint(&path, name, fingerprint)?;
        Ok(folder)
    }

    fn checkpoint_folder(&self, stage: &str) -> PathBuf {
        self.path.join("checkpoints").join(stage)
    }
}

/// A run that ended before its first stage stood leaves nothing behind. What can't be removed does no harm.
impl Drop for Folder {
    fn drop(&mut self) {
        if self.settled.get() {
            return;
        }
        for stage in ORDER {
            let folder = self.checkpoint_folder(stage);
            if holds_work(&folder).is_ok_and(|holds| !holds) {
                let _ = fs::remove_file(folder.join(STAGE_FILE));
                let _ = fs::remove_dir(folder);
            }
        }
        let _ = fs::remove_dir(self.path.join("checkpoints"));
        let _ = fs::remove_file(self.path.join(LOCK_FILE));
        let Some(created) = &self.created else { return };
        for folder in self.path.ancestors() {
            if fs::remove_dir(folder).is_err() || folder == created {
                return;
            }
        }
    }
}

/// Names in a folder; none where there is none.
fn entries(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let listed = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    listed
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("listing {}", folder.display()))
}

/// Removes `.NAME.…` as [`atomic`] creates them, for names that are ours.
fn remove_temporaries(folder: &Path, ours: impl Fn(&str) -> bool) -> Result<()> {
    for name in entries(folder)? {
        if atomic::temporary_of(&name).is_some_and(&ours) {
            let path = folder.join(name);
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Whether a folder holds checkpoints, not only the note of what they would be made from.
fn holds_work(folder: &Path) -> Result<bool> {
    Ok(entries(folder)?.iter().any(|name| name != STAGE_FILE))
}

/// What a stage was made from, by the note in its folder, or in that of its checkpoints; none where there is none that can be read.
pub fn made_from(folder: &Path) -> Option<Fingerprint> {
    read_fingerprint(&folder.join(STAGE_FILE))
}

fn read_fingerprint(path: &Path) -> Option<Fingerprint> {
    read_note(path).map(|note| note.fingerprint)
}

pub(crate) fn read_note(path: &Path) -> Option<StageFile> {
    // Whatever is wrong with the file, it doesn't say what the stage was made from.
    let text = fs::read_to_string(path).ok()?;
    serde_json::from_str(&text).ok()
}

pub(crate) fn write_fingerprint(path: &Path, stage: &str, fingerprint: &Fingerprint) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = StageFile {
        stage: stage.to_owned(),
        fingerprint: fingerprint.clone(),
        sizes: sizes(folder).with_context(|| format!("listing {}", folder.display()))?,
    };
    let text = serde_json::to_string_pretty(&file)?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

/// Bytes of a folder's weights and tables.
fn sizes(folder: &Path) -> std::io::Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if [".safetensors", ".arrow"].iter().any(|ending| name.ends_with(ending)) {
            sizes.insert(name, entry.metadata()?.len());
        }
    }
    Ok(sizes)
}

impl StageFile {
    /// Refuses a finished stage whose files aren't as they were written.
    pub fn check_whole(&self, folder: &Path) -> Result<()> {
        for (name, expected) in &self.sizes {
            let file = folder.join(name);
            let found = fs::metadata(&file).map_or(0, |metadata| metadata.len());
            if found != *expected {
                bail!(
                    "{} has {found} bytes and had {expected} when the stage ended; delete {}, and the same command makes it again",
                    file.display(),
                    folder.display()
                );
            }
        }
        Ok(())
    }
}
