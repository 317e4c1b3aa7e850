//! One run of a study: aligned, then measured on a half of the held-out data, along the way where its checkpoints are there.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use fpo_data::{Fingerprint, checkpoints::Checkpoints, hash::hash_bytes};
use fpo_metrics::{AnswerValues, METRICS, PairValues};
use fpo_run::{Run, Stage};
use fpo_trainer::{
    stages::{
        Base,
        align::measuring_aligner,
        evaluate::{Scope, find},
        prepare::EvalPrompt,
        reference::Split,
    },
    trained::load_result,
};
use fpo_transformer::{LanguageModel, adapter, weights};
use serde::{Deserialize, Serialize};

use crate::split::{Half, Kind, Kinds};

/// What was measured of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The models along the alignment in the order of their steps; the last one is the result.
    pub points: Vec<Point>,
    /// The result on each kind of prompts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, OfKind>,
    /// The result's answers; none where no prompt was answered.
    pub answers: Vec<Answer>,
}

/// A model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps of alignment.
    pub step: usize,
    /// Means by the names of metrics; what isn't finite or couldn't be measured is absent.
    pub metrics: BTreeMap<String, f64>,
}

/// A kind of prompts beside all others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OfKind {
    /// Pairs of the kind.
    pub pairs: usize,
    /// Means over them, and over answers to prompts of the kind.
    pub inside: BTreeMap<String, f64>,
    /// Means over all others.
    pub outside: BTreeMap<String, f64>,
}

/// An answer to a held-out prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The prompt.
    pub prompt: String,
    /// The answer.
    pub text: String,
    /// The checker's verdict, where it can judge.
    pub right: Option<bool>,
}

impl Measured {
    /// The metrics of the result.
    pub fn result(&self) -> Option<&BTreeMap<String, f64>> {
        self.points.last().map(|point| &point.metrics)
    }
}

/// On what a run is measured.
pub struct On<'a> {
    /// The pairs and prompts.
    pub half: &'a Half,
    /// The kinds that are measured apart.
    pub kinds: &'a Kinds,
    /// Whether prompts are answered.
    pub answers: bool,
    /// Steps between the models measured along the way; the result alone where there are none.
    pub every: Option<usize>,
    /// Steps of the whole alignment.
    pub steps: usize,
}

/// The mean of KL over chosen and rejected responses.
pub const KL: &str = "kl";

const FILE: &str = "measured.json";

/// Measures the model of `align`, or the reference model itself without one.
///
/// # Errors
/// A model or a cache that can't be read, or values that aren't finite.
pub fn measured(run: &Run, base: &Base, align: Option<&Stage>, on: &On) -> Result<Measured> {
    let models = models(align, on)?;
    let steps: Vec<String> = models.iter().map(|(step, _)| step.to_string()).collect();
    let s = &run.settings.evaluate;
    let pairs: Vec<u8> = on.half.pairs.iter().flat_map(|at| (*at as u64).to_le_bytes()).collect();
    let names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
    let mut fingerprint = Fingerprint::default()
        .with("version", env!("CARGO_PKG_VERSION"))
        .with("precision", run.settings.model.precision)
        .with("reference", &base.caches.stage.hash)
        .with("align", align.map_or(&base.sft.hash, |align| &align.hash))
        .with("metrics", names.join(" "))
        .with("pairs", hash_bytes(&pairs))
        .with("steps", steps.join(" "));
    for (name, kind) in on.kinds {
        fingerprint = fingerprint.with(&format!("kind {name}"), &kind.word);
    }
    if on.answers {
        let prompts: Vec<&str> =
            on.half.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        fingerprint = fingerprint
            .with("prompts", hash_bytes(prompts.join("\n").as_bytes()))
            .with("answers", format!("{} tokens at {}", s.max_new_tokens, s.temperature))
            .with("seed", run.settings.seed);
    }
    let stage = run.stage("evaluate", fingerprint, |workspace| {
        let measured = fill(run, base, &models, on)?;
        let text = serde_json::to_string_pretty(&measured)? + "\n";
        let path = workspace.output.join(FILE);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    })?;
    read(&stage.folder)
}

