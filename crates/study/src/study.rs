//! The runs of a study: what there is to do, what is done, and doing the rest.
//!
//! What is done is what lies on the disk. A run's folder is named by what the run is, so that a plan that grows finds the runs of the
//! smaller one, and its stages have the fingerprints of any other run.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use fpo_config::Settings;
use fpo_data::Fingerprint;
use fpo_device::progress::Reporter;
use fpo_run::{Existing, Run, Stale};
use fpo_trainer::{
    stages::{Base, StageName, align::align},
    training::Diverged,
};

use crate::{
    change::Change,
    cost::metered,
    item::{Item, Part, State},
    measure::{Measured, On, measured},
    plan::{EachSeed, Plan},
    split::{Kind, Kinds, Split},
    trial::Trial,
};

/// What alignments start from, opened.
pub struct Opened {
    /// Their run.
    pub run: Run,
    /// Their stages.
    pub base: Base,
    /// The held-out prompts in two.
    pub split: Split,
    /// Pairs and prompts of each kind.
    pub kinds: Kinds,
}

/// Notes that a run's loss or gradient became infinite.
const DIVERGED_FILE: &str = "diverged.json";

const LOCK_FILE: &str = ".lock";

/// An open study.
pub struct Study {
    /// The plan.
    pub plan: Plan,
    /// Its folder.
    pub folder: PathBuf,
    device: Device,
    existing: Existing,
    /// Told what it does.
    pub reporter: Reporter,
    bases: RefCell<BTreeMap<PathBuf, Rc<Opened>>>,
    _lock: File,
}

