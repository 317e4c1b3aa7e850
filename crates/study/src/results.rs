//! What comes out of a study: `study.json`.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Result;
use fpo_losses::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    change::Change,
    cost,
    flow::chosen,
    interval::{CONFIDENCE, Mean},
    item::{Item, Part, State},
    measure::{Measured, OfKind, Point},
    plan::EachSeed,
    study::Study,
};

/// Everything that was measured. The same plan gives the same file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Version of the program.
    pub version: String,
    /// The recipe.
    pub recipe: String,
    /// Settings of all runs besides the recipe's.
    pub set: Vec<String>,
    /// Seeds in the plan.
    pub seeds: Vec<u64>,
    /// What another seed changes.
    pub each_seed: EachSeed,
    /// How sure the intervals are; they are of Student's t distribution over seeds.
    pub confidence: f64,
    /// The metric that chose among trials, as evaluations while training are logged.
    pub criterion: String,
    /// Every trial, on validation prompts with the first seed.
    pub trials: Vec<TrialResult>,
    /// The model that all methods start from, on test prompts.
    pub reference: OfMethod,
    /// Every method with its best trial, on test prompts.
    pub methods: Vec<OfMethod>,
    /// Every other method minus the baseline, seed by seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differences: Option<Differences>,
    /// One change at a time in the best trial of a method, on test prompts with the first seed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ablations: Vec<Changed>,
    /// Features of a kind of prompts held in place or released, on test prompts with the first seed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control: Vec<Changed>,
}

/// One trial.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrialResult {
    /// The method.
    pub method: String,
    /// Its constants, by their keys in the section `align`.
    pub trial: Value,
    /// Whether it is the method's best.
    pub chosen: bool,
    /// Its metrics by name; none where it diverged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// When it diverged, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diverged: Option<String>,
}

/// A run that differs in one thing from a method's best trial.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// The method.
    pub method: String,
    /// What is changed; nothing in the best trial itself, which comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What it is changed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Its metrics by name; none where it diverged.
    pub metrics: BTreeMap<String, f64>,
    /// The same on each kind of prompts, and on all others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, OfKind>,
}

/// What was measured of a method, or of the reference model.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OfMethod {
    /// The method, or `reference`.
    pub method: String,
    /// Its constants, by their keys in the section `align`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub trial: Value,
    /// Means over seeds along the way, the result last.
    pub points: Vec<MeanPoint>,
    /// Every seed.
    pub seeds: Vec<OfSeed>,
    /// Seeds with which it diverged; they are in no mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diverged: Vec<u64>,
}

/// One seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfSeed {
    /// The seed.
    pub seed: u64,
    /// The models along the way, the result last.
    pub points: Vec<Point>,
    /// The result on each kind of prompts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, OfKind>,
}

/// Means over seeds after a number of steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeanPoint {
    /// Steps of alignment.
    pub step: usize,
    /// By the names of metrics.
    pub metrics: BTreeMap<String, Mean>,
}

/// Methods compared with a baseline that has the same seeds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Differences {
    /// The baseline.
    pub baseline: String,
    /// By method, then by metric: method minus baseline.
    pub methods: BTreeMap<String, BTreeMap<String, Mean>>,
}

/// What alignments took: `cost.json`. Never the same twice.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Costs {
    /// Devices that the measured runs were aligned on.
    pub hardware: Vec<String>,
    /// By method, over the measured runs that were not interrupted.
    pub methods: BTreeMap<String, OfCost>,
}

/// Time and memory of a method's alignments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfCost {
    /// Wall clock of the stage align.
    pub seconds: Mean,
    /// The most memory of the process in it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<Mean>,
}

impl Results {
    /// From all runs that are done.
    ///
    /// # Errors
    /// A folder that can't be read.
    pub fn of(study: &Study, items: &[(Item, State)]) -> Result<Self> {
        let plan = &study.plan;
        let best = chosen(study, items)?;
        let is_chosen = |item: &Item| {
            best.iter().any(|(method, trial)| *method == item.method && *trial == item.trial)
        };
        let tuned = items.iter().filter(|(item, state)| item.part == Part::Tune && state.is_done());
        let trials = tuned.map(|(item, state)| TrialResult {
            method: item.method.to_string(),
            trial: item.trial.to_json(),
            chosen: is_chosen(item),
            metrics: state.measured().and_then(Measured::result).cloned().unwrap_or_default(),
            diverged: match state {
                State::Diverged(message) => Some(message.clone()),
                _ => None,
            },
        });
        let of_method = |(method, trial): &(Method, _)| {
            let of = |(item, _): &&(Item, State)| {
                item.part == Part::Measure && item.method == *method && item.trial == *trial
            };
            let runs = items.iter().filter(of).map(|(item, state)| (item.seed, state));
            let trial = trial.to_json();
            OfMethod { trial, ..OfMethod::of(method.to_string(), runs) }
        };
        let methods: Vec<OfMethod> =
            best.iter().map(of_method).filter(|method| !method.seeds.is_empty()).collect();
        let mut references = Vec::new();
        for &seed in &plan.seeds {
            references.push((seed, study.reference(seed, false)?));
        }
        let references = references.iter().map(|(seed, state)| (*seed, state));
        let differences = plan.baseline.and_then(|baseline| {
            let of = methods.iter().find(|method| method.method == baseline.name())?;
            let others = methods.iter().filter(|method| method.method != of.method);
            let methods = others.map(|method| (method.method.clone(), method.minus(of))).collect();
            Some(Differences { baseline: of.method.clone(), methods })
        });
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            recipe: plan.recipe.clone(),
            set: plan.set.clone(),
            seeds: plan.seeds.clone(),
            each_seed: plan.each_seed,
            confidence: CONFIDENCE,
            criterion: plan.criterion.to_string(),
            trials: trials.collect(),
            reference: OfMethod::of("reference".into(), references),
            methods,
            differences,
            ablations: changed(items, Part::Ablate),
            control: changed(items, Part::Control),
        })
    }

    /// Writes `study.json` and `cost.json` into the study's folder.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, study: &Study) -> Result<Vec<PathBuf>> {
        let files = ["study.json", "cost.json"].map(|name| study.folder.join(name));
        crate::write_json(&files[0], self)?;
        crate::write_json(&files[1], &Costs::of(study, self)?)?;
        Ok(files.into())
    }
}

