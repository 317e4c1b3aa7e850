//! Preference alignment: the policy moves, the reference is read from its cache.

use anyhow::{Context, Result, bail};
use burn::tensor::Tensor;
use fpo_data::{Batches, PairBatch, ReferenceCache};
use fpo_losses::{Objective, PerResponse, Preference, Quantities, feature_distance};
use fpo_transformer::{Gemma2, weights};
use serde_json::{Map, Value, json};

use super::{
    Base,
    reference::{Split, cached_features, cached_log_probs, feature_reader, open_cache},
};
use crate::{
    forward::{DeviceBatch, FeatureReader, Forward},
    optim::GradientMap,
    run::{Run, Stage},
    training::{StepResult, Training},
};

/// The stage.
pub fn align(run: &Run, base: &Base) -> Result<Stage> {
    let s = &run.settings.align;
    let prepared = &base.prepared;
    let fingerprint = super::fingerprint(run)
        .with("prepared", &prepared.stage.hash)
        .with("model", &base.sft.hash)
        .with("reference", &base.reference.hash)
        .with("align", super::section(s)?);
    run.stage("align", fingerprint, |workspace| {
        let device = run.device.clone().autodiff();
        let objective = s.objective();
        let aligner = Aligner::new(run, base, Split::Train)?;
        let lengths = prepared.train.lengths();
        let steps_per_epoch = lengths.len().div_ceil(s.batch_size.get());
        let plans: Vec<Batches> = (0..s.epochs)
            .map(|epoch| Batches::shuffled(&lengths, s.batch_size, run.settings.seed, epoch as u64))
            .collect();
        let training = Training {
            stage: "align",
            workspace,
            total_steps: s.epochs * steps_per_epoch,
            checkpoint_every: s.checkpoint_every.get(),
            optimizer: &s.optimizer,
        };
        let start = || Ok(weights::load(&base.sft.folder, &device)?);
        let policy = training.run(&device, start, |policy, step| {
            let indices = plans[step / steps_per_epoch]
                .get(step % steps_per_epoch)
                .with_context(|| format!("no batch for step {step}"))?;
            let pairs = prepared.train.views(indices)?;
            let mut gradients = GradientMap::default();
            let mut log = Log::default();
            let mut tokens = 0;
            for part in pairs.chunks(s.micro_batch_size.get()) {
                let batch = PairBatch::new(part, prepared.tokenizer.pad_id())?;
                let outcome = aligner.evaluate(policy, &batch)?;
                // The mean over all pairs of the step, whichever part they are in.
                let loss = outcome.preference.losses().sum() / pairs.len() as f64;
                let mut part_gradients = loss.backward();
                gradients.add(GradientMap::collect(policy, &mut part_gradients));
                log.add(&outcome);
                tokens += batch.batch.real_tokens();
            }
            let ids = pairs.iter().map(|p| p.id).collect();
            let (loss, metrics) = log.metrics(&objective);
            Ok(StepResult { loss, gradients, tokens, ids, metrics })
        })?;
        weights::save(&policy, &workspace.output)?;
        Ok(prepared.tokenizer.save(&workspace.output)?)
    })
}

/// What a policy is compared with, and by which objective.
pub struct Aligner {
    objective: Objective,
    k: usize,
    reader: Option<FeatureReader>,
    cache: ReferenceCache,
    /// Only for methods whose constraint is over the whole vocabulary.
    reference_model: Option<Gemma2>,
}

/// What an objective made of a batch of pairs.
pub struct Outcome {
    /// Rewards and loss.
    pub preference: Preference,
    /// Summed log-probabilities.
    pub log_probs: PerResponse,
    /// Response tokens.
    pub counts: PerResponse,
    /// KL(reference ‖ policy) over the response, where it was computed.
    pub kl: Option<PerResponse>,
    /// The feature distance, where it was computed.
    pub distance: Option<PerResponse>,
    /// Pooled activations of the policy, `[rows, d_sae]`, where they were computed.
    pub pooled: Option<Tensor<2>>,
}

impl Aligner {
    /// For training: loads what the method needs and nothing else.
    pub fn new(run: &Run, base: &Base, split: Split) -> Result<Self> {
        let needs = run.settings.align.method.needs();
        Self::with(run, base, split, needs.features, needs.token_kl)
    }

    /// For measuring: everything, whatever the method.
    pub fn measuring(run: &Run, base: &Base, split: Split) -> Result<Self> {
        Self::with(run, base, split, true, true)
    }

    fn with(run: &Run, base: &Base, split: Split, features: bool, token_kl: bool) -> Result<Self> {
        let prepared = &base.prepared;
        let stages = (&base.sft, &base.sae, &base.reference);
        let cache = open_cache(run, prepared, stages, split)?;
        let pairs = match split {
            Split::Train => &prepared.train,
            Split::HeldOut => &prepared.held_out,
        };
        cache.require(pairs.iter().map(|p| p.id))?;
        let reader = features.then(|| feature_reader(run, prepared, &base.sae)).transpose()?;
        let k = run.settings.align.k;
        if let Some(reader) = &reader
            && k > reader.d_sae()
        {
            bail!("align.k = {k} is more than the {} features of the autoencoder", reader.d_sae());
        }
        let reference_model =
            token_kl.then(|| weights::load(&base.sft.folder, &run.device)).transpose()?;
        let objective = run.settings.align.objective();
        Ok(Self { objective, k, reader, cache, reference_model })
    }

