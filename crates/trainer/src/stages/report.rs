//! The page of a run, and the table that ends it.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Result;
use fpo_data::{
    atomic,
    checkpoints::{METRICS_FILE, read_log},
    hash::hash_bytes,
};
use fpo_losses::Method;
use fpo_metrics::{chart, charts, courses, table};
use fpo_report::{Chart, Report, Sample, SampleGroup, StageCurves, TableRow, render};
use serde_json::{Map, Value};

use super::{
    Base, StageName, card,
    evaluate::{Answer, AnsweredPrompt, Evaluation},
};
use crate::{
    run::{Run, Stage},
    training::{KEPT_FILE, Kept},
};

/// Answers that the page shows of each kind, at most.
const SAMPLES_SHOWN: usize = 12;

/// What a finished run has to show.
pub struct Finished {
    /// Metrics before and after alignment.
    pub table: Vec<TableRow>,
    /// The aligned model's folder.
    pub model: PathBuf,
    /// The page.
    pub page: PathBuf,
}

/// Writes `report.html`.
///
/// # Errors
/// A metrics file that can't be read, or the disk's.
pub fn report(run: &Run, base: &Base, align: &Stage, evaluation: &Evaluation) -> Result<Finished> {
    let table = table(&evaluation.before, &evaluation.after);
    card::write(run, &base.prepared, StageName::Align, &align.folder, &table)?;
    let path = run.folder.join("report.html");
    write_page(&path, &render(&page(run, base, align, evaluation, table.clone())?))?;
    Ok(Finished { table, model: align.folder.clone(), page: path })
}

/// Puts a page in its place, whole or not at all.
///
/// # Errors
/// The disk's.
pub fn write_page(path: &Path, page: &str) -> Result<()> {
    atomic::write_file(path, |file| -> Result<()> { Ok(file.write_all(page.as_bytes())?) })
}

