//! Benchmark of one alignment step on random data: time, memory and share of the matmul rate.

use std::{path::PathBuf, time::Instant};

use anyhow::{Result, anyhow, bail, ensure};
use burn::tensor::Device;
use clap::builder::RangedU64ValueParser;
use fpo_config::{OptimizerKind, OptimizerSettings, Schedule};
use fpo_device::{facts::facts, guard, host::peak_rss_mib, sync};
use fpo_losses::{Method, Objective};
use fpo_plan::{self as plan, advice};
use fpo_transformer::{Family, LoraConfig, ModelConfig, Precision, PublishedModel, Sizes};
use serde::Serialize;

use crate::{
    device_memory::DeviceMemory,
    flops::{Products, matmul_rate, memory_rate},
    lengths::{self, PairLengths},
    mean, median,
    profile::{StepProfile, Watched},
    running::{Done, Running, Waits, in_turn},
};

/// The arguments that --model replaces.
const SHAPE: [&str; 8] =
    ["vocab", "d_model", "layers", "heads", "kv_heads", "head_dim", "ffn", "d_sae"];

/// Sizes and options of the step; on the command line, the arguments of `fpo bench step`.
#[derive(Clone, Debug, clap::Args)]
pub struct StepSizes {
    /// The objective, such as fpo, dpo or simpo.
    #[arg(long, default_value = "fpo")]
    pub method: Method,
    /// Pairs per step, in a single forward pass.
    #[arg(long, default_value_t = 8, value_parser = size())]
    pub pairs: usize,
    /// Tokens per sequence: prompt and response together.
    #[arg(long, default_value_t = 128, value_parser = size())]
    pub tokens: usize,
    /// Prompt tokens per sequence [default: a quarter of --tokens].
    #[arg(long)]
    pub prompt_tokens: Option<usize>,
    /// Takes the tokens of each pair from a file of JSON lines, such as {"prompt": 31, "chosen": 120, "rejected": 84}: of the
    /// prompt, and of each response after it. Steps go round through its batches of --pairs pairs, in the file's order.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tokens", "prompt_tokens"])]
    pub lengths: Option<PathBuf>,
    /// Takes the sizes from a published model, such as gemma-2-2b, with random weights and an autoencoder of 16,384 features;
    /// replaces --vocab to --d-sae.
    #[arg(long, conflicts_with_all = SHAPE)]
    pub model: Option<PublishedModel>,
    /// Vocabulary size.
    #[arg(long, default_value_t = 4096, value_parser = size())]
    pub vocab: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 256, value_parser = size())]
    pub d_model: usize,
    /// Number of transformer blocks.
    #[arg(long, default_value_t = 4, value_parser = size())]
    pub layers: usize,
    /// Number of query heads.
    #[arg(long, default_value_t = 4, value_parser = size())]
    pub heads: usize,
    /// Number of key and value heads.
    #[arg(long, default_value_t = 2, value_parser = size())]
    pub kv_heads: usize,
    /// Width of one attention head.
    #[arg(long, default_value_t = 64, value_parser = size())]
    pub head_dim: usize,
    /// Width of the MLP.
    #[arg(long, default_value_t = 1024, value_parser = size())]
    pub ffn: usize,
    /// Number of features of the autoencoder, which reads the last block's output.
    #[arg(long, default_value_t = 2048, value_parser = size())]
    pub d_sae: usize,
    /// k: features are compared over the union of the policy's and the reference's top k.
    #[arg(long, default_value_t = 50, value_parser = size())]
    pub k: usize,
    /// float32, or bf16-mixed: matrix products in bfloat16, parameters and losses in float32.
    #[arg(long, default_value_t)]
    pub precision: Precision,
    /// Recomputes each block in the backward pass instead of storing its activations.
    #[arg(long)]
    pub checkpoint_activations: bool,
    /// Updates each block as soon as the backward pass has its gradients, which then counts to the optimiser's time; the backward pass
    /// goes through the blocks twice if gradients are clipped.
    #[arg(long, requires = "checkpoint_activations", conflicts_with = "lora_rank")]
    pub optimizer_in_backward: bool,
    /// The norm to which gradients are clipped, 0 for none.
    #[arg(long, default_value_t = 1.0, value_parser = norm)]
    pub max_grad_norm: f64,
    /// Trains LoRA adapters of this rank on all linear layers instead of the full model.
    #[arg(long, value_parser = size())]
    pub lora_rank: Option<usize>,
    /// Steps to measure, after one warm-up step.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
    /// Also says where the time goes, from as many steps that are watched: by phase, part and operation, with calls, kernel
    /// launches, FLOPs, bytes, and the shares of what the device reaches in products and in memory.
    #[arg(long)]
    pub profile: bool,
}

