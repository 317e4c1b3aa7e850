//! Charts: the frontier, and the paper's figures 3 and 4.

use std::collections::BTreeMap;

use fpo_metrics::METRICS;
use fpo_report::{Estimate, Frontier, Spot, StudyTable, Trace, Unit};

use super::unit;
use crate::{
    interval::Mean,
    measure::KL,
    results::{MeanPoint, Results},
};

/// A metric against KL; the results alone, or the way there too, from the reference model on.
pub(super) fn frontier(
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
pub(super) fn trials(results: &Results) -> Frontier {
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
pub(super) fn along(results: &Results, name: &str, title: &str, metric: &str) -> Frontier {
    let unit = unit(metric);
    let traces = results.methods.iter().map(|of| {
        let points = results.reference.points.last().into_iter().chain(&of.points);
        let spot = |point: &MeanPoint| {
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
pub(super) fn numbers(chart: &Frontier) -> StudyTable {
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
