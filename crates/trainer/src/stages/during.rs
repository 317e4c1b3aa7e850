//! Held-out pairs and prompts while alignment is under way.

use std::num::NonZeroUsize;

use anyhow::Result;
use fpo_config::EvaluateSettings;
use fpo_data::hash::hash_bytes;
use fpo_device::progress::Reporter;
use fpo_metrics::held_out_log;
use fpo_track::SAMPLES;
use fpo_transformer::LanguageModel;
use serde_json::json;

use super::{
    Base,
    align::watching_aligner,
    evaluate::{Answer, Scope, find},
    prepare::EvalPrompt,
};
use crate::{run::Run, training::Evaluation};

/// What the evaluations of an alignment depend on, beside what the alignment does; none without them.
pub fn fingerprint(run: &Run) -> Option<String> {
    let EvaluateSettings { every, subset, samples, max_new_tokens, temperature, features, .. } =
        run.settings.evaluate;
    (every > 0).then(|| {
        let answers = match samples {
            0 => "no samples".into(),
            _ => format!("{samples} samples of {max_new_tokens} tokens at {temperature}"),
        };
        format!("every {every} steps, {subset} pairs, {answers}, features {features}")
    })
}

/// What [`Training`](crate::training::Training) measures on the way, where the settings ask for it. `frozen` is a reference model
/// that is there anyway.
///
/// # Errors
/// A reference cache of the held-out pairs that doesn't match.
pub fn evaluation<'a>(
    run: &'a Run,
    base: &'a Base,
    frozen: Option<&LanguageModel>,
) -> Result<Option<Evaluation<'a>>> {
    let s = &run.settings;
    let Some(every) = NonZeroUsize::new(s.evaluate.every) else { return Ok(None) };
    let aligner = watching_aligner(run, base, frozen)?;
    let pairs = drawn(base.prepared.held_out.len(), s.evaluate.subset.get(), s.seed);
    let prompts = &base.prepared.prompts;
    let prompts = &prompts[..prompts.len().min(s.evaluate.samples)];
    let measure = move |model: &LanguageModel| {
        // Pairs as in a step, so that memory is no more than a step's.
        let scope = Scope { pairs: &pairs, batch_size: s.align.micro_batch_size, prompts };
        let mut unseen = Reporter::silent().begin("evaluate", "items", 0, 0);
        let found = find(run, base, &aligner, model, &scope, &mut unseen)?;
        let mut line = held_out_log(&found.pairs, &found.answers);
        if !prompts.is_empty() {
            let sample = |(prompt, answer): (&EvalPrompt, &Answer)| json!({ "prompt": prompt.text, "response": answer.text });
            let samples = prompts.iter().zip(&found.texts).map(sample);
            line.insert(SAMPLES.into(), samples.collect());
        }
        Ok(line)
    };
    Ok(Some(Evaluation { every, rules: s.align.rules(), measure: Box::new(measure) }))
}

/// So many of the places below `all`, the same ones for a seed, in their order.
fn drawn(all: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut places: Vec<usize> = (0..all).collect();
    places.sort_by_cached_key(|place| hash_bytes(format!("{seed} {place}").as_bytes()));
    places.truncate(count);
    places.sort_unstable();
    places
}
