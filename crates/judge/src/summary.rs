//! What comes out of a comparison.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::annotations::Annotations;
use crate::answers::Pair;
use crate::stats::Resampling;
use crate::stats::bradley_terry::{self, Battle, Outcome, Score};
use crate::stats::gamed::Gamed;
use crate::stats::length_controlled::{Judged, LengthControlled, length_controlled};
use crate::stats::win_rate::{WinRate, mean, win_rate};
use crate::verdict::{NoVerdict, Order, Verdict};

/// One model against one baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The baseline.
    pub baseline: String,
    /// The model.
    pub model: String,
    /// Questions that both answer.
    pub questions: usize,
    /// Questions with a preference.
    pub judged: usize,
    /// Over the questions with a preference.
    pub raw: Option<WinRate>,
    /// At equal length.
    pub length_controlled: Option<LengthControlled>,
    /// Why there is none.
    pub length_controlled_is_missing: Option<String>,
    /// Mean length of the baseline's answers, in characters.
    pub baseline_length: f64,
    /// Mean length of the model's answers, in characters.
    pub model_length: f64,
    /// What the order did, where both were asked.
    pub orders: Option<Orders>,
}

/// How far the judge prefers a place to an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Orders {
    /// Mean preference for the answer that came first, in percent: 50 without a bias.
    pub first_preferred: Option<f64>,
    /// Percent of the questions on which both orders prefer the same answer.
    pub agreement: Option<f64>,
    /// Comparisons with a verdict.
    pub verdicts: usize,
    /// Comparisons without one, by why.
    pub without_verdict: BTreeMap<NoVerdict, usize>,
}

/// The preferences of questions by the verdicts on both orders: their mean, where there are both.
pub fn judged(pairs: &[Pair], verdicts: &[Verdict]) -> Vec<Judged> {
    let known = preferences(verdicts);
    let length = |texts: &[String]| texts.iter().map(|text| text.chars().count()).sum();
    let row = |pair: &Pair| Judged {
        position: pair.position,
        preference: known.get(pair.question.as_str()).and_then(both).map(|[a, b]| (a + b) / 2.0),
        baseline_length: length(&pair.baseline),
        model_length: length(&pair.model),
    };
    pairs.iter().map(row).collect()
}

type ByOrder = [Option<f64>; 2];

fn preferences(verdicts: &[Verdict]) -> HashMap<&str, ByOrder> {
    let mut known: HashMap<&str, ByOrder> = HashMap::new();
    for verdict in verdicts {
        let place = usize::from(verdict.order == Order::ModelFirst);
        known.entry(&verdict.question).or_default()[place] = verdict.preference;
    }
    known
}

fn both(preferences: &ByOrder) -> Option<[f64; 2]> {
    Some([preferences[0]?, preferences[1]?])
}

/// What the order of the answers did.
pub fn orders(verdicts: &[Verdict]) -> Orders {
    let complete: Vec<[f64; 2]> = preferences(verdicts).values().filter_map(both).collect();
    let first: Vec<f64> = complete
        .iter()
        .map(|[baseline_first, model_first]| (1.0 - baseline_first + model_first) / 2.0)
        .collect();
    let agrees = |[a, b]: &[f64; 2]| if (a - 0.5) * (b - 0.5) > 0.0 { 1.0 } else { 0.0 };
    let agreement: Vec<f64> = complete.iter().map(agrees).collect();
    let mut without_verdict = BTreeMap::new();
    for why in verdicts.iter().filter_map(|verdict| verdict.no_verdict) {
        *without_verdict.entry(why).or_default() += 1;
    }
    Orders {
        first_preferred: mean(&first).map(|share| 100.0 * share),
        agreement: mean(&agreement).map(|share| 100.0 * share),
        verdicts: verdicts.iter().filter(|verdict| verdict.preference.is_some()).count(),
        without_verdict,
    }
}

impl Summary {
    /// All statistics of one comparison. Length control uses difficulties where there are some.
    pub fn new(
        comparison: &Annotations,
        orders: Option<Orders>,
        gamed: Option<&Gamed>,
        resampling: Resampling,
    ) -> Self {
        let rows = &comparison.rows;
        let preferences: Vec<Option<f64>> = rows.iter().map(|row| row.preference).collect();
        let controlled = length_controlled(rows, gamed, resampling);
        let mean_length = |length: fn(&Judged) -> usize| {
            mean(&rows.iter().map(|row| length(row) as f64).collect::<Vec<f64>>()).unwrap_or(0.0)
        };
        Self {
            baseline: comparison.baseline.clone(),
            model: comparison.model.clone(),
            questions: rows.len(),
            judged: preferences.iter().flatten().count(),
            raw: win_rate(&preferences),
            length_controlled_is_missing: controlled.as_ref().err().map(ToString::to_string),
            length_controlled: controlled.ok(),
            baseline_length: mean_length(|row| row.baseline_length),
            model_length: mean_length(|row| row.model_length),
            orders,
        }
    }
}

/// Scores of all models in these comparisons. A battle is a verdict, or where there are only annotations, an annotation; the
/// baseline is that of the first comparison.
pub fn scores(
    comparisons: &[Annotations],
    verdicts: &[Verdict],
    resampling: Resampling,
) -> Vec<Score> {
    let mut models: Vec<String> = Vec::new();
    let mut battles = Vec::new();
    for Annotations { baseline, model, rows } in comparisons {
        let [first, second] = [baseline, model].map(|name| {
            models.iter().position(|known| known == name).unwrap_or_else(|| {
                models.push(name.clone());
                models.len() - 1
            })
        });
        let of_rows = rows.iter().filter_map(|row| row.preference);
        let of_verdicts = verdicts.iter().filter_map(|verdict| verdict.preference);
        let preferences: Vec<f64> =
            if verdicts.is_empty() { of_rows.collect() } else { of_verdicts.collect() };
        battles.extend(preferences.into_iter().filter(|_| first != second).map(|preference| {
            let outcome = match preference.total_cmp(&0.5) {
                std::cmp::Ordering::Less => Outcome::First,
                std::cmp::Ordering::Equal => Outcome::Tie,
                std::cmp::Ordering::Greater => Outcome::Second,
            };
            Battle { first, second, outcome }
        }));
    }
    match battles.is_empty() {
        true => Vec::new(),
        false => bradley_terry::scores(&models, &battles, resampling),
    }
}
