//! Finds settings that make a run fit into memory.

use std::{mem::replace, num::NonZeroUsize};

use anyhow::Result;
use fpo_config::Settings;
use fpo_losses::Method;
use fpo_transformer::{LoraConfig, Precision};

use crate::{Stage, peak};

/// The stages that have to fit, and the memory available.
#[derive(Clone, Copy, Debug)]
pub struct Goal<'a> {
    /// Each of these stages has to fit.
    pub stages: &'a [Stage],
    /// Available memory in bytes.
    pub room: u64,
    /// Whether the device computes in bfloat16.
    pub bfloat16: bool,
}

/// A change of settings that lowers the peak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// One or more command-line options `--set KEY=VALUE`.
    pub set: String,
    /// The peak in bytes after this change and those before it.
    pub peak: u64,
    /// Which stages have to be rerun.
    pub reach: Reach,
}

/// What a change affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// One stage and those that depend on it.
    Stage(Stage),
    /// Every stage: a setting of the model or the data.
    All,
    /// The method, and with it the results.
    Method,
}

struct Candidate {
    reach: Reach,
    /// Applies the change and returns its options; `None` if it doesn't apply.
    make: fn(&mut Settings) -> Option<String>,
}

const fn candidate(reach: Reach, make: fn(&mut Settings) -> Option<String>) -> Candidate {
    Candidate { reach, make }
}

const SFT: Reach = Reach::Stage(Stage::Sft);
const ALIGN: Reach = Reach::Stage(Stage::Align);
const EVALUATE: Reach = Reach::Stage(Stage::Evaluate);

/// Changes that only cost time come first, a change of method last.
const CANDIDATES: [Candidate; 13] = [
    candidate(EVALUATE, |s| one("evaluate.batch_size", &mut s.evaluate.batch_size)),
    candidate(ALIGN, |s| yes("align.checkpoint_activations", &mut s.align.checkpoint_activations)),
    candidate(SFT, |s| yes("sft.checkpoint_activations", &mut s.sft.checkpoint_activations)),
    candidate(Reach::All, bfloat16),
    candidate(ALIGN, |s| one("align.micro_batch_size", &mut s.align.micro_batch_size)),
    candidate(SFT, |s| one("sft.micro_batch_size", &mut s.sft.micro_batch_size)),
    candidate(ALIGN, |s| {
        let a = &mut s.align;
        let applies = a.checkpoint_activations && a.lora.is_none();
        in_backward("align", applies, &mut a.optimizer_in_backward)
    }),
    candidate(SFT, |s| {
        let sft = &mut s.sft;
        let applies = sft.checkpoint_activations && sft.lora.is_none();
        in_backward("sft", applies, &mut sft.optimizer_in_backward)
    }),
    candidate(ALIGN, |s| adapters("align", &mut s.align.lora, &mut s.align.optimizer_in_backward)),
    candidate(SFT, |s| adapters("sft", &mut s.sft.lora, &mut s.sft.optimizer_in_backward)),
    candidate(EVALUATE, shorter_answers),
    candidate(Reach::All, shorter_texts),
    candidate(Reach::Method, without_second_model),
];

fn yes(key: &str, value: &mut bool) -> Option<String> {
    (!replace(value, true)).then(|| format!("--set {key}=true"))
}

fn in_backward(stage: &str, applies: bool, value: &mut bool) -> Option<String> {
    if applies { yes(&format!("{stage}.optimizer_in_backward"), value) } else { None }
}

fn one(key: &str, value: &mut NonZeroUsize) -> Option<String> {
    let before = replace(value, NonZeroUsize::MIN);
    (before != *value).then(|| format!("--set {key}=1"))
}

/// Adapters, which the optimiser never updates within the backward pass.
fn adapters(stage: &str, value: &mut Option<LoraConfig>, in_backward: &mut bool) -> Option<String> {
    if value.is_some() {
        return None;
    }
    let lora = value.insert(LoraConfig::default());
    let set = format!("--set {stage}.lora.rank={}", lora.rank);
    Some(match replace(in_backward, false) {
        true => format!("{set} --set {stage}.optimizer_in_backward=false"),
        false => set,
    })
}

