//! What was computed of pairs: tensors over micro-batches, then values on the host.

use std::ops::Range;

use burn::tensor::{DType, FloatDType, Tensor};
use fpo_losses::{Objective, PairLosses, PerResponse, Quantities};

use crate::metrics::margin::method_margins;

/// Gathers what was computed of pairs over the micro-batches of a step or of an evaluation.
///
/// Pairs keep the order in which they were added. Losses may be cut into other batches than quantities are, as long as they are
/// of the same pairs in the same order: a loss of the whole step is one batch over many micro-batches.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    quantities: Vec<Quantities>,
    statistics: Vec<TokenStatistics>,
    losses: Vec<Losses>,
    method_margins: Option<Tensor<1>>,
}

/// Statistics of the policy's distributions at response tokens, summed per response, `[pairs]` each.
#[derive(Clone, Debug)]
pub struct TokenStatistics {
    /// Entropies in nats.
    pub entropy: PerResponse,
    /// How many tokens are the policy's most probable ones.
    pub right: PerResponse,
}

#[derive(Clone, Debug)]
struct Losses {
    losses: Tensor<1>,
    u: Tensor<1>,
    rewards: PerResponse,
}

/// Everything known of one pair.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairValues {
    /// The method's loss.
    pub loss: f64,
    /// reward(chosen) − reward(rejected) − γ, the argument of the sigmoid.
    pub u: f64,
    /// The implicit rewards.
    pub rewards: Sides,
    /// The policy's log-probabilities summed over response tokens, in nats.
    pub log_probs: Sides,
    /// Response tokens.
    pub tokens: Sides,
    /// KL(reference ‖ policy) summed over a response, in nats.
    pub kl: Option<Sides>,
    /// Feature distance D.
    pub distance: Option<Sides>,
    /// Entropies of the policy's distributions summed over response tokens, in nats.
    pub entropy: Option<Sides>,
    /// How many response tokens are the policy's most probable ones.
    pub right_tokens: Option<Sides>,
    /// What the method subtracts from the policy's difference; see [`Pairs::add_method_margins`].
    pub method_margin: Option<f64>,
}

/// A value of each response of a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sides {
    /// The chosen response's.
    pub chosen: f64,
    /// The rejected response's.
    pub rejected: f64,
    /// chosen − rejected, subtracted in the precision of the tensors.
    pub margin: f64,
}

impl Sides {
    /// Subtracts in float64.
    pub fn new(chosen: f64, rejected: f64) -> Self {
        Self { chosen, rejected, margin: chosen - rejected }
    }
}

impl Pairs {
    /// Adds a micro-batch. Of its graph nothing is kept, and nothing is read from the device.
    pub fn add(&mut self, quantities: &Quantities) {
        self.quantities.push(quantities.clone().map(Tensor::without_autodiff));
    }

    /// Adds token statistics of the pairs that were added; if they are measured, then of every pair.
    pub fn add_statistics(&mut self, statistics: &TokenStatistics) {
        let TokenStatistics { entropy, right } = statistics;
        let (entropy, right) = (detached(entropy), detached(right));
        self.statistics.push(TokenStatistics { entropy, right });
    }

    /// Adds the losses of pairs as they are minimised.
    pub fn add_losses(&mut self, pairs: &PairLosses) {
        self.losses.push(Losses {
            losses: pairs.losses.clone().without_autodiff(),
            u: pairs.logits().without_autodiff(),
            rewards: detached(&pairs.rewards),
        });
    }

    /// Adds what the method subtracts from the policy's difference, for all pairs added so far as one step: −u with the
    /// policy's log-probabilities, KL and D at zero.
    ///
    /// # Panics
    /// If no pairs were added.
    pub fn add_method_margins(&mut self, objective: &Objective) {
        self.method_margins = Some(method_margins(objective, &self.quantities()));
    }

    /// The quantities of all pairs as one batch, without a graph.
    ///
    /// # Panics
    /// If no pairs were added.
    pub fn quantities(&self) -> Quantities {
        Quantities::cat(&self.quantities)
    }

