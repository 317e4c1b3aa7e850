//! Supervised fine-tuning: the model from which alignment starts, which is the reference too.

use anyhow::{Context, Result, anyhow, bail};
use fpo_data::{Batches, SequenceBatch};
use fpo_transformer::{Family, LanguageModel, ModelConfig, Placement, Sizes, weights};
use serde_json::Map;

use super::prepare::Prepared;
use crate::forward::{Activations, DeviceBatch, Forward};
use crate::optim::GradientMap;
use crate::run::{Run, Stage};
use crate::trained::Trained;
use crate::training::{StepResult, Training};

/// The stage. A model that is taken as it is (no epochs) is used where it lies.
pub fn sft(run: &Run, prepared: &Prepared) -> Result<Stage> {
    let s = &run.settings;
    let mut fingerprint = super::fingerprint(run)
        .with("prepared", &prepared.stage.hash)
        .with("model", super::section(&s.model)?)
        .with("sft", super::section(&s.sft)?);
    if let Some(path) = &s.model.path {
        let rows = ModelConfig::load(path)?.vocab_size;
        let ids = prepared.tokenizer.vocab_size();
        if ids > rows {
            bail!("the tokenizer has {ids} tokens, the model of {} only {rows}", path.display());
        }
        let hash = super::content(path)?;
        if s.sft.epochs == 0 {
            return Ok(Stage { folder: path.clone(), hash });
        }
        fingerprint = fingerprint.with("weights", hash);
    }
    run.stage("sft", fingerprint, |workspace| {
        let frozen = run.placement();
        let trained_in = frozen.autodiff();
        let lengths = prepared.sft.lengths();
        let steps_per_epoch = lengths.len().div_ceil(s.sft.batch_size.get());
        let plans: Vec<Batches> = (0..s.sft.epochs)
            .map(|epoch| Batches::shuffled(&lengths, s.sft.batch_size, s.seed, epoch as u64))
            .collect();
        let load = |placement: &Placement| initial_model(run, prepared, placement);
        let trained = Trained::new(s.sft.lora.as_ref(), &frozen, s.model.path.as_deref(), load)?;
        let training = Training {
            stage: "sft",
            workspace,
            total_steps: s.sft.epochs * steps_per_epoch,
            checkpoint_every: s.sft.checkpoint_every.get(),
            optimizer: &s.sft.optimizer,
            trained: &trained,
        };
        let activations = Activations::checkpointed(s.sft.checkpoint_activations);
        let pad = prepared.tokenizer.pad_id();
        let model = training.run(
            &trained_in,
            || trained.start(s.seed, &trained_in, load),
            |model, step| {
                let indices = plans[step / steps_per_epoch]
                    .get(step % steps_per_epoch)
                    .with_context(|| format!("no batch for step {step}"))?;
                let examples = prepared.sft.views(indices)?;
                let total: usize =
                    examples.iter().map(|e| e.response.tokens.len() - e.response.prompt_len).sum();
                let mut gradients = GradientMap::default();
                let (mut loss, mut tokens) = (0.0, 0);
                for examples in examples.chunks(s.sft.micro_batch_size.get()) {
                    let batch = SequenceBatch::new(examples, pad)?.batch;
                    let device_batch = DeviceBatch::new(&batch, &trained_in.device);
                    let mut forward =
                        Forward::for_training(model, &batch, &device_batch, None, activations);
                    // The mean over all response tokens of the step, whichever part they are in.
                    let part = -forward.token_log_probs(model, &device_batch).sum() / total as f64;
                    gradients.add_of(&part, model, forward.tape.take());
                    loss += part.into_scalar::<f64>();
                    tokens += batch.real_tokens();
                }
                let ids = examples.iter().map(|e| e.id).collect();
                Ok(StepResult { loss, gradients, tokens, ids, metrics: Map::new() })
            },
        )?;
        trained.finish(&model, &workspace.output)?;
        prepared.tokenizer.save(&workspace.output)?;
        Ok(())
    })
}

/// The checkpoint that the settings name, or random weights.
fn initial_model(run: &Run, prepared: &Prepared, placement: &Placement) -> Result<LanguageModel> {
    let s = &run.settings.model;
    let tokenizer = &prepared.tokenizer;
    if let Some(path) = &s.path {
        return Ok(weights::load(path, placement)?);
    }
    let sizes = Sizes { vocab_size: tokenizer.vocab_size(), ..s.sizes() };
    let config = Family::Gemma2.config(&sizes).map_err(|message| anyhow!("model: {message}"))?;
    let config = ModelConfig {
        sliding_window: s.sliding_window,
        initializer_range: s.initializer_range,
        pad_token_id: tokenizer.pad_id(),
        bos_token_id: tokenizer.bos_id().unwrap_or(2),
        eos_token_ids: tokenizer.stop_ids(),
        ..config
    };
    if let Err(message) = config.check() {
        bail!("model: {message}");
    }
    Ok(weights::random(&config, run.settings.seed, placement)?)
}