fn bfloat16(s: &mut Settings) -> Option<String> {
    let before = replace(&mut s.model.precision, Precision::Bf16Mixed);
    let set = || format!("--set model.precision={}", s.model.precision);
    (before != s.model.precision).then(set)
}

fn shorter_answers(s: &mut Settings) -> Option<String> {
    let tokens = &mut s.evaluate.max_new_tokens;
    *tokens /= 2;
    (*tokens >= 32).then(|| format!("--set evaluate.max_new_tokens={tokens}"))
}

/// Halves the texts, and prompts with them, which stay shorter than the texts.
fn shorter_texts(s: &mut Settings) -> Option<String> {
    let data = &mut s.data;
    data.max_length /= 2;
    let mut set = format!("--set data.max_length={}", data.max_length);
    if let Some(prompt) = &mut data.max_prompt_length {
        *prompt = prompt.div_ceil(2).min(data.max_length - 1);
        set += &format!(" --set data.max_prompt_length={prompt}");
    }
    (data.max_length >= 128).then_some(set)
}

fn without_second_model(s: &mut Settings) -> Option<String> {
    let needs_second = s.align.objective().needs().token_kl && s.align.lora.is_none();
    needs_second.then(|| {
        s.align = s.align.for_method(Method::FPO);
        format!("--set align.method={}", s.align.method)
    })
}

/// Changes that together bring the peak of the goal's stages down to its room. Empty if they already fit, `None` if nothing makes
/// them fit. For a single stage, its own settings are tried before those shared by all stages.
///
/// # Errors
/// The model's sizes can't be determined.
pub fn fit(settings: &Settings, goal: &Goal) -> Result<Option<Vec<Change>>> {
    let candidates = candidates(goal);
    let mut found = Vec::new();
    let (mut next, mut now) = (settings.clone(), peak(settings, goal.stages)?);
    while now > goal.room {
        let Some((candidate, change)) = first_that_helps(&candidates, &next, goal, now)? else {
            return Ok(None);
        };
        found.push(candidate);
        (next, now) = change;
    }
    let mut index = 0;
    while index < found.len() {
        // Later changes may have made it unnecessary.
        let mut others = found.clone();
        others.remove(index);
        let after = changes(&others, settings, goal)?;
        let unnecessary = after.last().is_some_and(|change| change.peak <= goal.room);
        if unnecessary { found = others } else { index += 1 }
    }
    changes(&found, settings, goal).map(Some)
}

/// Applies candidates one after another.
fn changes(found: &[&Candidate], settings: &Settings, goal: &Goal) -> Result<Vec<Change>> {
    let mut settings = settings.clone();
    let changes = found.iter().filter_map(|Candidate { reach, make }| {
        let set = make(&mut settings)?;
        let peak = peak(&settings, goal.stages);
        Some(peak.map(|peak| Change { set, peak, reach: *reach }))
    });
    changes.collect()
}

fn candidates(goal: &Goal) -> Vec<&'static Candidate> {
    let applies = |candidate: &&Candidate| match candidate.reach {
        Reach::Stage(stage) => goal.stages.contains(&stage),
        Reach::All => true,
        Reach::Method => goal.stages.contains(&Stage::Align),
    };
    let mut found: Vec<_> = CANDIDATES.iter().filter(applies).collect();
    if goal.stages.len() == 1 {
        found.sort_by_key(|candidate| match candidate.reach {
            Reach::Stage(_) => 0,
            Reach::All => 1,
            Reach::Method => 2,
        });
    }
    found
}

