//! One training step on random data: how long it takes and how much memory.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use fpo_data::{
    Fingerprint, PairBatch, PairView, Pooling, ReferenceCache, ReferenceWriter, ResponseView,
    TokenizedPair, TokenizedResponse,
    reference::{CacheShape, StoredFeatures},
};
use fpo_losses::{Method, Objective, mean_loss};
use fpo_ops::{Activation, Encoder};
use fpo_sae::{Provenance, Sae};
use fpo_transformer::{
    Family, LanguageModel, LoraConfig, ModelConfig, Placement, Precision, PublishedModel, Site,
    Sizes, weights,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::{
    device_memory::DeviceMemory,
    flops::{Products, matmul_rate},
    median,
};
use fpo_config::{OptimizerKind, OptimizerSettings, Schedule};
use fpo_device::{facts::facts, guard, host::peak_rss_mib, sync};
use fpo_interp::reader::FeatureReader;
use fpo_plan as plan;
use fpo_plan::advice;
use fpo_trainer::aligner::{Aligner, FeatureConstraint};
use fpo_trainer::forward::Keep;
use fpo_trainer::optim::{GradientMap, Optimizer};
use fpo_trainer::reference::Reference;

/// The sizes that a model's name stands for.
const SHAPE: [&str; 8] =
    ["vocab", "d_model", "layers", "heads", "kv_heads", "head_dim", "ffn", "d_sae"];

/// What the step works on.
#[derive(Clone, Debug, clap::Args)]
pub struct StepSizes {
    /// The objective.
    #[arg(long, default_value = "fpo")]
    pub method: Method,
    /// Pairs of the step, in one forward pass.
    #[arg(long, default_value_t = 8)]
    pub pairs: usize,
    /// Tokens of each response, its prompt included.
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// Of these the prompt's [default: a quarter].
    #[arg(long)]
    pub prompt_tokens: Option<usize>,
    /// A model's shape, in place of the sizes below, with random weights and an autoencoder of 16,384 features.
    #[arg(long, conflicts_with_all = SHAPE)]
    pub model: Option<PublishedModel>,
    /// Vocabulary.
    #[arg(long, default_value_t = 4096)]
    pub vocab: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 256)]
    pub d_model: usize,
    /// Blocks.
    #[arg(long, default_value_t = 4)]
    pub layers: usize,
    /// Query heads.
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// Key and value heads.
    #[arg(long, default_value_t = 2)]
    pub kv_heads: usize,
    /// Width of a head.
    #[arg(long, default_value_t = 64)]
    pub head_dim: usize,
    /// Width of the MLP.
    #[arg(long, default_value_t = 1024)]
    pub ffn: usize,
    /// Features of the autoencoder, read from the last block.
    #[arg(long, default_value_t = 2048)]
    pub d_sae: usize,
    /// Features compared.
    #[arg(long, default_value_t = 50)]
    pub k: usize,
    /// In which types: float32 or bf16-mixed.
    #[arg(long, default_value_t)]
    pub precision: Precision,
    /// Computes each block a second time in the backward pass rather than keep its activations.
    #[arg(long)]
    pub checkpoint_activations: bool,
    /// Trains adapters of this rank on all linear layers rather than the model.
    #[arg(long)]
    pub lora_rank: Option<usize>,
    /// Steps measured, after one that is not.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
}

/// What was measured; times are medians.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// The objective.
    pub method: String,
    /// Tokens of both responses of all pairs, prompts included, a second.
    pub tokens_per_second: f64,
    /// A whole step.
    pub step_seconds: f64,
    /// Its forward pass and loss.
    pub forward_seconds: f64,
    /// Its backward pass.
    pub backward_seconds: f64,
    /// The optimiser.
    pub optimizer_seconds: f64,
    /// The most memory that the process ever held, where the system tells.
    pub peak_rss_mib: Option<f64>,
    /// The most that tensors held on a GPU after a forward pass, a backward pass or the optimiser.
    pub device_in_use_mib: Option<f64>,
    /// The most that Burn's allocator had taken from a GPU's driver then: in use, or kept to be used again.
    pub device_reserved_mib: Option<f64>,
    /// Floating-point operations that the mathematics of a step asks for, nothing recomputed.
    pub model_flops: f64,
    /// Operations a second of a large matrix product, measured after the steps, in the type that the step computes in.
    pub matmul_flops: f64,
    /// Share of that rate that the step reaches.
    pub matmul_share: f64,
    /// What `fpo plan` expects it to be.
    pub planned_mib: f64,
    /// Steps measured.
    pub steps: usize,
    /// Tokens of a step.
    pub tokens: usize,
    /// The loss of the last step, which must be a number.
    pub loss: f64,
}

impl StepSizes {
    fn prompt(&self) -> usize {
        self.prompt_tokens.unwrap_or(self.tokens / 4).max(1)
    }

