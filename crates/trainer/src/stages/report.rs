//! The page of a run, and the table that ends it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fpo_data::atomic;
use serde_json::{Map, Value};

use super::{
    Base,
    evaluate::{Answer, Evaluation},
};
use fpo_report::{
        Better, Chart, Report, Sample, Series, StageCurves, TableRow, Unit, render, terminal_table,
    };
use crate::run::{Run, Stage};
use crate::training::METRICS_FILE;

/// Answers shown on the page.
const SAMPLES_SHOWN: usize = 24;

/// Writes `report.html` and prints the table and the paths.
pub fn report(run: &Run, base: &Base, align: &Stage, evaluation: &Evaluation) -> Result<()> {
    let table = table(evaluation);
    let path = run.folder.join("report.html");
    let page = render(&page(run, base, align, evaluation, table.clone())?);
    write_page(&path, &page)?;
    println!("{}", terminal_table(&table));
    println!("aligned model  {}", align.folder.display());
    println!("report         {}", path.display());
    Ok(())
}

/// Puts a page in its place, whole or not at all.
pub fn write_page(path: &Path, page: &str) -> Result<()> {
    atomic::write_file(path, |file| -> Result<()> { Ok(file.write_all(page.as_bytes())?) })
}

/// The rows of the final table.
pub fn table(evaluation: &Evaluation) -> Vec<TableRow> {
    let (before, after) = (&evaluation.before, &evaluation.after);
    let row = |metric: &str, explanation: &str, unit, better, before, after| TableRow {
        metric: metric.into(),
        explanation: explanation.into(),
        before,
        after,
        unit,
        better,
    };
    macro_rules! rows {
        ($($metric:literal, $explanation:literal, $unit:ident, $better:ident, $field:ident;)*) => {
            vec![$(row(
                $metric, $explanation, Unit::$unit, Better::$better,
                Some(before.$field), Some(after.$field),
            )),*]
        };
    }
    let mut rows = rows![
        "Loss", "The method's loss on held-out pairs.", Plain, Lower, loss;
        "Accuracy", "Held-out pairs whose chosen response has the higher average log-probability per token.", Percent, Higher, accuracy;
        "Reward margin", "Mean difference of the method's own rewards, chosen minus rejected.", Plain, Higher, reward_margin;
        "KL, chosen", "KL(reference ‖ model) summed over a response, mean over chosen responses.", Nats, Neither, chosen_kl;
        "KL, rejected", "The same over rejected responses.", Nats, Neither, rejected_kl;
        "D, chosen", "Feature distance to the reference (equation 10), mean over chosen responses.", Plain, Neither, chosen_distance;
        "D, rejected", "The same over rejected responses.", Plain, Neither, rejected_distance;
        "Entropy", "Mean entropy of the distributions from which answers were drawn.", Nats, Neither, entropy;
        "Answer length", "Mean length of an answer.", Tokens, Neither, answer_tokens;
    ];
    if before.right.is_some() || after.right.is_some() {
        rows.push(row(
            "Right answers",
            "Answers to held-out prompts that the built-in checker calls right, in content and in format.",
            Unit::Percent,
            Better::Higher,
            before.right,
            after.right,
        ));
    }
    rows
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
    let data = match &s.data.train {
        // The name alone: the settings at the end of the page have the whole path.
        Some(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        None => "built-in".into(),
    };
    let quality: Map<String, Value> = super::read_json(&base.sae.folder.join("quality.json"))?;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let number = |key: &str| quality.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let summary = [
        ("Method", s.align.method.to_string()),
        ("β", objective.beta.to_string()),
        ("α", objective.alpha.to_string()),
        ("k", s.align.k.to_string()),
        ("Site", s.sae.site.clone()),
        ("Data", data),
        ("Pairs", base.prepared.train.len().to_string()),
        ("Pairs clipped", percent(base.prepared.train_summary.clipped_share())),
        ("Pairs dropped", percent(base.prepared.train_summary.dropped_share())),
        ("Held-out pairs", base.prepared.held_out.len().to_string()),
        ("SAE L0", format!("{:.1}", number("l0"))),
        ("SAE explained variance", format!("{:.3}", number("explained_variance"))),
    ];
    Ok(Report {
        title: format!("{} on {name}", s.align.method.to_string().to_uppercase()),
        subtitle: format!("fpo {} · seed {}", env!("CARGO_PKG_VERSION"), s.seed),
        summary: summary.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        table,
        comparison: None,
        stages: curves(&base.sft.folder, &base.sae.folder, &align.folder)?,
        samples: samples(evaluation),
        features: evaluation.features.clone(),
        settings_toml: s.to_toml()?,
        notes: vec![
            "SAE explained variance is 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²) on activations it was not trained on.".into(),
            "A feature's activation is averaged over the positions that predict a response, then over held-out responses.".into(),
        ],
    })
}

/// The curves of the stages that have any.
fn curves(sft: &Path, sae: &Path, align: &Path) -> Result<Vec<StageCurves>> {
    // (title, y label, series: (name, key))
    type Charts =
        &'static [(&'static str, &'static str, &'static [(&'static str, &'static str)])];
    const LOSS: (&str, &str, &[(&str, &str)]) = ("Loss", "nats", &[("Loss", "loss")]);
    const RATE: (&str, &str, &[(&str, &str)]) =
        ("Learning rate", "", &[("Learning rate", "learning_rate")]);
    const NORM: (&str, &str, &[(&str, &str)]) =
        ("Gradient norm", "", &[("Gradient norm", "grad_norm")]);
    const SFT: Charts = &[LOSS, RATE, NORM];
    const SAE: Charts = &[
        ("Reconstruction error", "share of E‖x‖²", &[("Reconstruction error", "mse")]),
        ("L0", "active features", &[("L0", "l0")]),
        RATE,
    ];
    const ALIGN: Charts = &[
        LOSS,
        (
            "Accuracy",
            "share",
            &[("length-normalised", "accuracy"), ("reward", "rewards/accuracies")],
        ),
        (
            "Rewards",
            "",
            &[
                ("chosen", "rewards/chosen"),
                ("rejected", "rewards/rejected"),
                ("margin", "rewards/margins"),
            ],
        ),
        (
            "Log-probability",
            "nats per response",
            &[("chosen", "logps/chosen"), ("rejected", "logps/rejected")],
        ),
        (
            "Feature distance D",
            "",
            &[("chosen", "distance/chosen"), ("rejected", "distance/rejected")],
        ),
        ("KL to the reference", "nats", &[("chosen", "kl/chosen"), ("rejected", "kl/rejected")]),
        RATE,
        NORM,
    ];
    let stages: [(&str, &str, &Path, Charts); 3] = [
        ("SFT", "Supervised fine-tuning: the model that alignment starts from.", sft, SFT),
        ("SAE", "The sparse autoencoder on that model's activations.", sae, SAE),
        ("Align", "Preference alignment; every point is a batch of training pairs.", align, ALIGN),
    ];
    let mut found = Vec::new();
    for (stage, caption, folder, charts) in stages {
        let path = folder.join(METRICS_FILE);
        if !path.exists() {
            continue;
        }
        let lines = read_metrics(&path)?;
        let charts: Vec<Chart> = charts
            .iter()
            .map(|(title, y_label, series)| Chart {
                title: (*title).into(),
                x_label: "step".into(),
                y_label: (*y_label).into(),
                series: series.iter().filter_map(|(name, key)| curve(&lines, name, key)).collect(),
            })
            .filter(|chart| !chart.series.is_empty())
            .collect();
        if !charts.is_empty() {
            found.push(StageCurves { stage: stage.into(), caption: caption.into(), charts });
        }
    }
    Ok(found)
}

fn curve(lines: &[Map<String, Value>], name: &str, key: &str) -> Option<Series> {
    let point =
        |line: &Map<String, Value>| Some((line.get("step")?.as_f64()?, line.get(key)?.as_f64()?));
    let points: Vec<(f64, f64)> = lines.iter().filter_map(point).collect();
    (!points.is_empty()).then(|| Series { name: name.into(), points })
}

fn read_metrics(path: &PathBuf) -> Result<Vec<Map<String, Value>>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.lines()
        .enumerate()
        .map(|(i, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("{} line {}: malformed", path.display(), i + 1))
        })
        .collect()
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
