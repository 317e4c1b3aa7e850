//! What a metric is: its names, what it is computed from, how it is averaged, where it is shown.

use fpo_report::{Better, Unit};

use crate::{AnswerValues, METRICS, PairValues};

/// One metric, a constant in a file of its own.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Key in `evaluation.json` and in per-pair lines, unique among [`METRICS`].
    pub name: &'static str,
    /// Heading of its row or column.
    pub title: &'static str,
    /// What it measures and, where it isn't common knowledge, the source; shown under the heading on the page.
    pub about: &'static str,
    /// What it counts, which decides how it is written.
    pub unit: Unit,
    /// Which direction is progress.
    pub better: Better,
    /// What it is computed from, and what it is a mean over.
    pub of: Of,
    /// Where it is shown.
    pub places: Places,
}

/// What a metric is computed from, and what it is a mean over. A function returns `None` if the pair or the answer lacks what
/// it reads; the mean is then over the others.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// A value per pair: the mean over pairs.
    Pairs(fn(&PairValues) -> Option<f64>),
    /// A sum over response tokens per pair: the mean over tokens, whichever pair or micro-batch they are in.
    PairTokens(fn(&PairValues) -> Option<Sum>),
    /// A value per sampled answer: the mean over answers.
    Answers(fn(&AnswerValues) -> Option<f64>),
    /// A sum over sampled tokens per answer: the mean over tokens.
    AnswerTokens(fn(&AnswerValues) -> Option<Sum>),
}

/// A sum and the number of its terms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sum {
    /// The sum.
    pub sum: f64,
    /// How many terms it has.
    pub terms: f64,
}

/// Where a metric is shown. Most places follow the order of [`METRICS`]; the others have ranks, and equal ranks follow it too.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Key in the log of a training step: TRL's if TRL logs the metric.
    pub log: Option<&'static str>,
    /// Curve among the charts of that log.
    pub curve: Option<Curve>,
    /// Measured before and after alignment.
    pub evaluation: Evaluation,
    /// Rank among the columns of `fpo compare`.
    pub column: Option<u8>,
    /// Rank among the fields of a per-pair line.
    pub line: Option<u8>,
    /// Row of the table of means that ends per-pair output.
    pub mean: Option<Slot>,
}

impl Places {
    /// Shown nowhere; the base of struct updates.
    pub const NONE: Self = Self {
        log: None,
        curve: None,
        evaluation: Evaluation::Absent,
        column: None,
        line: None,
        mean: None,
    };
}

/// How much of a metric's values before and after alignment is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluation {
    /// It isn't measured.
    Absent,
    /// Written to `evaluation.json` only.
    Recorded,
    /// Written to `evaluation.json`, and a row of the table of before and after.
    Shown,
}

/// A curve in a chart that several metrics may share.
#[derive(Clone, Copy, Debug)]
pub struct Curve {
    /// The chart.
    pub plot: Plot,
    /// Name in the chart's legend.
    pub series: &'static str,
}

/// A chart of training steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plot {
    /// Position among the charts; lower ranks come first.
    pub rank: u8,
    /// Heading.
    pub title: &'static str,
    /// Unit of the vertical axis; empty for a plain number.
    pub y_label: &'static str,
}

/// A titled position in a table with an order of its own.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Lower ranks come first.
    pub rank: u8,
    /// Heading.
    pub title: &'static str,
}

impl Metric {
    /// The mean over `pairs`, or over `answers`; `None` if none of them has what it is computed from.
    pub fn mean(&self, pairs: &[PairValues], answers: &[AnswerValues]) -> Option<f64> {
        let one = |sum| Sum { sum, terms: 1.0 };
        match self.of {
            Of::Pairs(value) => mean(pairs.iter().filter_map(value).map(one)),
            Of::PairTokens(sum) => mean(pairs.iter().filter_map(sum)),
            Of::Answers(value) => mean(answers.iter().filter_map(value).map(one)),
            Of::AnswerTokens(sum) => mean(answers.iter().filter_map(sum)),
        }
    }

    /// The value of a single pair.
    pub fn of_pair(&self, pair: &PairValues) -> Option<f64> {
        self.mean(std::slice::from_ref(pair), &[])
    }
}

fn mean(parts: impl Iterator<Item = Sum>) -> Option<f64> {
    let (sums, terms): (Vec<f64>, Vec<f64>) = parts.map(|part| (part.sum, part.terms)).unzip();
    let terms: f64 = terms.iter().sum();
    (terms > 0.0).then(|| sums.iter().sum::<f64>() / terms)
}

/// The metrics that have a rank in a place, in its order.
pub(crate) fn ranked(rank: impl Fn(&Places) -> Option<u8>) -> Vec<&'static Metric> {
    let mut metrics: Vec<(u8, &Metric)> =
        METRICS.iter().filter_map(|metric| Some((rank(&metric.places)?, *metric))).collect();
    metrics.sort_by_key(|(rank, _)| *rank);
    metrics.into_iter().map(|(_, metric)| metric).collect()
}
