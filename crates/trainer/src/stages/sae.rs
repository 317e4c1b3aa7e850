//! The sparse autoencoder: trained on activations of the reference model, or a file.

use anyhow::{Context, Result};
use fpo_data::{SequenceStore, Tokenizer, checkpoints::Checkpoints};
use fpo_interp::{
    activations::{ActivationStore, Source, StoreSettings},
    autoencoder::open,
    training::{SaeTrainingRun, quality},
};
use fpo_sae::{Quality, Sae, save_sae_lens};
use fpo_transformer::{LanguageModel, Site, weights};

use super::prepare::Prepared;
use crate::run::{Run, Stage, Workspace};

/// Tokens kept for measuring, at most.
const HELD_OUT: usize = 100_000;

/// The share of the variance that any autoencoder should explain.
const MUCH: f64 = 0.2;

/// Trains an autoencoder, or reads the one that the settings name, and measures it.
///
/// # Errors
/// An autoencoder that doesn't fit the model, or too few activations.
pub fn sae(run: &Run, prepared: &Prepared, sft: &Stage) -> Result<Stage> {
    let s = &run.settings.sae;
    let mut fingerprint = super::fingerprint_of_model(run)
        .with("prepared", &prepared.stage.hash)
        .with("model", &sft.hash)
        .with("sae", super::section(s)?);
    if let Some(path) = &s.path {
        fingerprint = fingerprint.with("file", super::content(path)?);
    }
    run.stage("sae", fingerprint, |workspace| fill(run, prepared, sft, workspace))
}

fn fill(run: &Run, prepared: &Prepared, sft: &Stage, workspace: &Workspace) -> Result<()> {
    let s = &run.settings.sae;
    let model = weights::load(&sft.folder, run.placement())?;
    let site: Site = s.site.parse()?;
    site.check(model.config().num_hidden_layers)?;
    let named = run.settings.model.path.as_deref();
    let given = match &s.path {
        Some(path) => Some(open(path, site, model.config(), named, &run.device, &run.reporter)?),
        None => None,
    };
    let mut store = store(run, prepared, &model, site)?;
    let sae = match given {
        Some(sae) => sae,
        None => train(run, &mut store, site, workspace)?,
    };
    let held_out = store.measuring_blocks()?.into_iter().next();
    let quality = quality(&sae, &held_out.context("a site gives one block")?, &run.device)?;
    let summary = format!(
        "L0 {:.1}, explained variance {:.3}, dead features {:.1} % of {} over {} tokens",
        quality.l0,
        quality.explained_variance,
        100.0 * quality.dead_features,
        sae.d_sae(),
        quality.tokens
    );
    run.reporter.note("sae", summary);
    if let Some(warning) = warning(&quality) {
        run.reporter.warn(warning);
    }
    super::write_json(&workspace.output.join("quality.json"), &quality)?;
    Ok(save_sae_lens(&sae, &workspace.output)?)
}

/// What is said of an autoencoder whose features tell next to nothing of the model.
fn warning(quality: &Quality) -> Option<String> {
    let Quality { l0, explained_variance, .. } = *quality;
    if l0 < 1.0 {
        return Some(format!(
            "the autoencoder's features are hardly ever active (L0 {l0:.2}): what is made of them, FPO's constraint too, is close to nothing"
        ));
    }
    (explained_variance.is_nan() || explained_variance < MUCH).then(|| {
        format!(
            "the autoencoder explains {:.0} % of the activations' variance: has it been trained on this model and site?",
            100.0 * explained_variance
        )
    })
}

/// Refuses a run whose examples leave nothing to train an autoencoder on.
///
/// # Errors
/// Says how many there are, and what to set.
pub(super) fn check_rows(run: &Run, data: &SequenceStore, tokenizer: &Tokenizer) -> Result<()> {
    let s = &run.settings;
    if !s.features() || s.sae.path.is_some() {
        return Ok(());
    }
    store_settings(run).check_rows(data, &tokenizer.special_ids()).with_context(|| {
        format!(
            "the examples for the stage sae are too few; give more (data.sft, or data.train), raise sae.tokens = {}, name a trained \
             autoencoder (sae.path), or leave features out (align.method=dpo, evaluate.features=false)",
            s.sae.tokens
        )
    })
}

fn store_settings(run: &Run) -> StoreSettings {
    let s = &run.settings;
    StoreSettings {
        tokens: s.sae.tokens,
        held_out: HELD_OUT,
        buffer_tokens: s.sae.buffer_tokens.get(),
        max_norm: s.sae.max_norm,
        batch_size: s.reference.batch_size,
        seed: s.seed,
    }
}

fn store<'a>(
    run: &Run,
    prepared: &'a Prepared,
    model: &'a LanguageModel,
    site: Site,
) -> Result<ActivationStore<'a>> {
    let source = Source {
        model,
        data: &prepared.sft,
        excluded: prepared.tokenizer.special_ids(),
        sites: vec![site],
        reporter: run.reporter.clone(),
    };
    ActivationStore::new(source, store_settings(run))
}

/// Trains on everything but the tokens kept for measuring.
fn train(
    run: &Run,
    store: &mut ActivationStore<'_>,
    site: Site,
    workspace: &Workspace,
) -> Result<Sae> {
    let checkpoints = Checkpoints::new(&workspace.checkpoints);
    let training = SaeTrainingRun {
        stage: "sae",
        settings: &run.settings.sae.training,
        sites: &[site],
        seed: run.settings.seed,
        // Not the run folder's path: equal runs in different places write equal files.
        model_name: "sft".into(),
        checkpoints: &checkpoints,
        checkpoint_every: run.settings.sae.checkpoint_every.get(),
        track: super::track(run, "sae"),
    };
    let sae = training.run(store, &run.device)?.into_iter().next();
    checkpoints.copy_log(&workspace.output)?;
    sae.context("a site gives one autoencoder")
}
