//! What an evaluation measures, and the tables of it: before and after, method against method.

use fpo_losses::Objective;
use fpo_report::{Cell, Column, TableRow};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    AnswerValues, Evaluation, METRICS, Metric, PairValues, metric::ranked, metrics::rewards,
};

/// Means by [`Metric::name`], in the order of [`METRICS`]. What couldn't be measured is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Measured(Map<String, Value>);

impl Measured {
    /// A metric's value; `None` if it is absent or null.
    pub fn get(&self, metric: &Metric) -> Option<f64> {
        self.0.get(metric.name)?.as_f64()
    }
}

/// Everything that an evaluation records of a model's held-out pairs and sampled answers.
pub fn measure(pairs: &[PairValues], answers: &[AnswerValues]) -> Measured {
    let entry = |metric: &&Metric| {
        Some((metric.name.to_owned(), Value::from(metric.mean(pairs, answers)?)))
    };
    let recorded = METRICS.iter().filter(|m| m.places.evaluation != Evaluation::Absent);
    Measured(recorded.filter_map(entry).collect())
}

/// The rows of the table of before and after. A metric that neither has is left out, and a share of pairs told right by a reward
/// that is measured against the reference has no value before: the model is the reference then, and there is no reward yet.
pub fn table(objective: &Objective, before: &Measured, after: &Measured) -> Vec<TableRow> {
    let no_reward_yet = objective.needs().reference_log_probs;
    METRICS
        .iter()
        .filter(|metric| metric.places.evaluation == Evaluation::Shown)
        .map(|metric| TableRow {
            metric: metric.title.into(),
            explanation: metric.about.into(),
            before: before
                .get(metric)
                .filter(|_| !(no_reward_yet && metric.name == rewards::ACCURACY.name)),
            after: after.get(metric),
            unit: metric.unit,
            better: metric.better,
        })
        .filter(|row| row.before.is_some() || row.after.is_some())
        .collect()
}

/// The columns in which methods are compared.
pub fn columns() -> Vec<Column> {
    let column = |metric: &Metric| Column {
        name: metric.title.into(),
        unit: metric.unit,
        better: metric.better,
    };
    ranked(|places| places.column).into_iter().map(column).collect()
}

/// The cells of the model that all methods start from, in these [`columns`]. Its rewards would be those of a method.
pub fn cells_before(measured: &Measured) -> Vec<Cell> {
    let mut cells = cells(measured);
    let place =
        ranked(|places| places.column).iter().position(|m| m.name == rewards::ACCURACY.name);
    if let Some(cell) = place.and_then(|place| cells.get_mut(place)) {
        *cell = Cell::Missing;
    }
    cells
}

/// A method's cells in these [`columns`].
pub fn cells(measured: &Measured) -> Vec<Cell> {
    let cell = |metric: &Metric| measured.get(metric).map_or(Cell::Missing, Cell::Number);
    ranked(|places| places.column).into_iter().map(cell).collect()
}
