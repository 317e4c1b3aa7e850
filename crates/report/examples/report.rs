//! Fills a report with a table and a curve, writes its page to a temporary folder, and prints the table.
//!
//!     cargo run -p fpo-report --example report

use std::{error::Error, fs};

use fpo_report::{
    Better, Chart, Report, Series, StageCurves, TableRow, Unit, render, terminal_table,
};

fn main() -> Result<(), Box<dyn Error>> {
    let accuracy = TableRow {
        metric: "exact match".into(),
        explanation: "Share of responses that equal the expected one.".into(),
        before: Some(0.412),
        after: Some(0.655),
        unit: Unit::Percent,
        better: Better::Higher,
    };
    let kl = TableRow {
        metric: "KL to the reference".into(),
        before: Some(0.0),
        after: Some(0.31),
        unit: Unit::Nats,
        better: Better::Lower,
        ..TableRow::default()
    };
    let loss = (1..=200).map(|step| {
        let step = f64::from(step);
        (step, 0.69 * (-step / 80.0).exp() + 0.03 * (7.0 * step).sin())
    });
    let chart = Chart {
        title: "loss".into(),
        x_label: "step".into(),
        y_label: "nats".into(),
        series: vec![Series { name: "train".into(), points: loss.collect(), ..Series::default() }],
    };
    let report = Report {
        title: "An example run".into(),
        summary: vec![("Method".into(), "FPO".into())],
        table: vec![accuracy, kl],
        stages: vec![StageCurves {
            stage: "align".into(),
            charts: vec![chart],
            ..StageCurves::default()
        }],
        ..Report::default()
    };

    let folder = tempfile::tempdir()?;
    let path = folder.path().join("report.html");
    fs::write(&path, render(&report))?;
    println!("{}", terminal_table(&report.table));
    println!("the page has {} bytes", fs::metadata(&path)?.len());
    Ok(())
}
