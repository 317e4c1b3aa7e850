//! The page of a run, and the table that ends it.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Result;
use fpo_data::{
    atomic,
    checkpoints::{METRICS_FILE, read_log},
};
use fpo_metrics::{chart, charts, table};
use fpo_report::{Chart, Report, Sample, StageCurves, TableRow, render};
use serde_json::{Map, Value};

use super::{
    Base,
    evaluate::{Answer, Evaluation},
};
use crate::run::{Run, Stage};

/// Answers shown on the page.
const SAMPLES_SHOWN: usize = 24;

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
    let name = run.folder.file_name().map_or("run".into(), |n| n.to_string_lossy());
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
        ("α", objective.alpha.to_string()),
        ("Data", source),
        ("Pairs", base.prepared.train.len().to_string()),
        ("Prompts clipped", percent(data.clipped_prompt_share())),
        ("Responses clipped", percent(data.clipped_response_share())),
        ("Pairs dropped", percent(data.dropped_share())),
        ("Held-out pairs", base.prepared.held_out.len().to_string()),
    ];
    let mut notes = Vec::new();
    if let Some(sae) = &base.sae {
        let quality: Map<String, Value> = super::read_json(&sae.folder.join("quality.json"))?;
        let number = |key: &str| quality.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
        summary.extend([
            ("k", s.align.k.to_string()),
            ("Site", s.sae.site.clone()),
            ("SAE L0", format!("{:.1}", number("l0"))),
            ("SAE explained variance", format!("{:.3}", number("explained_variance"))),
        ]);
        notes = vec![
            "SAE explained variance is 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²) on activations it was not trained on.".into(),
            "A feature's activation is averaged over the positions that predict a response, then over held-out responses.".into(),
        ];
    }
    Ok(Report {
        title: format!("{} on {name}", s.align.method.to_string().to_uppercase()),
        subtitle: format!("fpo {} · seed {}", env!("CARGO_PKG_VERSION"), s.seed),
        summary: summary.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        table,
        comparison: None,
        stages: curves(&base.sft.folder, base.sae.as_ref(), &align.folder)?,
        samples: samples(evaluation),
        features: evaluation.features.clone(),
        settings_toml: s.to_toml()?,
        notes,
    })
}

/// The charts of the stages that have any.
fn curves(sft: &Path, sae: Option<&Stage>, align: &Path) -> Result<Vec<StageCurves>> {
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
            "Preference alignment; each point is a batch of training pairs.",
            Some(align),
            &of_align,
        ),
    ];
    let mut found = Vec::new();
    for (stage, caption, folder, of) in stages {
        let path = folder.map(|folder| folder.join(METRICS_FILE)).filter(|path| path.exists());
        let Some(path) = path else { continue };
        let charts = of(&read_log(&path)?);
        if !charts.is_empty() {
            found.push(StageCurves { stage: stage.into(), caption: caption.into(), charts });
        }
    }
    Ok(found)
}

/// Answers that changed their verdict first, since they say most.
fn samples(evaluation: &Evaluation) -> Vec<Sample> {
    let mut answers: Vec<_> = evaluation.answers.iter().collect();
    answers.sort_by_key(|a| (a.before.right == a.after.right, a.before.text == a.after.text));
    let note = |answer: &Answer| answer.verdict.clone();
    let (changed, same): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|a| a.before.right != a.after.right);
    // Three quarters at most, so that what stayed as it was is seen too.
    let shown = changed.into_iter().take(SAMPLES_SHOWN * 3 / 4).chain(same);
    shown
        .take(SAMPLES_SHOWN)
        .map(|a| Sample {
            prompt: a.prompt.clone(),
            expected: Some(a.expected.clone()),
            before: a.before.text.clone(),
            after: a.after.text.clone(),
            before_right: a.before.right,
            after_right: a.after.right,
            note_before: note(&a.before),
            note_after: note(&a.after),
        })
        .collect()
}
