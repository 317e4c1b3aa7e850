//! The log of a training step, and the charts of it.

use fpo_report::{AnswerCourse, Chart, Series, Stroke};
use fpo_track::{EVAL, follow::samples};
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
/// without any is `None`. What evaluations on held-out pairs have of the same keys is beside them, as rings.
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
    // Where only evaluations measure a metric, its line has no points and stays as the place of its colour.
    let (mut lines, mut rings) = (Vec::new(), Vec::new());
    for (name, key) in series {
        let (logged, held_out) = (points(key), points(&format!("{EVAL}{key}")));
        if logged.is_empty() && held_out.is_empty() {
            continue;
        }
        if !held_out.is_empty() {
            let (name, stroke) = (format!("{name}, held-out"), Stroke::Rings(lines.len()));
            rings.push(Series { name, stroke, points: held_out });
        }
        lines.push(Series { name: (*name).into(), stroke: Stroke::Line, points: logged });
    }
    let series = [lines, rings].concat();
    (!series.is_empty()).then(|| Chart {
        title: title.into(),
        x_label: "step".into(),
        y_label: y_label.into(),
        series,
    })
}

/// The answers that evaluations on the way sampled, prompt by prompt in the order in which they first appear.
pub fn courses(lines: &[Map<String, Value>]) -> Vec<AnswerCourse> {
    let mut courses: Vec<AnswerCourse> = Vec::new();
    for found in lines.iter().filter_map(samples) {
        for (prompt, answer) in found.answers {
            let at = courses.iter().position(|course| course.prompt == prompt);
            let at = at.unwrap_or_else(|| {
                courses.push(AnswerCourse { prompt, answers: Vec::new() });
                courses.len() - 1
            });
            courses[at].answers.push((found.step, answer));
        }
    }
    courses
}
