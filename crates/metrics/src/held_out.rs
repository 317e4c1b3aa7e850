//! What is logged of an evaluation while training, under TRL's names where TRL has them, and which of it may decide.

use std::{fmt, str::FromStr};

use fpo_report::Better;
use fpo_track::{Direction, EVAL, Rule};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{AnswerValues, Evaluation, METRICS, Metric, Of, PairValues};

/// The key of a metric in the line of an evaluation: TRL's `eval_` before the key of a training step, or before the name of what
/// is measured of answers, with `answer_` between them where a training step logs another metric under that name.
pub(crate) fn held_out_key(metric: &Metric) -> Option<String> {
    match metric.of {
        Of::Pairs(_) | Of::PairTokens(_) => Some(format!("{EVAL}{}", metric.places.log?)),
        Of::Answers(_) | Of::AnswerTokens(_) => {
            let name = (metric.places.evaluation != Evaluation::Absent).then_some(metric.name)?;
            let taken = METRICS.iter().any(|other| other.places.log == Some(name));
            Some(format!("{EVAL}{}{name}", if taken { "answer_" } else { "" }))
        }
    }
}

/// The metric with this key, in the line of a step or of an evaluation.
pub fn logged_as(key: &str) -> Option<&'static Metric> {
    let is_it = |metric: &&&Metric| {
        metric.places.log == Some(key) || held_out_key(metric).as_deref() == Some(key)
    };
    METRICS.iter().find(is_it).copied()
}

/// The means over held-out pairs and the answers to held-out prompts. What wasn't computed is absent.
pub fn held_out_log(pairs: &[PairValues], answers: &[AnswerValues]) -> Map<String, Value> {
    let entry =
        |metric: &&Metric| Some((held_out_key(metric)?, Value::from(metric.mean(pairs, answers)?)));
    METRICS.iter().filter_map(entry).collect()
}

/// A metric of evaluations by which checkpoints are told apart, with a direction that is better.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Criterion(&'static Metric);

/// A name that is no criterion.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCriterion {
    /// No evaluation has it.
    #[error("no metric `{name}`: there are {all}")]
    Unknown {
        /// The name.
        name: String,
        /// All that there are.
        all: String,
    },
    /// Neither of its directions is better.
    #[error(
        "`{name}` can't decide, since neither high nor low values of it are better; these can: {all}"
    )]
    WithoutDirection {
        /// The name.
        name: String,
        /// All that may decide.
        all: String,
    },
}

impl Criterion {
    /// All of them, in the order of [`METRICS`].
    pub fn all() -> impl Iterator<Item = Self> {
        let decides =
            |metric: &&Metric| held_out_key(metric).is_some() && direction(metric).is_some();
        METRICS.iter().copied().filter(decides).map(Self)
    }

    /// The metric.
    pub fn metric(self) -> &'static Metric {
        self.0
    }

    /// Whether it is measured of sampled answers.
    pub fn is_of_answers(self) -> bool {
        matches!(self.0.of, Of::Answers(_) | Of::AnswerTokens(_))
    }

    /// Its key and its direction.
    pub fn rule(self) -> Rule {
        let better = direction(self.0).expect("a criterion has a direction");
        Rule { key: self.to_string(), better }
    }
}

fn direction(metric: &Metric) -> Option<Direction> {
    match metric.better {
        Better::Higher => Some(Direction::Higher),
        Better::Lower => Some(Direction::Lower),
        Better::Neither => None,
    }
}

impl Default for Criterion {
    fn default() -> Self {
        Self(&crate::metrics::loss::LOSS)
    }
}

impl PartialEq for Criterion {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

/// As it is logged.
impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&held_out_key(self.0).expect("a criterion is logged"))
    }
}

impl FromStr for Criterion {
    type Err = NoCriterion;

    fn from_str(name: &str) -> Result<Self, NoCriterion> {
        if let Some(found) = Self::all().find(|criterion| criterion.to_string() == name) {
            return Ok(found);
        }
        let (name, all) = (name.to_owned(), Self::all().map(|criterion| criterion.to_string()));
        let all = all.collect::<Vec<_>>().join(", ");
        match METRICS.iter().any(|metric| held_out_key(metric).as_ref() == Some(&name)) {
            true => Err(NoCriterion::WithoutDirection { name, all }),
            false => Err(NoCriterion::Unknown { name, all }),
        }
    }
}

impl TryFrom<String> for Criterion {
    type Error = NoCriterion;

    fn try_from(name: String) -> Result<Self, NoCriterion> {
        name.parse()
    }
}

impl From<Criterion> for String {
    fn from(criterion: Criterion) -> Self {
        criterion.to_string()
    }
}
