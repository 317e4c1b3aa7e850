//! Several methods from the same model, autoencoder and reference, in one table.

use std::path::PathBuf;

use anyhow::{Context, Result};
use fpo_config::Settings;
use fpo_losses::Method;
use fpo_metrics::{cells, columns};
use fpo_report::{ComparisonTable, Report, render};

use crate::{
    run::Run,
    stages::{Base, StageName, align::align, evaluate::evaluate, report::write_page},
};

/// Aligns with each method and measures it, into folders below the run's. The table (the paper's table 2, small) and the page
/// that shows it.
///
/// # Errors
/// Those of the stages.
pub fn compare(run: &Run, methods: &[Method]) -> Result<(ComparisonTable, PathBuf)> {
    let of = |&method: &Method| Settings {
        align: run.settings.align.for_method(method),
        ..run.settings.clone()
    };
    // All are measured alike.
    let features = methods.iter().any(|method| of(method).features());
    let base = Base::make(run, StageName::Report, features)?;
    let base = base.context("every stage was asked for")?;
    let mut rows = Vec::new();
    for method in methods {
        run.reporter.note("compare", method.name());
        let nested = run.nested(&format!("compare/{method}"), of(method))?;
        let evaluation = evaluate(&nested, &base, &align(&nested, &base)?)?;
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
    Ok((table, path))
}
