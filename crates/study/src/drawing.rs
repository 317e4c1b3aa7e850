//! What a study shows: the paper's tables and figures, and the frontier; as a page, SVG files and CSV tables.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, anyhow};
use fpo_metrics::METRICS;
use fpo_report::{
    Estimate, Frontier, Spot, StudyPage, StudySection, StudyTable, Trace, Unit, render_study,
};

use crate::{
    interval::Mean,
    measure::{KL, OfKind},
    plan::EachSeed,
    results::{Changed, Costs, OfMethod, Results},
    study::Study,
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

/// What is written of a study, and the table that ends a call.
#[derive(Debug)]
pub struct Drawn {
    /// Methods against metrics.
    pub table: String,
    /// The page.
    pub page: PathBuf,
}

/// Writes the page, the charts and the tables into the study's folder.
///
/// # Errors
/// A chart that can't be drawn, or the disk's.
pub fn draw(study: &Study, results: &Results) -> Result<Drawn> {
    let costs = Costs::of(study, results)?;
    let sections = sections(results, &costs);
    for table in sections.iter().flat_map(|section| &section.tables) {
        let path = study.folder.join("tables").join(format!("{}.csv", table.name));
        crate::write(&path, &csv(table))?;
    }
    for chart in sections.iter().flat_map(|section| &section.charts) {
        let drawn = chart.svg().map_err(|error| anyhow!("{}: {error}", chart.title))?;
        if let Some(svg) = drawn {
            let path = study.folder.join("figures").join(format!("{}.svg", chart.name));
            crate::write(&path, &svg)?;
            let table = numbers(chart);
            let path = study.folder.join("figures").join(format!("{}.csv", chart.name));
            crate::write(&path, &csv(&table))?;
        }
    }
    let seeds: Vec<String> = results.seeds.iter().map(u64::to_string).collect();
    let moved = match results.each_seed {
        EachSeed::Everything => "data, initial weights, fine-tuning, autoencoder, order of pairs",
        EachSeed::Alignment => "order of pairs",
    };
    let plan = study.folder.join("plan.toml");
    let facts = [
        ("Recipe", results.recipe.clone()),
        ("Methods", results.methods.len().to_string()),
        ("Trials per method", {
            let first = results.trials.first().map(|first| &first.method);
            let of = results.trials.iter().filter(|trial| Some(&trial.method) == first);
            of.count().max(1).to_string()
        }),
        ("Seeds", seeds.join(", ")),
        ("Each seed has its own", moved.into()),
        ("Chosen by", results.criterion.trim_start_matches("eval_").into()),
    ];
    let page = StudyPage {
        title: "Methods compared".into(),
        subtitle: format!("fpo {} · a study", results.version),
        facts: facts.map(|(name, value)| (name.to_owned(), value)).into(),
        plan: fs::read_to_string(&plan).with_context(|| format!("reading {}", plan.display()))?,
        sections,
    };
    let path = study.folder.join("study.html");
    crate::write(&path, &render_study(&page))?;
    let table = methods(results, &costs).terminal();
    Ok(Drawn { table, page: path })
}

fn sections(results: &Results, costs: &Costs) -> Vec<StudySection> {
    let interval = match results.seeds.len() {
        1 => "One seed, so without intervals.".to_owned(),
        n => format!("Means over {n} seeds with 95 % intervals of Student's t distribution."),
    };
    let mut sections = vec![
        StudySection {
            title: "Methods".into(),
            lead: format!(
                "Every method with its best trial, on test prompts that decided nothing. {interval} Time and memory are those of the \
                 alignment alone."
            ),
            tables: [Some(methods(results, costs)), differences(results)].into_iter().flatten().collect(),
            ..StudySection::default()
        },
        StudySection {
            title: "Frontier".into(),
            lead: format!(
                "What a method gains by how far it moves from the reference: test prompts, several models along each alignment, the \
                 result last. Up and to the left is better. KL is KL(reference ‖ model) of a response, mean over chosen and rejected \
                 ones. {interval}"
            ),
            charts: vec![
                frontier(results, "frontier-accuracy", "Accuracy against KL", "accuracy", false),
                frontier(results, "frontier-right", "Right answers against KL", "right", true),
                trials(results),
            ],
            tables: Vec::new(),
        },
        StudySection {
            title: "Along the way".into(),
            lead: "The same models by training step: figures 3 and 4 of the paper, and what else moves.".into(),
            charts: [
                ("steps-accuracy", "Accuracy", "accuracy"),
                ("steps-kl", "KL", KL),
                ("steps-chosen-kl", "KL, chosen", "chosen_kl"),
                ("steps-entropy", "Entropy", "token_entropy"),
                ("steps-distance", "D, chosen", "chosen_distance"),
            ]
            .map(|(name, title, metric)| along(results, name, title, metric))
            .into(),
            tables: Vec::new(),
        },
    ];
    if !results.ablations.is_empty() {
        sections.push(StudySection {
            title: "One change at a time".into(),
            lead: "Tables 3 and 7 of the paper: the best trial with one thing changed, on test prompts with the first seed. D is \
                   another quantity where k or the sites differ."
                .into(),
            tables: vec![changed(&results.ablations, "ablations")],
            ..StudySection::default()
        });
    }
    if !results.control.is_empty() {
        sections.push(StudySection {
            title: "Targeted control".into(),
            lead: "Section 5.3 of the paper: FPO that holds only the features of a kind of prompts in place, or all but these. Of the \
                   kind and of all other prompts, on test prompts with the first seed."
                .into(),
            tables: control(&results.control),
            ..StudySection::default()
        });
    }
    if !results.trials.is_empty() {
        sections.push(StudySection {
            title: "Trials".into(),
            lead: "All that was tried, on validation prompts with the first seed. A star marks what was chosen.".into(),
            tables: vec![tried(results)],
            ..StudySection::default()
        });
    }
    sections.retain(|section| !section.charts.is_empty() || !section.tables.is_empty());
    sections
}

/// Table 2.
fn methods(results: &Results, costs: &Costs) -> StudyTable {
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

fn differences(results: &Results) -> Option<StudyTable> {
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

fn tried(results: &Results) -> StudyTable {
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

fn changed(runs: &[Changed], name: &str) -> StudyTable {
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
fn control(runs: &[Changed]) -> Vec<StudyTable> {
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

/// A metric against KL; the results alone, or the way there too, from the reference model on.
fn frontier(
    results: &Results,
    name: &str,
    title: &str,
    metric: &str,
    results_only: bool,
) -> Frontier {
    let unit = unit(metric);
    let traces = results.methods.iter().map(|of| {
        let start = results.reference.points.last().filter(|_| !results_only);
        let points = start.into_iter().chain(&of.points);
        let points: Vec<_> = match results_only {
            true => of.points.last().into_iter().collect(),
            false => points.collect(),
        };
        let spot = |metrics: &BTreeMap<String, Mean>| {
            let (x, y) = (metrics.get(KL)?, metrics.get(metric)?);
            Some(Spot { x: drawn(x, Unit::Nats), y: drawn(y, unit) })
        };
        let spots = points.iter().filter_map(|point| spot(&point.metrics)).collect();
        Trace { name: of.method.clone(), spots, is_joined: !results_only }
    });
    let mut traces: Vec<Trace> = traces.collect();
    if results_only && let Some(last) = results.reference.points.last() {
        let spot =
            last.metrics.get(metric).map(|y| Spot { x: Estimate::default(), y: drawn(y, unit) });
        let spots = spot.into_iter().collect();
        traces.push(Trace { name: "reference".into(), spots, is_joined: false });
    }
    Frontier {
        name: name.into(),
        title: title.into(),
        x_label: "KL from the reference, nats per response".into(),
        y_label: label(metric, unit),
        traces,
    }
}

/// Every trial of every method.
fn trials(results: &Results) -> Frontier {
    let mut traces: Vec<Trace> = Vec::new();
    for trial in &results.trials {
        let (Some(x), Some(y)) = (trial.metrics.get(KL), trial.metrics.get("accuracy")) else {
            continue;
        };
        let estimate = |value: f64| Estimate { value, range: None };
        let spot = Spot { x: estimate(*x), y: estimate(100.0 * y) };
        match traces.iter_mut().find(|trace| trace.name == trial.method) {
            Some(trace) => trace.spots.push(spot),
            None => traces.push(Trace {
                name: trial.method.clone(),
                spots: vec![spot],
                is_joined: false,
            }),
        }
    }
    Frontier {
        name: "frontier-trials".into(),
        title: "All trials, on validation prompts".into(),
        x_label: "KL from the reference, nats per response".into(),
        y_label: label("accuracy", Unit::Percent),
        traces,
    }
}

/// A metric by training step.
fn along(results: &Results, name: &str, title: &str, metric: &str) -> Frontier {
    let unit = unit(metric);
    let traces = results.methods.iter().map(|of| {
        let points = results.reference.points.last().into_iter().chain(&of.points);
        let spot = |point: &crate::results::MeanPoint| {
            let x = Estimate { value: point.step as f64, range: None };
            Some(Spot { x, y: drawn(point.metrics.get(metric)?, unit) })
        };
        let spots = points.filter_map(spot).collect();
        Trace { name: of.method.clone(), spots, is_joined: true }
    });
    Frontier {
        name: name.into(),
        title: title.into(),
        x_label: "step".into(),
        y_label: label(metric, unit),
        traces: traces.collect(),
    }
}

/// The numbers behind a chart.
fn numbers(chart: &Frontier) -> StudyTable {
    let head = ["method", "x", "x_low", "x_high", "y", "y_low", "y_high"].map(str::to_owned);
    let ends = |of: Estimate| {
        let end = |end: Option<f64>| end.map(|end| end.to_string()).unwrap_or_default();
        [of.value.to_string(), end(of.range.map(|r| r.0)), end(of.range.map(|r| r.1))]
    };
    let row = |trace: &Trace, spot: &Spot| {
        std::iter::once(trace.name.clone()).chain(ends(spot.x)).chain(ends(spot.y)).collect()
    };
    let of = |trace: &Trace| trace.spots.iter().map(|spot| row(trace, spot)).collect::<Vec<_>>();
    let rows = chart.traces.iter().flat_map(of).collect();
    StudyTable { name: chart.name.clone(), title: String::new(), head: head.into(), rows }
}

/// RFC 4180.
fn csv(table: &StudyTable) -> String {
    let cell = |text: &String| match text.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.clone(),
    };
    let line = |row: &Vec<String>| row.iter().map(cell).collect::<Vec<_>>().join(",") + "\n";
    std::iter::once(&table.head).chain(&table.rows).map(line).collect()
}

const MISSING: &str = "–";

fn unit(metric: &str) -> Unit {
    let found = METRICS.iter().find(|of| of.name == metric);
    found.map_or(Unit::Nats, |metric| metric.unit)
}

fn label(metric: &str, unit: Unit) -> String {
    let found = METRICS.iter().find(|of| of.name == metric).map(|metric| metric.title);
    let title = found.unwrap_or("KL, mean of chosen and rejected");
    match unit {
        Unit::Percent => format!("{title}, %"),
        Unit::Nats => format!("{title}, nats"),
        Unit::Tokens => format!("{title}, tokens"),
        Unit::Plain => title.into(),
    }
}

fn drawn(mean: &Mean, unit: Unit) -> Estimate {
    let scale = if unit == Unit::Percent { 100.0 } else { 1.0 };
    let range = mean.low.zip(mean.high).map(|(low, high)| (scale * low, scale * high));
    Estimate { value: scale * mean.mean, range }
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
