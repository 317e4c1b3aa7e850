//! The step that alignment runs, on batches of random tokens and a model of random weights.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use fpo_data::{
    Fingerprint, PairBatch, Pooling, ReferenceCache, ReferenceWriter, ResponseView, TokenizedPair,
    TokenizedResponse,
    reference::{CacheShape, StoredFeatures},
};
use fpo_device::sync;
use fpo_interp::reader::FeatureReader;
use fpo_losses::{Objective, mean_loss};
use fpo_ops::{Activation, Encoder, Normalization, profile};
use fpo_plan as plan;
use fpo_sae::{Provenance, Sae};
use fpo_trainer::{
    aligner::{Aligner, FeatureConstraint},
    forward::Keep,
    optim::{Optimizer, StepGradients},
    reference::Reference,
};
use fpo_transformer::{LanguageModel, Placement, Site, weights};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{device_memory::DeviceMemory, lengths::PairLengths, step::StepSizes};

/// A training whose steps go round through a few batches.
pub(crate) struct Running {
    pub device: Device,
    batches: Vec<PairBatch>,
    aligner: Aligner,
    optimizer: Optimizer,
    optimizer_in_backward: bool,
}

/// A step that was done.
pub(crate) struct Done {
    /// Seconds of forward pass and loss, backward pass, and optimiser.
    pub phases: [f64; 3],
    pub loss: f64,
}

impl Done {
    /// Of the whole step.
    pub fn seconds(&self) -> f64 {
        self.phases.iter().sum()
    }
}

/// When a step waits for the device.
pub(crate) enum Waits<'a> {
    /// At its end, as in a training: only then its loss is read. The phases end when they are queued.
    Once,
    /// After each phase, when the memory is sampled.
    AfterEachPhase(&'a mut DeviceMemory),
}

impl Waits<'_> {
    fn after_phase(&mut self, device: &Device) -> Result<()> {
        if let Self::AfterEachPhase(memory) = self {
            sync(device)?;
            memory.sample();
        }
        Ok(())
    }
}

impl Running {
    /// Draws tokens and weights, and computes the reference's values of all batches into a cache. The policy is returned apart: a
    /// step moves it.
    pub fn start(
        sizes: &StepSizes,
        planned: &plan::Step,
        batches: &[Vec<PairLengths>],
        device: &Device,
    ) -> Result<(Self, LanguageModel)> {
        device.seed(0);
        let pairs = random_pairs(sizes.vocab, batches.iter().flatten());
        let views: Vec<_> = pairs.iter().map(TokenizedPair::view).collect();
        let batches =
            views.chunks(sizes.pairs).map(PairBatch::new).collect::<Result<Vec<_>, _>>()?;
        let placement = Placement::new(device.clone(), sizes.precision);
        let trainable = placement.autodiff();
        let (policy, reference) = match &planned.lora {
            None => {
                let policy = weights::random(&planned.config, 0, &trainable)?;
                let reference = policy.frozen();
                (policy, reference)
            }
            Some(lora) => {
                lora.check().map_err(|m| anyhow!("--lora-rank: {m}"))?;
                let reference = weights::random(&planned.config, 0, placement)?;
                (reference.with_new_lora(lora, 0, &trainable.device)?, reference)
            }
        };
        let aligner = aligner(sizes, reference, &batches, views[0].chosen)?;
        let optimizer = Optimizer::new(&sizes.optimizer(), usize::MAX);
        let device = device.clone();
        let optimizer_in_backward = sizes.optimizer_in_backward;
        Ok((Self { device, batches, aligner, optimizer, optimizer_in_backward }, policy))
    }

    /// One step of the policy, on the batch that is the step's in turn.
    ///
    /// # Errors
    /// A device failure, or gradients that aren't finite.
    pub fn step(
        &mut self,
        policy: LanguageModel,
        step: u64,
        mut waits: Waits,
    ) -> Result<(LanguageModel, Done)> {
        let batch = in_turn(&self.batches, step);
        let begun = Instant::now();
        let phase = profile::phase("forward");
        let comparison = self.aligner.compare(&policy, batch)?;
        let loss = {
            let _loss = profile::part("loss");
            mean_loss(self.aligner.objective.losses(comparison.quantities))
        };
        waits.after_phase(&self.device)?;
        drop(phase);
        let forward = begun.elapsed().as_secs_f64();

        let phase = profile::phase("backward");
        let mut gradients = StepGradients::new(self.optimizer_in_backward);
        gradients.add_of(&loss, &policy, comparison.tape);
        waits.after_phase(&self.device)?;
        drop(phase);
        let backward = begun.elapsed().as_secs_f64();

        let phase = profile::phase("optimiser");
        let (policy, info) = self.optimizer.step(policy, gradients);
        let (loss, norm) = (loss.into_scalar::<f32>(), info.grad_norm());
        ensure!(norm.is_finite(), "the gradient norm is {norm}");
        sync(&self.device)?;
        waits.after_phase(&self.device)?;
        drop(phase);
        let whole = begun.elapsed().as_secs_f64();
        let phases = [forward, backward - forward, whole - backward];
        Ok((policy, Done { phases, loss: loss.into() }))
    }
}

/// The batch of a step: steps go round through the batches, and the step to warm up, 0, is on the first.
pub(crate) fn in_turn<T>(batches: &[T], step: u64) -> &T {
    &batches[(step % batches.len() as u64) as usize]
}

/// Pairs of random tokens; the responses of a pair share their prompt.
fn random_pairs<'a>(
    vocab: usize,
    lengths: impl Iterator<Item = &'a PairLengths>,
) -> Vec<TokenizedPair> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut random =
        |tokens| -> Vec<u32> { (0..tokens).map(|_| rng.random_range(0..vocab as u32)).collect() };
    let pair = |(id, &PairLengths { prompt, chosen, rejected })| {
        let beginning = random(prompt);
        let mut response = |tokens| TokenizedResponse {
            tokens: [beginning.as_slice(), &random(tokens)].concat(),
            prompt_len: prompt,
        };
        TokenizedPair { id, chosen: response(chosen), rejected: response(rejected) }
    };
    (0..).zip(lengths).map(pair).collect()
}

/// The objective with what it needs; log-probabilities and features of the reference come from a cache on disk, as in a run. The
/// autoencoder is made for a model of which `sample` is an input.
fn aligner(
    sizes: &StepSizes,
    reference: LanguageModel,
    batches: &[PairBatch],
    sample: ResponseView,
) -> Result<Aligner> {
    let site =
        Site::resid_post(sizes.layers.checked_sub(1).context("--layers must be at least 1")?);
    let sae = random_sae(sizes, &reference, site, sample);
    let reader = FeatureReader::new(Pooling::Predicting, Vec::new()).with(&sae, site);
    let folder = tempfile::tempdir()?;
    let fingerprint = Fingerprint::default().with("bench", "random weights");
    let pairs = batches.iter().map(PairBatch::pairs).sum::<usize>();
    let shape = CacheShape {
        pairs,
        d_sae: sizes.d_sae,
        stored: StoredFeatures::All,
        rows_per_shard: pairs.try_into()?,
    };
    let mut writer = ReferenceWriter::create(folder.path(), &fingerprint, shape)?;
    let offline = Reference { model: &reference, reader: Some(&reader) };
    for row in batches.iter().flat_map(|batch| offline.rows(batch)) {
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

/// A random autoencoder in which about 1 in 44 features is active per token: pre-activations are normally distributed, and the
/// threshold is two standard deviations.
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
            normalization: Normalization::None,
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