    /// One forward pass of the policy, and the objective's rewards.
    pub fn evaluate(&self, policy: &Gemma2, batch: &PairBatch) -> Result<Outcome> {
        let device = policy.device();
        let device_batch = DeviceBatch::new(&batch.batch, &device);
        let forward = Forward::new(policy, &batch.batch, &device_batch, self.reader.as_ref());
        let log_probs = PerResponse::split(forward.log_probs(policy, &device_batch));
        let counts = device_batch.counts.iter().map(|&n| n as f32).collect::<Vec<_>>();
        let counts = PerResponse::split(Tensor::from_floats(counts.as_slice(), &device));

        let kl = self.reference_model.as_ref().map(|reference_model| {
            let plain = DeviceBatch::new(&batch.batch, &reference_model.device());
            let reference = Forward::new(reference_model, &batch.batch, &plain, None);
            PerResponse::split(forward.kl(policy, &reference, reference_model, &device_batch))
        });
        let pooled = forward.pooled;
        let distance = match &pooled {
            Some(policy) => {
                let reference = cached_features(&self.cache, &batch.ids, &device)?;
                let distance = feature_distance(policy.clone(), reference, self.k, None);
                Some(PerResponse::split(distance))
            }
            None => None,
        };
        let reference = cached_log_probs(&self.cache, &batch.ids, &device)?;
        let preference = self.objective.preference(Quantities {
            log_probs: log_probs.clone(),
            counts: counts.clone(),
            reference: Some(PerResponse::split(reference)),
            kl: kl.clone(),
            distance: distance.clone(),
        });
        Ok(Outcome { preference, log_probs, counts, kl, distance, pooled })
    }
}

/// Numbers of each pair, gathered over the parts of a step or of a whole evaluation.
#[derive(Default)]
pub struct Log(Vec<(&'static str, Vec<f64>)>);

impl Log {
    /// Adds the pairs of a batch.
    pub fn add(&mut self, outcome: &Outcome) {
        let rewards = &outcome.preference.rewards;
        self.push("loss", &outcome.preference.losses());
        self.push("u", &outcome.preference.logits());
        self.push("rewards/chosen", &rewards.chosen);
        self.push("rewards/rejected", &rewards.rejected);
        self.push("rewards/margins", &rewards.margin());
        let both = [
            ("logps/chosen", "logps/rejected", Some(&outcome.log_probs)),
            ("tokens/chosen", "tokens/rejected", Some(&outcome.counts)),
            ("kl/chosen", "kl/rejected", outcome.kl.as_ref()),
            ("distance/chosen", "distance/rejected", outcome.distance.as_ref()),
        ];
        for (chosen, rejected, values) in both {
            if let Some(values) = values {
                self.push(chosen, &values.chosen);
                self.push(rejected, &values.rejected);
            }
        }
    }

    fn push(&mut self, name: &'static str, values: &Tensor<1>) {
        let values = values.to_data();
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, all)) => all.extend(values.iter::<f64>()),
            None => self.0.push((name, values.iter::<f64>().collect())),
        }
    }

    /// The values of every pair.
    pub fn values(&self, name: &str) -> &[f64] {
        self.0.iter().find(|(n, _)| *n == name).map_or(&[], |(_, values)| values)
    }

    /// The mean over pairs, if there are any.
    pub fn mean(&self, name: &str) -> Option<f64> {
        let values = self.values(name);
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The share of pairs whose chosen response has the higher average log-probability per token.
    pub fn length_normalised_accuracy(&self) -> f64 {
        let average = |sums: &str, counts: &str| -> Vec<f64> {
            let pairs = self.values(sums).iter().zip(self.values(counts));
            pairs.map(|(sum, count)| sum / count).collect()
        };
        let chosen = average("logps/chosen", "tokens/chosen");
        let rejected = average("logps/rejected", "tokens/rejected");
        share(chosen.iter().zip(&rejected).map(|(c, r)| c > r))
    }

    /// The share of pairs whose chosen response has the higher reward.
    pub fn reward_accuracy(&self) -> f64 {
        share(self.values("rewards/margins").iter().map(|margin| *margin > 0.0))
    }

    /// The loss and everything else that is logged of a step.
    fn metrics(&self, objective: &Objective) -> (f64, Map<String, Value>) {
        let loss = self.mean("loss").unwrap_or(f64::NAN);
        let mut metrics = Map::new();
        for (name, _) in &self.0 {
            if *name != "loss" {
                metrics.insert((*name).to_owned(), json!(self.mean(name)));
            }
        }
        metrics.insert("rewards/accuracies".into(), json!(self.reward_accuracy()));
        metrics.insert("accuracy".into(), json!(self.length_normalised_accuracy()));
        metrics.insert("beta".into(), json!(objective.beta));
        (loss, metrics)
    }
}

fn share(hits: impl Iterator<Item = bool>) -> f64 {
    let (mut yes, mut all) = (0usize, 0usize);
    for hit in hits {
        yes += usize::from(hit);
        all += 1;
    }
    yes as f64 / all.max(1) as f64
}
