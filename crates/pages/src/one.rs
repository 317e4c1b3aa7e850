//! The report of one run.

use fpo_data::hash::hash_bytes;
use fpo_losses::Method;
use fpo_metrics::table;
use fpo_report::{Report, Sample, SampleGroup};
use serde_json::Value;

use crate::{AnsweredPrompt, Evaluation, PageError, RunFiles, curves::stages};

/// Answers that the page shows of each kind, at most.
pub(crate) const SAMPLES_SHOWN: usize = 12;

/// The report of a run; of one that isn't finished, what there is.
///
/// # Errors
/// Settings that can't be written as TOML.
pub fn page(run: &RunFiles) -> Result<Report, PageError> {
    let s = &run.settings;
    let source = source(run);
    let unreadable =
        |error| PageError::Settings { folder: run.folder.clone(), why: format!("{error:#}") };
    let evaluation = run.evaluation.as_ref();
    Ok(Report {
        title: format!("{} on {source} data", s.align.method.to_string().to_uppercase()),
        subtitle: format!("fpo {} · seed {}", env!("CARGO_PKG_VERSION"), s.seed),
        warnings: warnings(run),
        summary: summary(run, source),
        table: evaluation.map_or(Vec::new(), |evaluation| {
            table(&s.align.objective(), &evaluation.before, &evaluation.after)
        }),
        comparison: None,
        stages: stages(run),
        samples: evaluation.map_or(Vec::new(), |evaluation| samples(run, evaluation)),
        features: evaluation.map_or(Vec::new(), |evaluation| evaluation.features.clone()),
        settings_toml: s.to_toml().map_err(unreadable)?,
        notes: notes(run),
    })
}

fn warnings(run: &RunFiles) -> Vec<String> {
    let unfinished = run.unfinished().map(|what| format!("This run isn't finished: {what}."));
    let other = run.version.as_ref().filter(|version| *version != env!("CARGO_PKG_VERSION"));
    let other = other.map(|version| {
        format!("fpo {version} made this run; what that version didn't record is missing here.")
    });
    unfinished.into_iter().chain(other).collect()
}

/// The name of the data alone: the settings at the end of the page have the whole path.
pub(crate) fn source(run: &RunFiles) -> String {
    match &run.settings.data.train {
        Some(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        None => "built-in".into(),
    }
}

fn summary(run: &RunFiles, source: String) -> Vec<(String, String)> {
    let s = &run.settings;
    let objective = s.align.objective();
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut summary =
        vec![("Method", s.align.method.to_string()), ("β", objective.beta.to_string())];
    if [Method::FPO, Method::TDPO2, Method::SIMPO_KL].contains(&s.align.method) {
        summary.push(("α", objective.alpha.to_string()));
    }
    summary.push(("Data", source));
    if let Some([train, held_out]) = &run.pairs {
        summary.extend([
            ("Pairs", train.kept.to_string()),
            ("Prompts clipped", percent(train.clipped_prompt_share())),
            ("Responses clipped", percent(train.clipped_response_share())),
            ("Pairs dropped", percent(train.dropped_share())),
            ("Held-out pairs", held_out.kept.to_string()),
        ]);
    }
    if let Some(kept) = &run.kept {
        summary.push(("Kept step", format!("{} ({} {:.4})", kept.step, kept.metric, kept.value)));
    }
    if let Some(quality) = &run.quality {
        let number = |key: &str| quality.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
        summary.extend([
            ("k", s.align.k.to_string()),
            ("Site", s.sae.site.clone()),
            ("SAE L0", format!("{:.1}", number("l0"))),
            ("SAE explained variance", format!("{:.3}", number("explained_variance"))),
        ]);
    }
    summary.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn notes(run: &RunFiles) -> Vec<String> {
    let mut notes = vec![
        "Hardware, wall clock and tokens per second are in timing.json beside this page, so that equal runs have equal pages.".into(),
    ];
    if run.quality.is_some() {
        notes.extend([
            "SAE explained variance is 1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²) on activations it was not trained on.".into(),
            "A feature's activation is averaged over the positions that predict a response, then over held-out responses.".into(),
        ]);
    }
    notes
}

/// Some of these many places, the same in every run with this seed: by a hash of seed and place.
pub(crate) fn drawn(seed: u64, places: usize) -> Vec<usize> {
    let mut drawn: Vec<usize> = (0..places).collect();
    drawn.sort_by_key(|place| hash_bytes(format!("{seed} {place}").as_bytes()));
    drawn.truncate(SAMPLES_SHOWN);
    drawn.sort_unstable();
    drawn
}

/// What a prompt's expected answer is.
pub(crate) fn expected(run: &RunFiles) -> &'static str {
    match run.settings.data.train {
        None => "Right answer",
        Some(_) => "Chosen response",
    }
}

/// Some at random, so that they are like the rest, and those whose verdict changed apart, since they say most.
fn samples(run: &RunFiles, evaluation: &Evaluation) -> Vec<SampleGroup> {
    let all = &evaluation.answers;
    let drawn = drawn(run.settings.seed, all.len());
    let changed: Vec<usize> =
        (0..all.len()).filter(|&i| all[i].before.right != all[i].after.right).collect();
    let shown = changed.len().min(SAMPLES_SHOWN);
    let other = expected(run);
    let group = |title: &str, choice: String, places: &[usize]| SampleGroup {
        title: title.into(),
        choice,
        samples: places.iter().map(|&place| sample(&all[place], other)).collect(),
    };
    let at_random = format!(
        "{} of {} held-out prompts, drawn at random with the run's seed before any answer was looked at.",
        drawn.len(),
        all.len()
    );
    let changes = format!(
        "{} of {} prompts have another verdict after alignment, for better or worse; the first {shown} of them, in the order of the data.",
        changed.len(),
        all.len()
    );
    let groups = [
        group("At random", at_random, &drawn),
        group("Changed verdicts", changes, &changed[..shown]),
    ];
    groups.into_iter().filter(|group| !group.samples.is_empty()).collect()
}

fn sample(answered: &AnsweredPrompt, other: &str) -> Sample {
    let (before, after) = (answered.before.clone(), answered.after.clone());
    Sample {
        prompt: answered.prompt.clone(),
        other: Some((other.to_owned(), answered.expected.clone())),
        before: before.text,
        after: after.text,
        before_right: before.right,
        after_right: after.right,
        note_before: before.verdict,
        note_after: after.verdict,
    }
}
