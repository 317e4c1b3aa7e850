//! Tables: the paper's tables 2, 3 and 7, and what else is compared.

use std::collections::BTreeMap;

use fpo_report::{StudyTable, Unit};

use super::unit;
use crate::{
    interval::Mean,
    measure::{KL, OfKind},
    results::{Changed, Costs, OfMethod, Results},
};

/// The columns of a table of metrics: name in `study.json` and heading.
const COLUMNS: [(&str, &str); 9] = [
    ("accuracy", "Accuracy"),
    ("right", "Right answers"),
    ("entropy", "Entropy"),
    ("chosen_kl", "KL, chosen"),
    ("rejected_kl", "KL, rejected"),
    ("chosen_distance", "D, chosen"),
    ("rejected_distance", "D, rejected"),
    ("answer_tokens", "Answer length"),
    ("reward_accuracy", "Reward accuracy"),
];

/// What differences to a baseline are shown of.
const COMPARED: [(&str, &str); 4] =
    [("accuracy", "Accuracy"), ("right", "Right answers"), (KL, "KL"), ("entropy", "Entropy")];

const MISSING: &str = "–";

/// Table 2.
pub(super) fn methods(results: &Results, costs: &Costs) -> StudyTable {
    let head = COLUMNS.iter().map(|(_, title)| *title).chain(["Time", "Memory"]);
    let head = std::iter::once("Method").chain(head).map(str::to_owned).collect();
    let row = |of: &OfMethod| {
        let last = of.points.last().map(|point| &point.metrics);
        // The reference model has no method and so no reward.
        let has = |name: &str| of.method != results.reference.method || !name.starts_with("reward");
        let value = |name: &str| last.filter(|_| has(name)).and_then(|last| last.get(name));
        let cells = COLUMNS.iter().map(|(name, _)| match value(name) {
            Some(mean) => estimate(mean, unit(name)),
            None => MISSING.into(),
        });
        let cost = costs.methods.get(&of.method);
        let seconds = cost.map_or(MISSING.into(), |cost| in_seconds(&cost.seconds));
        let memory = cost.and_then(|cost| cost.peak_bytes).map(|mean| {
            let mib = |bytes: f64| bytes / f64::from(1 << 20);
            format!("{:.0} MiB", mib(mean.mean))
        });
        let cost = [seconds, memory.unwrap_or(MISSING.into())];
        std::iter::once(of.method.clone()).chain(cells).chain(cost).collect()
    };
    let all = std::iter::once(&results.reference).chain(&results.methods);
    let rows = all.filter(|of| !of.points.is_empty()).map(row).collect();
    StudyTable { name: "methods".into(), title: "Results on test prompts".into(), head, rows }
}

pub(super) fn differences(results: &Results) -> Option<StudyTable> {
    let all = results.differences.as_ref()?;
    let head = COMPARED.iter().map(|(_, title)| (*title).to_owned());
    let row = |(method, metrics): (&String, &BTreeMap<String, Mean>)| {
        let cells = COMPARED.iter().map(|(name, _)| match metrics.get(*name) {
            Some(mean) => match mean.half_width() {
                Some(half) => {
                    let sign = if mean.mean > half || mean.mean < -half { " *" } else { "" };
                    let scale = if unit(name) == Unit::Percent { 100.0 } else { 1.0 };
                    let decimals = if unit(name) == Unit::Percent { 1 } else { 3 };
                    format!("{:+.decimals$} ± {:.decimals$}{sign}", scale * mean.mean, scale * half)
                }
                None => estimate(mean, unit(name)),
            },
            None => MISSING.into(),
        });
        std::iter::once(method.clone()).chain(cells).collect()
    };
    // In the order of the methods, not of the alphabet.
    let of = |method: &OfMethod| all.methods.get_key_value(&method.method).map(row);
    Some(StudyTable {
        name: "differences".into(),
        title: format!("Minus {}, seed by seed (* where the interval is without 0)", all.baseline),
        head: std::iter::once("Method".to_owned()).chain(head).collect(),
        rows: results.methods.iter().filter_map(of).collect(),
    })
}

pub(super) fn tried(results: &Results) -> StudyTable {
    let columns = [
        ("accuracy", "Accuracy"),
        (KL, "KL"),
        ("token_entropy", "Token entropy"),
        ("loss", "Loss"),
    ];
    let head = ["Method", "Constants"].into_iter().chain(columns.map(|(_, title)| title));
    let rows = results.trials.iter().map(|trial| {
        let constants = match &trial.trial {
            serde_json::Value::Object(all) => {
                let one = |(key, value): (&String, &serde_json::Value)| format!("{key} {value}");
                all.iter().map(one).collect::<Vec<_>>().join(", ").replace('_', " ")
            }
            other => other.to_string(),
        };
        let star = if trial.chosen { "★ " } else { "" };
        let cells = columns.map(|(name, _)| match (trial.metrics.get(name), &trial.diverged) {
            (Some(value), _) => plain(*value, unit(name)),
            (None, Some(_)) => "diverged".into(),
            (None, None) => MISSING.into(),
        });
        [trial.method.clone(), format!("{star}{constants}")].into_iter().chain(cells).collect()
    });
    StudyTable {
        name: "trials".into(),
        title: "Validation".into(),
        head: head.map(str::to_owned).collect(),
        rows: rows.collect(),
    }
}

