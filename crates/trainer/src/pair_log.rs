//! Numbers of every pair, and what is logged of them.

use burn::tensor::Tensor;
use fpo_losses::Objective;
use serde_json::{Map, Value, json};

use crate::aligner::Outcome;

/// Numbers of each pair, gathered over the parts of a step or of a whole evaluation.
#[derive(Default)]
pub struct Log(Vec<(&'static str, Vec<f64>)>);

impl Log {
    /// Adds the pairs of a batch.
    pub fn add(&mut self, outcome: &Outcome) {
        let rewards = &outcome.preference.rewards;
        self.push("loss", &outcome.preference.losses());
        self.push("u", &outcome.preference.logits());
        self.push("rewards/chosen", &rewards.chosen);
        self.push("rewards/rejected", &rewards.rejected);
        self.push("rewards/margins", &rewards.margin());
        let both = [
            ("logps/chosen", "logps/rejected", Some(&outcome.log_probs)),
            ("tokens/chosen", "tokens/rejected", Some(&outcome.counts)),
            ("kl/chosen", "kl/rejected", outcome.kl.as_ref()),
            ("distance/chosen", "distance/rejected", outcome.distance.as_ref()),
        ];
        for (chosen, rejected, values) in both {
            if let Some(values) = values {
                self.push(chosen, &values.chosen);
                self.push(rejected, &values.rejected);
            }
        }
    }

    fn push(&mut self, name: &'static str, values: &Tensor<1>) {
        let values = values.to_data();
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, all)) => all.extend(values.iter::<f64>()),
            None => self.0.push((name, values.iter::<f64>().collect())),
        }
    }

    /// The values of every pair.
    pub fn values(&self, name: &str) -> &[f64] {
        self.0.iter().find(|(n, _)| *n == name).map_or(&[], |(_, values)| values)
    }

    /// The mean over pairs, if there are any.
    pub fn mean(&self, name: &str) -> Option<f64> {
        let values = self.values(name);
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The share of pairs whose chosen response has the higher average log-probability per token.
    pub fn length_normalised_accuracy(&self) -> f64 {
        let average = |sums: &str, counts: &str| -> Vec<f64> {
            let pairs = self.values(sums).iter().zip(self.values(counts));
            pairs.map(|(sum, count)| sum / count).collect()
        };
        let chosen = average("logps/chosen", "tokens/chosen");
        let rejected = average("logps/rejected", "tokens/rejected");
        share(chosen.iter().zip(&rejected).map(|(c, r)| c > r))
    }

    /// The share of pairs whose chosen response has the higher reward.
    pub fn reward_accuracy(&self) -> f64 {
        share(self.values("rewards/margins").iter().map(|margin| *margin > 0.0))
    }

    /// The loss and everything else that is logged of a step.
    pub fn metrics(&self, objective: &Objective) -> (f64, Map<String, Value>) {
        let loss = self.mean("loss").unwrap_or(f64::NAN);
        let mut metrics = Map::new();
        for (name, _) in &self.0 {
            if *name != "loss" {
                metrics.insert((*name).to_owned(), json!(self.mean(name)));
            }
        }
        metrics.insert("rewards/accuracies".into(), json!(self.reward_accuracy()));
        metrics.insert("accuracy".into(), json!(self.length_normalised_accuracy()));
        metrics.insert("beta".into(), json!(objective.beta));
        (loss, metrics)
    }
}

fn share(hits: impl Iterator<Item = bool>) -> f64 {
    let (mut yes, mut all) = (0usize, 0usize);
    for hit in hits {
        yes += usize::from(hit);
        all += 1;
    }
    yes as f64 / all.max(1) as f64
}
