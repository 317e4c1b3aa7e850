//! The work of a run, stage by stage.

use anyhow::Result;
use fpo_config::Settings;

use crate::{alignment, d_sae, parameters};

/// Tokens and prompts of prepared data, which with the settings determine the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens of the examples for fine-tuning.
    pub sft_tokens: usize,
    /// Tokens of the training pairs, both responses with their prompts.
    pub train_tokens: usize,
    /// Tokens of the held-out pairs.
    pub held_out_tokens: usize,
    /// Prompts that evaluation answers.
    pub prompts: usize,
}

/// Names of the stages that compute, with their FLOPs: two per parameter and token in a forward pass, four more in a backward pass, two
/// where the model is frozen. An estimate: attention and recomputation don't count, and the prompt of a pair counts for both responses.
///
/// # Errors
/// The model's sizes can't be determined.
pub fn work(s: &Settings, counts: &Counts) -> Result<[(&'static str, f64); 5]> {
    let step = alignment(s)?;
    let model = parameters(&step.config) as f64;
    let train = |adapters: bool| if adapters { 4.0 } else { 6.0 };
    let tokens = |count: usize, epochs: f64| count as f64 * epochs;
    let sft = train(s.sft.lora.is_some()) * model * tokens(counts.sft_tokens, s.sft.epochs);

    let read = 2.0 * model * s.sae.tokens.min(counts.sft_tokens) as f64;
    let dictionary = (step.config.hidden_size * d_sae(s)) as f64;
    let encoded = (s.sae.training.steps * s.sae.training.batch_tokens) as f64;
    let sae = match (s.features(), &s.sae.path) {
        (false, _) => 0.0,
        (true, Some(_)) => read,
        (true, None) => read + 12.0 * dictionary * encoded,
    };

    let pairs = counts.train_tokens + counts.held_out_tokens;
    let reference = 2.0 * model * pairs as f64;
    let second = if step.second_model { 2.0 } else { 0.0 };
    let align = (train(s.align.lora.is_some()) + second)
        * model
        * tokens(counts.train_tokens, s.align.epochs);
    let answers = counts.prompts.min(s.evaluate.prompts) * s.evaluate.max_new_tokens;
    let evaluate = 2.0 * 2.0 * model * (counts.held_out_tokens + answers) as f64;
    Ok([
        ("sft", sft),
        ("sae", sae),
        ("reference", reference),
        ("align", align),
        ("evaluate", evaluate),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle: 6 · parameters · tokens of a training, 2 · parameters · tokens of a forward pass.
    #[test]
    fn flops_of_gemma_2_2b() {
        let of = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
            let s = Settings::resolve("gemma-2-2b-fpo", None, &set).unwrap();
            let counts = Counts { train_tokens: 1000, sft_tokens: 10, ..Counts::default() };
            work(&s, &counts).unwrap().map(|(_, flops)| flops / 2.614e9 / 1000.0)
        };
        let whole = of(&["align.epochs=2", "sft.epochs=0"]);
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.01;
        assert_eq!(whole[0], 0.0);
        assert!(near(whole[2], 2.0) && near(whole[3], 12.0), "{whole:?}");
        assert!(near(of(&["align.epochs=1", "align.lora.rank=4"])[3], 4.0));
        assert!(near(of(&["align.epochs=1", "align.method=tdpo2"])[3], 8.0));
    }
}