impl Study {
    /// Opens or creates a study's folder.
    ///
    /// # Errors
    /// A folder in use by another process, or one that can't be written.
    pub fn open(
        plan: Plan,
        folder: &Path,
        device: Device,
        existing: Existing,
        reporter: Reporter,
    ) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("creating the study's folder {}", folder.display()))?;
        let path = folder.join(LOCK_FILE);
        let lock = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "{} is in use by another process; wait for it or choose another --run",
                folder.display()
            );
        }
        let (folder, bases) = (folder.to_owned(), RefCell::default());
        Ok(Self { plan, folder, device, existing, reporter, bases, _lock: lock })
    }

    /// What happens to runs of another plan.
    pub fn existing(&self) -> Existing {
        self.existing
    }

    /// Seeds of the first stages: each its own, or one for all.
    fn base_seed(&self, seed: u64) -> Result<u64> {
        match self.plan.each_seed {
            EachSeed::Everything => Ok(seed),
            EachSeed::Alignment => Ok(self.plan.settings(None, seed, &[])?.seed),
        }
    }

    /// The folder of what the runs of a seed start from.
    ///
    /// # Errors
    /// Those of the settings.
    pub fn base_folder(&self, seed: u64) -> Result<PathBuf> {
        Ok(self.folder.join("bases").join(format!("seed-{}", self.base_seed(seed)?)))
    }

    fn open_base(&self, seed: u64, reporter: Reporter) -> Result<Run> {
        let settings = self.plan.settings(None, seed, &[])?;
        self.open_run(&self.base_folder(seed)?, settings, reporter)
    }

    pub(crate) fn open_run(
        &self,
        folder: &Path,
        settings: Settings,
        reporter: Reporter,
    ) -> Result<Run> {
        Run::open(folder, settings, self.device.clone(), self.existing, reporter)
    }

    /// What the runs of a seed start from, if it is finished; else what is missing or differs.
    pub(crate) fn ready_base(&self, seed: u64) -> Result<Result<Rc<Opened>, Stale>> {
        let folder = self.base_folder(seed)?;
        if let Some(opened) = self.opened(&folder) {
            return Ok(Ok(opened));
        }
        if !folder.join("run.toml").exists() {
            return Ok(Err(missing(folder)));
        }
        let run = self.open_base(seed, Reporter::silent())?;
        let features = run.settings.features();
        match run.probe(|| Base::make(&run, StageName::Report, features)) {
            Ok(base) => self.keep(run, base.context("every stage was asked for")?).map(Ok),
            Err(error) => error.downcast::<Stale>().map(Err),
        }
    }

    pub(crate) fn opened(&self, folder: &Path) -> Option<Rc<Opened>> {
        self.bases.borrow().get(folder).map(Rc::clone)
    }

    pub(crate) fn keep(&self, run: Run, base: Base) -> Result<Rc<Opened>> {
        let prompts = base.prepared.asked(&run);
        let split = Split::of(&base.prepared, prompts, self.plan.validation)?;
        let kinds = Kind::all(&base.prepared, &self.plan.kinds)?;
        let folder = run.folder.clone();
        let opened = Rc::new(Opened { run, base, split, kinds });
        self.bases.borrow_mut().insert(folder, Rc::clone(&opened));
        Ok(opened)
    }

    /// What the runs of a seed start from; what is missing of it is made.
    pub(crate) fn base(&self, seed: u64) -> Result<Rc<Opened>> {
        if let Ok(opened) = self.ready_base(seed)? {
            return Ok(opened);
        }
        self.reporter.note("study", format!("what all methods start from, seed {seed}"));
        let run = self.open_base(seed, self.reporter.clone())?;
        let features = run.settings.features();
        let make = || Base::make(&run, StageName::Report, features);
        run.settle(|| make().map(drop))?;
        let base = make()?;
        self.keep(run, base.context("every stage was asked for")?)
    }

    /// How far what the runs of a seed start from is.
    ///
    /// # Errors
    /// A folder that can't be read.
    pub fn base_state(&self, seed: u64) -> Result<State> {
        Ok(match self.ready_base(seed)? {
            Ok(_) => State::Finished(Measured::default()),
            Err(stale) => state_of(stale),
        })
    }

    /// The reference model measured on the test prompts.
    ///
    /// # Errors
    /// Those of making it.
    pub fn reference(&self, seed: u64, work: bool) -> Result<State> {
        let opened = match work {
            true => self.base(seed)?,
            false => match self.ready_base(seed)? {
                Ok(opened) => opened,
                Err(stale) => return Ok(state_of(stale)),
            },
        };
        let Opened { run, base, split, kinds } = &*opened;
        let on = On { half: &split.test, kinds, answers: true, every: None, steps: 0 };
        let measure = || measured(run, base, None, &on);
        match run.probe(measure) {
            Ok(found) => Ok(State::Finished(found)),
            Err(error) => match error.downcast::<Stale>()? {
                stale if !work => Ok(state_of(stale)),
                _ => Ok(State::Finished(measure()?)),
            },
        }
    }

    /// The settings of a run whose alignment is measured at checkpoints, if it is; with the steps between them and in all.
    fn settings(&self, item: &Item, base: &Base) -> Result<(Settings, Option<usize>, usize)> {
        let change = item.change.as_ref();
        let set = change.map(Change::assignments).unwrap_or_default();
        let mut settings = self.plan.settings(Some((item.method, &item.trial)), item.seed, &set)?;
        if let Some(change) = change {
            self.complete(&mut settings, change, item.seed)?;
        }
        let steps = settings.align.length().steps(base.prepared.train.len());
        let every = match item.part {
            Part::Tune | Part::Ablate | Part::Control => None,
            Part::Measure => Some(steps.div_ceil(self.plan.checkpoints).max(1)),
        };
        if let Some(every) = every.filter(|every| *every < steps) {
            settings.align.checkpoint_every = every.try_into()?;
            // With room for those that interruptions leave between the planned ones.
            let kept = (steps - 1) / every + INTERRUPTIONS;
            settings.align.keep_last = Some(kept.try_into()?);
        }
        Ok((settings, every, steps))
    }

    /// Tuning answers prompts only where answers decide.
    fn on<'a>(
        &self,
        item: &Item,
        opened: &'a Opened,
        every: Option<usize>,
        steps: usize,
    ) -> On<'a> {
        let (half, answers) = match item.part {
            Part::Tune => (&opened.split.validation, self.plan.criterion.is_of_answers()),
            Part::Measure | Part::Ablate | Part::Control => (&opened.split.test, true),
        };
        On { half, kinds: &opened.kinds, answers, every, steps }
    }

    /// Whether a trial has what a change would make of it.
    pub(crate) fn has(&self, trial: &Trial, change: &Change) -> bool {
        let Some(ablate) = &self.plan.ablate else { return false };
        let settings = |set: &[String]| {
            self.plan.settings(Some((ablate.method, trial)), self.plan.seeds[0], set).ok()
        };
        let set = change.assignments();
        !set.is_empty() && settings(&[]) == settings(&set)
    }

    /// How far a run is. Nothing is made.
    ///
    /// # Errors
    /// A folder that can't be read.
    pub fn state(&self, item: &Item) -> Result<State> {
        let folder = self.folder.join(item.folder());
        if !folder.exists() {
            return Ok(State::Missing);
        }
        let opened = match self.ready_start(item)? {
            Ok(opened) => opened,
            // What it was made from is gone or different; so is it, if it was finished.
            Err(stale) => {
                return Ok(match (folder.join("run.toml").exists(), state_of(stale)) {
                    (true, State::Missing) => State::Stale("what it starts from is missing".into()),
                    (true, stale) => stale,
                    (false, _) => State::Missing,
                });
            }
        };
        let (settings, every, steps) = self.settings(item, &opened.base)?;
        if let Some(message) = diverged(&folder, &settings, &opened.base) {
            return Ok(State::Diverged(message));
        }
        let run = self.nested(item, settings, Reporter::silent())?;
        let on = self.on(item, &opened, every, steps);
        let probed = run.probe(|| {
            let align = align(&run, &opened.base)?;
            measured(&run, &opened.base, Some(&align), &on)
        });
        match probed {
            Ok(measured) => Ok(State::Finished(measured)),
            Err(error) => Ok(state_of(error.downcast::<Stale>()?)),
        }
    }

    fn nested(&self, item: &Item, settings: Settings, reporter: Reporter) -> Result<Run> {
        self.open_run(&self.folder.join(item.folder()), settings, reporter)
    }

    /// Makes a run, and what it starts from.
    ///
    /// # Errors
    /// Those of its stages. That it diverges is a result.
    pub fn work(&self, item: &Item) -> Result<State> {
        let opened = self.start(item)?;
        let base = &opened.base;
        let (settings, every, steps) = self.settings(item, base)?;
        let run = self.nested(item, settings, self.reporter.clone())?;
        let on = self.on(item, &opened, every, steps);
        run.settle(|| measured(&run, base, Some(&align(&run, base)?), &on).map(drop))?;
        let align = match metered(&run.folder, &self.device, || align(&run, base)) {
            Ok(align) => align,
            Err(error) => match error.downcast_ref::<Diverged>() {
                Some(_) => return note_divergence(&run, base, &error),
                None => return Err(error),
            },
        };
        Ok(State::Finished(measured(&run, base, Some(&align), &on)?))
    }
}