/// The result of [`measure`]. Times are medians over the measured steps, or means where the steps are on different batches.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// Name of the objective.
    pub method: String,
    /// Tokens per second, over both sequences of all pairs, prompts included.
    pub tokens_per_second: f64,
    /// Time of a whole step.
    pub step_seconds: f64,
    /// Time of forward pass and loss. On a GPU, whose steps wait for it once, the phases' times are those of a few steps more that
    /// wait after each phase.
    pub forward_seconds: f64,
    /// Time of the backward pass.
    pub backward_seconds: f64,
    /// Time of the optimiser update, clipping included.
    pub optimizer_seconds: f64,
    /// Time to draw weights, make the reference's cache and move both to the device.
    pub start_seconds: f64,
    /// Time of the first step, which isn't measured otherwise: on a GPU its kernels are compiled.
    pub first_step_seconds: f64,
    /// Peak resident memory of the process; `None` if the operating system doesn't report it.
    pub peak_rss_mib: Option<f64>,
    /// Peak memory of tensors on a GPU, sampled after forward pass, backward pass and optimiser update; `None` on the CPU.
    pub device_in_use_mib: Option<f64>,
    /// Peak memory that Burn's allocator had reserved on a GPU at those points, in use or cached; `None` on the CPU.
    pub device_reserved_mib: Option<f64>,
    /// FLOPs of the matrix products of a step, without recomputation; their mean where batches differ.
    pub model_flops: f64,
    /// Matmul rate in FLOP/s, measured after the steps in the data type of the step's products.
    pub matmul_flops: f64,
    /// Share of that rate that the step reaches, from 0 to 1.
    pub matmul_share: f64,
    /// Peak memory that `fpo plan` predicts for the step, on the largest batch.
    pub planned_mib: f64,
    /// Number of measured steps.
    pub steps: usize,
    /// Tokens per step, over both sequences of all pairs; their mean where batches differ, rounded.
    pub tokens: usize,
    /// Loss of the last step; it is finite.
    pub loss: f64,
    /// Where the time goes, if [`StepSizes::profile`] asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<StepProfile>,
}

/// Steps that wait after each phase, at most.
const PHASED: u64 = 5;
/// The largest of a model's sizes, several times what published ones have.
const LARGEST: u64 = 1 << 20;
/// The most tokens of a step.
const MOST_TOKENS: usize = 1 << 24;

/// Parses a norm.
fn norm(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let is_norm = number >= 0.0 && number.is_finite();
    is_norm.then_some(number).ok_or_else(|| "must be at least 0 and finite".to_owned())
}

/// Parses a number of pairs, tokens, blocks and so on.
fn size() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=LARGEST)
}

impl StepSizes {
    /// The batches that steps go round through.
    fn batches(&self) -> Result<Vec<Vec<PairLengths>>> {
        ensure!(self.pairs > 0, "--pairs must be at least 1");
        if let Some(path) = &self.lengths {
            return Ok(lengths::read(path, self.pairs)?);
        }
        let prompt = self.prompt_tokens.unwrap_or(self.tokens / 4).max(1);
        ensure!(
            prompt < self.tokens,
            "--tokens {} leaves no response after {prompt} prompt tokens",
            self.tokens
        );
        let response = self.tokens - prompt;
        let pair = PairLengths { prompt, chosen: response, rejected: response };
        Ok(vec![vec![pair; self.pairs]])
    }

