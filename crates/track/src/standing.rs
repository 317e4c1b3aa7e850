//! What the evaluations of a training decide: the best one so far, and whether to stop.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::EVAL;

/// Which values of a metric are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Higher ones.
    Higher,
    /// Lower ones.
    Lower,
}

/// A metric that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its key in the line of an evaluation.
    pub key: String,
    /// Which of its values are better.
    pub better: Direction,
}

/// What is decided by the evaluations of a training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Which evaluation is the best.
    pub keep_best: Option<Rule>,
    /// When to stop.
    pub early_stopping: Option<Patience>,
}

/// When a training stops before its last step.
#[derive(Clone, Debug, PartialEq)]
pub struct Patience {
    /// What has to become better.
    pub rule: Rule,
    /// After so many evaluations in a row without a better value.
    pub evaluations: usize,
    /// A value is better only by more than this.
    pub threshold: f64,
}

/// The best value of a metric so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// When it was measured, in steps done.
    pub step: usize,
    /// The value.
    pub value: f64,
}

/// What the evaluations so far have come to. It is part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The best evaluation by [`Rules::keep_best`].
    pub best: Option<Best>,
    /// The best one by [`Rules::early_stopping`].
    pub awaited: Option<Best>,
    /// Evaluations since that one.
    pub waited: usize,
}

/// What one evaluation decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It is the best so far.
    pub best: bool,
    /// Training stops.
    pub stop: bool,
}

/// A metric that has to decide and that an evaluation lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} isn't measured in this training; its evaluations have {has}")]
pub struct NotMeasured {
    key: String,
    has: String,
}

impl Direction {
    /// Whether `value` is better than `than` by more than `threshold`. What isn't a number is never better.
    fn is_better(self, value: f64, than: f64, threshold: f64) -> bool {
        match self {
            Self::Higher => value > than + threshold,
            Self::Lower => value < than - threshold,
        }
    }
}

impl Rule {
    /// The value in a line; NaN where it diverged, which JSON has as null.
    fn read(&self, line: &Map<String, Value>) -> Result<f64, NotMeasured> {
        match line.get(&self.key) {
            Some(value) => Ok(value.as_f64().unwrap_or(f64::NAN)),
            None => {
                let numbers = line.iter().filter(|(key, v)| key.starts_with(EVAL) && v.is_number());
                let has: Vec<&str> = numbers.map(|(key, _)| key.as_str()).collect();
                Err(NotMeasured { key: self.key.clone(), has: has.join(", ") })
            }
        }
    }

    /// The value as the new best, if it is one.
    fn improves(&self, found: Best, over: Option<Best>, threshold: f64) -> Option<Best> {
        let better = match over {
            None => !found.value.is_nan(),
            Some(over) => self.better.is_better(found.value, over.value, threshold),
        };
        better.then_some(found)
    }
}

impl Standing {
    /// Takes the line of an evaluation into account.
    ///
    /// # Errors
    /// A metric of `rules` that the line lacks.
    pub fn judge(
        &mut self,
        rules: &Rules,
        step: usize,
        line: &Map<String, Value>,
    ) -> Result<Verdict, NotMeasured> {
        let mut verdict = Verdict { best: false, stop: false };
        if let Some(rule) = &rules.keep_best {
            let found = Best { step, value: rule.read(line)? };
            if let Some(better) = rule.improves(found, self.best, 0.0) {
                self.best = Some(better);
                verdict.best = true;
            }
        }
        if let Some(patience) = &rules.early_stopping {
            let found = Best { step, value: patience.rule.read(line)? };
            match patience.rule.improves(found, self.awaited, patience.threshold) {
                Some(better) => (self.awaited, self.waited) = (Some(better), 0),
                None => self.waited += 1,
            }
            verdict.stop = self.waited >= patience.evaluations;
        }
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::line;

    fn rule(better: Direction) -> Rule {
        Rule { key: "eval_x".into(), better }
    }

    /// Steps are 10, 20, …; → the steps at which the best changed, and the one at which training stopped.
    fn follow(rules: &Rules, values: &[f64]) -> (Vec<usize>, Option<usize>) {
        let mut standing = Standing::default();
        let mut bests = Vec::new();
        for (i, value) in values.iter().enumerate() {
            let step = 10 * (i + 1);
            // As a resumed training has it.
            let text = serde_json::to_string(&standing).unwrap();
            standing = serde_json::from_str(&text).unwrap();
            let verdict = standing.judge(rules, step, &line(json!({ "eval_x": value }))).unwrap();
            bests.extend(verdict.best.then_some(step));
            if verdict.stop {
                return (bests, Some(step));
            }
        }
        (bests, None)
    }

    #[test]
    fn the_best_is_the_first_of_equal_ones() {
        let by = |better| Rules { keep_best: Some(rule(better)), early_stopping: None };
        let values = [3.0, f64::NAN, 1.0, 1.0, 2.0, 4.0];
        assert_eq!(follow(&by(Direction::Lower), &values), (vec![10, 30], None));
        assert_eq!(follow(&by(Direction::Higher), &values), (vec![10, 60], None));
        // One that diverged from the start is beaten by any number.
        assert_eq!(follow(&by(Direction::Lower), &[f64::NAN, 5.0]), (vec![20], None));
    }

    #[test]
    fn patience_counts_evaluations_in_a_row() {
        let wait = |better, evaluations, threshold| Rules {
            keep_best: None,
            early_stopping: Some(Patience { rule: rule(better), evaluations, threshold }),
        };
        let cases = [
            (wait(Direction::Lower, 2, 0.0), vec![3.0, 3.0, 2.0, 2.5, 2.5, 1.0], Some(50)),
            (wait(Direction::Lower, 3, 0.0), vec![3.0, 3.0, 2.0, 2.5, 2.5, 1.0], None),
            (wait(Direction::Higher, 1, 0.5), vec![1.0, 1.6, 2.0], Some(30)),
            (wait(Direction::Lower, 1, 0.0), vec![f64::NAN], Some(10)),
        ];
        for (rules, values, stopped) in cases {
            assert_eq!(follow(&rules, &values).1, stopped, "{values:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named_beside_what_is_there() {
        let rules = Rules { keep_best: Some(rule(Direction::Lower)), early_stopping: None };
        let found = line(json!({ "step": 1, "eval_loss": 0.5, "eval_samples": [], "eval_u": 1.0 }));
        let error = Standing::default().judge(&rules, 1, &found).unwrap_err().to_string();
        assert_eq!(
            error,
            "eval_x isn't measured in this training; its evaluations have eval_loss, eval_u"
        );
    }
}
