//! Bradley-Terry scores with bootstrap intervals, as Arena-Hard computes them (`compute_mle_elo` of arena-hard-auto 0.1): P(a
//! beats b) = 1 / (1 + 10^((score_b − score_a) / 400)), fitted by maximum likelihood, a tie counting as half a win for each, and
//! shifted so that the baseline has 1000.
//!
//! The likelihood has no maximum where a model has won, or lost, all that connects it to the baseline. Such a score is infinite
//! here, and a model that nothing connects to the baseline has none; an optimiser that stops somewhere would print a number for
//! both.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::Resampling;
use super::logistic;
use super::win_rate::percentile;

/// Points per tenfold odds.
const SCALE: f64 = 400.0;
const BASELINE_SCORE: f64 = 1000.0;

/// How a battle ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The first model won.
    First,
    /// The second model won.
    Second,
    /// Neither did.
    Tie,
}

/// One comparison of two models' answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Battle {
    /// Number of the first model.
    pub first: usize,
    /// Number of the second model.
    pub second: usize,
    /// How it ended.
    pub outcome: Outcome,
}

/// A model's place. Infinite scores and those that nothing determines are `None`; win rates tell them apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The model.
    pub model: String,
    /// Score on the scale where the baseline has 1000.
    pub score: Option<f64>,
    /// 2.5th and 97.5th percentile of the score over resampled battles.
    pub interval: [Option<f64>; 2],
    /// Percent of battles against the baseline that the score predicts to be won.
    pub win_rate: Option<f64>,
    /// The win rates of the interval's ends.
    pub win_rate_interval: [Option<f64>; 2],
    /// Battles of this model.
    pub battles: usize,
}

/// Scores of all models, the best first. Model 0 is the baseline.
///
/// Resampled battles give the intervals.
pub fn scores(models: &[String], battles: &[Battle], resampling: Resampling) -> Vec<Score> {
    let count = models.len();
    let fitted = fit(count, battles.iter());
    let mut random = ChaCha8Rng::seed_from_u64(resampling.seed);
    let mut resampled: Vec<Vec<f64>> = vec![Vec::new(); count];
    for _ in 0..resampling.rounds {
        let drawn = (0..battles.len()).map(|_| &battles[random.random_range(0..battles.len())]);
        for (model, score) in fit(count, drawn).into_iter().enumerate() {
            resampled[model].extend(score);
        }
    }
    let mut row = |model: usize| {
        resampled[model].sort_by(f64::total_cmp);
        let interval = [2.5, 97.5].map(|percent| percentile(&resampled[model], percent));
        let finite = |score: Option<f64>| score.filter(|score| score.is_finite());
        let win_rate = |score: Option<f64>| score.map(win_rate);
        Score {
            model: models[model].clone(),
            score: finite(fitted[model]),
            interval: interval.map(finite),
            win_rate: win_rate(fitted[model]),
            win_rate_interval: interval.map(win_rate),
            battles: battles.iter().filter(|b| b.first == model || b.second == model).count(),
        }
    };
    let mut rows: Vec<Score> = (0..count).map(&mut row).collect();
    // A model without a score comes last.
    rows.sort_by(|a, b| {
        let key = |row: &Score| (row.win_rate.unwrap_or(-1.0), row.score.unwrap_or(0.0));
        let ((rate_a, score_a), (rate_b, score_b)) = (key(a), key(b));
        rate_b.total_cmp(&rate_a).then(score_b.total_cmp(&score_a))
    });
    rows
}

/// Percent of battles that a model with this score wins against the baseline.
fn win_rate(score: f64) -> f64 {
    100.0 / (1.0 + 10f64.powf((BASELINE_SCORE - score) / SCALE))
}

/// The score of each model: infinite, or `None`, as the module says.
pub fn fit<'a>(count: usize, battles: impl Iterator<Item = &'a Battle>) -> Vec<Option<f64>> {
    // wins[a][b]: how often a beat b.
    let mut wins = vec![vec![0.0; count]; count];
    for &Battle { first, second, outcome } in battles {
        let share = match outcome {
            Outcome::First => 1.0,
            Outcome::Second => 0.0,
            Outcome::Tie => 0.5,
        };
        wins[first][second] += share;
        wins[second][first] += 1.0 - share;
    }
    let (above, below) = (
        reaches(&wins, |to, from| wins[to][from] > 0.0),
        reaches(&wins, |to, from| wins[from][to] > 0.0),
    );
    // Within the group of models that beat one another, directly or through others, the maximum exists, and battles with models
    // outside don't move it: those are predicted with certainty.
    let group: Vec<usize> = above.intersection(&below).copied().collect();
    let strengths = maximise(&wins, &group);
    (0..count)
        .map(|model| match (above.contains(&model), below.contains(&model)) {
            (true, true) => group
                .iter()
                .position(|member| *member == model)
                .map(|i| BASELINE_SCORE + strengths[i]),
            (true, false) => Some(f64::INFINITY),
            (false, true) => Some(f64::NEG_INFINITY),
            (false, false) => None,
        })
        .collect()
}