    fn config(&self) -> Result<ModelConfig> {
        let sizes = Sizes {
            vocab_size: self.vocab,
            hidden_size: self.d_model,
            intermediate_size: self.ffn,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv_heads,
            head_dim: self.head_dim,
        };
        Family::Gemma2.config(&sizes).map_err(|message| anyhow!("the model's sizes: {message}"))
    }

    /// The sizes, with those of a model that was named.
    fn named(&self) -> Self {
        let Some(model) = self.model else { return self.clone() };
        let config = model.config();
        Self {
            vocab: config.vocab_size,
            d_model: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            ffn: config.intermediate_size,
            d_sae: 16_384,
            ..self.clone()
        }
    }

    /// Operations of a step.
    fn flops(&self, config: &ModelConfig) -> f64 {
        let planned = self.planned(config);
        let products = Products {
            config,
            texts: 2 * self.pairs,
            tokens: self.tokens,
            response: self.tokens - self.prompt(),
            lora: planned.lora.as_ref(),
            second_model: planned.second_model,
            d_sae: planned.d_sae,
        };
        products.flops()
    }

    /// Pairs of random tokens that share their prompt.
    fn random_pairs(&self, rng: &mut ChaCha8Rng) -> Vec<TokenizedPair> {
        let vocab = self.vocab as u32;
        (0..self.pairs as u64)
            .map(|id| {
                let prompt: Vec<u32> =
                    (0..self.prompt()).map(|_| rng.random_range(0..vocab)).collect();
                let mut response = || {
                    let rest = (self.prompt()..self.tokens).map(|_| rng.random_range(0..vocab));
                    let tokens = prompt.iter().copied().chain(rest).collect();
                    TokenizedResponse { tokens, prompt_len: self.prompt() }
                };
                TokenizedPair { id, chosen: response(), rejected: response() }
            })
            .collect()
    }

    fn planned(&self, config: &ModelConfig) -> plan::Step {
        let needs = Objective::paper(self.method).needs();
        plan::Step {
            config: config.clone(),
            precision: self.precision,
            tokens: 2 * self.pairs * self.tokens,
            checkpointed: self.checkpoint_activations,
            lora: self.lora_rank.map(|rank| LoraConfig { rank, ..LoraConfig::default() }),
            optimizer: self.optimizer().kind,
            accumulates: false,
            gpu: false,
            second_model: needs.token_kl,
            d_sae: needs.features.then_some(self.d_sae),
        }
    }

    fn planned_on(&self, config: &ModelConfig, device: &Device) -> plan::Step {
        plan::Step { gpu: facts(device).is_some(), ..self.planned(config) }
    }

    fn optimizer(&self) -> OptimizerSettings {
        OptimizerSettings {
            kind: OptimizerKind::Adamw,
            learning_rate: 5e-7,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
        }
    }
}

/// Runs the step: what alignment does with a batch, on a model of random weights.
pub fn measure(sizes: &StepSizes, device: &Device) -> Result<StepReport> {
    let sizes = &sizes.named();
    let config = sizes.config()?;
    let planned = sizes.planned_on(&config, device);
    guard(|| measured(sizes, &config, device))
        .map_err(|error| advice::of_step(error, &planned, device))
}

