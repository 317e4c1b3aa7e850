//! Reports: plain data in; one self-contained HTML page, SVG charts or a table for the terminal out.
//!
//! Fill a [`Report`]; [`render`] turns it into a page that needs no network, and [`terminal_table`] formats the same rows with the
//! same rounding for a terminal.
//!
//! # Invariants
//! * Knows no other crate of the workspace: no tensors, no files, no training loop.
//! * Text written by a model is untrusted. It reaches a page only through `maud`, which escapes it, and the page's content security
//!   policy forbids scripts and outside resources.

mod charts;
mod curve;
mod features;
mod format;
mod page;
mod samples;
mod tables;
pub mod text;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Deserializer, Serialize};

pub use format::{Better, Unit, Verdict};
pub use page::STYLE;
pub use tables::{Cell, Column, ComparisonTable, TableRow, terminal_table};

/// Everything that a run's page shows. A part without content is left out of the page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// What was run.
    pub title: String,
    /// One line under the title: the run's name, its date, the versions.
    pub subtitle: String,
    /// Key facts as (name, value), shown as tiles.
    pub summary: Vec<(String, String)>,
    /// Measurements before and after alignment.
    pub table: Vec<TableRow>,
    /// Several methods side by side.
    pub comparison: Option<ComparisonTable>,
    /// Training curves, stage by stage.
    pub stages: Vec<StageCurves>,
    /// Generations before and after, for the same prompts.
    pub samples: Vec<Sample>,
    /// SAE features whose mean activation moved most.
    pub features: Vec<FeatureMove>,
    /// The resolved settings, as saved with the run.
    pub settings_toml: String,
    /// What a reader should know before believing the numbers.
    pub notes: Vec<String>,
}

/// The charts of one stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageCurves {
    /// Name of the stage, used as a heading.
    pub stage: String,
    /// What the stage did, in a sentence or two.
    pub caption: String,
    /// Small multiples.
    pub charts: Vec<Chart>,
}

/// One small chart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chart {
    /// What is measured.
    pub title: String,
    /// Name of the horizontal axis, usually "step".
    pub x_label: String,
    /// Unit of the vertical axis; empty for a plain number.
    pub y_label: String,
    /// The curves.
    pub series: Vec<Series>,
}

/// One curve. Points with a NaN or an infinity are skipped when it is drawn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (x, y) in any order.
    #[serde(deserialize_with = "points_with_null")]
    pub points: Vec<(f64, f64)>,
}

/// One prompt, answered by the model before and after alignment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What the model was asked.
    pub prompt: String,
    /// The answer that was wanted, where there is one.
    pub expected: Option<String>,
    /// The answer before alignment.
    pub before: String,
    /// The answer after alignment.
    pub after: String,
    /// Whether the answer before was right; `None` where nobody judged it.
    pub before_right: Option<bool>,
    /// Whether the answer after was right.
    pub after_right: Option<bool>,
    /// A remark under the answer before, such as its length.
    pub note_before: Option<String>,
    /// A remark under the answer after.
    pub note_after: Option<String>,
}

/// An SAE feature and how alignment moved it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FeatureMove {
    /// Its column in the SAE.
    pub index: usize,
    /// Mean activation before alignment.
    #[serde(deserialize_with = "null_is_nan")]
    pub before: f64,
    /// Mean activation after alignment.
    #[serde(deserialize_with = "null_is_nan")]
    pub after: f64,
    /// Share of tokens on which it fires, 0 to 1.
    pub density: Option<f64>,
    /// Where it fires most.
    pub examples: Vec<TokenContext>,
}

/// A stretch of text with a feature's activation on each token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenContext {
    /// The tokens' text, with the spaces that belong to them.
    pub tokens: Vec<String>,
    /// One activation per token; missing ones count as zero.
    pub activations: Vec<f32>,
}

/// The report as one HTML document without outside resources.
pub fn render(report: &Report) -> String {
    page::document(report).into_string()
}

/// JSON has no NaN: `serde_json` writes null for it. A diverged run is the one whose report matters, so null reads back as NaN.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn points_with_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<(f64, f64)>, D::Error> {
    let points: Vec<(Option<f64>, Option<f64>)> = Vec::deserialize(deserializer)?;
    Ok(points.into_iter().map(|(x, y)| (x.unwrap_or(f64::NAN), y.unwrap_or(f64::NAN))).collect())
}
