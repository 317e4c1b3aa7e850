//! What a study shows: the paper's tables and figures, and the frontier; as a page, SVG files and CSV tables.

mod charts;
mod tables;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, anyhow};
use fpo_metrics::METRICS;
use fpo_report::{StudyPage, StudySection, StudyTable, Unit, render_study};

use charts::{along, frontier, numbers, trials};
use tables::{changed, control, differences, methods, tried};

use crate::{
    measure::KL,
    plan::EachSeed,
    results::{Costs, Results},
    study::Study,
};

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

/// RFC 4180.
fn csv(table: &StudyTable) -> String {
    let cell = |text: &String| match text.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.clone(),
    };
    let line = |row: &Vec<String>| row.iter().map(cell).collect::<Vec<_>>().join(",") + "\n";
    std::iter::once(&table.head).chain(&table.rows).map(line).collect()
}

fn unit(metric: &str) -> Unit {
    let found = METRICS.iter().find(|of| of.name == metric);
    found.map_or(Unit::Nats, |metric| metric.unit)
}
