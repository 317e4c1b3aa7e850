//! The plan of a study: a TOML file, or one of those compiled in.

mod problem;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use fpo_config::Settings;
use fpo_losses::Method;
use fpo_metrics::Criterion;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{
    change::Change,
    trial::{Constants, Trial},
};

macro_rules! plans {
    ($($name:literal),* $(,)?) => {
        /// Name and TOML text of every plan that is compiled in.
        const ALL: &[(&str, &str)] = &[$(($name, include_str!(concat!("plans/", $name, ".toml")))),*];
    };
}

plans!("tiny", "smollm2", "smoke");

pub use problem::PlanError;

/// Names of the plans that are compiled in.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|(name, _)| *name)
}

/// What a study compares, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The recipe that all runs start from.
    pub recipe: String,
    /// Settings of all runs, as for `--set`.
    #[serde(default)]
    pub set: Vec<String>,
    /// Seeds of the measured runs. The first one is that of tuning, ablations and control too.
    pub seeds: Vec<u64>,
    /// What another seed changes.
    #[serde(default)]
    pub each_seed: EachSeed,
    /// Share of the held-out prompts that decide among trials; the others measure.
    #[serde(default = "half")]
    pub validation: f64,
    /// Learning rates, each tried with all constants of a method that has none of its own.
    #[serde(default)]
    pub learning_rates: Vec<f64>,
    /// What makes a trial the best of its method.
    #[serde(default = "accuracy")]
    pub criterion: Criterion,
    /// Models measured along each alignment, in equal distances, the last one included.
    #[serde(default = "five")]
    pub checkpoints: usize,
    /// The method that others are compared with, seed by seed.
    #[serde(default)]
    pub baseline: Option<Method>,
    /// A line per method: keys of the section `align` with lists of values.
    pub methods: Table,
    /// Kinds of prompts by a name: those whose text has this word. Every run is measured on each kind and on all others.
    #[serde(default)]
    pub kinds: BTreeMap<String, String>,
    /// What is changed, one at a time, in the best trial of a method.
    #[serde(default)]
    pub ablate: Option<Ablate>,
    /// Features of a kind of prompts held in place, or released.
    #[serde(default)]
    pub control: Option<Control>,
}

/// What another seed changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EachSeed {
    /// Built-in data, initial weights, fine-tuning, autoencoder, and the order of alignment's pairs.
    #[default]
    Everything,
    /// Only the order of alignment's pairs and what is drawn while aligning.
    Alignment,
}

/// One change at a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ablate {
    /// The method.
    pub method: Method,
    /// Keys of the section `align` with lists of values; `site` with sites, and `more_sites` with lists of sites.
    #[serde(flatten)]
    pub changes: Table,
}

/// Targeted control, section 5.3 of the paper.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// Kinds of prompts, by their names in `kinds`.
    pub kinds: Vec<String>,
    /// Features that separate a kind from all others, at most.
    #[serde(default = "twenty")]
    pub features: usize,
}

fn half() -> f64 {
    0.5
}

fn accuracy() -> Criterion {
    "eval_accuracy".parse().expect("the accuracy decides")
}

fn five() -> usize {
    5
}

fn twenty() -> usize {
    20
}

/// The largest plan that is read.
const LARGEST: u64 = 1 << 20;

impl Plan {
    /// The TOML text of a plan that is compiled in, or of a file.
    ///
    /// # Errors
    /// Neither, or a file that can't be read.
    pub fn source(name: &str) -> Result<String, PlanError> {
        if let Some((_, text)) = ALL.iter().find(|(known, _)| *known == name) {
            return Ok((*text).to_owned());
        }
        let path = Path::new(name);
        if !path.exists() {
            let all = names().collect::<Vec<_>>().join(", ");
            return Err(PlanError::Unknown { name: name.to_owned(), all });
        }
        let unreadable = |source| PlanError::Unreadable { path: name.to_owned(), source };
        let bytes = fs::metadata(path).map_err(unreadable)?.len();
        if bytes > LARGEST {
            let what = format!("{bytes} bytes are more than a plan has");
            return Err(PlanError::Malformed { path: name.to_owned(), what });
        }
        fs::read_to_string(path).map_err(unreadable)
    }

