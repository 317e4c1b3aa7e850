//! Preference alignment: the policy moves, the reference is read from its cache.

use anyhow::{Context, Result};
use fpo_data::{Epochs, PairBatch};
use fpo_interp::features::FeatureFile;
use fpo_losses::Needs;
use fpo_transformer::{LanguageModel, weights};
use serde_json::json;

use super::{Base, StageName, card, during, reference::Split};
use crate::{
    aligner::{Aligner, FeatureConstraint},
    alignment_step::step_gradients,
    forward::Keep,
    optim::StepGradients,
    run::{Run, Stage, Workspace},
    trained::{Initial, Trained},
    training::{Frame, StepResult, Training, kept_checkpoints},
};

/// Aligns the fine-tuned model.
///
/// # Errors
/// A cache that doesn't match, or those of the training.
pub fn align(run: &Run, base: &Base) -> Result<Stage> {
    let s = &run.settings.align;
    let mut fingerprint = super::fingerprint_of_model(run)
        .with("prepared", &base.prepared.stage.hash)
        .with("model", &base.sft.hash)
        .with("reference", &base.caches.stage.hash)
        .with("align", super::section(s)?);
    if let Some(path) = &s.feature_weights {
        fingerprint = fingerprint.with("feature_weights", super::content(path)?);
    }
    if let Some(weight_type) = run.settings.model.save_dtype {
        fingerprint = fingerprint.with("save_dtype", weight_type);
    }
    if let Some(evaluation) = during::fingerprint(run) {
        fingerprint = fingerprint.with("evaluation", evaluation);
    }
    run.stage("align", fingerprint, |workspace| train(run, base, workspace))
}

fn train(run: &Run, base: &Base, workspace: &Workspace) -> Result<()> {
    let s = &run.settings.align;
    let prepared = &base.prepared;
    let placement = run.placement().autodiff();
    let initial = Initial::Folder(base.sft.folder.clone());
    let trained = Trained::new(&run.settings.model, initial, s.lora.as_ref(), &run.placement())?;
    let aligner = training_aligner(run, base, trained.base())?;
    let frozen = aligner.reference_model.as_ref().or(trained.base());
    let (lengths, length) = (prepared.train.lengths(), s.length());
    let epochs = Epochs::new(&lengths, s.batch_size, length.begun(), run.settings.seed);
    let mut training = Training::start(Frame {
        stage: "align",
        workspace,
        total_steps: length.steps(lengths.len()),
        checkpoint_every: s.checkpoint_every.get(),
        optimizer: &s.optimizer,
        trained: &trained,
        placement: &placement,
        seed: run.settings.seed,
        track: super::track(run, "align"),
        evaluation: during::evaluation(run, base, frozen)?,
        keep_last: s.keep_last,
    })?;
    while let Some(step) = training.next_step() {
        let pairs = prepared.train.views(epochs.batch(step)?)?;
        let micro_batches = pairs
            .chunks(s.micro_batch_size.get())
            .map(PairBatch::new)
            .collect::<Result<Vec<_>, _>>()?;
        let seed = run.settings.seed;
        let none = StepGradients::new(s.optimizer_in_backward);
        let policy = training.model().dropping(seed, step);
        let (gradients, measured) = step_gradients(&aligner, &policy, &micro_batches, none)?;
        // The optimiser moves weights in place where nothing else has them.
        drop(policy);
        training.apply(gradients, || {
            let (loss, mut metrics) = fpo_metrics::log(&measured.read());
            metrics.insert("beta".into(), json!(aligner.objective.beta));
            metrics.insert("pairs/clipped".into(), json!(prepared.train_summary.clipped_share()));
            metrics.insert("pairs/dropped".into(), json!(prepared.train_summary.dropped_share()));
            let tokens = micro_batches.iter().map(|pairs| pairs.batch.real_tokens()).sum();
            let ids = pairs.iter().map(|pair| pair.id).collect();
            StepResult { loss, tokens, ids, metrics }
        })?;
    }
    let policy = training.finish()?;
    let note = |text| run.reporter.note("align", text);
    trained.finish(&policy, &workspace.output, note)?;
    card::write(run, prepared, StageName::Align, &workspace.output, &[])?;
    for folder in kept_checkpoints(&workspace.output)? {
        super::save_tokenizer(&prepared.tokenizer, &folder)?;
    }
    super::save_tokenizer(&prepared.tokenizer, &workspace.output)
}

/// What training needs and nothing else: a second model only for methods that ask for one, and not even then where the first one
/// is frozen beside its adapters.
///
/// # Errors
/// A cache that doesn't match, or a model that can't be loaded.
pub fn training_aligner(run: &Run, base: &Base, frozen: Option<&LanguageModel>) -> Result<Aligner> {
    let s = &run.settings.align;
    let aligner = aligner(run, base, Split::Train, s.objective().needs(), frozen)?;
    let keep = Keep::checkpointed(s.checkpoint_activations);
    Ok(Aligner { keep, token_statistics: s.token_statistics, ..aligner })
}

/// For measuring: KL too, whatever the method, and features where the run has them.
///
/// # Errors
/// A cache that doesn't match, or a model that can't be loaded.
pub fn measuring_aligner(run: &Run, base: &Base, split: Split) -> Result<Aligner> {
    let needs = run.settings.align.objective().needs();
    let features = base.caches.reader.is_some();
    aligner(run, base, split, Needs { token_kl: true, features, ..needs }, None)
}

/// For measuring while training: KL where a reference model is at hand, so that no second one is loaded.
///
/// # Errors
/// A cache that doesn't match.
pub fn watching_aligner(run: &Run, base: &Base, frozen: Option<&LanguageModel>) -> Result<Aligner> {
    let needs = run.settings.align.objective().needs();
    let (token_kl, features) = (frozen.is_some(), base.caches.reader.is_some());
    let needs = Needs { token_kl, features, ..needs };
    let aligner = aligner(run, base, Split::HeldOut, needs, frozen)?;
    Ok(Aligner { token_statistics: run.settings.align.token_statistics, ..aligner })
}

fn aligner(
    run: &Run,
    base: &Base,
    split: Split,
    needs: Needs,
    frozen: Option<&LanguageModel>,
) -> Result<Aligner> {
    let s = &run.settings.align;
    let features = match needs.features {
        true => Some(constraint(run, base)?),
        false => None,
    };
    let reference_model = match (needs.token_kl, frozen) {
        (false, _) => None,
        (true, Some(model)) => Some(model.clone()),
        (true, None) => Some(weights::load(&base.sft.folder, run.placement())?),
    };
    Ok(Aligner {
        objective: s.objective(),
        needs,
        token_statistics: false,
        cache: base.caches.open(split, &base.prepared)?,
        features,
        reference_model,
        keep: Keep::All,
    })
}

fn constraint(run: &Run, base: &Base) -> Result<FeatureConstraint> {
    let s = &run.settings;
    let reader = base.caches.reader.clone().context("a run without an autoencoder")?;
    let weights = match &s.align.feature_weights {
        None => None,
        Some(path) => {
            let encoder = reader.encoders().next().context("a reader without an encoder")?;
            let (site, selection) = (&s.sae.site, s.align.feature_selection);
            let weights = FeatureFile::load(path)?.weights(encoder, site, selection, &run.device);
            Some(vec![weights.with_context(|| format!("feature file {}", path.display()))?])
        }
    };
    Ok(FeatureConstraint { reader, k: s.align.k, weights })
}
