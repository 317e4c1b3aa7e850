//! Arena-Hard's own judgments, `model_judgment/JUDGE/MODEL.jsonl`: read, so that what was published can be scored here.
//!
//! A row has two games, first with the baseline's answer as A, then with the model's. Its score is one of five: a clear win
//! (`A>>B`) counts three times, as in `show_result.py` of arena-hard-auto. Where a game has no score, version 2 (`uid`) leaves out the row,
//! version 0.1 (`question_id`) the game.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::Error;
use crate::rows::{self, Row};
use crate::stats::Resampling;
use crate::stats::bradley_terry::{self, Battle, Outcome, Score};

/// What a clear win counts.
const CLEAR_WIN: usize = 3;
/// The baseline of version 0.1, whose rows don't name it.
const BASELINE_0_1: &str = "gpt-4-0314";

/// The judgments of one judge, in one category, against one baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgments {
    /// The judge, where the rows name it.
    pub judge: Option<String>,
    /// The category, where the benchmark has some.
    pub category: Option<String>,
    /// The baseline, then the models that were compared with it.
    pub models: Vec<String>,
    /// Rows.
    pub rows: usize,
    /// Games without a score.
    pub without_score: usize,
    battles: Vec<Battle>,
}

/// The scores of [`Judgments`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scored {
    /// The judge, where the rows name it.
    pub judge: Option<String>,
    /// The category, where the benchmark has some.
    pub category: Option<String>,
    /// The baseline.
    pub baseline: String,
    /// Rows.
    pub rows: usize,
    /// Games without a score.
    pub without_score: usize,
    /// The best first.
    pub scores: Vec<Score>,
}

impl Judgments {
    /// Bradley-Terry scores, each game a battle.
    pub fn score(&self, resampling: Resampling) -> Scored {
        Scored {
            judge: self.judge.clone(),
            category: self.category.clone(),
            baseline: self.models[0].clone(),
            rows: self.rows,
            without_score: self.without_score,
            scores: match self.battles.is_empty() {
                true => Vec::new(),
                false => bradley_terry::scores(&self.models, &self.battles, resampling),
            },
        }
    }
}

/// Reads judgments. They are put together by judge, category and baseline, in the order in which these come first.
///
/// # Errors
/// A file that can't be read, a row that is no judgment, or a question that a model is judged on twice.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Judgments>, Error> {
    let mut found: Vec<Judgments> = Vec::new();
    let mut seen = HashSet::new();
    for path in paths {
        for row in rows::read(path)? {
            let wrong = |problem: String| Error::row(path, row.number, problem);
            let optional = |name: &str| match row.first(&[name]) {
                None => Ok(None),
                Some(_) => row.text(path, &[name]),
            };
            let needed = |what: &str| {
                wrong(format!(
                    "has no {what}: judgments are Arena-Hard's {{uid, category, judge, model, baseline, games}} or, of version \
                     0.1, {{question_id, judge, model, games}}"
                ))
            };
            let id = row.id().ok_or_else(|| needed("`uid`"))?;
            let model = optional("model")?.ok_or_else(|| needed("`model`"))?;
            let version_0_1 = row.first(&["uid"]).is_none();
            let baseline = match optional("baseline")? {
                Some(baseline) => baseline,
                None if version_0_1 => BASELINE_0_1.to_owned(),
                None => return Err(needed("`baseline`")),
            };
            let (judge, category) = (optional("judge")?, optional("category")?);
            if !seen.insert((judge.clone(), baseline.clone(), model.clone(), id.clone())) {
                return Err(wrong(format!(
                    "judges {model} on question {id}, as a row before does"
                )));
            }
            let games = games(path, &row)?;
            let place = found.iter().position(|one| {
                (&one.judge, &one.category, &one.models[0]) == (&judge, &category, &baseline)
            });
            let place = place.unwrap_or_else(|| {
                let (models, battles) = (vec![baseline.clone()], Vec::new());
                found.push(Judgments {
                    judge,
                    category,
                    models,
                    rows: 0,
                    without_score: 0,
                    battles,
                });
                found.len() - 1
            });
            found[place].add(&model, &games, version_0_1);
        }
    }
    Ok(found)
}

/// The scores of a row's games, as verdicts on the model; none for a game without one.
fn games(path: &Path, row: &Row) -> Result<Vec<Option<(Outcome, usize)>>, Error> {
    let wrong = |problem: String| Error::row(path, row.number, problem);
    let Some(games) = row.fields.get("games").and_then(Value::as_array) else {
        return Err(wrong("has no list `games`".to_owned()));
    };
    if !(1..=2).contains(&games.len()) {
        return Err(wrong(format!("has {} games, not one for each order", games.len())));
    }
    let mut found = Vec::new();
    for (at, game) in games.iter().enumerate() {
        let score = match game {
            Value::Null => None,
            Value::Object(game) => game.get("score").filter(|score| !score.is_null()),
            _ => return Err(wrong(format!("game {} isn't an object", at + 1))),
        };
        let Some(score) = score else {
            found.push(None);
            continue;
        };
        let score = score.as_str().unwrap_or_default();
        let Some((a, count)) = label(score) else {
            return Err(wrong(format!(
                "the score of game {} is {score:?}, not one such as A>>B",
                at + 1
            )));
        };
        // In the first game A is the baseline, in the second the model.
        let outcome = match (a, at) {
            (Outcome::First, 1) => Outcome::Second,
            (Outcome::Second, 1) => Outcome::First,
            (same, _) => same,
        };
        found.push(Some((outcome, count)));
    }
    Ok(found)
}

/// Who won by a label, A as [`Outcome::First`], and what that counts.
fn label(score: &str) -> Option<(Outcome, usize)> {
    Some(match score {
        "A>>B" | "B<<A" => (Outcome::First, CLEAR_WIN),
        "A>B" | "B<A" => (Outcome::First, 1),
        "A=B" | "B=A" => (Outcome::Tie, 1),
        "B>A" | "A<B" => (Outcome::Second, 1),
        "B>>A" | "A<<B" => (Outcome::Second, CLEAR_WIN),
        _ => return None,
    })
}

impl Judgments {
    fn add(&mut self, model: &str, games: &[Option<(Outcome, usize)>], version_0_1: bool) {
        self.rows += 1;
        self.without_score += games.iter().filter(|game| game.is_none()).count();
        if !version_0_1 && games.iter().any(Option::is_none) {
            return;
        }
        let known = self.models.iter().position(|known| known == model);
        let second = known.unwrap_or_else(|| {
            self.models.push(model.to_owned());
            self.models.len() - 1
        });
        // The baseline against itself says nothing.
        for &(outcome, count) in games.iter().flatten().filter(|_| second != 0) {
            self.battles.extend(vec![Battle { first: 0, second, outcome }; count]);
        }
    }
}