    /// Reads a plan, with more settings of all runs, and checks all that can be checked without data: that every run's settings resolve
    /// too.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn load(name: &str, set: &[String]) -> Result<Self, PlanError> {
        Self::parse(name, &Self::source(name)?, set)
    }

    /// The same from text.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn parse(name: &str, text: &str, set: &[String]) -> Result<Self, PlanError> {
        let mut plan: Self = toml::from_str(text).map_err(|error| PlanError::Malformed {
            path: name.to_owned(),
            what: error.to_string().trim_end().to_owned(),
        })?;
        plan.set.extend_from_slice(set);
        plan.check(name)?;
        Ok(plan)
    }

    fn check(&self, name: &str) -> Result<(), PlanError> {
        let wrong = |key: &str, must: String| {
            Err(PlanError::Wrong { path: name.to_owned(), key: key.to_owned(), must })
        };
        if self.seeds.is_empty() {
            return wrong("seeds", "must not be empty".into());
        }
        if self.seeds.iter().collect::<BTreeSet<_>>().len() < self.seeds.len() {
            return wrong("seeds", "must be different from one another".into());
        }
        if !(self.validation > 0.0 && self.validation < 1.0) {
            return wrong("validation", format!("= {} must be between 0 and 1", self.validation));
        }
        if self.checkpoints == 0 || self.checkpoints > 1000 {
            return wrong("checkpoints", "must be from 1 to 1000".into());
        }
        if self.methods.is_empty() {
            return wrong("methods", "must name at least one method".into());
        }
        let lines = self.lines(name)?;
        let (first, first_trials) = (lines[0].0, lines[0].1.len());
        if let Some((other, trials)) = lines.iter().find(|(_, trials)| trials.len() != first_trials)
        {
            let (path, other, other_trials) = (name.to_owned(), *other, trials.len());
            return Err(PlanError::Budgets { path, first, first_trials, other, other_trials });
        }
        let is_there = |method: Method| lines.iter().any(|(line, _)| *line == method);
        let named = [
            ("baseline", self.baseline),
            ("ablate.method", self.ablate.as_ref().map(|ablate| ablate.method)),
        ];
        for (key, method) in named {
            if let Some(method) = method.filter(|method| !is_there(*method)) {
                return wrong(key, format!("= \"{method}\" must be one of the plan's methods"));
            }
        }
        if let Some((kind, _)) = self.kinds.iter().find(|(_, word)| word.trim().is_empty()) {
            return wrong(&format!("kinds.{kind}"), "must be a word in prompts".into());
        }
        let path = |c: char| !(c.is_alphanumeric() || "_- ".contains(c));
        if let Some(kind) = self.kinds.keys().find(|kind| kind.contains(path)) {
            return wrong(&format!("kinds.{kind}"), "must be named by letters and digits".into());
        }
        if let Some(control) = &self.control {
            if let Some(kind) = control.kinds.iter().find(|kind| !self.kinds.contains_key(*kind)) {
                return wrong("control.kinds", format!("names `{kind}`, which kinds doesn't have"));
            }
            if control.features == 0 {
                return wrong("control.features", "must be at least 1".into());
            }
            if !is_there(Method::FPO) {
                return wrong("control", "needs fpo among the methods".into());
            }
        }
        let resolves = |method: Method, trial: &Trial, change: Option<&Change>| {
            let set = change.map(Change::assignments).unwrap_or_default();
            let settings = self.settings(Some((method, trial)), self.seeds[0], &set);
            let change = change.map(|change| format!(", {change}")).unwrap_or_default();
            settings.map(drop).map_err(|error| PlanError::Settings {
                path: name.to_owned(),
                run: format!("{method}, {trial}{change}"),
                what: format!("{error:#}"),
            })
        };
        for (method, trials) in &lines {
            trials.iter().try_for_each(|trial| resolves(*method, trial, None))?;
        }
        let changes = self.read_changes().map_err(|(key, must)| PlanError::Wrong {
            path: name.to_owned(),
            key,
            must,
        })?;
        if let Some(ablate) = &self.ablate {
            let trials = lines.iter().find(|(method, _)| *method == ablate.method);
            for change in &changes {
                trials.map_or(Ok(()), |(_, trials)| {
                    resolves(ablate.method, &trials[0], Some(change))
                })?;
            }
        }
        Ok(())
    }

    fn read_changes(&self) -> Result<Vec<Change>, (String, String)> {
        let Some(Ablate { method, changes }) = &self.ablate else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for (key, values) in changes {
            let found = Change::read(*method, key, values);
            all.extend(found.map_err(|must| (format!("ablate.{key}"), must))?);
        }
        Ok(all)
    }

    /// What is changed in the ablated method, one at a time.
    pub fn changes(&self) -> Vec<Change> {
        self.read_changes().expect("a plan is checked when it is read")
    }

    /// Every method with its trials, in the order of [`Method::all`].
    ///
    /// # Errors
    /// A method that doesn't exist, or values that are no lists.
    fn lines(&self, name: &str) -> Result<Vec<(Method, Vec<Trial>)>, PlanError> {
        let wrong =
            |key: String, must: String| PlanError::Wrong { path: name.to_owned(), key, must };
        let mut lines = Vec::new();
        for (key, line) in &self.methods {
            let method: Method = key.parse().map_err(|error| {
                wrong(format!("methods.{key}"), format!("is no method: {error}"))
            })?;
            let constants = Constants::read(method, line)
                .map_err(|(of, must)| wrong(format!("methods.{key}{of}"), must))?;
            lines.push((method, constants.trials(&self.learning_rates)));
        }
        let all: Vec<Method> = Method::all().collect();
        let place = |method: Method| all.iter().position(|other| *other == method);
        lines.sort_by_key(|(method, _)| place(*method));
        if let Some(pair) = lines.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let must = format!("names {} twice", pair[0].0);
            return Err(wrong("methods".into(), must));
        }
        Ok(lines)
    }

    /// Every method with its trials, which are equally many.
    pub fn trials(&self) -> Vec<(Method, Vec<Trial>)> {
        self.lines("").expect("a plan is checked when it is read")
    }

    /// Whether there is anything to choose from.
    pub fn is_tuned(&self) -> bool {
        self.trials().iter().any(|(_, trials)| trials.len() > 1)
    }

    /// The settings of a run with a seed, and with more of them, as for `--set`; without a trial those of what all methods start from.
    /// All are measured alike: with features where any method asks for them.
    ///
    /// # Errors
    /// Settings that don't exist or can't work together.
    pub fn settings(
        &self,
        of: Option<(Method, &Trial)>,
        seed: u64,
        more: &[String],
    ) -> anyhow::Result<Settings> {
        let mut set = self.set.clone();
        let (method, own) = match of {
            Some((method, trial)) => (method, trial.assignments()),
            None => (self.first_method()?, Vec::new()),
        };
        set.push(format!("align.method=\"{method}\""));
        set.extend(own);
        set.extend_from_slice(more);
        let mut settings = Settings::resolve(&self.recipe, None, &set)?;
        let align = &settings.align;
        let needs = |(method, _): &(Method, Vec<Trial>)| {
            align.for_method(*method).objective().needs().features
        };
        if self.trials().iter().any(needs) {
            set.push("evaluate.features=true".into());
            settings = Settings::resolve(&self.recipe, None, &set)?;
        }
        if of.is_some() || self.each_seed == EachSeed::Everything {
            settings.seed = seed;
        }
        Ok(settings)
    }

    fn first_method(&self) -> anyhow::Result<Method> {
        let first = self.trials().first().map(|(method, _)| *method);
        first.ok_or_else(|| anyhow::anyhow!("a plan without methods"))
    }
}

/// A value as it stands in settings and folder names.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
