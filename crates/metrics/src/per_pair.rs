//! Per-pair output: a JSON object for every pair, and a table of means.

use fpo_report::Unit;
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    Metric, PairValues,
    metric::ranked,
    metrics::{log_probs, loss::LOSS},
};

/// A pair's line: [`Metric::name`]s to values, without those that weren't computed.
impl Serialize for PairValues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for metric in ranked(|places| places.line) {
            match (metric.of_pair(self), metric.unit) {
                (None, _) => {}
                (Some(tokens), Unit::Tokens) => {
                    map.serialize_entry(metric.name, &(tokens as u64))?
                }
                // Values are computed in float32; more digits would be noise.
                (Some(value), _) => map.serialize_entry(metric.name, &(value as f32))?,
            }
        }
        map.end()
    }
}

/// A value of a pair that is NaN or infinite.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value}; are the policy's weights sound?")]
pub struct NotFinite {
    /// The metric's name.
    pub name: &'static str,
    /// NaN or ±∞.
    pub value: f64,
}

impl PairValues {
    /// Checks the policy's log-probabilities and the loss.
    ///
    /// # Errors
    /// The first of them that is NaN or infinite.
    pub fn check(&self) -> Result<(), NotFinite> {
        for metric in [log_probs::CHOSEN, log_probs::REJECTED, LOSS] {
            match metric.of_pair(self) {
                Some(value) if !value.is_finite() => {
                    return Err(NotFinite { name: metric.name, value });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The means over `pairs` as (title, value), in the order in which a table shows them.
pub fn means(pairs: &[PairValues]) -> Vec<(&'static str, String)> {
    let row = |metric: &Metric| {
        let value = metric.mean(pairs, &[])?;
        let value = match metric.unit {
            Unit::Percent => format!("{:.1}%", 100.0 * value),
            _ => format!("{value:.5}"),
        };
        Some((metric.places.mean?.title, value))
    };
    ranked(|places| Some(places.mean?.rank)).into_iter().filter_map(row).collect()
}
