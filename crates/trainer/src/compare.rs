//! Several methods from the same model, autoencoder and reference, in one table.

use anyhow::{Context, Result};
use fpo_losses::Method;

use fpo_report::{Better, Cell, Column, ComparisonTable, Report, Unit, render};
use crate::run::Run;
use fpo_config::Settings;
use crate::stages::{self, Base, StageName, evaluate::Measured, report::write_page};

/// Runs the methods and prints one table (the paper's table 2, small).
pub fn compare(run: &Run, methods: &[Method]) -> Result<()> {
    let base = Base::make(run, StageName::Report)?.context("every stage was asked for")?;
    let mut rows = Vec::new();
    for &method in methods {
        eprintln!("\n{method}");
        let settings =
            Settings { align: run.settings.align.for_method(method), ..run.settings.clone() };
        let nested = run.nested(&format!("compare/{method}"), settings)?;
        let evaluation = stages::align_and_report(&nested, &base, StageName::Evaluate)?
            .context("evaluation was asked for")?;
        if rows.is_empty() {
            rows.push(("sft".to_owned(), cells(&evaluation.before)));
        }
        rows.push((method.to_string(), cells(&evaluation.after)));
    }
    let table = ComparisonTable { columns: columns(), rows };
    let path = run.folder.join("compare.html");
    let page = Report {
        title: "Preference objectives compared".into(),
        subtitle: format!("fpo {} · seed {}", env!("CARGO_PKG_VERSION"), run.settings.seed),
        comparison: Some(table.clone()),
        settings_toml: run.settings.to_toml()?,
        notes: vec!["Every method starts from the same model and reads the same reference.".into()],
        ..Report::default()
    };
    write_page(&path, &render(&page))?;
    println!("{}", table.terminal());
    println!("page  {}", path.display());
    Ok(())
}

fn columns() -> Vec<Column> {
    let column = |name: &str, unit, better| Column { name: name.into(), unit, better };
    vec![
        column("Accuracy", Unit::Percent, Better::Higher),
        column("Right answers", Unit::Percent, Better::Higher),
        column("Entropy", Unit::Nats, Better::Neither),
        column("KL, chosen", Unit::Nats, Better::Neither),
        column("KL, rejected", Unit::Nats, Better::Neither),
        column("D, chosen", Unit::Plain, Better::Neither),
        column("D, rejected", Unit::Plain, Better::Neither),
        column("Answer length", Unit::Tokens, Better::Neither),
    ]
}

fn cells(m: &Measured) -> Vec<Cell> {
    let right = m.right.map_or(Cell::Missing, Cell::Number);
    let rest = [
        m.entropy,
        m.chosen_kl,
        m.rejected_kl,
        m.chosen_distance,
        m.rejected_distance,
        m.answer_tokens,
    ];
    [Cell::Number(m.accuracy), right].into_iter().chain(rest.map(Cell::Number)).collect()
}
