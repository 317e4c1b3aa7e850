//! The length-controlled win rate of AlpacaEval 2: what the win rate would be if the model's answers were as long as the
//! baseline's.
//!
//! Definition: `alpaca_eval.metrics.get_length_controlled_winrate` of the package `alpaca-eval` 0.6.6. A logistic regression
//! without intercept predicts the preference from tanh of the standardised difference in length and a constant, and with
//! [`Formula::V1`] from the difficulty of the instruction too; the difference in length is then set to zero.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::Resampling;
use super::gamed::Gamed;
use super::logistic::{self, Row};
use super::win_rate::{deviation, mean, percentile, standard_error};

/// Which of the package's regressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Formula {
    /// Length and a constant.
    #[serde(rename = "length_controlled_minimal")]
    Minimal,
    /// Length, difficulty and a constant, held towards what is known of answers that are long or short on purpose.
    #[serde(rename = "length_controlled_v1")]
    V1,
}

/// What is judged of a question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Number of the instruction in the benchmark, from 0.
    pub position: usize,
    /// Probability that the model's answer is better, where there is a verdict.
    pub preference: Option<f64>,
    /// Length of the baseline's answer, in Unicode code points.
    pub baseline_length: usize,
    /// Length of the model's answer, in Unicode code points.
    pub model_length: usize,
}

/// The length-controlled win rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LengthControlled {
    /// Which regression.
    pub formula: Formula,
    /// In percent.
    pub win_rate: f64,
    /// The package's standard error, in percent: how much the prediction varies between instructions. With
    /// [`Formula::Minimal`], which predicts the same for each, it is zero and says nothing.
    pub standard_error: f64,
    /// 2.5th and 97.5th percentile over resampled questions, in percent; the package has none.
    pub interval: [Option<f64>; 2],
    /// Weight of tanh of the standardised length of baseline minus model; negative if the judge likes length.
    pub length: f64,
    /// Weight of the instruction's difficulty.
    pub difficulty: Option<f64>,
    /// The constant: log-odds of the model at equal length.
    pub constant: f64,
    /// Inverse strength of the penalty, chosen by cross-validation.
    pub c: f64,
}

/// Why there is no length-controlled win rate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unavailable {
    /// Five folds need five questions.
    #[error("the length-controlled win rate needs verdicts on 5 questions, and there are {0}")]
    TooFew(usize),
    /// Lengths can't be standardised.
    #[error(
        "the length-controlled win rate needs answers whose lengths differ by more on some questions than on others"
    )]
    SameLengths,
    /// The table of difficulties ends before.
    #[error(
        "question {position} (counted from 0) is beyond the {known} instructions whose difficulty is known"
    )]
    UnknownDifficulty {
        /// The question.
        position: usize,
        /// Instructions in the table.
        known: usize,
    },
}

const FOLDS: usize = 5;
/// scikit-learn's ten values from 10⁻⁴ to 10⁴.
const CS: usize = 10;
/// The length-controlled win rate: [`Formula::V1`] where difficulties are known, else [`Formula::Minimal`].
///
/// # Errors
/// When it isn't defined; see [`Unavailable`].
pub fn length_controlled(
    judged: &[Judged],
    gamed: Option<&Gamed>,
    resampling: Resampling,
) -> Result<LengthControlled, Unavailable> {
    let known = judged.iter().filter(|row| row.preference.is_some()).count();
    if known < FOLDS {
        return Err(Unavailable::TooFew(known));
    }
    let difference = |row: &Judged| row.baseline_length as f64 - row.model_length as f64;
    // Questions without a verdict count for the scale and for the prediction, as they do in the package.
    let scale = deviation(&judged.iter().map(difference).collect::<Vec<f64>>());
    let scale = scale.filter(|scale| *scale > 0.0).ok_or(Unavailable::SameLengths)?;
    let length = |row: &Judged| (difference(row) / scale).tanh();
    let Some(gamed) = gamed else {
        let row =
            |row: &Judged| Some(Row { x: [length(row), 1.0], y: row.preference?, weight: 1.0 });
        let rows: Vec<Row<2>> = judged.iter().filter_map(row).collect();
        let (fit, [length, constant]) =
            fit(&[], &rows, &vec![[0.0, 1.0]; judged.len()], resampling);
        return Ok(LengthControlled { length, constant, ..fit });
    };
    let difficulties = judged.iter().map(|row| {
        let (position, known) = (row.position, gamed.difficulties.len());
        let found = gamed.difficulties.get(position).copied();
        found.ok_or(Unavailable::UnknownDifficulty { position, known })
    });
    let difficulties = difficulties.collect::<Result<Vec<f64>, Unavailable>>()?;
    let row = |(row, difficulty): (&Judged, &f64)| {
        Some(Row { x: [length(row), *difficulty, 1.0], y: row.preference?, weight: 1.0 })
    };
    let rows: Vec<Row<3>> = judged.iter().zip(&difficulties).filter_map(row).collect();
    let equal: Vec<[f64; 3]> =
        difficulties.iter().map(|difficulty| [0.0, *difficulty, 1.0]).collect();
    let (fit, [length, difficulty, constant]) = fit(&gamed.rows, &rows, &equal, resampling);
    Ok(LengthControlled {
        formula: Formula::V1,
        length,
        difficulty: Some(difficulty),
        constant,
        ..fit
    })
}