/// The first candidate that lowers the peak, with the settings and the peak after it.
fn first_that_helps(
    candidates: &[&'static Candidate],
    settings: &Settings,
    goal: &Goal,
    now: u64,
) -> Result<Option<(&'static Candidate, (Settings, u64))>> {
    for candidate in candidates {
        let mut next = settings.clone();
        if (candidate.make)(&mut next).is_none() {
            continue;
        }
        let rounds = next.model.precision != settings.model.precision;
        let peak = peak(&next, goal.stages)?;
        if peak < now && (goal.bfloat16 || !rounds) {
            return Ok(Some((candidate, (next, peak))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use fpo_config::recipes;

    use super::*;

    const GB: u64 = 1_000_000_000;

    fn settings(recipe: &str, set: &[&str]) -> Settings {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Settings::resolve(recipe, None, &set).unwrap()
    }

    fn whole(room: u64) -> Goal<'static> {
        Goal { stages: &Stage::ALL, room, bfloat16: true }
    }

    #[test]
    fn a_gpu_of_24_gb() {
        let card = 24 * GB;
        let all = |s: &Settings| peak(s, &Stage::ALL).unwrap();
        let lora = settings("gemma-2-2b-fpo-lora", &[]);
        assert!(all(&lora) < card, "{}", all(&lora));
        let full = settings("gemma-2-2b-fpo", &[]);
        assert!(all(&full) > card);
        let changes = fit(&full, &whole(card)).unwrap().unwrap();
        assert!(changes.iter().any(|change| change.set.contains("lora")), "{changes:?}");
        assert!(changes.last().unwrap().peak <= card);
        assert!(fit(&full, &whole(1 << 30)).unwrap().is_none());
        assert!(fit(&full, &whole(1 << 40)).unwrap().unwrap().is_empty());
    }

    /// With frozen weights in bfloat16, adapters of the 9B model fit into 24 GB.
    #[test]
    fn nine_billion_parameters_with_adapters() {
        let card = 24 * GB;
        let mixed = settings("gemma-2-9b-fpo-lora", &[]);
        assert!(peak(&mixed, &Stage::ALL).unwrap() < card);
        let float32 = settings("gemma-2-9b-fpo-lora", &["model.precision=float32"]);
        let changes = fit(&float32, &whole(card)).unwrap().unwrap();
        let [change] = changes.as_slice() else { panic!("{changes:?}") };
        assert_eq!(change.set, "--set model.precision=bf16-mixed");
        let lacking = Goal { bfloat16: false, ..whole(card) };
        assert_eq!(fit(&float32, &lacking).unwrap(), None);
    }

    /// Oracle: the peak of settings resolved with the suggested options.
    #[test]
    fn suggestions_are_accepted_and_have_the_stated_peak() {
        let mut shortened = 0;
        for recipe in recipes::names() {
            let s = settings(recipe, &[]);
            let before = peak(&s, &Stage::ALL).unwrap();
            for part in 1..20 {
                let Some(changes) = fit(&s, &whole(before / 20 * part)).unwrap() else { continue };
                let texts: Vec<&str> =
                    changes.iter().flat_map(|change| change.set.split("--set ")).collect();
                let set: Vec<&str> =
                    texts.iter().map(|text| text.trim()).filter(|t| !t.is_empty()).collect();
                let after = peak(&settings(recipe, &set), &Stage::ALL).unwrap();
                assert_eq!(after, changes.last().unwrap().peak, "{recipe}: {set:?}");
                shortened += usize::from(set.iter().any(|t| t.starts_with("data.max_prompt")));
            }
        }
        assert!(shortened > 0);
    }

    #[test]
    fn a_single_stage_leaves_the_others_alone() {
        let s = settings("gemma-2-2b-tdpo2", &["model.precision=float32"]);
        for stage in Stage::ALL {
            let before = peak(&s, &[stage]).unwrap();
            let mut shared = false;
            for part in (1..20).rev() {
                let room = before / 20 * part;
                let goal = Goal { stages: &[stage], room, bfloat16: true };
                let Some(changes) = fit(&s, &goal).unwrap() else { continue };
                let reaches: Vec<_> = changes.iter().map(|change| change.reach).collect();
                let own = |reach: &Reach| *reach == Reach::Stage(stage);
                let foreign = |reach: &Reach| matches!(reach, Reach::Stage(_)) && !own(reach);
                assert!(!reaches.iter().any(foreign), "{changes:?}");
                let first = reaches.iter().position(|reach| !own(reach)).unwrap_or(reaches.len());
                assert!(!reaches[first..].iter().any(own), "{stage:?}: {changes:?}");
                shared |= reaches.contains(&Reach::All);
            }
            assert!(shared, "{stage:?}");
        }
    }
}
