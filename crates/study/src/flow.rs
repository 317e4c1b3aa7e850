//! From what is done to what is left: the order of the runs, what they may take, and the choice of each method's best trial.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Result, bail};
use fpo_losses::{FeatureSelection, Method};
use fpo_run::{Existing, timing};

use crate::{
    change::Change,
    measure::{KL, Measured},
    results::Results,
    select::best,
    study::{Item, Part, State, Study},
    trial::Trial,
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
            if !bases.contains_key(&folder) {
                bases.insert(folder, (seed, study.base_state(seed)?));
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
        // Parts of which nothing is timed yet take as long as others.
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
fn duration(seconds: f64) -> String {
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

/// All runs of the tuning part; none where every method has one trial.
fn tuning(study: &Study) -> Vec<Item> {
    if !study.plan.is_tuned() {
        return Vec::new();
    }
    let seed = study.plan.seeds[0];
    let of = |(method, trials): (Method, Vec<Trial>)| {
        trials.into_iter().map(move |trial| Item {
            part: Part::Tune,
            method,
            trial,
            change: None,
            seed,
        })
    };
    study.plan.trials().into_iter().flat_map(of).collect()
}

/// The best trial of each method whose trials are all done.
///
/// # Errors
/// A method all of whose trials diverged.
pub(crate) fn chosen(study: &Study, items: &[(Item, State)]) -> Result<Vec<(Method, Trial)>> {
    let mut chosen = Vec::new();
    for (method, trials) in study.plan.trials() {
        if !study.plan.is_tuned() {
            chosen.extend(trials.into_iter().next().map(|trial| (method, trial)));
            continue;
        }
        let of: Vec<&(Item, State)> = items
            .iter()
            .filter(|(item, _)| item.part == Part::Tune && item.method == method)
            .collect();
        if of.len() < trials.len() || !of.iter().all(|(_, state)| state.is_done()) {
            continue;
        }
        let results: Vec<_> =
            of.iter().map(|(_, state)| state.measured().and_then(Measured::result)).collect();
        match best(&results, study.plan.criterion) {
            Some(at) => chosen.push((method, of[at].0.trial.clone())),
            None => bail!(
                "all {} trials of {method} diverged: give it smaller learning rates in the plan",
                trials.len()
            ),
        }
    }
    Ok(chosen)
}

/// The runs of the measuring part: seed by seed, so that what is there after an interruption is a study with fewer seeds.
fn measuring(study: &Study, best: &[(Method, Trial)]) -> Vec<Item> {
    let of = |seed: u64| {
        best.iter().map(move |(method, trial)| {
            let (method, trial) = (*method, trial.clone());
            Item { part: Part::Measure, method, trial, change: None, seed }
        })
    };
    study.plan.seeds.iter().flat_map(|&seed| of(seed)).collect()
}

/// The runs of the parts that change a method's best trial, where that is known: all with the first seed.
fn changed(study: &Study, best: &[(Method, Trial)]) -> Vec<Item> {
    let plan = &study.plan;
    let seed = plan.seeds[0];
    let of = |part: Part, method: Method, changes: Vec<Change>| {
        let trial = best.iter().find(|(of, _)| *of == method).map(|(_, trial)| trial.clone());
        let item = move |change| {
            Some(Item { part, method, trial: trial.clone()?, change: Some(change), seed })
        };
        changes.into_iter().filter_map(item).collect::<Vec<Item>>()
    };
    let ablated = plan.ablate.as_ref().map(|ablate| {
        let trial = best.iter().find(|(method, _)| *method == ablate.method);
        // What the best trial has already is measured already.
        let is_new = |change: &Change| trial.is_none_or(|(_, trial)| !study.has(trial, change));
        of(Part::Ablate, ablate.method, plan.changes().into_iter().filter(is_new).collect())
    });
    let controlled = plan.control.as_ref().map(|control| {
        let both =
            |kind: &String| {
                [FeatureSelection::Only, FeatureSelection::Except].map(|selection| {
                    Change::Features { kind: kind.clone(), features: control.features, selection }
                })
            };
        of(Part::Control, Method::FPO, control.kinds.iter().flat_map(both).collect())
    });
    ablated.into_iter().chain(controlled).flatten().collect()
}

/// Does what is left of these parts and returns what came out of all that is done.
///
/// # Errors
/// Those of the runs; measuring methods whose trials aren't done; or runs of another plan, unless they may be overwritten.
pub fn carry_out(study: &Study, parts: &[Part]) -> Result<Results> {
    let progress = Progress::of(study)?;
    progress.check(study)?;
    if !progress.unused.is_empty() {
        let note = format!(
            "{} runs in the folder are not in the plan; they stay where they are",
            progress.unused.len()
        );
        study.reporter.note("study", note);
    }
    // Kept as it was given, so that the folder says what it is.
    crate::write(&study.folder.join("plan.toml"), &toml::to_string_pretty(&study.plan)?)?;
    let mut items = progress.items;
    if parts.contains(&Part::Tune) {
        work(study, &mut items, Part::Tune)?;
    }
    let best = chosen(study, &items)?;
    let later: Vec<Part> = parts.iter().copied().filter(|part| *part != Part::Tune).collect();
    if !later.is_empty() && best.len() < study.plan.trials().len() {
        bail!(
            "tuning isn't finished, and {} needs its choice: leave out --only, or begin with --only tune",
            later[0]
        );
    }
    // Which of these there are may only be known now.
    items.retain(|(item, _)| item.part == Part::Tune);
    for item in measuring(study, &best).into_iter().chain(changed(study, &best)) {
        let state = study.state(&item)?;
        items.push((item, state));
    }
    for part in later {
        if part == Part::Measure {
            for &seed in &study.plan.seeds {
                study.reference(seed, true)?;
            }
        }
        // What is done so far is written before the next part begins.
        Results::of(study, &items)?.write(study)?;
        work(study, &mut items, part)?;
    }
    Results::of(study, &items)
}

/// Does the runs of a part, one after the other.
fn work(study: &Study, items: &mut [(Item, State)], part: Part) -> Result<()> {
    let of_part = || items.iter().filter(|(item, _)| item.part == part);
    let (total, mut left) =
        (of_part().count(), of_part().filter(|(_, state)| !state.is_done()).count());
    let (mut done, mut seconds) = (0, 0.0);
    let to_do = left;
    for (item, state) in items.iter_mut().filter(|(item, _)| item.part == part) {
        done += 1;
        if state.is_done() {
            continue;
        }
        study.reporter.note("study", format!("{part} {done} of {total}: {item}"));
        let begun = Instant::now();
        *state = study.work(item)?;
        seconds += begun.elapsed().as_secs_f64();
        left -= 1;
        let time = match left {
            0 => String::new(),
            _ => {
                let mean = seconds / (to_do - left) as f64;
                format!("; about {} left of this part", duration(mean * left as f64))
            }
        };
        study.reporter.note("study", outcome(state) + &time);
    }
    Ok(())
}

fn outcome(state: &State) -> String {
    match state {
        State::Diverged(message) => format!("diverged: {message}"),
        state => {
            let metrics = state.measured().and_then(Measured::result);
            let value = |name: &str| metrics.and_then(|m| m.get(name)).copied();
            let number = |name: &str| value(name).map_or("–".into(), |v| format!("{v:.4}"));
            let mut text = format!("accuracy {}, KL {}", number("accuracy"), number(KL));
            if value("right").is_some() {
                text += &format!(", right answers {}", number("right"));
            }
            text
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