/// Fits the regression and predicts at equal length. Returns the weights too.
fn fit<const D: usize>(
    gamed: &[Row<D>],
    rows: &[Row<D>],
    equal: &[[f64; D]],
    resampling: Resampling,
) -> (LengthControlled, [f64; D]) {
    let predict =
        |w: &[f64; D]| equal.iter().map(|x| logistic::predict(w, x)).collect::<Vec<f64>>();
    let win_rate = |predictions: &[f64]| 100.0 * mean(predictions).unwrap_or(f64::NAN);
    let mut all = [gamed, rows].concat();
    let (w, c) = cross_validated(&all);
    let mut random = ChaCha8Rng::seed_from_u64(resampling.seed);
    let mut resampled: Vec<f64> = (0..resampling.rounds)
        .map(|_| {
            all.truncate(gamed.len());
            all.extend(rows.iter().map(|_| rows[random.random_range(0..rows.len())]));
            win_rate(&predict(&logistic::fit(&all, c)))
        })
        .collect();
    resampled.sort_by(f64::total_cmp);
    let predictions = predict(&w);
    let found = LengthControlled {
        formula: Formula::Minimal,
        win_rate: win_rate(&predictions),
        standard_error: 100.0 * standard_error(&predictions).unwrap_or(f64::NAN),
        interval: [2.5, 97.5].map(|percent| percentile(&resampled, percent)),
        length: 0.0,
        difficulty: None,
        constant: 0.0,
        c,
    };
    (found, w)
}

/// Weights fitted with the C of the best cross-validated log loss, and that C. On a tie the stronger penalty wins.
fn cross_validated<const D: usize>(rows: &[Row<D>]) -> ([f64; D], f64) {
    // scikit-learn's folds grouped by row: it deals the rows out from the last one.
    let fold = |row: usize| (rows.len() - 1 - row) % FOLDS;
    let select = |wanted: &dyn Fn(usize) -> bool| -> Vec<Row<D>> {
        rows.iter().enumerate().filter(|(i, _)| wanted(*i)).map(|(_, row)| *row).collect()
    };
    let folds: Vec<[Vec<Row<D>>; 2]> = (0..FOLDS)
        .map(|k| [select(&|row| fold(row) != k), select(&|row| fold(row) == k)])
        .collect();
    let score = |c: f64| -> f64 {
        folds.iter().map(|[train, test]| -log_loss(test, &logistic::fit(train, c))).sum()
    };
    let mut best = (f64::NEG_INFINITY, 0.0);
    for step in 0..CS {
        let c = 10f64.powf(-4.0 + 8.0 * step as f64 / (CS - 1) as f64);
        let found = score(c);
        if found > best.0 {
            best = (found, c);
        }
    }
    (logistic::fit(rows, best.1), best.1)
}

/// Weighted cross-entropy, divided by the number of rows.
fn log_loss<const D: usize>(rows: &[Row<D>], w: &[f64; D]) -> f64 {
    let loss = |row: &Row<D>| {
        let p = logistic::predict(w, &row.x).clamp(1e-15, 1.0 - 1e-15);
        -row.weight * (row.y * p.ln() + (1.0 - row.y) * (1.0 - p).ln())
    };
    rows.iter().map(loss).sum::<f64>() / rows.len() as f64
}
