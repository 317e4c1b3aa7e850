//! Numbers of every pair, and what is logged of them. Names are TRL's where TRL has them.

use burn::tensor::Tensor;
use fpo_losses::{Objective, PerResponse, Quantities};
use serde_json::{Map, Value, json};

use crate::aligner::Measured;

/// Gathers what was measured over the parts of a step or of a whole evaluation.
#[derive(Default)]
pub struct Log {
    quantities: Vec<Quantities>,
    entropy: Vec<PerResponse>,
    right: Vec<PerResponse>,
}

impl Log {
    /// Adds the pairs of a batch; nothing of their graph is kept.
    pub fn add(&mut self, measured: &Measured) {
        let plain = |x: &PerResponse| x.clone().map(Tensor::without_autodiff);
        self.quantities.push(measured.quantities.clone().map(Tensor::without_autodiff));
        self.entropy.extend(measured.entropy.as_ref().map(plain));
        self.right.extend(measured.right.as_ref().map(plain));
    }

    /// Everything that was added as one batch.
    ///
    /// # Panics
    /// If that is nothing.
    pub fn quantities(&self) -> Quantities {
        Quantities::cat(&self.quantities)
    }

    /// The numbers of every pair, with the losses of all of them together.
    ///
    /// # Panics
    /// If there are no pairs.
    pub fn numbers(&self, objective: &Objective) -> Numbers {
        let quantities = self.quantities();
        let pairs = objective.losses(quantities.clone());
        let mut numbers = Numbers::default();
        numbers.push("loss", &pairs.losses);
        numbers.push("u", &pairs.logits());
        numbers.push("rewards/chosen", &pairs.rewards.chosen);
        numbers.push("rewards/rejected", &pairs.rewards.rejected);
        numbers.push("rewards/margins", &pairs.rewards.margin());
        let whole =
            |parts: &[PerResponse]| (!parts.is_empty()).then(|| PerResponse::cat(parts.to_vec()));
        let (entropy, right) = (whole(&self.entropy), whole(&self.right));
        let both = [
            (["logps/chosen", "logps/rejected"], None, Some(&quantities.log_probs)),
            (["tokens/chosen", "tokens/rejected"], None, Some(&quantities.counts)),
            (["kl/chosen", "kl/rejected"], Some("kl/margins"), quantities.kl.as_ref()),
            (
                ["distance/chosen", "distance/rejected"],
                Some("distance/margins"),
                quantities.distance.as_ref(),
            ),
            (["entropy/chosen", "entropy/rejected"], None, entropy.as_ref()),
            (["right_tokens/chosen", "right_tokens/rejected"], None, right.as_ref()),
        ];
        for ([chosen, rejected], margin, values) in both {
            let Some(values) = values else { continue };
            numbers.push(chosen, &values.chosen);
            numbers.push(rejected, &values.rejected);
            if let Some(margin) = margin {
                numbers.push(margin, &values.margin());
            }
        }
        numbers
    }
}

/// Numbers of each pair by name, in the order in which the pairs were added.
#[derive(Default)]
pub struct Numbers(Vec<(&'static str, Vec<f64>)>);

impl Numbers {
    fn push(&mut self, name: &'static str, values: &Tensor<1>) {
        self.0.push((name, values.to_data().iter::<f64>().collect()));
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

    /// Mean entropy of the policy's distributions over all response tokens in nats, where it was measured.
    pub fn entropy(&self) -> Option<f64> {
        self.per_token(["entropy/chosen", "entropy/rejected"], ["tokens/chosen", "tokens/rejected"])
    }

    /// The share of the chosen responses' tokens that the policy holds most probable, where it was measured.
    pub fn mean_token_accuracy(&self) -> Option<f64> {
        self.per_token(["right_tokens/chosen"], ["tokens/chosen"])
    }

    fn per_token<const N: usize>(&self, sums: [&str; N], counts: [&str; N]) -> Option<f64> {
        let total = |names: [&str; N]| names.iter().flat_map(|n| self.values(n)).sum::<f64>();
        (!self.values(sums[0]).is_empty()).then(|| total(sums) / total(counts))
    }

    /// The loss and everything else that is logged of a step.
    pub fn metrics(&self, objective: &Objective) -> (f64, Map<String, Value>) {
        let loss = self.mean("loss").unwrap_or(f64::NAN);
        let mut metrics = Map::new();
        for (name, _) in &self.0 {
            // These two are sums over tokens, of which only the means over tokens below say something.
            let summed = name.starts_with("entropy/") || name.starts_with("right_tokens/");
            if *name != "loss" && !summed {
                metrics.insert((*name).to_owned(), json!(self.mean(name)));
            }
        }
        metrics.insert("rewards/accuracies".into(), json!(self.reward_accuracy()));
        metrics.insert("accuracy".into(), json!(self.length_normalised_accuracy()));
        metrics.insert("beta".into(), json!(objective.beta));
        let measured =
            [("entropy", self.entropy()), ("mean_token_accuracy", self.mean_token_accuracy())];
        for (name, value) in measured {
            if let Some(value) = value {
                metrics.insert(name.into(), json!(value));
            }
        }
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
