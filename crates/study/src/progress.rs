//! What there is to do in a study, what is done, and how long the rest may take.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use fpo_run::{Existing, timing};

use crate::{
    flow::{changed, chosen, measuring, tuning},
    item::{Item, Part, State},
    study::Study,
};

/// A study's runs, each with how far it is.
#[derive(Debug)]
pub struct Progress {
    /// Seeds whose first stages are made, or not.
    pub bases: Vec<(u64, State)>,
    /// The runs in their order. Those of the measuring part are there as far as it is known which trials are the best.
    pub items: Vec<(Item, State)>,
    /// Measuring runs of methods whose best trial isn't known yet.
    pub unknown: usize,
    /// Folders of runs that are not, or no longer, in the plan.
    pub unused: Vec<PathBuf>,
    /// Mean seconds of the first stages, where any are timed.
    first: Option<f64>,
    /// Mean seconds of a run of each part, likewise.
    seconds: BTreeMap<Part, f64>,
    plan: Counts,
}

#[derive(Debug)]
struct Counts {
    methods: usize,
    trials: usize,
    seeds: usize,
    changes: usize,
    controlled: usize,
}

impl Progress {
    /// Looks at the disk.
    ///
    /// # Errors
    /// A folder that can't be read.
    pub fn of(study: &Study) -> Result<Self> {
        let plan = &study.plan;
        let mut bases: BTreeMap<PathBuf, (u64, State)> = BTreeMap::new();
        for &seed in &plan.seeds {
            let folder = study.base_folder(seed)?;
            if let Entry::Vacant(new) = bases.entry(folder) {
                new.insert((seed, study.base_state(seed)?));
            }
        }
        let trials = plan.trials();
        let mut items = Vec::new();
        for item in tuning(study) {
            let state = study.state(&item)?;
            items.push((item, state));
        }
        let best = chosen(study, &items)?;
        for item in measuring(study, &best).into_iter().chain(changed(study, &best)) {
            let state = study.state(&item)?;
            items.push((item, state));
        }
        let counts = Counts {
            methods: trials.len(),
            trials: if plan.is_tuned() { trials.iter().map(|(_, all)| all.len()).sum() } else { 0 },
            seeds: plan.seeds.len(),
            changes: plan.changes().len(),
            controlled: plan.control.as_ref().map_or(0, |control| 2 * control.kinds.len()),
        };
        let unknown = (counts.methods - best.len()) * counts.seeds;
        let folders: Vec<PathBuf> =
            items.iter().map(|(item, _)| study.folder.join(item.folder())).collect();
        let unused = match unknown {
            0 => unused(&study.folder, &folders),
            _ => Vec::new(),
        };
        let of_part = |part: Part| {
            let of = items.iter().zip(&folders).filter(|((item, _), _)| item.part == part);
            mean_seconds(of.map(|(_, folder)| folder.as_path()), &["align", "evaluate"])
        };
        let first = ["prepared", "sft", "sae", "reference"];
        let first = mean_seconds(bases.keys().map(PathBuf::as_path), &first);
        let seconds = Part::ALL.into_iter().filter_map(|part| Some((part, of_part(part)?)));
        let (seconds, bases) = (seconds.collect(), bases.into_values().collect());
        Ok(Self { bases, items, unknown, unused, first, seconds, plan: counts })
    }

    /// What a plan that changed half way can't use: made from other settings or data.
    fn stale(&self) -> Vec<(String, &str)> {
        let bases = self.bases.iter().filter_map(|(seed, state)| match state {
            State::Stale(changes) => Some((format!("bases/seed-{seed}"), changes.as_str())),
            _ => None,
        });
        let items = self.items.iter().filter_map(|(item, state)| match state {
            State::Stale(changes) => Some((item.folder().display().to_string(), changes.as_str())),
            _ => None,
        });
        bases.chain(items).collect()
    }

