//! Before and after: held-out pairs, answers to held-out prompts, and the features that moved.

use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::{Int, Tensor, TensorData};
use fpo_data::{Batches, PairBatch};
use fpo_datasets::check;
use fpo_transformer::{GenerationOptions, LanguageModel, Site, generate};
use serde::{Deserialize, Serialize};

use super::{Base, align::measuring_aligner, prepare::EvalPrompt, reference::Split};
use crate::aligner::Aligner;
use crate::pair_log::Log;
use fpo_device::progress::Progress;
use fpo_report::{FeatureMove, TokenContext};
use crate::run::{Run, Stage};
use crate::trained::load_result;

/// Features shown, those whose mean pooled activation moved most.
const FEATURES_SHOWN: usize = 12;
/// Pairs searched for the tokens that activate them.
const PAIRS_SEARCHED: usize = 200;
/// Stretches of text shown for each feature, and tokens on either side of the strongest.
const EXAMPLES_SHOWN: usize = 3;
const CONTEXT: usize = 8;

/// Everything measured of one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The method's loss on held-out pairs.
    pub loss: f64,
    /// Share of pairs whose chosen response has the higher average log-probability.
    pub accuracy: f64,
    /// Share of pairs whose chosen response has the higher reward.
    pub reward_accuracy: f64,
    /// Mean difference of rewards.
    pub reward_margin: f64,
    /// KL(reference ‖ model), summed over a response, mean over chosen ones; nats.
    pub chosen_kl: f64,
    /// The same for rejected ones.
    pub rejected_kl: f64,
    /// Feature distance D, mean over chosen responses.
    pub chosen_distance: f64,
    /// The same for rejected ones.
    pub rejected_distance: f64,
    /// Mean entropy of the distributions that answers were sampled from; nats.
    pub entropy: f64,
    /// Mean length of an answer in tokens.
    pub answer_tokens: f64,
    /// Share of answers that the built-in checker calls right.
    pub right: Option<f64>,
}

/// One prompt, answered before and after.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AnsweredPrompt {
    /// The prompt.
    pub prompt: String,
    /// The answer wanted.
    pub expected: String,
    /// The answer before.
    pub before: Answer,
    /// The answer after.
    pub after: Answer,
}

/// An answer and its verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// What the checker says, where it can judge.
    pub verdict: Option<String>,
    /// Whether it is right.
    pub right: Option<bool>,
}

/// What the stage leaves behind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// The model before alignment.
    pub before: Measured,
    /// The model after it.
    pub after: Measured,
    /// Every prompt with both answers.
    pub answers: Vec<AnsweredPrompt>,
    /// The features that moved most.
    pub features: Vec<FeatureMove>,
}

impl Evaluation {
    /// Reads what the stage wrote.
    pub fn load(folder: &Path) -> Result<Self> {
        super::read_json(&folder.join("evaluation.json"))
    }
}

/// The stage.
pub fn evaluate(run: &Run, base: &Base, align: &Stage) -> Result<Stage> {
    let s = &run.settings;
    let fingerprint = super::fingerprint_of_model(run)
        .with("align", &align.hash)
        .with("evaluate", super::section(&s.evaluate)?);
    run.stage("evaluate", fingerprint, |workspace| {
        let aligner = measuring_aligner(run, base, Split::HeldOut)?;
        let prompts: Vec<&EvalPrompt> =
            base.prepared.prompts.iter().take(s.evaluate.prompts).collect();
        let pairs = base.prepared.held_out.len();
        let mut progress = Progress::new("evaluate", "items", 2 * (pairs + prompts.len()), 0);
        // The model before is the reference: it is there once.
        let before = aligner.reference_model.as_ref().context("measuring takes a reference")?;
        let (measured_before, answers_before, pooled_before) =
            measure(run, base, &aligner, before, &prompts, &mut progress)?;
        let after = load_result(&align.folder, before, &run.placement())?;
        let (measured_after, answers_after, pooled_after) =
            measure(run, base, &aligner, &after, &prompts, &mut progress)?;
        progress.finish("");
        let answers = prompts
            .iter()
            .zip(answers_before.into_iter().zip(answers_after))
            .map(|(prompt, (before, after))| AnsweredPrompt {
                prompt: prompt.text.clone(),
                expected: prompt.expected.clone(),
                before,
                after,
            })
            .collect();
        let features = moved_features(run, base, &after, &pooled_before, &pooled_after)?;
        let evaluation =
            Evaluation { before: measured_before, after: measured_after, answers, features };
        super::write_json(&workspace.output.join("evaluation.json"), &evaluation)
    })
}