impl OfMethod {
    fn of<'a>(method: String, runs: impl Iterator<Item = (u64, &'a State)>) -> Self {
        let (mut seeds, mut diverged) = (Vec::new(), Vec::new());
        for (seed, state) in runs {
            match state {
                State::Finished(Measured { points, kinds, .. }) => {
                    seeds.push(OfSeed { seed, points: points.clone(), kinds: kinds.clone() });
                }
                State::Diverged(_) => diverged.push(seed),
                State::Missing | State::Stale(_) => {}
            }
        }
        let mut by_step: BTreeMap<usize, Vec<&BTreeMap<String, f64>>> = BTreeMap::new();
        for point in seeds.iter().flat_map(|seed| &seed.points) {
            by_step.entry(point.step).or_default().push(&point.metrics);
        }
        let points =
            by_step.into_iter().map(|(step, all)| MeanPoint { step, metrics: means(&all) });
        let points = points.collect();
        Self { method, trial: Value::Null, points, seeds, diverged }
    }

    /// The result's metrics, seed by seed.
    fn minus(&self, baseline: &Self) -> BTreeMap<String, Mean> {
        let result = |of: &OfSeed| of.points.last().map(|point| point.metrics.clone());
        let pairs = self.seeds.iter().filter_map(|own| {
            let other = baseline.seeds.iter().find(|other| other.seed == own.seed)?;
            let (own, other) = (result(own)?, result(other)?);
            let minus =
                |(name, value): (&String, &f64)| Some((name.clone(), value - other.get(name)?));
            Some(own.iter().filter_map(minus).collect::<BTreeMap<_, _>>())
        });
        let pairs: Vec<BTreeMap<String, f64>> = pairs.collect();
        means(&pairs.iter().collect::<Vec<_>>())
    }
}

/// The runs of a part that are done, after the best trial that they are changes of.
fn changed(items: &[(Item, State)], part: Part) -> Vec<Changed> {
    let done = |(item, state): &&(Item, State)| item.part == part && state.is_done();
    let runs: Vec<&(Item, State)> = items.iter().filter(done).collect();
    let Some((first, _)) = runs.first() else { return Vec::new() };
    let is_unchanged = |(item, state): &&(Item, State)| {
        let Item { part, method, trial, seed, .. } = item;
        let measured = *part == Part::Measure && *seed == first.seed && state.is_done();
        measured && *method == first.method && *trial == first.trial
    };
    let one = |(item, state): &(Item, State)| {
        let parts = item.change.as_ref().map(Change::parts);
        let (key, value) = parts.unzip();
        let measured = state.measured();
        Changed {
            method: item.method.to_string(),
            key,
            value,
            metrics: measured.and_then(Measured::result).cloned().unwrap_or_default(),
            kinds: measured.map(|measured| measured.kinds.clone()).unwrap_or_default(),
        }
    };
    items.iter().find(is_unchanged).into_iter().chain(runs).map(one).collect()
}

/// Of every metric that any of the maps has.
fn means(all: &[&BTreeMap<String, f64>]) -> BTreeMap<String, Mean> {
    let mut by_name: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
    for (name, value) in all.iter().flat_map(|metrics| metrics.iter()) {
        by_name.entry(name).or_default().push(*value);
    }
    let mean = |(name, values): (&String, Vec<f64>)| Some((name.clone(), Mean::of(&values)?));
    by_name.into_iter().filter_map(mean).collect()
}

impl Costs {
    /// Of the measured runs.
    ///
    /// # Errors
    /// Those of the settings.
    pub fn of(study: &Study, results: &Results) -> Result<Self> {
        let best = study.plan.trials();
        let (mut hardware, mut methods) = (Vec::new(), BTreeMap::new());
        for of in &results.methods {
            let trials = best.iter().find(|(method, _)| method.name() == of.method);
            let trial = trials.and_then(|(method, all)| {
                Some((*method, all.iter().find(|trial| trial.to_json() == of.trial)?.clone()))
            });
            let Some((method, trial)) = trial else { continue };
            let costs = of.seeds.iter().filter_map(|seed| {
                let (part, trial, change, seed) = (Part::Measure, trial.clone(), None, seed.seed);
                cost::read(&study.folder.join(Item { part, method, trial, change, seed }.folder()))
            });
            let costs: Vec<cost::Cost> = costs.collect();
            for cost in &costs {
                if !hardware.contains(&cost.hardware) {
                    hardware.push(cost.hardware.clone());
                }
            }
            let seconds: Vec<f64> = costs.iter().map(|cost| cost.seconds).collect();
            let peaks: Vec<f64> =
                costs.iter().filter_map(|cost| Some(cost.peak_bytes? as f64)).collect();
            if let Some(seconds) = Mean::of(&seconds) {
                let cost = OfCost { seconds, peak_bytes: Mean::of(&peaks) };
                methods.insert(of.method.clone(), cost);
            }
        }
        Ok(Self { hardware, methods })
    }
}
