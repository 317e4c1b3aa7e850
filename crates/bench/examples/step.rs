//! Measures one FPO step of a small model on the CPU, in full and with LoRA adapters.
//!
//! `cargo run --release -p fpo-bench --example step`

use anyhow::Result;
use fpo_bench::step::{StepSizes, measure};
use fpo_losses::Method;
use fpo_transformer::Precision;

fn main() -> Result<()> {
    let device = fpo_device::parse("cpu")?;
    let full = StepSizes {
        method: Method::FPO,
        pairs: 4,
        tokens: 64,
        prompt_tokens: Some(16),
        // Pairs of one length; a file would give each its own.
        lengths: None,
        // Random weights of the sizes below; `Some("gemma-2-2b".parse()?)` would take that model's sizes instead.
        model: None,
        vocab: 1024,
        d_model: 128,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        ffn: 512,
        d_sae: 1024,
        k: 50,
        precision: Precision::Float32,
        checkpoint_activations: false,
        optimizer_in_backward: false,
        max_grad_norm: 1.0,
        lora_rank: None,
        steps: 3,
        profile: false,
    };
    let lora = StepSizes { lora_rank: Some(8), ..full.clone() };
    for (name, sizes) in [("full", full), ("LoRA", lora)] {
        let report = measure(&sizes, &device)?;
        println!(
            "{name}  {:>7.0} tokens/s  {:>6.1} ms per step of {} tokens  {:>3.0} % of the matmul rate  {:>4.0} MiB planned",
            report.tokens_per_second,
            1e3 * report.step_seconds,
            report.tokens,
            100.0 * report.matmul_share,
            report.planned_mib
        );
    }
    Ok(())
}