    fn config(&self) -> Result<ModelConfig> {
        if let Some(model) = self.model {
            return Ok(model.config());
        }
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

    /// Parameters of the model.
    ///
    /// # Errors
    /// Sizes that can't work together.
    pub fn parameters(&self) -> Result<u64> {
        Ok(plan::parameters(&self.config()?))
    }

    /// With the sizes of `model` filled in, if it is set.
    fn with_model_sizes(&self) -> Self {
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

    /// The step as the memory planner sees it, with so many tokens.
    fn planned(&self, config: ModelConfig, tokens: usize, device: &Device) -> plan::Step {
        let needs = Objective::paper(self.method).needs();
        plan::Step {
            config,
            precision: self.precision,
            tokens,
            checkpointed: self.checkpoint_activations,
            lora: self.lora_rank.map(|rank| LoraConfig { rank, ..LoraConfig::default() }),
            optimizer: self.optimizer().kind,
            accumulates: false,
            waiting: self.optimizer_in_backward.then_some(tokens),
            gpu: facts(device).is_some(),
            second_model: needs.token_kl,
            d_sae: needs.features.then_some(self.d_sae),
        }
    }

    pub(crate) fn optimizer(&self) -> OptimizerSettings {
        OptimizerSettings {
            kind: OptimizerKind::Adamw,
            learning_rate: 5e-7,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            weight_decay: 0.0,
            max_grad_norm: self.max_grad_norm,
            warmup_ratio: None,
            betas: [0.9, 0.999],
        }
    }
}

/// FLOPs of a step on these pairs.
fn flops(pairs: &[PairLengths], planned: &plan::Step) -> f64 {
    let products = Products {
        config: &planned.config,
        pairs,
        lora: planned.lora.as_ref(),
        second_model: planned.second_model,
        d_sae: planned.d_sae,
    };
    products.flops()
}

/// Runs the step that alignment runs on a batch, with a model of random weights, and measures it.
///
/// # Errors
/// Sizes that can't work together, a file of lengths that can't be used ([`LengthsError`](crate::LengthsError)), a precision that the
/// device lacks, a device failure, or a loss that isn't finite.
pub fn measure(sizes: &StepSizes, device: &Device) -> Result<StepReport> {
    let sizes = &sizes.with_model_sizes();
    let mut batches = sizes.batches()?;
    // Others have no turn.
    batches.truncate(usize::try_from(sizes.steps)?.saturating_add(1));
    let largest = batches.iter().map(|pairs| lengths::sum(pairs, PairLengths::computed)).max();
    let largest = largest.unwrap_or(0);
    ensure!(
        largest <= MOST_TOKENS,
        "a step of {largest} tokens is more than the {MOST_TOKENS} that are measured: lower --pairs, or the tokens of each"
    );
    let planned = sizes.planned(sizes.config()?, largest, device);
    guard(|| run(sizes, &planned, &batches, device))
        .map_err(|error| advice::of_step(error, &planned, device))
}

fn run(
    sizes: &StepSizes,
    planned: &plan::Step,
    batches: &[Vec<PairLengths>],
    device: &Device,
) -> Result<StepReport> {
    if Objective::paper(sizes.method).needs().features && !(1..=sizes.d_sae).contains(&sizes.k) {
        bail!("--k {} must be between 1 and --d-sae {}", sizes.k, sizes.d_sae);
    }
    plan::check_precision(device, sizes.precision)?;
    let begun = Instant::now();
    let (mut running, mut policy) = Running::start(sizes, planned, batches, device)?;
    sync(device)?;
    let start_seconds = begun.elapsed().as_secs_f64();
    let mut memory = DeviceMemory::new(device);
    let (mut whole, mut phases) = (Vec::new(), <[Vec<f64>; 3]>::default());
    let mut add = |done: &Done| phases.iter_mut().zip(done.phases).for_each(|(all, t)| all.push(t));
    let (moved, first) = running.step(policy, 0, Waits::Once)?;
    policy = moved;
    let is_gpu = facts(device).is_some();
    if is_gpu {
        for step in 1..=sizes.steps.min(PHASED) {
            let (moved, done) = running.step(policy, step, Waits::AfterEachPhase(&mut memory))?;
            policy = moved;
            add(&done);
        }
    }
    // These come last, where a profiler from outside finds them.
    let mut last_loss = f64::NAN;
    for step in 1..=sizes.steps {
        // On the CPU a phase is done when it returns.
        let waits = if is_gpu { Waits::Once } else { Waits::AfterEachPhase(&mut memory) };
        let (moved, done) = running.step(policy, step, waits)?;
        (policy, last_loss) = (moved, done.loss);
        whole.push(done.seconds());
        if !is_gpu {
            add(&done);
        }
    }
    ensure!(last_loss.is_finite(), "the loss is {last_loss}");
    let peak_rss_mib = peak_rss_mib();
    let watched = match sizes.profile {
        true => Some(Watched::of(&mut running, policy, sizes.steps)?),
        false => None,
    };
    // Frees memory for the matrices below.
    drop(running);
    let typical = if batches.len() == 1 { median } else { mean };
    let ([forward, backward, optimizer], whole) = (phases.map(typical), typical(whole));
    let of_steps = |of: &dyn Fn(&[PairLengths]) -> f64| {
        mean((1..=sizes.steps).map(|step| of(in_turn::<Vec<_>>(batches, step))).collect())
    };
    let tokens = of_steps(&|pairs| lengths::sum(pairs, PairLengths::in_rows) as f64);
    let model_flops = of_steps(&|pairs| flops(pairs, planned));
    let matmul_flops = matmul_rate(device, sizes.precision)?;
    let profile = match watched {
        Some(watched) => Some(watched.report(matmul_flops, memory_rate(device)?)),
        None => None,
    };
    Ok(StepReport {
        method: sizes.method.to_string(),
        tokens_per_second: tokens / whole,
        step_seconds: whole,
        forward_seconds: forward,
        backward_seconds: backward,
        optimizer_seconds: optimizer,
        start_seconds,
        first_step_seconds: first.seconds(),
        peak_rss_mib,
        device_in_use_mib: memory.mib().map(|(in_use, _)| in_use),
        device_reserved_mib: memory.mib().map(|(_, reserved)| reserved),
        model_flops,
        matmul_flops,
        matmul_share: model_flops / whole / matmul_flops,
        planned_mib: planned.memory().total() as f64 / f64::from(1 << 20),
        steps: sizes.steps as usize,
        tokens: tokens.round() as usize,
        loss: last_loss,
        profile,
    })
}
