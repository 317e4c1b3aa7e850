//! Several methods from the same model, autoencoder and reference, in one table.

use std::path::PathBuf;

use anyhow::{Context, Error, Result};
use fpo_config::Settings;
use fpo_losses::Method;
use fpo_metrics::{cells, cells_before, columns};
use fpo_report::{ComparisonTable, Report, render};

use crate::{
    run::{Run, Stale},
    stages::{Base, StageName, align::align, evaluate::evaluate, report::write_page, walk},
};

/// Aligns with each method and measures it, into folders below the run's. The table (the paper's table 2, small) and the page
/// that shows it.
///
/// # Errors
/// Those of the stages.
pub fn compare(run: &Run, methods: &[Method]) -> Result<(ComparisonTable, PathBuf)> {
    // All are measured alike.
    let features = run.settings.features()
        || methods.iter().any(|&method| with_method(run, method).features());
    run.settle(|| {
        let base = Base::make(run, StageName::Report, features)?;
        let base = base.context("every stage was asked for")?;
        methods.iter().try_for_each(|&method| {
            let nested = nested(run, method)?;
            let probed = nested.probe(|| evaluate(&nested, &base, &align(&nested, &base)?));
            let is_new = |error: &Error| {
                error.downcast_ref::<Stale>().is_some_and(|stale| stale.discards.is_empty())
            };
            match probed {
                Err(error) if is_new(&error) => Ok(()),
                probed => probed.map(drop),
            }
        })?;
        walk(run, StageName::Evaluate).map(drop)
    })?;
    let base = Base::make(run, StageName::Report, features)?;
    let base = base.context("every stage was asked for")?;
    let mut rows = Vec::new();
    for &method in methods {
        run.reporter.note("compare", method.name());
        let nested = nested(run, method)?;
        let measure = || evaluate(&nested, &base, &align(&nested, &base)?);
        nested.settle(|| measure().map(drop))?;
        let evaluation = measure()?;
        if rows.is_empty() {
            rows.push(("sft".to_owned(), cells_before(&evaluation.before)));
        }
        rows.push((method.to_string(), cells(&evaluation.after)));
    }
    // Those of earlier calls stay in the table, if they are what this call would have made.
    for method in Method::all().filter(|method| !methods.contains(method)) {
        if !run.folder.join("compare").join(method.name()).exists() {
            continue;
        }
        let nested = nested(run, method)?;
        match nested.probe(|| evaluate(&nested, &base, &align(&nested, &base)?)) {
            Ok(evaluation) => rows.push((method.to_string(), cells(&evaluation.after))),
            Err(error) if error.is::<Stale>() => {
                let note =
                    format!("{method} is left out: it isn't finished, or has other settings");
                run.reporter.note("compare", note);
            }
            Err(error) => return Err(error),
        }
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

/// The run of one method.
fn nested(run: &Run, method: Method) -> Result<Run> {
    run.nested(&format!("compare/{method}"), with_method(run, method))
}

fn with_method(run: &Run, method: Method) -> Settings {
    Settings { align: run.settings.align.for_method(method), ..run.settings.clone() }
}
