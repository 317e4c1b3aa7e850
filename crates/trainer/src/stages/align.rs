//! Preference alignment: the policy moves, the reference is read from its cache.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use fpo_data::{Batches, PairBatch};
use fpo_losses::Needs;
use fpo_transformer::{LanguageModel, Placement, weights};
use serde_json::json;

use super::{
    Base,
    reference::{Split, feature_reader, open_cache},
};
use crate::aligner::Aligner;
use crate::alignment_step::step_gradients;
use fpo_interp::features::FeatureFile;
use crate::forward::{Activations, FeatureReader};
use crate::run::{Run, Stage};
use crate::trained::Trained;
use crate::training::{StepResult, Training};

/// The stage.
pub fn align(run: &Run, base: &Base) -> Result<Stage> {
    let s = &run.settings.align;
    let prepared = &base.prepared;
    let mut fingerprint = super::fingerprint_of_model(run)
        .with("prepared", &prepared.stage.hash)
        .with("model", &base.sft.hash)
        .with("reference", &base.reference.hash)
        .with("align", super::section(s)?);
    if let Some(path) = &s.feature_weights {
        fingerprint = fingerprint.with("feature_weights", super::content(path)?);
    }
    run.stage("align", fingerprint, |workspace| {
        let frozen = run.placement();
        let trained_in = frozen.autodiff();
        let objective = s.objective();
        let load = |placement: &Placement| Ok(weights::load(&base.sft.folder, placement)?);
        let trained = Trained::new(s.lora.as_ref(), &frozen, Some(&base.sft.folder), load)?;
        let aligner = training_aligner(run, base, trained.base())?;
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
            trained: &trained,
        };
        let start = || trained.start(run.settings.seed, &trained_in, load);
        let policy = training.run(&trained_in, start, |policy, step| {
            let indices = plans[step / steps_per_epoch]
                .get(step % steps_per_epoch)
                .with_context(|| format!("no batch for step {step}"))?;
            let pairs = prepared.train.views(indices)?;
            let parts = pairs
                .chunks(s.micro_batch_size.get())
                .map(|part| PairBatch::new(part, prepared.tokenizer.pad_id()))
                .collect::<Result<Vec<_>, _>>()?;
            let (gradients, log) = step_gradients(&aligner, policy, &parts)?;
            let tokens = parts.iter().map(|part| part.batch.real_tokens()).sum();
            let ids = pairs.iter().map(|p| p.id).collect();
            let (loss, mut metrics) = log.numbers(&objective).metrics(&objective);
            metrics.insert("pairs/clipped".into(), json!(prepared.train_summary.clipped_share()));
            metrics.insert("pairs/dropped".into(), json!(prepared.train_summary.dropped_share()));
            Ok(StepResult { loss, gradients, tokens, ids, metrics })
        })?;
        trained.finish(&policy, &workspace.output)?;
        Ok(prepared.tokenizer.save(&workspace.output)?)
    })
}

/// What training needs and nothing else: a second model only for methods that ask for one, and not even
/// then where the first one is frozen beside its adapters.
pub fn training_aligner(run: &Run, base: &Base, frozen: Option<&LanguageModel>) -> Result<Aligner> {
    let s = &run.settings.align;
    let activations = Activations::checkpointed(s.checkpoint_activations);
    let needs = s.objective().needs();
    let aligner = aligner_with(run, base, Split::Train, needs, frozen)?;
    Ok(Aligner { activations, token_statistics: s.token_statistics, ..aligner })
}

/// For measuring: everything, whatever the method.
pub fn measuring_aligner(run: &Run, base: &Base, split: Split) -> Result<Aligner> {
    let needs = run.settings.align.objective().needs();
    aligner_with(run, base, split, Needs { token_kl: true, features: true, ..needs }, None)
}

fn aligner_with(
    run: &Run,
    base: &Base,
    split: Split,
    needs: Needs,
    frozen: Option<&LanguageModel>,
) -> Result<Aligner> {
    let prepared = &base.prepared;
    let stages = (&base.sft, &base.sae, &base.reference);
    let cache = open_cache(run, prepared, stages, split)?;
    let pairs = match split {
        Split::Train => &prepared.train,
        Split::HeldOut => &prepared.held_out,
    };
    cache.require(pairs.iter().map(|p| p.id))?;
    let reader = needs.features.then(|| feature_reader(run, prepared, &base.sae)).transpose()?;
    let s = &run.settings;
    let k = s.align.k;
    let weights = |path: &PathBuf| -> Result<_> {
        let reader = reader.as_ref().context("feature weights are of a method with features")?;
        let encoder = reader.encoders().next().context("a reader has an encoder")?;
        let selection = s.align.feature_selection;
        let weights =
            FeatureFile::load(path)?.weights(encoder, &s.sae.site, selection, &run.device);
        weights.with_context(|| format!("feature file {}", path.display()))
    };
    let feature_weights = s.align.feature_weights.as_ref().map(weights).transpose()?;
    if let Some(features) = reader.iter().flat_map(FeatureReader::widths).min()
        && k > features
    {
        bail!("align.k = {k} is more than the {features} features of the autoencoder");
    }
    let reference_model = match (needs.token_kl, frozen) {
        (false, _) => None,
        (true, Some(model)) => Some(model.clone()),
        (true, None) => Some(weights::load(&base.sft.folder, run.placement())?),
    };
    Ok(Aligner {
        objective: run.settings.align.objective(),
        needs,
        k,
        feature_weights,
        reader,
        cache,
        reference_model,
        activations: Activations::Kept,
        token_statistics: false,
    })
}
