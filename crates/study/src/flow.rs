//! The order of a study's runs, the choice of each method's best trial, and doing what is left.

use std::time::Instant;

use anyhow::{Result, bail};
use fpo_losses::{FeatureSelection, Method};

use crate::{
    change::Change,
    item::{Item, Part, State},
    measure::{KL, Measured},
    progress::{Progress, duration},
    results::Results,
    select::best,
    study::Study,
    trial::Trial,
};

/// All runs of the tuning part; none where every method has one trial.
pub(crate) fn tuning(study: &Study) -> Vec<Item> {
    if !study.plan.is_tuned() {
        return Vec::new();
    }
    let seed = study.plan.seeds[0];
    let of = |(method, trials): (Method, Vec<Trial>)| {
        trials.into_iter().map(move |trial| Item {
            part: Part::Tune,
            method,
            trial,
            change: None,
            seed,
        })
    };
    study.plan.trials().into_iter().flat_map(of).collect()
}

/// The best trial of each method whose trials are all done.
///
/// # Errors
/// A method all of whose trials diverged.
pub(crate) fn chosen(study: &Study, items: &[(Item, State)]) -> Result<Vec<(Method, Trial)>> {
    let mut chosen = Vec::new();
    for (method, trials) in study.plan.trials() {
        if !study.plan.is_tuned() {
            chosen.extend(trials.into_iter().next().map(|trial| (method, trial)));
            continue;
        }
        let of: Vec<&(Item, State)> = items
            .iter()
            .filter(|(item, _)| item.part == Part::Tune && item.method == method)
            .collect();
        if of.len() < trials.len() || !of.iter().all(|(_, state)| state.is_done()) {
            continue;
        }
        let results: Vec<_> =
            of.iter().map(|(_, state)| state.measured().and_then(Measured::result)).collect();
        match best(&results, study.plan.criterion) {
            Some(at) => chosen.push((method, of[at].0.trial.clone())),
            None => bail!(
                "all {} trials of {method} diverged: give it smaller learning rates in the plan",
                trials.len()
            ),
        }
    }
    Ok(chosen)
}

/// The runs of the measuring part: seed by seed, so that what is there after an interruption is a study with fewer seeds.
pub(crate) fn measuring(study: &Study, best: &[(Method, Trial)]) -> Vec<Item> {
    let of = |seed: u64| {
        best.iter().map(move |(method, trial)| {
            let (method, trial) = (*method, trial.clone());
            Item { part: Part::Measure, method, trial, change: None, seed }
        })
    };
    study.plan.seeds.iter().flat_map(|&seed| of(seed)).collect()
}

/// The runs of the parts that change a method's best trial, where that is known: all with the first seed.
pub(crate) fn changed(study: &Study, best: &[(Method, Trial)]) -> Vec<Item> {
    let plan = &study.plan;
    let seed = plan.seeds[0];
    let of = |part: Part, method: Method, changes: Vec<Change>| {
        let trial = best.iter().find(|(of, _)| *of == method).map(|(_, trial)| trial.clone());
        let item = move |change| {
            Some(Item { part, method, trial: trial.clone()?, change: Some(change), seed })
        };
        changes.into_iter().filter_map(item).collect::<Vec<Item>>()
    };
    let ablated = plan.ablate.as_ref().map(|ablate| {
        let trial = best.iter().find(|(method, _)| *method == ablate.method);
        // What the best trial has already is measured already.
        let is_new = |change: &Change| trial.is_none_or(|(_, trial)| !study.has(trial, change));
        of(Part::Ablate, ablate.method, plan.changes().into_iter().filter(is_new).collect())
    });
    let controlled = plan.control.as_ref().map(|control| {
        let both =
            |kind: &String| {
                [FeatureSelection::Only, FeatureSelection::Except].map(|selection| {
                    Change::Features { kind: kind.clone(), features: control.features, selection }
                })
            };
        of(Part::Control, Method::FPO, control.kinds.iter().flat_map(both).collect())
    });
    ablated.into_iter().chain(controlled).flatten().collect()
}

/// Does what is left of these parts and returns what came out of all that is done.
///
/// # Errors
/// Those of the runs; measuring methods whose trials aren't done; or runs of another plan, unless they may be overwritten.
pub fn carry_out(study: &Study, parts: &[Part]) -> Result<Results> {
    let progress = Progress::of(study)?;
    progress.check(study)?;
    if !progress.unused.is_empty() {
        let note = format!(
            "{} runs in the folder are not in the plan; they stay where they are",
            progress.unused.len()
        );
        study.reporter.note("study", note);
    }
    // Kept as it was given, so that the folder says what it is.
    crate::write(&study.folder.join("plan.toml"), &toml::to_string_pretty(&study.plan)?)?;
    let mut items = progress.items;
    if parts.contains(&Part::Tune) {
        work(study, &mut items, Part::Tune)?;
    }
    let best = chosen(study, &items)?;
    let later: Vec<Part> = parts.iter().copied().filter(|part| *part != Part::Tune).collect();
    if !later.is_empty() && best.len() < study.plan.trials().len() {
        bail!(
            "tuning isn't finished, and {} needs its choice: leave out --only, or begin with --only tune",
            later[0]
        );
    }
    // Which of these there are may only be known now.
    items.retain(|(item, _)| item.part == Part::Tune);
    for item in measuring(study, &best).into_iter().chain(changed(study, &best)) {
        let state = study.state(&item)?;
        items.push((item, state));
    }
    for part in later {
        if part == Part::Measure {
            for &seed in &study.plan.seeds {
                study.reference(seed, true)?;
            }
        }
        // What is done so far is written before the next part begins.
        Results::of(study, &items)?.write(study)?;
        work(study, &mut items, part)?;
    }
    Results::of(study, &items)
}

/// Does the runs of a part, one after the other.
fn work(study: &Study, items: &mut [(Item, State)], part: Part) -> Result<()> {
    let of_part = || items.iter().filter(|(item, _)| item.part == part);
    let (total, mut left) =
        (of_part().count(), of_part().filter(|(_, state)| !state.is_done()).count());
    let (mut done, mut seconds) = (0, 0.0);
    let to_do = left;
    for (item, state) in items.iter_mut().filter(|(item, _)| item.part == part) {
        done += 1;
        if state.is_done() {
            continue;
        }
        study.reporter.note("study", format!("{part} {done} of {total}: {item}"));
        let begun = Instant::now();
        *state = study.work(item)?;
        seconds += begun.elapsed().as_secs_f64();
        left -= 1;
        let time = match left {
            0 => String::new(),
            _ => {
                let mean = seconds / (to_do - left) as f64;
                format!("; about {} left of this part", duration(mean * left as f64))
            }
        };
        study.reporter.note("study", outcome(state) + &time);
    }
    Ok(())
}

fn outcome(state: &State) -> String {
    match state {
        State::Diverged(message) => format!("diverged: {message}"),
        state => {
            let metrics = state.measured().and_then(Measured::result);
            let value = |name: &str| metrics.and_then(|m| m.get(name)).copied();
            let number = |name: &str| value(name).map_or("–".into(), |v| format!("{v:.4}"));
            let mut text = format!("accuracy {}, KL {}", number("accuracy"), number(KL));
            if value("right").is_some() {
                text += &format!(", right answers {}", number("right"));
            }
            text
        }
    }
}