/// The models from which a chain of steps leads to the baseline.
fn reaches(wins: &[Vec<f64>], step: impl Fn(usize, usize) -> bool) -> BTreeSet<usize> {
    let (mut found, mut open) = (BTreeSet::from([0]), vec![0]);
    while let Some(from) = open.pop() {
        for to in 0..wins.len() {
            if step(to, from) && found.insert(to) {
                open.push(to);
            }
        }
    }
    found
}

/// Scores within a group relative to the baseline, its first member, by Newton's method.
fn maximise(wins: &[Vec<f64>], group: &[usize]) -> Vec<f64> {
    let free = group.len() - 1;
    let mut strengths = vec![0.0; group.len()];
    let value = |strengths: &[f64]| -> f64 {
        let terms = group
            .iter()
            .enumerate()
            .flat_map(|(i, a)| group.iter().enumerate().map(move |(j, b)| (i, j, wins[*a][*b])));
        terms.map(|(i, j, w)| w * logistic::softplus(strengths[j] - strengths[i])).sum()
    };
    for _ in 0..100 {
        let (mut gradient, mut hessian) = (vec![0.0; free], vec![vec![0.0; free]; free]);
        for (i, a) in group.iter().enumerate().skip(1) {
            for (j, b) in group.iter().enumerate().filter(|(j, _)| *j != i) {
                let p = logistic::sigmoid(strengths[i] - strengths[j]);
                let games = wins[*a][*b] + wins[*b][*a];
                gradient[i - 1] += games * p - wins[*a][*b];
                hessian[i - 1][i - 1] += games * p * (1.0 - p);
                if j > 0 {
                    hessian[i - 1][j - 1] -= games * p * (1.0 - p);
                }
            }
        }
        let step = solve(hessian, gradient);
        let size = step.iter().fold(0.0f64, |size, s| size.max(s.abs()));
        let now = value(&strengths);
        let at = |length: f64| -> Vec<f64> {
            let moved = step.iter().zip(&strengths[1..]).map(|(step, s)| s - length * step);
            std::iter::once(0.0).chain(moved).collect()
        };
        // Halved until it is no step up; the last ones are below rounding.
        let lengths = (0..50).map(|halvings| 0.5f64.powi(halvings));
        match lengths.map(at).find(|next| value(next) <= now) {
            Some(next) => strengths = next,
            None => break,
        }
        if size < 1e-13 {
            break;
        }
    }
    let scale = SCALE / std::f64::consts::LN_10;
    strengths.into_iter().map(|strength| strength * scale).collect()
}

/// Solves a positive definite system by elimination.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let n = right.len();
    for k in 0..n {
        let pivot = matrix[k].clone();
        for i in k + 1..n {
            let factor = matrix[i][k] / pivot[k];
            matrix[i].iter_mut().zip(&pivot).for_each(|(entry, pivot)| *entry -= factor * pivot);
            right[i] -= factor * right[k];
        }
    }
    for k in (0..n).rev() {
        let known: f64 = (k + 1..n).map(|j| matrix[k][j] * right[j]).sum();
        right[k] = (right[k] - known) / matrix[k][k];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    fn battles(list: &[(usize, usize, Outcome, usize)]) -> Vec<Battle> {
        let each = |&(first, second, outcome, times): &(usize, usize, Outcome, usize)| {
            vec![Battle { first, second, outcome }; times]
        };
        list.iter().flat_map(each).collect()
    }

    /// Two models: the closed form 1000 + 400 log₁₀(wins / losses).
    #[test]
    fn two_models_have_their_closed_form() {
        use Outcome::{First, Second, Tie};
        for (won, lost, tied) in [(30, 10, 0), (5, 5, 3), (1, 99, 20), (7, 0, 2)] {
            let list = battles(&[(0, 1, Second, won), (0, 1, First, lost), (1, 0, Tie, tied)]);
            let found = fit(2, list.iter())[1].unwrap();
            let odds = (won as f64 + tied as f64 / 2.0) / (lost as f64 + tied as f64 / 2.0);
            assert!((found - 1000.0 - 400.0 * odds.log10()).abs() < 1e-8, "{won} {lost} {tied}");
        }
    }

    /// By the definition of the supremum: a chain of wins without a loss has no finite score.
    #[test]
    fn what_has_no_maximum_is_said() {
        use Outcome::{First, Second};
        // 1 beats the baseline always; 2 and the baseline share; 3 loses to 2 always; 4 only meets 5.
        let list = battles(&[
            (1, 0, First, 4),
            (0, 2, First, 3),
            (0, 2, Second, 3),
            (2, 3, First, 5),
            (4, 5, First, 2),
        ]);
        let found = fit(6, list.iter());
        assert_eq!(found[1], Some(f64::INFINITY));
        assert!((found[2].unwrap() - 1000.0).abs() < 1e-9);
        assert_eq!(found[3], Some(f64::NEG_INFINITY));
        assert_eq!((found[4], found[5]), (None, None));
        let names: Vec<String> = ["base", "1", "2", "3", "4", "5"].map(str::to_owned).into();
        let resampling = Resampling { rounds: 20, seed: 1 };
        let rows = scores(&names, &list, resampling);
        assert_eq!(rows[0].model, "1");
        assert_eq!((rows[0].score, rows[0].win_rate), (None, Some(100.0)));
        assert_eq!(rows.last().unwrap().win_rate, None);
        assert_eq!(scores(&names, &list, resampling), rows, "the same seed");
    }
}
