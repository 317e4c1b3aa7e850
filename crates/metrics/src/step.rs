//! The log of a training step, and the charts of it.

use fpo_report::{Chart, Series};
use serde_json::{Map, Value};

use crate::{METRICS, PairValues, Plot, metrics::loss::LOSS};

/// A training step's mean loss (NaN without pairs), and everything else that is logged of it, by the keys that
/// [`Places::log`](crate::Places::log) gives. What wasn't computed is absent.
pub fn log(pairs: &[PairValues]) -> (f64, Map<String, Value>) {
    let loss = LOSS.mean(pairs, &[]).unwrap_or(f64::NAN);
    let entry = |key: &str, value: Option<f64>| Some((key.to_owned(), Value::from(value?)));
    let rest = METRICS
        .iter()
        .filter(|metric| metric.name != LOSS.name)
        .filter_map(|metric| entry(metric.places.log?, metric.mean(pairs, &[])))
        .collect();
    (loss, rest)
}

/// The charts of metrics over the steps of an alignment, from the lines of its log. Charts without points are left out.
pub fn charts(lines: &[Map<String, Value>]) -> Vec<Chart> {
    let curves =
        || METRICS.iter().filter_map(|metric| Some((metric.places.curve?, metric.places.log?)));
    let mut plots: Vec<Plot> = Vec::new();
    for (curve, _) in curves() {
        if !plots.contains(&curve.plot) {
            plots.push(curve.plot);
        }
    }
    plots.sort_by_key(|plot| plot.rank);
    let of = |plot: &Plot| {
        let series: Vec<(&str, &str)> = curves()
            .filter(|(curve, _)| curve.plot == *plot)
            .map(|(curve, key)| (curve.series, key))
            .collect();
        chart(plot.title, plot.y_label, &series, lines)
    };
    plots.iter().filter_map(of).collect()
}

/// A chart of log lines over their `step`, with series as (name, key). A line that lacks the key has no point, and a chart
/// without any is `None`.
pub fn chart(
    title: &str,
    y_label: &str,
    series: &[(&str, &str)],
    lines: &[Map<String, Value>],
) -> Option<Chart> {
    let points = |key: &str| -> Vec<(f64, f64)> {
        let point = |line: &Map<String, Value>| {
            Some((line.get("step")?.as_f64()?, line.get(key)?.as_f64()?))
        };
        lines.iter().filter_map(point).collect()
    };
    let series: Vec<Series> = series
        .iter()
        .map(|(name, key)| Series { name: (*name).into(), points: points(key) })
        .filter(|series| !series.points.is_empty())
        .collect();
    (!series.is_empty()).then(|| Chart {
        title: title.into(),
        x_label: "step".into(),
        y_label: y_label.into(),
        series,
    })
}