    /// Refuses to remove what was made from another plan.
    ///
    /// # Errors
    /// How many runs it is, and what differs in the first.
    pub fn check(&self, study: &Study) -> Result<()> {
        let stale = self.stale();
        let Some((folder, changes)) = stale.first() else { return Ok(()) };
        if study.existing() == Existing::Overwrite {
            return Ok(());
        }
        bail!(
            "{} of the runs in {} were made from another plan, data or program ({folder}: {changes}); nothing was changed: take the \
             plan back, choose another --run, or add --overwrite to make them again",
            stale.len(),
            study.folder.display(),
        )
    }

    fn left(&self, part: Part) -> usize {
        let of_part = || self.items.iter().filter(|(item, _)| item.part == part);
        let known = of_part().filter(|(_, state)| !state.is_done()).count();
        // Before the best trials are known, these runs aren't either.
        let unknown = self.runs(part).saturating_sub(of_part().count());
        known + if self.unknown > 0 { unknown } else { 0 }
    }

    /// Runs of a part, at most.
    fn runs(&self, part: Part) -> usize {
        let Counts { methods, trials, seeds, changes, controlled } = self.plan;
        match part {
            Part::Tune => trials,
            Part::Measure => methods * seeds,
            Part::Ablate => changes,
            Part::Control => controlled,
        }
    }

    /// Estimated seconds that are left, where the first runs were timed.
    pub fn seconds_left(&self) -> Option<f64> {
        let bases = self.bases.iter().filter(|(_, state)| !state.is_done()).count();
        let of = |count: usize, seconds: Option<f64>| match count {
            0 => Some(0.0),
            count => Some(count as f64 * seconds?),
        };
        // Parts with nothing timed yet are assumed to take as long as the others.
        let any = self.seconds.values().copied().reduce(f64::max);
        let parts = Part::ALL
            .into_iter()
            .map(|part| of(self.left(part), self.seconds.get(&part).copied().or(any)));
        Some(of(bases, self.first)? + parts.sum::<Option<f64>>()?)
    }
}

/// For a person: what there is to do, what is done, what may be left.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bases = self.bases.len();
        let left = self.bases.iter().filter(|(_, state)| !state.is_done()).count();
        writeln!(f, "first stages  {bases}, {left} to make")?;
        for part in Part::ALL.into_iter().filter(|part| self.runs(*part) > 0) {
            writeln!(f, "{part:<12}  {} runs, {} to do", self.runs(part), self.left(part))?;
        }
        let diverged = self.items.iter().filter(|(_, s)| matches!(s, State::Diverged(_))).count();
        if diverged > 0 {
            writeln!(f, "diverged      {diverged}")?;
        }
        if !self.stale().is_empty() {
            writeln!(f, "of another plan  {}", self.stale().len())?;
        }
        if !self.unused.is_empty() {
            writeln!(f, "not in the plan  {}, which stay", self.unused.len())?;
        }
        match self.seconds_left() {
            Some(seconds) => write!(f, "time left     about {}", duration(seconds)),
            None => write!(f, "time left     not known before the first runs are timed"),
        }
    }
}

/// `45 s`, `12 min`, `2.5 h`.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Mean seconds of the runs in these folders that have all of the stages.
fn mean_seconds<'a>(folders: impl Iterator<Item = &'a Path>, stages: &[&str]) -> Option<f64> {
    let of = |folder: &Path| {
        let all = timing::read(folder);
        let found: Vec<f64> =
            stages.iter().filter_map(|stage| Some(all.get(*stage)?.seconds)).collect();
        // Without features there is no autoencoder.
        let enough = found.len() == stages.len() || all.contains_key("reference");
        enough.then(|| found.iter().sum::<f64>())
    };
    let all: Vec<f64> = folders.filter_map(of).collect();
    (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
}

/// Run folders below the study's that are none of these.
fn unused(study: &Path, known: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = Part::ALL.map(|part| study.join(part.name())).into();
    while let Some(folder) = open.pop() {
        if folder.join("run.toml").exists() {
            if !known.contains(&folder) {
                found.push(folder);
            }
            continue;
        }
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        open.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found.sort();
    found
}
