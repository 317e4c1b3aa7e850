//! Supervised fine-tuning: the model that alignment starts from, which is the reference too.

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Tensor;
use fpo_data::{Epochs, SequenceBatch};
use fpo_transformer::{Family, ModelConfig, Sizes, generate::check_prompts};
use serde_json::Map;

use super::{StageName, card, prepare::Prepared};
use crate::{
    forward::{DeviceBatch, Forward, Keep},
    optim::StepGradients,
    run::{Run, Stage, Workspace},
    trained::{Initial, Trained},
    training::{Frame, StepResult, Training},
};

/// Fine-tunes, or with no epochs uses the model where it lies.
///
/// # Errors
/// A model or examples that don't fit together, or those of the training.
pub fn sft(run: &Run, prepared: &Prepared) -> Result<Stage> {
    let s = &run.settings;
    let mut fingerprint = super::fingerprint(run)
        .with("prepared", &prepared.stage.hash)
        .with("model", super::section(&s.model)?)
        .with("sft", super::section(&s.sft)?);
    if let Some(path) = &s.model.path {
        let config = ModelConfig::load(path)?;
        let rows = config.vocab_size;
        // A tokenizer may have more tokens than the model: Gemma-3's has one for images.
        if let Some(id) = prepared.largest_token().filter(|&id| id as usize >= rows) {
            bail!("the data has token {id}, the model of {} only {rows} tokens", path.display());
        }
        let (longest, positions) = (prepared.longest(), config.max_position_embeddings);
        if longest > positions {
            bail!(
                "the data has a text of {longest} tokens, the model of {} only {positions} positions: lower data.max_length",
                path.display()
            );
        }
        let prompts: Vec<_> = prepared.asked(run).iter().map(|p| p.tokens.clone()).collect();
        check_prompts(&config, &prompts, s.evaluate.max_new_tokens)
            .context("evaluate.max_new_tokens")?;
        let hash = super::content(path)?;
        if s.sft.epochs == 0.0 {
            return Ok(Stage { folder: path.clone(), hash });
        }
        fingerprint = fingerprint.with("weights", hash);
    }
    run.stage("sft", fingerprint, |workspace| train(run, prepared, workspace))
}

fn train(run: &Run, prepared: &Prepared, workspace: &Workspace) -> Result<()> {
    let s = &run.settings.sft;
    let placement = run.placement().autodiff();
    let trained = Trained::new(
        &run.settings.model,
        initial(run, prepared)?,
        s.lora.as_ref(),
        &run.placement(),
    )?;
    let (lengths, length) = (prepared.sft.lengths(), s.length());
    let epochs = Epochs::new(&lengths, s.batch_size, length.begun(), run.settings.seed);
    let keep = Keep::checkpointed(s.checkpoint_activations);
    let mut training = Training::start(Frame {
        stage: "sft",
        workspace,
        total_steps: length.steps(lengths.len()),
        checkpoint_every: s.checkpoint_every.get(),
        optimizer: &s.optimizer,
        trained: &trained,
        placement: &placement,
        seed: run.settings.seed,
        track: super::track(run, "sft"),
        evaluation: None,
        keep_last: None,
    })?;
    while let Some(step) = training.next_step() {
        let examples = prepared.sft.views(epochs.batch(step)?)?;
        let response_tokens: usize = examples.iter().map(|example| example.learned()).sum();
        let mut gradients = StepGradients::new(s.optimizer_in_backward);
        let (mut shares, mut tokens) = (Vec::new(), 0);
        for micro_batch in examples.chunks(s.micro_batch_size.get()) {
            let sequences = SequenceBatch::new(micro_batch)?;
            let batch = &sequences.batch;
            let on_device = DeviceBatch::new(batch, &placement.device);
            let model = training.model().dropping(run.settings.seed, step);
            let model = &model.for_tokens(sequences.token_keys());
            let mut forward = Forward::for_training(model, batch, &on_device, None, keep);
            // The mean over all response tokens of the step, whichever micro-batch they are in.
            let share = -forward.token_log_probs().sum() / response_tokens as f64;
            gradients.add_of(&share, model, forward.tape.take());
            shares.push(share.without_autodiff());
            tokens += batch.real_tokens();
        }
        training.apply(gradients, || {
            let loss = Tensor::cat(shares, 0).into_data().iter::<f64>().sum();
            let ids = examples.iter().map(|example| example.id).collect();
            StepResult { loss, tokens, ids, metrics: Map::new() }
        })?;
    }
    let model = training.finish()?;
    let note = |text| run.reporter.note("sft", text);
    trained.finish(&model, &workspace.output, note)?;
    card::write(run, prepared, StageName::Sft, &workspace.output, &[])?;
    super::save_tokenizer(&prepared.tokenizer, &workspace.output)
}

/// The checkpoint that the settings name, or random weights of their sizes.
fn initial(run: &Run, prepared: &Prepared) -> Result<Initial> {
    let s = &run.settings.model;
    if let Some(path) = &s.path {
        return Ok(Initial::Folder(path.clone()));
    }
    let tokenizer = &prepared.tokenizer;
    let sizes = Sizes { vocab_size: tokenizer.vocab_size(), ..s.sizes };
    let config = Family::Gemma2.config(&sizes).map_err(|message| anyhow!("model: {message}"))?;
    let config = ModelConfig {
        sliding_window: Some(s.sliding_window),
        initializer_range: s.initializer_range,
        pad_token_id: Some(tokenizer.pad_id()),
        bos_token_id: tokenizer.bos_id().or(Some(2)),
        eos_token_ids: tokenizer.stop_ids(),
        ..config
    };
    config.check().map_err(|message| anyhow!("model: {message}"))?;
    Ok(Initial::Random { config: Box::new(config), seed: run.settings.seed })
}