/// A call that made nothing leaves no folder behind. What can't be removed does no harm.
impl Drop for Study {
    fn drop(&mut self) {
        self.bases.borrow_mut().clear();
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        if entries.filter(|entry| entry.file_name() != LOCK_FILE).count() == 0 {
            let _ = fs::remove_file(self.folder.join(LOCK_FILE));
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// Checkpoints more than planned that a run may keep.
const INTERRUPTIONS: usize = 8;

/// What was never made.
pub(crate) fn missing(folder: PathBuf) -> Stale {
    Stale { stage: "prepared".into(), folder, changes: String::new(), discards: Vec::new() }
}

fn state_of(stale: Stale) -> State {
    match stale.discards.is_empty() {
        true => State::Missing,
        false => State::Stale(stale.changes),
    }
}

/// What a run that diverged was made from.
fn origin(settings: &Settings, base: &Base) -> Result<String> {
    let made_from = Fingerprint::default()
        .with("version", env!("CARGO_PKG_VERSION"))
        .with("settings", settings.to_toml()?)
        .with("reference", &base.caches.stage.hash);
    Ok(made_from.hash())
}

/// The note that a run diverged, if it was made from the same things.
fn diverged(folder: &Path, settings: &Settings, base: &Base) -> Option<String> {
    let text = fs::read_to_string(folder.join(DIVERGED_FILE)).ok()?;
    let (made_from, message): (String, String) = serde_json::from_str(&text).ok()?;
    (made_from == origin(settings, base).ok()?).then_some(message)
}

fn note_divergence(run: &Run, base: &Base, error: &anyhow::Error) -> Result<State> {
    let message = format!("{error:#}");
    let note = (origin(&run.settings, base)?, &message);
    crate::write_json(&run.folder.join(DIVERGED_FILE), &note)?;
    Ok(State::Diverged(message))
}