/// Measures one model: numbers, answers, and the mean pooled activation of every feature.
fn measure(
    run: &Run,
    base: &Base,
    aligner: &Aligner,
    model: &LanguageModel,
    prompts: &[&EvalPrompt],
    progress: &mut Progress,
) -> Result<(Measured, Vec<Answer>, Vec<f64>)> {
    let s = &run.settings.evaluate;
    let prepared = &base.prepared;
    let mut log = Log::default();
    let mut pooled: Vec<f64> = Vec::new();
    for indices in Batches::sequential(prepared.held_out.len(), s.batch_size).iter() {
        let pairs = prepared.held_out.views(indices)?;
        let batch = PairBatch::new(&pairs, prepared.tokenizer.pad_id())?;
        let measured = aligner.measure(model, &batch)?;
        log.add(&measured);
        let policy = measured.pooled.context("measuring reads features")?;
        let sums: Vec<f64> = policy.sum_dim(0).into_data().iter::<f64>().collect();
        pooled.resize(sums.len(), 0.0);
        pooled.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        progress.advance(indices.len(), "pairs");
    }
    let responses = (2 * prepared.held_out.len()) as f64;
    pooled.iter_mut().for_each(|total| *total /= responses);

    let mut options = GenerationOptions {
        max_new_tokens: s.max_new_tokens,
        temperature: s.temperature,
        seed: run.settings.seed,
        stop_tokens: prepared.tokenizer.stop_ids(),
        ..GenerationOptions::default()
    };
    let mut answers = Vec::with_capacity(prompts.len());
    let (mut entropies, mut tokens) = (Vec::new(), 0usize);
    for chunk in prompts.chunks(s.batch_size.get()) {
        options.first_prompt = answers.len() as u64;
        let input: Vec<Vec<u32>> = chunk.iter().map(|p| p.tokens.clone()).collect();
        for (prompt, generated) in chunk.iter().zip(generate(model, &input, &options)?) {
            entropies.extend(generated.entropies.iter().map(|&h| f64::from(h)));
            tokens += generated.tokens.len();
            let text = prepared.tokenizer.decode(&generated.tokens, true)?;
            let verdict = prompt.task.as_ref().map(|task| check(task, &text));
            answers.push(Answer {
                right: verdict.map(|v| v.is_right()),
                verdict: verdict.map(|v| v.to_string()),
                text,
            });
        }
        progress.advance(chunk.len(), "prompts");
    }
    log.quantities().check().context("the held-out pairs")?;
    let numbers = log.numbers(&aligner.objective);
    let mean = |name: &str| numbers.mean(name).unwrap_or(f64::NAN);
    let judged: Vec<bool> = answers.iter().filter_map(|a| a.right).collect();
    let right = (!judged.is_empty())
        .then(|| judged.iter().filter(|r| **r).count() as f64 / judged.len() as f64);
    let measured = Measured {
        loss: mean("loss"),
        accuracy: numbers.length_normalised_accuracy(),
        reward_accuracy: numbers.reward_accuracy(),
        reward_margin: mean("rewards/margins"),
        chosen_kl: mean("kl/chosen"),
        rejected_kl: mean("kl/rejected"),
        chosen_distance: mean("distance/chosen"),
        rejected_distance: mean("distance/rejected"),
        entropy: entropies.iter().sum::<f64>() / entropies.len().max(1) as f64,
        answer_tokens: tokens as f64 / prompts.len().max(1) as f64,
        right,
    };
    Ok((measured, answers, pooled))
}

