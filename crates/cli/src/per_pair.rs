//! Every pair's values under an objective, and their means.

use anyhow::{Result, ensure};
use burn::tensor::Tensor;
use comfy_table::{CellAlignment, Table, presets};
use fpo_losses::{Objective, PerResponse, Quantities};
use serde::Serialize;

/// A line of the output.
#[derive(Clone, Serialize)]
pub struct Line {
    chosen_log_prob: f32,
    rejected_log_prob: f32,
    chosen_tokens: usize,
    rejected_tokens: usize,
    margin: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen_distance: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_distance: Option<f32>,
    u: f32,
    loss: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen_kl: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_kl: Option<f32>,
    /// By how much the chosen response's reward is the higher one; not written.
    #[serde(skip)]
    reward_margin: f32,
}

impl Line {
    /// Fails where a number is none.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
            ("chosen_log_prob", self.chosen_log_prob),
            ("rejected_log_prob", self.rejected_log_prob),
            ("loss", self.loss),
        ] {
            ensure!(value.is_finite(), "{name} is {value}; are the policy's weights sound?");
        }
        Ok(())
    }
}

/// The method's margin for each pair: −u where the policy's log-probabilities, KL and D are zero.
fn margin(objective: &Objective, q: &Quantities) -> Tensor<1> {
    let zero = || q.log_probs.clone().map(|x| x.zeros_like());
    let without_policy = Quantities {
        log_probs: zero(),
        kl: q.kl.as_ref().map(|_| zero()),
        distance: q.distance.as_ref().map(|_| zero()),
        ..q.clone()
    };
    let u = objective.losses(without_policy).logits();
    // 0 − u and not −u: a margin of nothing is 0, not −0.
    u.zeros_like() - u
}

/// The lines of all pairs.
pub fn lines(objective: &Objective, q: Quantities) -> Vec<Line> {
    let values = |x: &Tensor<1>| -> Vec<f32> { x.to_data().iter::<f32>().collect() };
    let both = |x: &PerResponse| (values(&x.chosen), values(&x.rejected));
    let (log_probs, counts) = (both(&q.log_probs), both(&q.counts));
    let (distances, kls) = (q.distance.as_ref().map(both), q.kl.as_ref().map(both));
    let margins = values(&margin(objective, &q));
    let result = objective.losses(q);
    let (us, losses) = (values(&result.logits()), values(&result.losses));
    let reward_margins = values(&result.rewards.margin());
    (0..us.len())
        .map(|i| Line {
            chosen_log_prob: log_probs.0[i],
            rejected_log_prob: log_probs.1[i],
            chosen_tokens: counts.0[i] as usize,
            rejected_tokens: counts.1[i] as usize,
            margin: margins[i],
            chosen_distance: distances.as_ref().map(|d| d.0[i]),
            rejected_distance: distances.as_ref().map(|d| d.1[i]),
            u: us[i],
            loss: losses[i],
            chosen_kl: kls.as_ref().map(|kl| kl.0[i]),
            rejected_kl: kls.as_ref().map(|kl| kl.1[i]),
            reward_margin: reward_margins[i],
        })
        .collect()
}

/// Means over all pairs.
pub fn summary(objective: &Objective, lines: &[Line]) -> Table {
    let mut table = Table::new();
    let title = format!("{}, {} pairs", objective.method, lines.len());
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([title.as_str(), "Mean"]);
    let mean = |value: &dyn Fn(&Line) -> Option<f64>| -> Option<f64> {
        let values: Option<Vec<f64>> = lines.iter().map(value).collect();
        values.map(|v| v.iter().sum::<f64>() / v.len().max(1) as f64)
    };
    let of = |value: fn(&Line) -> f32| mean(&|line| Some(f64::from(value(line))));
    let of_some = |value: fn(&Line) -> Option<f32>| mean(&|line| value(line).map(f64::from));
    let average = |sum: f32, tokens: usize| f64::from(sum) / tokens as f64;
    let accuracy = mean(&|line| {
        let chosen = average(line.chosen_log_prob, line.chosen_tokens);
        Some(f64::from(chosen > average(line.rejected_log_prob, line.rejected_tokens)))
    });
    let rewarded = mean(&|line| Some(f64::from(line.reward_margin > 0.0)));
    let share = |share: Option<f64>| share.map(|share| format!("{:.1}%", 100.0 * share));
    let number = |value: Option<f64>| value.map(|value| format!("{value:.5}"));
    for (name, value) in [
        ("Loss", number(of(|l| l.loss))),
        ("Accuracy (higher average log-probability)", share(accuracy)),
        ("Accuracy (higher reward)", share(rewarded)),
        ("u", number(of(|l| l.u))),
        ("Margin", number(of(|l| l.margin))),
        ("Log-probability, chosen", number(of(|l| l.chosen_log_prob))),
        ("Log-probability, rejected", number(of(|l| l.rejected_log_prob))),
        ("Tokens, chosen", number(of(|l| l.chosen_tokens as f32))),
        ("Tokens, rejected", number(of(|l| l.rejected_tokens as f32))),
        ("D, chosen", number(of_some(|l| l.chosen_distance))),
        ("D, rejected", number(of_some(|l| l.rejected_distance))),
        ("KL, chosen", number(of_some(|l| l.chosen_kl))),
        ("KL, rejected", number(of_some(|l| l.rejected_kl))),
    ] {
        if let Some(value) = value {
            table.add_row([name.to_owned(), value]);
        }
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