/// Reads what a finished run measured.
fn read(folder: &Path) -> Result<Measured> {
    let path = folder.join(FILE);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Where a model is.
enum Model {
    /// The one that all methods start from.
    Reference,
    /// A checkpoint that the alignment kept.
    Checkpoint(std::path::PathBuf),
    /// The alignment's result.
    Result(std::path::PathBuf),
}

/// Steps and models. Checkpoints that an interruption left between the planned ones don't count, so that an interrupted run is
/// measured as any other.
fn models(align: Option<&Stage>, on: &On) -> Result<Vec<(usize, Model)>> {
    let Some(align) = align else { return Ok(vec![(0, Model::Reference)]) };
    let mut models = Vec::new();
    let folder = align.folder.join("checkpoints");
    if let Some(every) = on.every.filter(|_| folder.is_dir()) {
        let kept = Checkpoints::new(&folder);
        let planned = (every..on.steps).step_by(every);
        let there = planned.map(|step| (step, kept.at(step))).filter(|(_, path)| path.is_dir());
        models.extend(there.map(|(step, path)| (step, Model::Checkpoint(path))));
    }
    models.push((on.steps, Model::Result(align.folder.clone())));
    Ok(models)
}

fn fill(run: &Run, base: &Base, models: &[(usize, Model)], on: &On) -> Result<Measured> {
    let mut aligner = measuring_aligner(run, base, Split::HeldOut)?;
    aligner.token_statistics = true;
    let reference = aligner.reference_model.clone().context("measuring takes a reference")?;
    let prompts = if on.answers { &on.half.prompts[..] } else { &[] };
    let total = models.len() * on.half.pairs.len() + prompts.len();
    let mut progress = run.reporter.begin("evaluate", "items", total, 0);
    let mut measured = Measured::default();
    for (at, (step, model)) in models.iter().enumerate() {
        let model = load(run, model, &reference)?;
        let is_last = at + 1 == models.len();
        let prompts = if is_last { prompts } else { &[] };
        let batch_size = run.settings.evaluate.batch_size;
        let scope = Scope { pairs: &on.half.pairs, batch_size, prompts };
        let found = find(run, base, &aligner, &model, &scope, &mut progress)?;
        measured.points.push(Point { step: *step, metrics: means(&found.pairs, &found.answers) });
        if is_last {
            let of = |(name, kind): (&String, &Kind)| {
                (name.clone(), of_kind(kind, on, &found.pairs, prompts, &found.answers))
            };
            measured.kinds = on.kinds.iter().map(of).collect();
        }
        let answers = prompts.iter().zip(found.texts);
        measured.answers.extend(answers.map(|(prompt, answer)| Answer {
            prompt: prompt.text.clone(),
            text: answer.text,
            right: answer.right,
        }));
    }
    progress.finish("");
    Ok(measured)
}

fn of_kind(
    kind: &Kind,
    on: &On,
    pairs: &[PairValues],
    prompts: &[EvalPrompt],
    answers: &[AnswerValues],
) -> OfKind {
    let side = |inside: bool| {
        let of_pair = |(at, _): &(&usize, &PairValues)| kind.pairs[**at] == inside;
        let pairs = on.half.pairs.iter().zip(pairs).filter(of_pair).map(|(_, pair)| *pair);
        let of_prompt =
            |(prompt, _): &(&EvalPrompt, &AnswerValues)| prompt.text.contains(&kind.word) == inside;
        let answers = prompts.iter().zip(answers).filter(of_prompt).map(|(_, a)| a.clone());
        let (pairs, answers): (Vec<_>, Vec<_>) = (pairs.collect(), answers.collect());
        (pairs.len(), means(&pairs, &answers))
    };
    let ((pairs, inside), (_, outside)) = (side(true), side(false));
    OfKind { pairs, inside, outside }
}

fn load(run: &Run, model: &Model, reference: &LanguageModel) -> Result<LanguageModel> {
    match model {
        Model::Reference => Ok(reference.clone()),
        Model::Result(folder) => load_result(folder, reference, &run.placement()),
        Model::Checkpoint(folder) => match run.settings.align.lora {
            None => Ok(weights::load(folder, run.placement())?),
            Some(_) => Ok(adapter::load(reference, folder, &run.device)?),
        },
    }
}

fn means(pairs: &[PairValues], answers: &[AnswerValues]) -> BTreeMap<String, f64> {
    let one = |metric: &&fpo_metrics::Metric| {
        Some((metric.name.to_owned(), metric.mean(pairs, answers)?))
    };
    let mut means: BTreeMap<String, f64> = METRICS.iter().filter_map(one).collect();
    if let (Some(chosen), Some(rejected)) = (means.get("chosen_kl"), means.get("rejected_kl")) {
        means.insert(KL.into(), (chosen + rejected) / 2.0);
    }
    means.retain(|_, value| value.is_finite());
    means
}
