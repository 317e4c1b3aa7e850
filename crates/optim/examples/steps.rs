//! A small random model learns one text by heart, in twenty steps of AdamW.
//!
//!     cargo run --release -p fpo-optim --example steps

use burn::tensor::{Device, Int, Tensor};
use fpo_config::Settings;
use fpo_optim::{Optimizer, StepGradients};
use fpo_transformer::{Family, Sizes, weights};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes = Sizes {
        vocab_size: 100,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
    };
    let device = Device::flex().autodiff();
    let mut model = weights::random(&Family::Gemma2.config(&sizes)?, 0, &device)?;
    let settings = Settings::resolve("tiny", None, &[])?.sft.optimizer;
    let mut optimizer = Optimizer::new(&settings, 20);
    let text = [2, 17, 42, 7, 66, 3];
    let n = text.len() - 1;
    for step in 1..=20 {
        let tokens = Tensor::<2, Int>::from_ints([text], &device);
        let hidden = model.forward(tokens, &[]).hidden_states;
        let hidden = hidden.narrow(1, 0, n).squeeze_dim::<2>(0);
        let targets = Tensor::<1, Int>::from_ints(&text[1..], &device);
        let loss = -model.head().log_probs(hidden, targets).mean();
        let gradients = StepGradients::of(&loss, &model, None);
        let info;
        (model, info) = optimizer.step(model, gradients);
        let loss: f32 = loss.into_scalar();
        println!("step {step}: loss {loss:.3}, learning rate {:.1e}", info.learning_rate);
    }
    Ok(())
}
