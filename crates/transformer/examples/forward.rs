//! A small random model: hidden states with an activation, log-probabilities of its tokens, and a greedy continuation.
//!
//!     cargo run --release -p fpo-transformer --example forward

use burn::tensor::{Device, Int, Tensor};
use fpo_transformer::{Family, GenerationOptions, Site, Sizes, generate, weights};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes = Sizes {
        vocab_size: 1000,
        hidden_size: 64,
        intermediate_size: 128,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
    };
    let config = Family::Gemma2.config(&sizes)?;
    let device = Device::flex();
    let model = weights::random(&config, 0, &device)?;

    let text = [2, 17, 42, 7, 256, 3];
    let tokens = Tensor::<2, Int>::from_ints([text], &device);
    let site = Site::resid_post(2).check(config.num_hidden_layers)?;
    let output = model.forward(tokens, &[site]);
    println!("{site}: {:?}", output.sites[0].dims());

    // Position i predicts token i + 1.
    let n = text.len() - 1;
    let hidden = output.hidden_states.narrow(1, 0, n).squeeze_dim::<2>(0);
    let targets = Tensor::<1, Int>::from_ints(&text[1..], &device);
    let log_probs = model.head().log_probs(hidden, targets);
    let mean: f32 = log_probs.mean().into_scalar();
    println!(
        "mean log-probability: {mean:.3} nats, uniform: {:.3}",
        -(sizes.vocab_size as f64).ln()
    );

    let prompt = text.map(|token| token as u32).to_vec();
    let options =
        GenerationOptions { max_new_tokens: 8, temperature: 0.0, ..GenerationOptions::default() };
    let response = &generate(&model, &[prompt], &options)?[0];
    println!("greedy continuation: {:?}", response.tokens);
    Ok(())
}