    /// Reads the values of every pair from the device, in the order in which pairs were added.
    ///
    /// # Panics
    /// If the losses, the statistics or the margins aren't those of the pairs whose quantities were added.
    pub fn read(&self) -> Vec<PairValues> {
        if self.quantities.is_empty() {
            return Vec::new();
        }
        let q = self.quantities();
        let [pairs] = q.counts.chosen.dims();
        self.check_counts(pairs);
        let mut device = Reading::default();
        let mut of_losses = |f: fn(&Losses) -> &Tensor<1>| {
            device.ask(Tensor::cat(self.losses.iter().map(|part| f(part).clone()).collect(), 0))
        };
        let (losses, us) = (of_losses(|part| &part.losses), of_losses(|part| &part.u));
        let rewards = self.losses.iter().map(|part| part.rewards.clone()).collect();
        let rewards = device.ask_sides(&PerResponse::cat(rewards));
        let mut statistic = |f: fn(&TokenStatistics) -> &PerResponse| {
            let parts: Vec<_> = self.statistics.iter().map(|part| f(part).clone()).collect();
            (!parts.is_empty()).then(|| device.ask_sides(&PerResponse::cat(parts)))
        };
        let (entropy, right) = (statistic(|part| &part.entropy), statistic(|part| &part.right));
        let margins = self.method_margins.clone().map(|margins| device.ask(margins));
        let (log_probs, tokens) = (device.ask_sides(&q.log_probs), device.ask_sides(&q.counts));
        let kl = q.kl.as_ref().map(|kl| device.ask_sides(kl));
        let distance = q.distance.as_ref().map(|distance| device.ask_sides(distance));

        let values = device.read();
        let list = |asked: Range<usize>| values[asked].to_vec();
        // The margin is the difference in float64.
        let sides = |[chosen, rejected]: [Range<usize>; 2]| -> Vec<Sides> {
            let both = values[chosen].iter().zip(&values[rejected]);
            both.map(|(&chosen, &rejected)| Sides::new(chosen, rejected)).collect()
        };
        let (losses, us, margins) = (list(losses), list(us), margins.map(list));
        let [rewards, log_probs, tokens] = [rewards, log_probs, tokens].map(sides);
        let [entropy, right, kl, distance] =
            [entropy, right, kl, distance].map(|asked| asked.map(sides));
        let at = |values: &Option<Vec<Sides>>, i: usize| values.as_ref().map(|values| values[i]);
        let pair = |i: usize| PairValues {
            loss: losses[i],
            u: us[i],
            rewards: rewards[i],
            log_probs: log_probs[i],
            tokens: tokens[i],
            kl: at(&kl, i),
            distance: at(&distance, i),
            entropy: at(&entropy, i),
            right_tokens: at(&right, i),
            method_margin: margins.as_ref().map(|margins| margins[i]),
        };
        (0..pairs).map(pair).collect()
    }

    fn check_counts(&self, pairs: usize) {
        let losses: usize = self.losses.iter().map(|part| part.losses.dims()[0]).sum();
        assert_eq!(losses, pairs, "losses of {losses} pairs for quantities of {pairs}");
        let statistics: usize = self.statistics.iter().map(|x| x.entropy.chosen.dims()[0]).sum();
        let whole = self.statistics.is_empty() || statistics == pairs;
        assert!(whole, "token statistics of {statistics} pairs for quantities of {pairs}");
        let margins = self.method_margins.as_ref().map_or(pairs, |x| x.dims()[0]);
        assert_eq!(margins, pairs, "margins of {margins} pairs for quantities of {pairs}");
    }
}

fn detached(values: &PerResponse) -> PerResponse {
    values.clone().map(Tensor::without_autodiff)
}

/// Values that are read from the device together: each read waits for it.
#[derive(Default)]
struct Reading {
    tensors: Vec<Tensor<1>>,
    count: usize,
}

impl Reading {
    /// Where the values will be.
    fn ask(&mut self, values: Tensor<1>) -> Range<usize> {
        let start = self.count;
        self.count += values.dims()[0];
        self.tensors.push(values);
        start..self.count
    }

    fn ask_sides(&mut self, values: &PerResponse) -> [Range<usize>; 2] {
        [&values.chosen, &values.rejected].map(|side| self.ask(side.clone()))
    }

    fn read(self) -> Vec<f64> {
        // The widest type of them holds them all.
        let widest = match self.tensors.iter().any(|x| x.dtype() == DType::F64) {
            true => FloatDType::F64,
            false => FloatDType::F32,
        };
        let tensors = self.tensors.into_iter().map(|x| x.cast(widest)).collect();
        Tensor::cat(tensors, 0).into_data().iter::<f64>().collect()
    }
}
