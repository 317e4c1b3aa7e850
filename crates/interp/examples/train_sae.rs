//! Trains an autoencoder on the activations of a small random model and evaluates it on held-out ones and in the model.
//!
//!     cargo run --release -p fpo-interp --example train_sae

use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use burn::tensor::Device;
use fpo_data::{Fingerprint, SequenceStore, TokenizedExample, TokenizedResponse};
use fpo_device::progress::Reporter;
use fpo_interp::{
    activations::{ActivationStore, Source, StoreSettings},
    evaluation::evaluate,
    training::quality,
};
use fpo_sae::{Compute, Penalty, Provenance, SaeTrainer, SaeTraining};
use fpo_transformer::{Family, Site, Sizes, weights};

const BOS: u32 = 2;

fn main() -> Result<()> {
    let sizes = Sizes {
        vocab_size: 64,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
    };
    let config = Family::Gemma2.config(&sizes).map_err(anyhow::Error::msg)?;
    let device = Device::flex();
    let model = weights::random(&config, 0, &device)?;

    // 200 rows of BOS and 19 other tokens.
    let rows = (0..200u32).map(|row| {
        let token = |t: u32| if t == 0 { BOS } else { 3 + (row * row + 7 * t * t + row * t) % 61 };
        let tokens = (0..20).map(token).collect();
        TokenizedExample { id: row.into(), response: TokenizedResponse { tokens, prompt_len: 1 } }
    });
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rows.arrow");
    SequenceStore::write(&path, &Fingerprint::default(), rows.collect::<Vec<_>>())?;
    let data = SequenceStore::open(&path)?;

    let batch_size = NonZeroUsize::new(16).context("0 rows per batch")?;
    let source = || Source {
        model: &model,
        data: &data,
        pad: 0,
        excluded: vec![0, BOS],
        sites: vec![Site::resid_post(1)],
        reporter: Reporter::silent(),
    };
    let mut store = ActivationStore::new(
        source(),
        StoreSettings {
            tokens: usize::MAX,
            held_out: 300,
            buffer_tokens: 2000,
            max_norm: None,
            batch_size,
            seed: 0,
        },
    )?;
    let settings = SaeTraining {
        d_sae: 64,
        penalty: Penalty::TargetL0,
        target_l0: 8.0,
        tanh_scale: 4.0,
        sparsity: 0.1,
        sparsity_warmup: 50,
        learning_rate: 3e-3,
        bias_rate: 1.0,
        warmup: 20,
        bandwidth: 0.1,
        initial_threshold: 0.05,
        revive: 0.01,
        dead_after: 20,
        compute: Compute::Float32,
        batch_tokens: 256,
        steps: 400,
    };
    let mut next = || {
        let batch = store.next_batch(settings.batch_tokens, &device)?;
        batch.into_iter().next().context("one tensor per site")
    };
    let mut trainer = SaeTrainer::new(&settings, next()?, 0, &device)?;
    for _ in 0..settings.steps {
        trainer.step(next()?);
    }
    let sae = trainer.finish(Provenance::default());

    let held_out = store.measuring_blocks()?;
    let quality = quality(&sae, held_out.first().context("one block per site")?, &device)?;
    println!(
        "held out: L0 {:.1}, explained variance {:.3}",
        quality.l0, quality.explained_variance
    );
    let found = evaluate(&sae, &source(), 1000, batch_size)?.cross_entropy;
    println!(
        "cross-entropy: {:.3} nats, {:.3} with reconstructions, {:.3} with zeros",
        found.original, found.spliced, found.zero_ablation
    );
    Ok(())
}