/// The features whose mean pooled activation moved most, with the tokens that activate them.
fn moved_features(
    run: &Run,
    base: &Base,
    model: &LanguageModel,
    before: &[f64],
    after: &[f64],
) -> Result<Vec<FeatureMove>> {
    let sae = fpo_sae::load(&base.sae.folder, &run.device)?;
    // Those of align.more_sites come after these.
    let mut order: Vec<usize> = (0..sae.d_sae()).collect();
    let movement = |i: usize| (after[i] - before[i]).abs();
    order.sort_by(|&a, &b| movement(b).total_cmp(&movement(a)).then(a.cmp(&b)));
    order.truncate(FEATURES_SHOWN);

    let prepared = &base.prepared;
    let site: Site = run.settings.sae.site.parse()?;
    let columns: Vec<i32> = order.iter().map(|&i| i as i32).collect();
    let columns = Tensor::<1, Int>::from_data(TensorData::new(columns, [order.len()]), &run.device);
    let mut fired = vec![0usize; order.len()];
    let mut seen = 0usize;
    // The strongest token of each response: (activation, tokens, activations).
    let mut found: Vec<Vec<(f32, TokenContext)>> = vec![Vec::new(); order.len()];
    for index in 0..prepared.held_out.len().min(PAIRS_SEARCHED) {
        let pair = prepared.held_out.get(index)?;
        for response in [pair.chosen, pair.rejected] {
            let tokens: Vec<i32> = response.tokens.iter().map(|&t| t as i32).collect();
            let count = tokens.len();
            let input =
                Tensor::<2, Int>::from_data(TensorData::new(tokens, [1, count]), &run.device);
            let output = model.activations(input, &[site]);
            let x = output.into_iter().next().context("a site gives one tensor")?;
            let width = x.dims()[2];
            let features = sae.encode(x.reshape([count, width])).select(1, columns.clone());
            let features: Vec<f32> = features.into_data().iter::<f32>().collect();
            seen += count - 1;
            for slot in 0..order.len() {
                // Position 0 is BOS, which the autoencoder never saw.
                let values: Vec<f32> = (0..count)
                    .map(|t| if t == 0 { 0.0 } else { features[t * order.len() + slot] })
                    .collect();
                fired[slot] += values.iter().filter(|v| **v > 0.0).count();
                let strongest = values
                    .iter()
                    .enumerate()
                    .fold((0, 0.0), |best, (t, &v)| if v > best.1 { (t, v) } else { best });
                if strongest.1 > 0.0 {
                    let range =
                        strongest.0.saturating_sub(CONTEXT)..(strongest.0 + CONTEXT + 1).min(count);
                    let tokens = range
                        .clone()
                        .map(|t| prepared.tokenizer.decode(&response.tokens[t..=t], false))
                        .collect::<Result<_, _>>()?;
                    let activations = values[range].to_vec();
                    found[slot].push((strongest.1, TokenContext { tokens, activations }));
                    found[slot].sort_by(|a, b| b.0.total_cmp(&a.0));
                    found[slot].dedup_by(|a, b| a.1.tokens == b.1.tokens);
                    found[slot].truncate(EXAMPLES_SHOWN);
                }
            }
        }
    }
    Ok(order
        .iter()
        .zip(found)
        .zip(fired)
        .map(|((&index, found), fired)| FeatureMove {
            index,
            before: before[index],
            after: after[index],
            density: Some(fired as f64 / seen.max(1) as f64),
            examples: found.into_iter().map(|(_, context)| context).collect(),
        })
        .collect())
}