fn measured(sizes: &StepSizes, config: &ModelConfig, device: &Device) -> Result<StepReport> {
    ensure!(sizes.pairs > 0, "--pairs must be at least 1");
    ensure!(
        sizes.prompt() < sizes.tokens,
        "--tokens {} leaves no response after {} prompt tokens",
        sizes.tokens,
        sizes.prompt()
    );
    if Objective::paper(sizes.method).needs().features && !(1..=sizes.d_sae).contains(&sizes.k) {
        bail!("--k {} must be between 1 and --d-sae {}", sizes.k, sizes.d_sae);
    }
    plan::check_precision(device, sizes.precision)?;
    device.seed(0);
    let pairs = sizes.random_pairs(&mut ChaCha8Rng::seed_from_u64(0));
    let views: Vec<_> = pairs.iter().map(TokenizedPair::view).collect();
    let batch = PairBatch::new(&views, 0)?;

    let placement = Placement::new(device.clone(), sizes.precision);
    let trainable = placement.autodiff();
    let reference = weights::random(config, 0, placement)?;
    let mut policy = match sizes.lora_rank {
        None => weights::random(config, 0, &trainable)?,
        Some(rank) => {
            let lora = LoraConfig { rank, ..LoraConfig::default() };
            lora.check().map_err(|m| anyhow!("--lora-rank: {m}"))?;
            reference.with_new_lora(&lora, 0, &trainable.device)?
        }
    };
    let aligner = aligner(sizes, reference, &views)?;
    let mut optimizer = Optimizer::new(&sizes.optimizer(), usize::MAX);
    let mut times: [Vec<f64>; 4] = Default::default();
    let mut last_loss = f64::NAN;
    let mut device_memory = DeviceMemory::new(device);
    for step in 0..=sizes.steps {
        let begun = Instant::now();
        let comparison = aligner.compare(&policy, &batch)?;
        let loss = mean_loss(aligner.objective.losses(comparison.quantities));
        // Reading the number waits for the device.
        last_loss = loss.clone().into_scalar::<f32>().into();
        let forward = begun.elapsed().as_secs_f64();
        device_memory.ask();
        let gradients = GradientMap::of(&loss, &policy, comparison.tape);
        let norm = gradients.norm();
        ensure!(norm.is_finite(), "the gradient's norm is {norm}");
        let backward = begun.elapsed().as_secs_f64();
        device_memory.ask();
        policy = optimizer.step(policy, gradients).0;
        sync(device)?;
        let whole = begun.elapsed().as_secs_f64();
        device_memory.ask();
        if step > 0 {
            let parts = [forward, backward - forward, whole - backward, whole];
            times.iter_mut().zip(parts).for_each(|(all, time)| all.push(time));
        }
    }
    ensure!(last_loss.is_finite(), "the loss is {last_loss}");
    // The matrices below need room.
    drop((policy, aligner, optimizer));
    let [forward, backward, optimizer, whole] = times.map(median);
    let tokens = batch.batch.real_tokens();
    let peak_rss_mib = peak_rss_mib();
    let model_flops = sizes.flops(config);
    let matmul_flops = matmul_rate(device, sizes.precision)?;
    Ok(StepReport {
        method: sizes.method.to_string(),
        tokens_per_second: tokens as f64 / whole,
        step_seconds: whole,
        forward_seconds: forward,
        backward_seconds: backward,
        optimizer_seconds: optimizer,
        peak_rss_mib,
        device_in_use_mib: device_memory.mib().map(|(in_use, _)| in_use),
        device_reserved_mib: device_memory.mib().map(|(_, reserved)| reserved),
        model_flops,
        matmul_flops,
        matmul_share: model_flops / whole / matmul_flops,
        planned_mib: sizes.planned_on(config, device).memory().total() as f64 / f64::from(1 << 20),
        steps: sizes.steps as usize,
        tokens,
        loss: last_loss,
    })
}

/// The method with what it needs; the reference's numbers come from a cache on disk, as in a run.
fn aligner(sizes: &StepSizes, reference: LanguageModel, pairs: &[PairView]) -> Result<Aligner> {
    let site =
        Site::resid_post(sizes.layers.checked_sub(1).context("--layers must be at least 1")?);
    let sae = random_sae(sizes, &reference, site, pairs[0].chosen);
    let reader = FeatureReader::new(Pooling::Predicting, Vec::new()).with(&sae, site);
    let folder = tempfile::tempdir()?;
    let fingerprint = Fingerprint::default().with("bench", "random weights");
    let shape = CacheShape {
        pairs: sizes.pairs,
        d_sae: sizes.d_sae,
        stored: StoredFeatures::All,
        rows_per_shard: sizes.pairs.try_into()?,
    };
    let mut writer = ReferenceWriter::create(folder.path(), &fingerprint, shape)?;
    let batch = PairBatch::new(pairs, 0)?;
    for row in (Reference { model: &reference, reader: Some(&reader), pad: 0 }).rows(&batch) {
        writer.push(row)?;
    }
    writer.finish()?;
    let objective = Objective::paper(sizes.method);
    let needs = objective.needs();
    Ok(Aligner {
        objective,
        needs,
        token_statistics: false,
        features: needs.features.then_some(FeatureConstraint { reader, k: sizes.k, weights: None }),
        cache: ReferenceCache::open(folder.path(), &fingerprint)?,
        reference_model: needs.token_kl.then_some(reference),
        keep: Keep::checkpointed(sizes.checkpoint_activations),
    })
}

/// An autoencoder of which about one feature in 44 is active at a position: its pre-activations are
/// normal, and the threshold is two standard deviations.
fn random_sae(sizes: &StepSizes, model: &LanguageModel, site: Site, sample: ResponseView) -> Sae {
    let device = model.device();
    let tokens: Vec<i32> = sample.tokens.iter().map(|&t| t as i32).collect();
    let shape = [1, tokens.len()];
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, shape), &device);
    let activations = model.activations(tokens, &[site]).remove(0);
    let spread = activations.square().mean().into_scalar::<f32>().sqrt();
    let scale = (sizes.d_model as f64).sqrt().recip();
    let random =
        |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, scale), &device);
    Sae {
        encoder: Encoder {
            w_enc: random([sizes.d_model, sizes.d_sae]),
            b_enc: Tensor::zeros([sizes.d_sae], &device),
            activation: Activation::JumpRelu {
                threshold: Tensor::full([sizes.d_sae], 2.0 * spread, &device),
            },
        },
        w_dec: random([sizes.d_sae, sizes.d_model]),
        b_dec: Tensor::zeros([sizes.d_model], &device),
        provenance: Provenance::default(),
    }
}
