//! The sparse autoencoder: activations of the reference model, and a training on them; or a file.

use std::io::Write;

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Int, Tensor, TensorData};
use fpo_data::{Batches, SequenceBatch};
use fpo_sae::{JumpReluSae, Provenance, Quality, QualityMeter, SaeTrainer, save_sae_lens};
use fpo_transformer::{Gemma2, Site, weights};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::prepare::Prepared;
use crate::{
    progress::Progress,
    run::{Run, Stage, Workspace},
    training::METRICS_FILE,
};

/// A share of the activations is kept for measuring.
const HELD_OUT: f64 = 0.1;
/// Tokens measured at once.
const MEASURED_AT_ONCE: usize = 4096;

/// The stage.
pub fn sae(run: &Run, prepared: &Prepared, sft: &Stage) -> Result<Stage> {
    let s = &run.settings.sae;
    let mut fingerprint = super::fingerprint(run)
        .with("prepared", &prepared.stage.hash)
        .with("model", &sft.hash)
        .with("sae", super::section(s)?);
    if let Some(path) = &s.path {
        fingerprint = fingerprint.with("file", super::content(path)?);
    }
    run.stage("sae", fingerprint, |workspace| {
        let model = weights::load(&sft.folder, &run.device)?;
        let site: Site = s.site.parse()?;
        site.check(model.config().num_hidden_layers)?;
        let activations = Activations::collect(run, prepared, &model, site)?;
        let sae = match &s.path {
            Some(path) => fpo_sae::load(path, &run.device)?,
            None => train(run, &activations, site, workspace)?,
        };
        if sae.d_in() != activations.width {
            bail!(
                "the autoencoder takes activations of width {}, {site} of the model has {}",
                sae.d_in(),
                activations.width
            );
        }
        let quality = activations.measure(&sae, &run.device)?;
        eprintln!(
            "{:>9}  L0 {:.1}, explained variance {:.3}, dead features {:.1} % of {} over {} tokens",
            "sae",
            quality.l0,
            quality.explained_variance,
            100.0 * quality.dead_features,
            sae.d_sae(),
            quality.tokens
        );
        super::write_json(&workspace.output.join("quality.json"), &quality)?;
        Ok(save_sae_lens(&sae, &workspace.output)?)
    })
}

/// Activations of one site in host memory, `[tokens, width]`.
struct Activations {
    values: Vec<f32>,
    width: usize,
}

impl Activations {
    /// Runs the model over shuffled examples until the tokens asked for are there. Positions that hold
    /// BOS or EOS and padding are left out, as autoencoders are trained on none of them.
    fn collect(run: &Run, prepared: &Prepared, model: &Gemma2, site: Site) -> Result<Self> {
        let s = &run.settings;
        let excluded = prepared.excluded_tokens();
        let lengths = prepared.sft.lengths();
        let available: usize = lengths.iter().sum();
        let wanted = s.sae.tokens.min(available);
        let mut progress = Progress::new("sae", "tokens", wanted, 0);
        let mut collected = Self { values: Vec::new(), width: 0 };
        let plan = Batches::shuffled(&lengths, s.reference.batch_size, s.seed, 0);
        let mut tokens = 0;
        for indices in plan.iter() {
            if tokens >= wanted {
                break;
            }
            let examples = prepared.sft.views(indices)?;
            let batch = SequenceBatch::new(&examples, prepared.tokenizer.pad_id())?.batch;
            let shape = [batch.rows, batch.width];
            let input = TensorData::new(batch.tokens.clone(), shape);
            let input = Tensor::<2, Int>::from_data(input, &run.device);
            let output = model.activations(input, &[site]);
            let x = output.into_iter().next().context("a site gives one tensor")?;
            let [_, _, width] = x.dims();
            let kept: Vec<i32> = (0..batch.rows)
                .flat_map(|row| {
                    let real = batch.row(row).iter().enumerate();
                    let kept = real.filter(|(_, token)| !excluded.contains(&(**token as u32)));
                    kept.map(move |(t, _)| (row * shape[1] + t) as i32).collect::<Vec<_>>()
                })
                .collect();
            let count = kept.len();
            let kept = Tensor::<1, Int>::from_data(TensorData::new(kept, [count]), &run.device);
            let x = x.reshape([shape[0] * shape[1], width]).select(0, kept);
            collected.width = width;
            collected.values.extend(x.into_data().iter::<f32>());
            tokens += count;
            progress.advance(count, "activations");
        }
        if collected.tokens() < 2 {
            bail!("the data gives no activations to train an autoencoder on");
        }
        progress.finish(&format!("{} activations of {site}", collected.tokens()));
        Ok(collected)
    }

    fn tokens(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Tokens used for training; the rest is for measuring.
    fn training_tokens(&self) -> usize {
        let held_out = (self.tokens() as f64 * HELD_OUT) as usize;
        self.tokens() - held_out.clamp(1, self.tokens() - 1)
    }

    fn rows(&self, rows: impl Iterator<Item = usize>, device: &Device) -> Tensor<2> {
        let width = self.width;
        let values: Vec<f32> =
            rows.flat_map(|row| self.values[row * width..][..width].iter().copied()).collect();
        let shape = [values.len() / width, width];
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn measure(&self, sae: &JumpReluSae, device: &Device) -> Result<Quality> {
        let mut meter = QualityMeter::new(sae.d_in(), sae.d_sae());
        let mut start = self.training_tokens();
        while start < self.tokens() {
            let end = (start + MEASURED_AT_ONCE).min(self.tokens());
            meter.add(sae, self.rows(start..end, device));
            start = end;
        }
        meter.quality().context("no activations to measure on")
    }
}

/// Trains on everything but the tokens kept for measuring.
fn train(
    run: &Run,
    activations: &Activations,
    site: Site,
    workspace: &Workspace,
) -> Result<JumpReluSae> {
    let s = &run.settings.sae.training;
    let mut rng = ChaCha8Rng::seed_from_u64(run.settings.seed);
    let mut order: Vec<usize> = (0..activations.training_tokens()).collect();
    order.shuffle(&mut rng);
    let sample = activations.rows(order.iter().take(MEASURED_AT_ONCE).copied(), &run.device);
    let mut trainer = SaeTrainer::new(s, sample, run.settings.seed, &run.device)?;

    let path = workspace.output.join(METRICS_FILE);
    let mut metrics =
        std::fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let mut progress = Progress::new("sae", "steps", s.steps, 0);
    let mut next = 0;
    for step in 0..s.steps {
        if next + s.batch_tokens > order.len() && next > 0 {
            order.shuffle(&mut rng);
            next = 0;
        }
        let end = (next + s.batch_tokens).min(order.len());
        let report = trainer.step(activations.rows(order[next..end].iter().copied(), &run.device));
        next = end;
        if !report.loss.is_finite() {
            bail!(
                "step {}: the loss is {}; a lower sae.training.learning_rate may help",
                step + 1,
                report.loss
            );
        }
        let line = json!({
            "step": step + 1,
            "loss": report.loss,
            "mse": report.mse,
            "l0": report.l0,
            "learning_rate": report.learning_rate,
        });
        writeln!(metrics, "{line}").with_context(|| format!("writing {}", path.display()))?;
        progress.advance(1, &format!("loss {:.4}, L0 {:.1}", report.loss, report.l0));
    }
    progress.finish("");
    Ok(trainer.finish(Provenance {
        model_name: Some(run.folder.join("sft").to_string_lossy().into_owned()),
        hook_name: Some(site.hook_name()),
    }))
}