fn page(
    run: &Run,
    base: &Base,
    align: &Stage,
    evaluation: &Evaluation,
    table: Vec<TableRow>,
) -> Result<Report> {
    let s = &run.settings;
    let objective = s.align.objective();
    let data = &base.prepared.train_summary;
    let source = match &s.data.train {
        // The name alone: the settings at the end of the page have the whole path.
        Some(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        None => "built-in".into(),
    };
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut summary = vec![
        ("Method", s.align.method.to_string()),
        ("β", objective.beta.to_string()),
        ("Data", source.clone()),
        ("Pairs", base.prepared.train.len().to_string()),
        ("Prompts clipped", percent(data.clipped_prompt_share())),
        ("Responses clipped", percent(data.clipped_response_share())),
        ("Pairs dropped", percent(data.dropped_share())),
        ("Held-out pairs", base.prepared.held_out.len().to_string()),
    ];
    if [Method::FPO, Method::TDPO2, Method::SIMPO_KL].contains(&s.align.method) {
        summary.insert(2, ("α", objective.alpha.to_string()));
    }
    let kept = align.folder.join(KEPT_FILE);
    if kept.is_file() {
        let Kept { metric, value, step } = super::read_json(&kept)?;
        summary.push(("Kept step", format!("{step} ({metric} {value:.4})")));
    }
    let mut notes = vec![
        "Hardware, wall clock and tokens per second are in timing.json beside this page, so that equal runs have equal pages.".into(),
    ];
    if let Some(sae) = &base.sae {
        let quality: Map<String, Value> = super::read_json(&sae.folder.join("quality.json"))?;
        let number = |key: &str| quality.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
        summary.extend([
            ("k", s.align.k.to_string()),
            ("Site", s.sae.site.clone()),
            ("SAE L0", format!("{:.1}", number("l0"))),
            ("SAE explained variance", format!("{:.3}", number("explained_variance"))),
        ]);
        notes.extend([
            "SAE explained variance is 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²) on activations it was not trained on.".into(),
            "A feature's activation is averaged over the positions that predict a response, then over held-out responses.".into(),
        ]);
    }
    Ok(Report {
        title: format!("{} on {source} data", s.align.method.to_string().to_uppercase()),
        subtitle: format!("fpo {} · seed {}", env!("CARGO_PKG_VERSION"), s.seed),
        summary: summary.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        table,
        comparison: None,
        // A model that was given comes with the curves of whatever run made it.
        stages: curves(run, &base.sft.folder, base.sae.as_ref(), &align.folder)?,
        samples: samples(run, evaluation),
        features: evaluation.features.clone(),
        settings_toml: s.to_toml()?,
        notes,
    })
}

/// The charts of the stages that have any.
fn curves(run: &Run, sft: &Path, sae: Option<&Stage>, align: &Path) -> Result<Vec<StageCurves>> {
    type Lines<'a> = &'a [Map<String, Value>];
    let loss = |lines: Lines| chart("Loss", "nats", &[("Loss", "loss")], lines);
    let rate =
        |lines: Lines| chart("Learning rate", "", &[("Learning rate", "learning_rate")], lines);
    let norm = |lines: Lines| chart("Gradient norm", "", &[("Gradient norm", "grad_norm")], lines);
    let of_sft =
        |lines: Lines| [loss(lines), rate(lines), norm(lines)].into_iter().flatten().collect();
    let of_sae = |lines: Lines| {
        let error = [("Reconstruction error", "mse")];
        let error = chart("Reconstruction error", "share of E‖x‖²", &error, lines);
        let l0 = chart("L0", "active features", &[("L0", "l0")], lines);
        [error, l0, rate(lines)].into_iter().flatten().collect()
    };
    let of_align = |lines: Lines| {
        charts(lines).into_iter().chain([rate(lines), norm(lines)].into_iter().flatten()).collect()
    };
    type Of<'a> = &'a dyn Fn(Lines) -> Vec<Chart>;
    let sae = sae.map(|stage| stage.folder.as_path());
    let stages: [(&str, &str, Option<&Path>, Of); 3] = [
        (
            "SFT",
            "Supervised fine-tuning: the model that alignment starts from.",
            Some(sft),
            &of_sft,
        ),
        ("SAE", "The sparse autoencoder on that model's activations.", sae, &of_sae),
        (
            "Align",
            match run.settings.evaluate.every {
                0 => "Preference alignment; each point is a batch of training pairs.",
                _ => {
                    "Preference alignment; each point of a line is a batch of training pairs, each ring an evaluation on held-out pairs."
                }
            },
            Some(align),
            &of_align,
        ),
    ];
    let mut found = Vec::new();
    for (stage, caption, folder, of) in stages {
        let path = folder.map(|folder| folder.join(METRICS_FILE));
        let path = path.filter(|path| path.exists() && path.starts_with(&run.folder));
        let Some(path) = path else { continue };
        let lines = read_log(&path)?;
        let charts = of(&lines);
        if !charts.is_empty() {
            let (stage, caption) = (stage.into(), caption.into());
            found.push(StageCurves { stage, caption, charts, answers: courses(&lines) });
        }
    }
    Ok(found)
}

/// Some at random, so that they are like the rest, and those whose verdict changed apart, since they say most.
fn samples(run: &Run, evaluation: &Evaluation) -> Vec<SampleGroup> {
    let s = &run.settings;
    let all = &evaluation.answers;
    let mut drawn: Vec<usize> = (0..all.len()).collect();
    // By a hash of seed and place, so that it is the same selection in every run with these settings.
    drawn.sort_by_key(|place| hash_bytes(format!("{} {place}", s.seed).as_bytes()));
    drawn.truncate(SAMPLES_SHOWN);
    drawn.sort_unstable();
    let changed: Vec<usize> =
        (0..all.len()).filter(|&i| all[i].before.right != all[i].after.right).collect();
    let shown = changed.len().min(SAMPLES_SHOWN);
    let other = match s.data.train {
        None => "Right answer",
        Some(_) => "Chosen response",
    };
    let group = |title: &str, choice: String, places: &[usize]| SampleGroup {
        title: title.into(),
        choice,
        samples: places.iter().map(|&place| sample(&all[place], other)).collect(),
    };
    let at_random = format!(
        "{} of {} held-out prompts, drawn at random with the run's seed before any answer was looked at.",
        drawn.len(),
        all.len()
    );
    let changes = format!(
        "{} of {} prompts have another verdict after alignment, for better or worse; the first {shown} of them, in the order of the data.",
        changed.len(),
        all.len()
    );
    let groups = [
        group("At random", at_random, &drawn),
        group("Changed verdicts", changes, &changed[..shown]),
    ];
    groups.into_iter().filter(|group| !group.samples.is_empty()).collect()
}

fn sample(answered: &AnsweredPrompt, other: &str) -> Sample {
    let note = |answer: &Answer| answer.verdict.clone();
    Sample {
        prompt: answered.prompt.clone(),
        other: Some((other.to_owned(), answered.expected.clone())),
        before: answered.before.text.clone(),
        after: answered.after.text.clone(),
        before_right: answered.before.right,
        after_right: answered.after.right,
        note_before: note(&answered.before),
        note_after: note(&answered.after),
    }
}
