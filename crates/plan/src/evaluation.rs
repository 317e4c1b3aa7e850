//! Memory of the evaluation stage.

use anyhow::Result;
use fpo_config::Settings;
use fpo_transformer::{LoraConfig, ModelConfig, Precision};

use crate::{BLOCKS, BYTES, Memory, adapters, computed_by_block, config, d_sae, parameters};

/// The sizes that determine an evaluation's memory. It holds the reference and one other model, and records no graph.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// Sizes of both models.
    pub config: ModelConfig,
    /// Precision of both models.
    pub precision: Precision,
    /// If set, the policy is the reference with these adapters.
    pub lora: Option<LoraConfig>,
    /// Tokens per forward pass over pairs, at most: a prompt that two responses share counts as if it were short.
    pub tokens: usize,
    /// Responses per generated batch.
    pub answers: usize,
    /// Tokens per prompt.
    pub prompt: usize,
    /// Tokens per prompt and response together.
    pub answered: usize,
    /// Number of features of the autoencoder.
    pub d_sae: usize,
}

impl Evaluation {
    /// The evaluation of a run with these settings.
    ///
    /// # Errors
    /// The model's sizes can't be determined.
    pub fn of(settings: &Settings) -> Result<Self> {
        let (s, data) = (&settings.evaluate, &settings.data);
        let prompt = data.max_prompt_length.unwrap_or(data.max_length);
        Ok(Self {
            config: config(&settings.model)?,
            precision: settings.model.precision,
            lora: settings.align.lora.clone(),
            tokens: 2 * s.batch_size.get() * data.max_length,
            answers: s.batch_size.get().min(s.prompts),
            prompt,
            answered: prompt + s.max_new_tokens,
            d_sae: d_sae(settings),
        })
    }

    /// Bytes of an element of a matrix product's factors.
    fn factor(&self) -> u64 {
        self.precision.factor_bytes() as u64
    }

    /// Bytes of the key-value cache of a generated batch. One layer counts twice: appending a token copies its cache.
    pub(crate) fn keys_and_values(&self) -> u64 {
        let c = &self.config;
        let kept = |layer| c.window(layer).map_or(self.answered, |w| self.answered.min(w));
        let tokens: usize = (0..c.num_hidden_layers).map(kept).sum::<usize>() + self.answered;
        let of_token = 2 * c.num_key_value_heads * c.head_dim;
        self.factor() * (self.answers * tokens * of_token) as u64
    }

    /// Bytes of the attention scores of a batch of prompts in one layer: scores, masked scores and weights.
    pub(crate) fn scores(&self) -> u64 {
        let of_prompt = self.config.num_attention_heads * self.prompt * self.prompt;
        3 * BYTES * (self.answers * of_prompt) as u64
    }

    /// Memory at the evaluation's peak.
    pub fn memory(&self) -> Memory {
        let c = &self.config;
        let whole = parameters(c);
        let second = self.lora.as_ref().map_or(whole, |lora| adapters(c, lora));
        // Activations of one block, the final hidden states of both models, and the autoencoder's input.
        let of_token = computed_by_block(c, self.precision) + BYTES * 3 * c.hidden_size as u64;
        let of_prompt = computed_by_block(c, self.precision);
        let pairs = self.tokens as u64 * of_token;
        let logits = 2 * BYTES * (self.answers * c.vocab_size) as u64;
        let prompts = (self.answers * self.prompt) as u64 * of_prompt;
        let answers = self.keys_and_values() + self.scores() + prompts + logits;
        // The encoder pools features of pairs; encoder and decoder are loaded again to report the features that moved.
        let autoencoder = (self.d_sae * (3 * c.hidden_size + 2)) as u64;
        Memory {
            weights: self.factor() * (whole + second),
            gradients: 0,
            optimizer: 0,
            activations: pairs.max(answers),
            rest: BYTES * autoencoder
                + BLOCKS.min(BYTES * self.tokens as u64 * c.vocab_size as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(recipe: &str, set: &[&str]) -> Evaluation {
        const SIZES: [&str; 3] =
            ["evaluate.batch_size=8", "evaluate.max_new_tokens=256", "data.max_prompt_length=512"];
        let set: Vec<String> = SIZES.iter().chain(set).map(|s| s.to_string()).collect();
        Evaluation::of(&Settings::resolve(recipe, None, &set).unwrap()).unwrap()
    }

    /// Oracle: 26 layers × 2 × 4 heads × 256 elements × 2 bytes = 106,496 bytes per token.
    #[test]
    fn keys_and_values_of_gemma_2() {
        let of = |set: &[&str]| evaluation("gemma-2-2b-fpo", set).keys_and_values();
        let of_token = 106_496 * 27 / 26;
        assert_eq!(of(&[]), 8 * (512 + 256) * of_token);
        assert_eq!(of(&["model.precision=float32"]), 2 * of(&[]));
        assert_eq!(of(&["evaluate.batch_size=1"]), of(&[]) / 8);
        assert_eq!(of(&["evaluate.prompts=0"]), 0);
        let windowed = of(&["evaluate.max_new_tokens=7680"]);
        assert_eq!(windowed, 8 * (13 * (4096 + 8192) + 8192) * of_token / 27);
    }

    /// Two models in bfloat16, or one model and adapters.
    #[test]
    fn adapters_share_the_reference() {
        let [full, lora] = ["gemma-2-2b-fpo", "gemma-2-2b-fpo-lora"]
            .map(|recipe| evaluation(recipe, &[]).memory().weights as f64 / 1e9);
        assert!((full - 4.0 * 2.614).abs() < 0.01, "{full}");
        assert!((5.2..5.4).contains(&lora), "{lora}");
    }
}
