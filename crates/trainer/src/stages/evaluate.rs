//! Before and after: held-out pairs, answers to held-out prompts, and the features that moved.

use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use fpo_data::PairBatch;
use fpo_datasets::check;
use fpo_device::progress::Progress;
use fpo_interp::movement::Texts;
use fpo_metrics::{AnswerValues, METRICS, PairValues, Pairs, measure};
pub use fpo_pages::{Answer, AnsweredPrompt, Evaluation};
use fpo_report::FeatureMove;
use fpo_transformer::{GenerationOptions, LanguageModel, Site, generate};

use super::{Base, align::measuring_aligner, prepare::EvalPrompt, reference::Split};
use crate::{
    aligner::Aligner,
    run::{Run, Stage, Workspace},
    trained::load_result,
};

/// Held-out pairs searched for the tokens that activate a feature.
const PAIRS_SEARCHED: usize = 200;

/// What was found of one model.
pub struct Found {
    /// Every pair, in the order in which they were given.
    pub pairs: Vec<PairValues>,
    /// What the answers measure.
    pub answers: Vec<AnswerValues>,
    /// The answers themselves.
    pub texts: Vec<Answer>,
    /// Mean pooled activation of every feature of the first site over all held-out responses; empty without features.
    pooled: Vec<f64>,
}

/// Measures the model before and after alignment.
///
/// # Errors
/// A held-out pair whose log-probabilities can't be right, or a cache that doesn't match.
pub fn evaluate(run: &Run, base: &Base, align: &Stage) -> Result<Evaluation> {
    let metrics: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
    let metrics = metrics.join(" ");
    let fingerprint = super::fingerprint_of_model(run)
        .with("align", &align.hash)
        .with("metrics", metrics)
        .with("evaluate", super::section(&run.settings.evaluate)?);
    let stage =
        run.stage("evaluate", fingerprint, |workspace| fill(run, base, align, workspace))?;
    super::read_json(&stage.folder.join("evaluation.json"))
}

fn fill(run: &Run, base: &Base, align: &Stage, workspace: &Workspace) -> Result<()> {
    let aligner = measuring_aligner(run, base, Split::HeldOut)?;
    let prompts = base.prepared.asked(run);
    let total = 2 * (base.prepared.held_out.len() + prompts.len());
    let mut progress = run.reporter.begin("evaluate", "items", total, 0);
    // The model before is the reference, which is loaded once.
    let model = aligner.reference_model.as_ref().context("measuring takes a reference")?;
    let all: Vec<usize> = (0..base.prepared.held_out.len()).collect();
    let scope = Scope { pairs: &all, batch_size: run.settings.evaluate.batch_size, prompts };
    let before = find(run, base, &aligner, model, &scope, &mut progress)?;
    let model = load_result(&align.folder, model, &run.placement())?;
    let after = find(run, base, &aligner, &model, &scope, &mut progress)?;
    progress.finish("");

    let features = match &base.sae {
        Some(sae) => moved_features(run, base, sae, &model, &before.pooled, &after.pooled)?,
        None => Vec::new(),
    };
    let measured = [&before, &after].map(|found| measure(&found.pairs, &found.answers));
    let answers = before.texts.into_iter().zip(after.texts);
    let answers = prompts.iter().zip(answers).map(|(prompt, (before, after))| AnsweredPrompt {
        prompt: prompt.text.clone(),
        expected: prompt.expected.clone(),
        before,
        after,
    });
    let [before, after] = measured;
    let evaluation = Evaluation { before, after, answers: answers.collect(), features };
    super::write_json(&workspace.output.join("evaluation.json"), &evaluation)
}

/// On what a model is measured.
pub struct Scope<'a> {
    /// Places of held-out pairs.
    pub pairs: &'a [usize],
    /// Pairs per forward pass.
    pub batch_size: NonZeroUsize,
    /// Held-out prompts.
    pub prompts: &'a [EvalPrompt],
}

