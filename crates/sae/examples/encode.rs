//! Trains an autoencoder on sparse sums of random directions, measures it, and saves and loads it in SAELens' format.
//!
//!     cargo run --release -p fpo-sae --example encode

use burn::tensor::{Device, Distribution, Tensor};
use fpo_sae::{
    Compute, InitialThreshold, Kind, Penalty, Provenance, QualityMeter, SaeTrainer, SaeTraining,
    hash_encoder, load, save_sae_lens,
};

const D_IN: usize = 16;
const DIRECTIONS: usize = 32;
/// Directions that are active per token, on average.
const ACTIVE: f64 = 3.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex();
    device.seed(0);
    let directions =
        Tensor::<2>::random([DIRECTIONS, D_IN], Distribution::Normal(0.0, 0.25), &device);
    let activations = |tokens: usize| {
        let random = |distribution| Tensor::random([tokens, DIRECTIONS], distribution, &device);
        let active = random(Distribution::Bernoulli(ACTIVE / DIRECTIONS as f64));
        (active * random(Distribution::Uniform(5.0, 10.0))).matmul(directions.clone())
    };

    let settings = SaeTraining {
        d_sae: 48,
        activation: Kind::JumpRelu,
        penalty: Penalty::TargetL0,
        target_l0: ACTIVE,
        tanh_scale: 4.0,
        sparsity: 0.3,
        sparsity_warmup: 100,
        learning_rate: 3e-3,
        bias_rate: 1.0,
        warmup: 20,
        bandwidth: 0.1,
        initial_threshold: InitialThreshold::At(0.05),
        revive: 0.01,
        dead_after: 20,
        compute: Compute::Float32,
        batch_tokens: 256,
        steps: 1000,
    };
    let mut trainer = SaeTrainer::new(&settings, activations(2048), 0, &device)?;
    for _ in 0..settings.steps {
        trainer.step(activations(settings.batch_tokens));
    }
    let sae = trainer.finish(Provenance::default());

    let mut meter = QualityMeter::new(sae.d_in(), sae.d_sae());
    meter.add(&sae, activations(4096));
    let quality = meter.quality().ok_or("no tokens were measured")?;
    println!("L0 {:.2}, explained variance {:.3}", quality.l0, quality.explained_variance);

    let folder = tempfile::tempdir()?;
    save_sae_lens(&sae, folder.path())?;
    let loaded = load(folder.path(), &device)?;
    println!("saved and loaded, hash {}", hash_encoder(&loaded.encoder));
    Ok(())
}
