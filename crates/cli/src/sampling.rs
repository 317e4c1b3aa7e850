//! How responses are sampled, as arguments of the commands that generate.

use anyhow::{Context, Result};
use clap::Args;
use fpo_data::Fingerprint;
use fpo_transformer::GenerationOptions;

use crate::loaded::ModelFolder;

#[derive(Args)]
pub struct Sampling {
    /// Maximum number of tokens per response [default: 64; 512 in a chat; with --for, the benchmark's].
    #[arg(long, value_name = "TOKENS")]
    pub max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy decoding, 1 samples from the model's own distribution [default: 0; with --for, the
    /// benchmark's].
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Samples from the K most likely tokens only.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Samples from the smallest set of most likely tokens whose probabilities add up to P; applied after --top-k.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Divides positive logits of tokens that occur in the prompt or in the response so far by FACTOR, and multiplies negative
    /// ones; 1 turns it off.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub repetition_penalty: f64,
    /// Seed of the sampling; the same seed, prompts and options give the same responses.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// An additional stop token, as written in the vocabulary; can be repeated.
    #[arg(long, value_name = "TOKEN")]
    pub stop: Vec<String>,
}

/// What responses depend on beside the model and the temperature.
pub fn fingerprint(settings: Fingerprint, options: &GenerationOptions) -> Fingerprint {
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".into());
    let mut stop_tokens = options.stop_tokens.clone();
    stop_tokens.sort_unstable();
    stop_tokens.dedup();
    settings
        .with("max_new_tokens", options.max_new_tokens)
        .with("top_k", or_none(options.top_k.map(|k| k.to_string())))
        .with("top_p", or_none(options.top_p.map(|p| p.to_string())))
        .with("repetition_penalty", options.repetition_penalty)
        .with("seed", options.seed)
        .with("stop tokens", format!("{stop_tokens:?}"))
}

impl Sampling {
    /// The options for a model, with at most this many tokens unless the user said otherwise; greedy likewise.
    pub fn options(
        &self,
        folder: &ModelFolder,
        max_new_tokens: usize,
    ) -> Result<GenerationOptions> {
        let mut stop_tokens = folder.tokenizer.stop_ids();
        stop_tokens.extend(&folder.config.eos_token_ids);
        for token in &self.stop {
            let id = folder.tokenizer.token_id(token).with_context(|| {
                format!("--stop {token}: not in the vocabulary; a stop must be a single token")
            })?;
            stop_tokens.push(id);
        }
        let options = GenerationOptions {
            max_new_tokens: self.max_new_tokens.unwrap_or(max_new_tokens),
            temperature: self.temperature.unwrap_or(0.0),
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            first_prompt: 0,
            stop_tokens,
        };
        options.check()?;
        Ok(options)
    }
}