/// Measures a model against what it is compared with.
///
/// # Errors
/// A pair whose log-probabilities can't be right.
pub fn find(
    run: &Run,
    base: &Base,
    aligner: &Aligner,
    model: &LanguageModel,
    scope: &Scope,
    progress: &mut Progress,
) -> Result<Found> {
    let prepared = &base.prepared;
    let mut measured = Pairs::default();
    let mut pooled: Vec<f64> = Vec::new();
    for indices in scope.pairs.chunks(scope.batch_size.get()) {
        let pairs = prepared.held_out.views(indices)?;
        let batch = PairBatch::new(&pairs)?;
        let comparison = aligner.compare(model, &batch)?;
        if let Some(features) = comparison.pooled.first() {
            let sums: Vec<f64> = features.clone().sum_dim(0).into_data().iter::<f64>().collect();
            pooled.resize(sums.len(), 0.0);
            pooled.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        comparison.add_to(&mut measured);
        progress.advance(indices.len(), "pairs");
    }
    let responses = (2 * scope.pairs.len()) as f64;
    pooled.iter_mut().for_each(|total| *total /= responses);
    let quantities = measured.quantities();
    quantities.check().context("the held-out pairs")?;
    // All pairs at once: some losses depend on all of a step's pairs, and this is one step.
    measured.add_losses(&aligner.objective.losses(quantities));

    let (answers, texts) = answer(run, base, model, scope.prompts, progress)?;
    Ok(Found { pairs: measured.read(), answers, texts, pooled })
}

/// Samples an answer to every prompt.
fn answer(
    run: &Run,
    base: &Base,
    model: &LanguageModel,
    prompts: &[EvalPrompt],
    progress: &mut Progress,
) -> Result<(Vec<AnswerValues>, Vec<Answer>)> {
    let s = &run.settings.evaluate;
    let tokenizer = &base.prepared.tokenizer;
    let mut options = GenerationOptions {
        max_new_tokens: s.max_new_tokens,
        temperature: s.temperature,
        seed: run.settings.seed,
        stop_tokens: [tokenizer.stop_ids(), model.config().eos_token_ids.clone()].concat(),
        ..GenerationOptions::default()
    };
    let (mut answers, mut texts) = (Vec::new(), Vec::with_capacity(prompts.len()));
    for chunk in prompts.chunks(s.batch_size.get()) {
        options.first_prompt = texts.len() as u64;
        let input: Vec<Vec<u32>> = chunk.iter().map(|prompt| prompt.tokens.clone()).collect();
        for (prompt, generated) in chunk.iter().zip(generate(model, &input, &options)?) {
            let text = tokenizer.decode(&generated.tokens, true)?;
            let verdict = prompt.task.as_ref().map(|task| check(task, &text));
            let right = verdict.map(|verdict| verdict.is_right());
            let (tokens, entropies) = (generated.tokens.len(), generated.entropies);
            answers.push(AnswerValues { entropies, tokens, right });
            texts.push(Answer { right, verdict: verdict.map(|v| v.to_string()), text });
        }
        progress.advance(chunk.len(), "prompts");
    }
    Ok((answers, texts))
}

fn moved_features(
    run: &Run,
    base: &Base,
    sae: &Stage,
    model: &LanguageModel,
    before: &[f64],
    after: &[f64],
) -> Result<Vec<FeatureMove>> {
    let sae = fpo_sae::load(&sae.folder, &run.device)?;
    let site: Site = run.settings.sae.site.parse()?;
    let (pairs, tokenizer) = (&base.prepared.held_out, &base.prepared.tokenizer);
    let pairs = pairs.iter().take(PAIRS_SEARCHED);
    let sequences = pairs.flat_map(|pair| [pair.chosen.tokens, pair.rejected.tokens]).collect();
    let (excluded, decode) = (tokenizer.special_ids(), |token: u32| Ok(tokenizer.show(token)));
    let texts = Texts { model, sae: &sae, site, sequences, excluded: &excluded, decode: &decode };
    texts.moved(before, after)
}
