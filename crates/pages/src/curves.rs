//! The curves of trainings: of one run, of several in the same charts, and as a table.

use fpo_metrics::{chart, charts, courses, logged_as};
use fpo_report::{Chart, Series, StageCurves, Stroke, Unit};
use fpo_track::EVAL;
use serde_json::{Map, Value};

use crate::{RunFiles, Training};

type Line = Map<String, Value>;

/// Keys of a log that no chart shows: they are constant, or counts of what was read.
const NO_CURVE: [&str; 6] =
    ["step", "epoch", "num_tokens", "beta", "pairs/clipped", "pairs/dropped"];

/// The charts of one run's stages that have any.
pub(crate) fn stages(run: &RunFiles) -> Vec<StageCurves> {
    let stage = |training: &Training| {
        let lines = &training.lines;
        let (title, about) = about(training.stage);
        let points = match (training.stage, run.settings.evaluate.every) {
            ("align", 0) => " Each point is a batch of training pairs.",
            ("align", _) => {
                " Each point of a line is a batch of training pairs, each ring an evaluation on held-out pairs."
            }
            _ => "",
        };
        let charts = of_stage(training.stage, lines);
        (!charts.is_empty()).then(|| StageCurves {
            stage: title.into(),
            caption: format!("{about}{points}"),
            charts,
            answers: courses(lines),
        })
    };
    run.trainings.iter().filter_map(stage).collect()
}

fn of_stage(stage: &str, lines: &[Line]) -> Vec<Chart> {
    let loss = || chart("Loss", "nats", &[("Loss", "loss")], lines);
    let rate = || chart("Learning rate", "", &[("Learning rate", "learning_rate")], lines);
    let norm = || chart("Gradient norm", "", &[("Gradient norm", "grad_norm")], lines);
    let found = |some: [Option<Chart>; 3]| some.into_iter().flatten();
    match stage {
        "sft" => found([loss(), rate(), norm()]).collect(),
        "sae" => {
            let error = [("Reconstruction error", "mse")];
            let error = chart("Reconstruction error", "share of E‖x‖²", &error, lines);
            let l0 = chart("L0", "active features", &[("L0", "l0")], lines);
            found([error, l0, rate()]).collect()
        }
        _ => {
            let right = format!("{EVAL}right");
            let right = chart("Right answers", "share", &[("held-out", &right)], lines);
            charts(lines).into_iter().chain(found([right, rate(), norm()])).collect()
        }
    }
}

/// A stage's title, and what it did.
fn about(stage: &str) -> (&'static str, &'static str) {
    match stage {
        "sft" => ("SFT", "Supervised fine-tuning: the model that alignment starts from."),
        "sae" => ("SAE", "The sparse autoencoder on that model's activations."),
        _ => ("Align", "Preference alignment."),
    }
}

/// The charts of the stages of several runs, a chart for each metric.
pub(crate) fn overlaid(names: &[String], runs: &[RunFiles]) -> Vec<StageCurves> {
    let stages = ["sft", "sae", "align"];
    stages.into_iter().filter_map(|stage| overlaid_stage(stage, names, runs)).collect()
}

fn overlaid_stage(stage: &str, names: &[String], runs: &[RunFiles]) -> Option<StageCurves> {
    let logs: Vec<(usize, &Training)> =
        runs.iter().enumerate().filter_map(|(at, run)| Some((at, run.training(stage)?))).collect();
    let (_, first) = logs.first()?;
    let (title, about) = about(stage);
    let all = if logs.len() == runs.len() { "all runs" } else { "all runs with this stage" };
    let same = logs.len() > 1 && logs.iter().all(|(_, one)| one.lines == first.lines);
    let (logs, caption) = match same {
        true => (&logs[..1], format!("{about} The same in {all}: one line stands for all.")),
        false => (&logs[..], about.to_owned()),
    };
    let charts = keys(logs).into_iter().map(|key| {
        let mut series = Vec::new();
        for eval in [false, true] {
            let key = if eval { format!("{EVAL}{key}") } else { key.clone() };
            for &(at, training) in logs {
                let points = points(&training.lines, &key);
                if points.is_empty() {
                    continue;
                }
                let run = if same { all } else { &names[at] };
                let name = if eval { format!("{run}, held-out") } else { run.to_owned() };
                let stroke = if eval { Stroke::Rings(at) } else { Stroke::Run(at) };
                series.push(Series { name, stroke, points });
            }
        }
        let (title, y_label) = titled(&key);
        Chart { title, x_label: "step".into(), y_label: y_label.into(), series }
    });
    let charts: Vec<Chart> = charts.filter(|chart| !chart.series.is_empty()).collect();
    (!charts.is_empty()).then(|| StageCurves {
        stage: title.into(),
        caption,
        charts,
        answers: Vec::new(),
    })
}

/// The keys of logs with a curve, in the order in which they first appear, learning rate and gradient norm last. Those of
/// evaluations stand with the same ones of training.
fn keys(logs: &[(usize, &Training)]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (_, training) in logs {
        for (key, value) in training.lines.iter().flatten() {
            let key = key.strip_prefix(EVAL).unwrap_or(key);
            let drawn = value.is_number() && !NO_CURVE.contains(&key);
            if drawn && !keys.iter().any(|known| known == key) {
                keys.push(key.to_owned());
            }
        }
    }
    keys.sort_by_key(|key| ["learning_rate", "grad_norm"].contains(&key.as_str()));
    keys
}

fn points(lines: &[Line], key: &str) -> Vec<(f64, f64)> {
    let point = |line: &Line| Some((line.get("step")?.as_f64()?, line.get(key)?.as_f64()?));
    lines.iter().filter_map(point).collect()
}

/// A metric's title and the label of its axis.
fn titled(key: &str) -> (String, &'static str) {
    match key {
        "learning_rate" => return ("Learning rate".into(), ""),
        "grad_norm" => return ("Gradient norm".into(), ""),
        "mse" => return ("Reconstruction error".into(), "share of E‖x‖²"),
        "l0" => return ("L0".into(), "active features"),
        "dead" => return ("Dead features".into(), "share"),
        _ => {}
    }
    match logged_as(key).or_else(|| logged_as(&format!("{EVAL}{key}"))) {
        Some(metric) => {
            let unit = match metric.unit {
                Unit::Percent => "share",
                Unit::Nats => "nats",
                Unit::Tokens => "tokens",
                Unit::Plain => "",
            };
            (metric.title.into(), unit)
        }
        None => (key.to_owned(), ""),
    }
}

/// All numbers of all logs: `run,stage,step,metric,value`, a line for each.
pub fn curves_csv(names: &[String], runs: &[RunFiles]) -> String {
    let mut text = "run,stage,step,metric,value\n".to_owned();
    for (name, run) in names.iter().zip(runs) {
        for training in &run.trainings {
            for line in &training.lines {
                let Some(step) = line.get("step").and_then(Value::as_u64) else { continue };
                for (key, value) in line.iter().filter(|(key, _)| *key != "step") {
                    if let Some(value) = value.as_f64() {
                        let (name, stage) = (quoted(name), training.stage);
                        text += &format!("{name},{stage},{step},{},{value}\n", quoted(key));
                    }
                }
            }
        }
    }
    text
}

/// A field of a CSV file (RFC 4180).
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}
