//! What is tried of a method: a learning rate and the method's own constants.

use std::fmt;

use fpo_losses::Method;
use toml::Value;

use crate::plan::shown;

/// A method's line in the plan.
#[derive(Clone, Debug)]
pub struct Constants {
    /// Its own learning rates, in place of the plan's.
    rates: Option<Vec<Value>>,
    /// Keys of the section `align` with their values.
    lists: Vec<(String, Vec<Value>)>,
}

/// Values of a learning rate and of constants, by their keys in the section `align`.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial(pub Vec<(String, Value)>);

/// The key of the learning rate.
pub const LEARNING_RATE: &str = "learning_rate";

impl Constants {
    /// From a method's line.
    ///
    /// # Errors
    /// What is wrong, behind the method's key.
    pub fn read(method: Method, line: &Value) -> Result<Self, (String, String)> {
        let must = "must be a table of lists, such as { beta = [0.05, 0.1] }";
        let table = line.as_table().ok_or((String::new(), must.to_owned()))?;
        let mut constants = Self { rates: None, lists: Vec::new() };
        for (key, values) in table {
            let of = format!(".{key}");
            let values = match values {
                Value::Array(values) if !values.is_empty() => values.clone(),
                _ => return Err((of, "must be a list of values, such as [0.05, 0.1]".into())),
            };
            let repeats = (1..values.len()).any(|at| values[..at].contains(&values[at]));
            if repeats {
                return Err((of, "names a value twice".into()));
            }
            if values.iter().any(|value| value.is_table() || value.is_array()) {
                return Err((of, "must be a list of numbers, words or true and false".into()));
            }
            if !has(method, key) {
                return Err((of, format!("changes nothing of {method}")));
            }
            match key == LEARNING_RATE {
                true => constants.rates = Some(values),
                false => constants.lists.push((key.clone(), values)),
            }
        }
        Ok(constants)
    }

    /// Every learning rate with every combination of constants.
    pub fn trials(&self, rates: &[f64]) -> Vec<Trial> {
        let rates = match &self.rates {
            Some(rates) => rates.clone(),
            None => rates.iter().map(|rate| Value::Float(*rate)).collect(),
        };
        let mut lists = self.lists.clone();
        if !rates.is_empty() {
            lists.insert(0, (LEARNING_RATE.to_owned(), rates));
        }
        let mut trials = vec![Trial(Vec::new())];
        for (key, values) in lists {
            let with = |trial: &Trial| -> Vec<Trial> {
                let one = |value: &Value| {
                    let mut trial = trial.clone();
                    trial.0.push((key.clone(), value.clone()));
                    trial
                };
                values.iter().map(one).collect()
            };
            trials = trials.iter().flat_map(with).collect();
        }
        trials
    }
}

/// Whether a constant that all methods have a setting for means anything to this one.
pub(crate) fn has(method: Method, key: &str) -> bool {
    let only: &[Method] = match key {
        "alpha" => &[Method::FPO, Method::TDPO2, Method::SIMPO_KL],
        "gamma" => &[Method::SIMPO, Method::SIMPO_KL],
        "k" | "stop_gradient" | "feature_weights" | "feature_selection" => &[Method::FPO],
        _ => return true,
    };
    only.contains(&method)
}

impl Trial {
    /// As for `--set`.
    pub fn assignments(&self) -> Vec<String> {
        let one = |(key, value): &(String, Value)| match key == LEARNING_RATE {
            true => format!("align.optimizer.learning_rate={value}"),
            false => format!("align.{key}={value}"),
        };
        self.0.iter().map(one).collect()
    }

    /// As JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let one = |(key, value): &(String, Value)| {
            (key.clone(), serde_json::to_value(value).unwrap_or_default())
        };
        serde_json::Value::Object(self.0.iter().map(one).collect())
    }

    /// The name of its folder: `learning_rate=0.0003,beta=0.1`, or `recipe` where everything is as there.
    pub fn folder(&self) -> String {
        match self.0.is_empty() {
            true => "recipe".into(),
            false => {
                let one = |(key, value): &(String, Value)| format!("{key}={}", shown(value));
                // Names of other values would be other folders, or none at all.
                let plain =
                    |c: char| if c.is_alphanumeric() || "=.,_-".contains(c) { c } else { '_' };
                self.0.iter().map(one).collect::<Vec<_>>().join(",").chars().map(plain).collect()
            }
        }
    }
}

/// For a person: `learning rate 0.0003, beta 0.1`.
impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one =
            |(key, value): &(String, Value)| format!("{} {}", key.replace('_', " "), shown(value));
        match self.0.is_empty() {
            true => f.write_str("as in the recipe"),
            false => f.write_str(&self.0.iter().map(one).collect::<Vec<_>>().join(", ")),
        }
    }
}