pub(super) fn changed(runs: &[Changed], name: &str) -> StudyTable {
    let columns = [
        ("accuracy", "Accuracy"),
        ("right", "Right answers"),
        ("chosen_kl", "KL, chosen"),
        ("rejected_kl", "KL, rejected"),
        ("chosen_distance", "D, chosen"),
        ("entropy", "Entropy"),
    ];
    let head = std::iter::once("Change").chain(columns.map(|(_, title)| title));
    let rows = runs.iter().map(|run| {
        let cells = columns.map(|(name, _)| match run.metrics.get(name) {
            Some(value) => plain(*value, unit(name)),
            None if run.metrics.is_empty() => "diverged".into(),
            None => MISSING.into(),
        });
        std::iter::once(title_of(run)).chain(cells).collect()
    });
    let title = match runs.first() {
        Some(first) => format!("{}, one change at a time", first.method),
        None => String::new(),
    };
    StudyTable {
        name: name.into(),
        title,
        head: head.map(str::to_owned).collect(),
        rows: rows.collect(),
    }
}

/// A table for each kind.
pub(super) fn control(runs: &[Changed]) -> Vec<StudyTable> {
    let columns = [("right", "Right answers"), ("accuracy", "Accuracy"), (KL, "KL")];
    let kinds: Vec<&String> = {
        let named = runs.iter().filter_map(|run| run.value.as_ref());
        let kind = |value: &String| value.rsplit_once('-').map(|(kind, _)| kind.to_owned());
        let named: Vec<String> = named.filter_map(kind).collect();
        runs.iter().flat_map(|run| run.kinds.keys()).filter(|k| named.contains(k)).collect()
    };
    let mut distinct: Vec<&String> = Vec::new();
    for kind in kinds {
        if !distinct.contains(&kind) {
            distinct.push(kind);
        }
    }
    let table = |kind: &String| {
        let of_kind = |run: &&Changed| {
            let value = run.value.as_ref().and_then(|value| value.rsplit_once('-'));
            value.is_none_or(|(of, _)| of == kind)
        };
        let row = |run: &Changed| {
            let name = match run.key.as_deref() {
                Some("only") => "only the kind's features held".to_owned(),
                Some(_) => "all but the kind's features held".to_owned(),
                None => "all features held".to_owned(),
            };
            let found = run.kinds.get(kind);
            let cells = columns.iter().flat_map(|(name, _)| {
                let side = |of: fn(&OfKind) -> &BTreeMap<String, f64>| match found
                    .and_then(|found| of(found).get(*name))
                {
                    Some(value) => plain(*value, unit(name)),
                    None => MISSING.into(),
                };
                [side(|found| &found.inside), side(|found| &found.outside)]
            });
            std::iter::once(name).chain(cells).collect()
        };
        let head = columns
            .iter()
            .flat_map(|(_, title)| [format!("{title}, {kind}"), format!("{title}, others")]);
        StudyTable {
            name: format!("control-{}", kind.replace(' ', "-")),
            title: kind.clone(),
            head: std::iter::once("Features".to_owned()).chain(head).collect(),
            rows: runs.iter().filter(of_kind).map(row).collect(),
        }
    };
    distinct.into_iter().map(table).collect()
}

fn title_of(run: &Changed) -> String {
    match (&run.key, &run.value) {
        (Some(key), Some(value)) => format!("{} {value}", key.replace('_', " ")),
        _ => "unchanged".into(),
    }
}

/// `87.3 ± 0.6 %`.
fn estimate(mean: &Mean, unit: Unit) -> String {
    let Some(half) = mean.half_width() else { return plain(mean.mean, unit) };
    match unit {
        Unit::Percent => format!("{:.1} ± {:.1} %", 100.0 * mean.mean, 100.0 * half),
        Unit::Nats => format!("{:.3} ± {:.3}", mean.mean, half),
        Unit::Tokens => format!("{:.1} ± {:.1}", mean.mean, half),
        Unit::Plain => format!("{:.4} ± {:.4}", mean.mean, half),
    }
}

fn plain(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Percent => format!("{:.1} %", 100.0 * value),
        Unit::Nats => format!("{value:.3}"),
        Unit::Tokens => format!("{value:.1}"),
        Unit::Plain => format!("{value:.4}"),
    }
}

fn in_seconds(mean: &Mean) -> String {
    match mean.half_width() {
        Some(half) => format!("{:.1} ± {:.1} s", mean.mean, half),
        None => format!("{:.1} s", mean.mean),
    }
}
