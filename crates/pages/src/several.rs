//! Several runs on one page.

use std::collections::{BTreeSet, HashMap};

use fpo_metrics::{METRICS, Metric, metrics, table};
use fpo_report::{
    Better, FeatureMove, RunAnswer, RunsReport, SharedPrompt, SideBySide, SideCell, SideRow,
    TableRow, Verdict,
};
use serde_json::{Map, Value};

use crate::{
    AnsweredPrompt, Evaluation, RunFiles,
    curves::overlaid,
    one::{SAMPLES_SHOWN, drawn, expected, source},
};

/// Features that the page shows, at most.
const FEATURES_SHOWN: usize = 30;
/// Metrics on a scale that the method and its constants set.
const OF_THE_OBJECTIVE: [&Metric; 2] = [&metrics::loss::LOSS, &metrics::rewards::MARGIN];

/// The page of runs, with their names. Differences are to the first one that was measured.
pub fn side_by_side(names: &[String], runs: &[RunFiles]) -> RunsReport {
    let shared = Shared::of(runs);
    let (answers, answers_choice) = answers(runs, &shared);
    RunsReport {
        title: format!("{} runs side by side", runs.len()),
        subtitle: format!("fpo {}", env!("CARGO_PKG_VERSION")),
        warnings: warnings(names, runs, &shared),
        runs: names.to_vec(),
        facts: facts(runs),
        settings: settings(runs),
        metrics: measured(names, runs, &shared),
        stages: overlaid(names, runs),
        answers_choice,
        answers,
        features: features(runs, &shared),
        time: time(runs),
    }
}

/// What the runs have in common, without which values can't be compared.
struct Shared {
    /// The same held-out pairs.
    held_out: bool,
    /// The same training pairs.
    train: bool,
    /// The same model before alignment.
    reference: bool,
    /// The same method with the same constants.
    objective: bool,
    /// The same autoencoder.
    autoencoder: bool,
    /// Answers were sampled alike.
    sampling: bool,
}

impl Shared {
    fn of(runs: &[RunFiles]) -> Self {
        let data = |at: usize| same(runs, |run| run.data.as_ref().map(|data| data[at].clone()));
        let with_sae = runs.iter().filter(|run| run.autoencoder.is_some());
        Self {
            held_out: data(1),
            train: data(0),
            reference: same(runs, |run| run.reference.clone()),
            objective: same(runs, |run| Some(run.settings.align.objective())),
            // Runs without one have no features to compare.
            autoencoder: with_sae.map(|run| &run.autoencoder).collect::<BTreeSet<_>>().len() == 1,
            sampling: same(runs, |run| {
                let evaluate = &run.settings.evaluate;
                let limits = (evaluate.max_new_tokens, evaluate.temperature.to_bits());
                Some((limits, run.settings.seed))
            }),
        }
    }
}

/// Whether all runs have the same, and have it.
fn same<T: PartialEq>(runs: &[RunFiles], of: impl Fn(&RunFiles) -> Option<T>) -> bool {
    let mut all = runs.iter().map(of);
    let first = all.next().flatten();
    first.is_some() && all.all(|one| one == first)
}

/// What has to be known before anything is compared, the worst first.
fn warnings(names: &[String], runs: &[RunFiles], shared: &Shared) -> Vec<String> {
    let mut warnings: Vec<String> = Vec::new();
    if runs.iter().any(|run| run.data.is_none()) {
        warnings.push(
            "The prepared data of a run can't be read, so whether all were measured on the same held-out pairs is unknown, and no \
             differences are shown."
                .into(),
        );
    } else if !shared.held_out {
        warnings.push(
            "These runs weren't measured on the same held-out pairs: their metrics can't be compared, and no differences are shown."
                .into(),
        );
    } else if !shared.train {
        warnings.push(
            "These runs were trained on different pairs and measured on the same ones.".into(),
        );
    }
    for (name, run) in names.iter().zip(runs) {
        if let Some(what) = run.unfinished() {
            warnings.push(format!("{name} isn't finished: {what}."));
        }
        if let Some(version) = &run.version
            && version != env!("CARGO_PKG_VERSION")
        {
            warnings.push(format!(
                "{name} was made by fpo {version}; what that version didn't record is missing here."
            ));
        }
    }
    if !shared.reference {
        warnings.push(
            "These runs don't start from the same model: KL, D and rewards are each measured against the run's own."
                .into(),
        );
    }
    if shared.held_out && !shared.objective {
        warnings.push(
            "Methods or their constants differ, and with them the scale of losses and rewards: these have no differences."
                .into(),
        );
    }
    if !shared.sampling {
        warnings.push(
            "Answers were sampled with other seeds, temperatures or lengths, so answers and what is measured of them differ for \
             that too."
                .into(),
        );
    }
    let with_sae = runs.iter().filter(|run| run.autoencoder.is_some()).count();
    if with_sae > 1 && !shared.autoencoder {
        warnings.push(
            "The runs' autoencoders differ, so a number isn't the same feature in each: features and D aren't compared."
                .into(),
        );
    }
    warnings
}

fn facts(runs: &[RunFiles]) -> SideBySide {
    let row = |name: &str, of: &dyn Fn(&RunFiles) -> String| SideRow {
        name: name.into(),
        cells: runs.iter().map(|run| SideCell::new(of(run))).collect(),
        ..SideRow::default()
    };
    let pairs = |run: &RunFiles, at: usize| {
        run.pairs.map(|pairs| pairs[at].kept.to_string()).unwrap_or_default()
    };
    let steps = |run: &RunFiles| {
        let Some(align) = run.training("align") else { return "not begun".into() };
        match align.finished {
            true => align.steps().to_string(),
            false => format!("{}, unfinished", align.steps()),
        }
    };
    let kept = |run: &RunFiles| {
        let kept = run.kept.as_ref();
        kept.map(|kept| format!("{} ({} {:.4})", kept.step, kept.metric, kept.value))
            .unwrap_or_default()
    };
    let mut rows = vec![
        row("Method", &|run| run.settings.align.method.to_string()),
        row("β", &|run| run.settings.align.objective().beta.to_string()),
        row("Data", &source),
        row("Pairs", &|run| pairs(run, 0)),
        row("Held-out pairs", &|run| pairs(run, 1)),
        row("Steps of alignment", &steps),
        row("Kept step", &kept),
        row("Made by", &|run| {
            run.version.as_ref().map(|version| format!("fpo {version}")).unwrap_or_default()
        }),
    ];
    rows.retain(|row| row.cells.iter().any(|cell| !cell.text.is_empty()));
    SideBySide { caption: "What each run is.".into(), heading: "Run".into(), before: None, rows }
}

/// Settings that aren't the same in all runs.
fn settings(runs: &[RunFiles]) -> SideBySide {
    let tables: Vec<Map<String, Value>> = runs
        .iter()
        .map(|run| {
            let mut flat = Map::new();
            flatten("", serde_json::to_value(&run.settings).unwrap_or_default(), &mut flat);
            flat
        })
        .collect();
    let keys: BTreeSet<&String> = tables.iter().flat_map(Map::keys).collect();
    let row = |key: &String| {
        let values: Vec<Option<&Value>> = tables.iter().map(|table| table.get(key)).collect();
        if values.iter().all(|value| *value == values[0]) {
            return None;
        }
        let cell = |value: Option<&Value>| {
            SideCell::new(match value {
                None => "not set".to_owned(),
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
            })
        };
        let cells = values.into_iter().map(cell).collect();
        Some(SideRow { name: key.clone(), cells, ..SideRow::default() })
    };
    let rows: Vec<SideRow> = keys.into_iter().filter_map(row).collect();
    SideBySide {
        caption: "The settings that aren't the same in all runs; all others are.".into(),
        heading: "Setting".into(),
        before: None,
        rows,
    }
}

/// Values by keys with dots; what isn't set has none.
fn flatten(key: &str, value: Value, flat: &mut Map<String, Value>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(&key, value, flat);
            }
        }
        value => drop(flat.insert(key.to_owned(), value)),
    }
}

/// Metrics after alignment, and before where all begin alike.
fn measured(names: &[String], runs: &[RunFiles], shared: &Shared) -> SideBySide {
    let tables: Vec<Option<Vec<TableRow>>> = runs.iter().map(of_run).collect();
    let Some(first) = tables.iter().position(Option::is_some) else { return SideBySide::default() };
    let alike = shared.held_out && shared.reference && shared.objective && shared.sampling;
    let find = |table: &Option<Vec<TableRow>>, title: &str| {
        table.as_ref()?.iter().find(|row| row.metric == title).cloned()
    };
    let row = |metric: &&Metric| {
        let found: Vec<Option<TableRow>> =
            tables.iter().map(|table| find(table, metric.title)).collect();
        let known = found.iter().flatten().next()?;
        let comparable = comparable(metric, shared);
        let cells = found.iter().enumerate().map(|(at, row)| {
            let Some(row) = row else { return SideCell::default() };
            let change = match (&found[first], at == first || !comparable) {
                (Some(base), false) => change(base.after, row.after, metric),
                _ => None,
            };
            SideCell {
                text: if row.after.is_some() { row.after_text() } else { String::new() },
                change,
            }
        });
        Some(SideRow {
            name: known.metric.clone(),
            explanation: known.explanation.clone(),
            before: match known.before {
                Some(_) if alike => SideCell::new(known.before_text()),
                _ => SideCell::default(),
            },
            cells: cells.collect(),
        })
    };
    let rows = METRICS.iter().filter_map(row).collect();
    let differences = match shared.held_out && runs.len() > 1 {
        true => format!(", with differences to {}", names[first]),
        false => String::new(),
    };
    SideBySide {
        caption: format!("Metrics on held-out data after alignment{differences}."),
        heading: "Metric".into(),
        before: alike.then(|| "Before".into()),
        rows,
    }
}

fn of_run(run: &RunFiles) -> Option<Vec<TableRow>> {
    let Evaluation { before, after, .. } = run.evaluation.as_ref()?;
    Some(table(&run.settings.align.objective(), before, after))
}

/// Whether a difference between runs says anything.
fn comparable(metric: &Metric, shared: &Shared) -> bool {
    let of_objective = OF_THE_OBJECTIVE.iter().any(|one| one.name == metric.name);
    let of_features = [metrics::distance::CHOSEN.name, metrics::distance::REJECTED.name];
    shared.held_out
        && (shared.objective || !of_objective)
        && (shared.autoencoder || !of_features.contains(&metric.name))
}

fn change(base: Option<f64>, value: Option<f64>, metric: &Metric) -> Option<(String, Verdict)> {
    let row = TableRow {
        before: base,
        after: value,
        unit: metric.unit,
        better: metric.better,
        ..TableRow::default()
    };
    row.change()
}

/// Answers to the prompts that several runs answered, and which prompts these are. Those on which the verdicts of runs differ come
/// first, since they say most; then some at random.
fn answers(runs: &[RunFiles], shared: &Shared) -> (Vec<SharedPrompt>, String) {
    // By the prompt and how often it came before.
    type ByPrompt<'a> = HashMap<(&'a str, usize), usize>;
    let evaluations: Vec<Option<&Evaluation>> =
        runs.iter().map(|run| run.evaluation.as_ref()).collect();
    let places: Vec<ByPrompt> = evaluations
        .iter()
        .map(|evaluation| {
            let mut places = ByPrompt::new();
            let mut seen: HashMap<&str, usize> = HashMap::new();
            let answers = evaluation.iter().flat_map(|evaluation| &evaluation.answers);
            for (at, answered) in answers.enumerate() {
                let times = seen.entry(&answered.prompt).or_default();
                places.insert((&answered.prompt, *times), at);
                *times += 1;
            }
            places
        })
        .collect();
    let with = places.iter().filter(|places| !places.is_empty()).count();
    let Some(first) = places.iter().position(|places| !places.is_empty()) else {
        return (Vec::new(), String::new());
    };
    let mut common: Vec<(usize, (&str, usize))> = places[first]
        .iter()
        .filter(|(key, _)| places.iter().filter(|places| places.contains_key(*key)).count() == with)
        .map(|(key, at)| (*at, *key))
        .collect();
    common.sort_unstable();
    let answer_of = |run: usize, key: &(&str, usize)| {
        let at = places[run].get(key)?;
        Some(&evaluations[run]?.answers[*at])
    };
    let differ = |key: &(&str, usize)| {
        let verdicts: BTreeSet<Option<bool>> =
            (0..runs.len()).filter_map(|run| Some(answer_of(run, key)?.after.right)).collect();
        verdicts.len() > 1
    };
    let disagreements: Vec<usize> = (0..common.len()).filter(|&i| differ(&common[i].1)).collect();
    let first_ones = &disagreements[..disagreements.len().min(SAMPLES_SHOWN)];
    let at_random = drawn(runs[first].settings.seed, common.len());
    let at_random: Vec<usize> =
        at_random.into_iter().filter(|place| !first_ones.contains(place)).collect();
    let differing = match disagreements.len() {
        0 => String::new(),
        all => format!("the first {} of {all} on which verdicts differ, then ", first_ones.len()),
    };
    let choice = match common.len() {
        0 => "No prompt was answered by all runs.".to_owned(),
        all => format!(
            "{} of {all} prompts that were answered by all {with} measured runs: {differing}{} drawn at random with the seed of the \
             first run.",
            first_ones.len() + at_random.len(),
            at_random.len()
        ),
    };
    let shown = first_ones.iter().chain(&at_random).map(|&place| {
        let key = &common[place].1;
        let given: Vec<Option<&AnsweredPrompt>> =
            (0..runs.len()).map(|run| answer_of(run, key)).collect();
        let known = given.iter().flatten().next().copied();
        let before = known.map(|one| (one.before.text.clone(), one.before.right));
        let alike = given
            .iter()
            .flatten()
            .all(|one| Some(&one.before.text) == before.as_ref().map(|b| &b.0));
        SharedPrompt {
            prompt: key.0.to_owned(),
            other: known.map(|one| (expected(&runs[first]).to_owned(), one.expected.clone())),
            before: before.filter(|_| alike && (shared.reference || given.len() == 1)),
            answers: given.into_iter().map(|one| one.map(run_answer)).collect(),
        }
    });
    (shown.collect(), choice)
}

fn run_answer(answered: &AnsweredPrompt) -> RunAnswer {
    RunAnswer {
        before: answered.before.text.clone(),
        after: answered.after.text.clone(),
        right: answered.after.right,
        note: answered.after.verdict.clone(),
    }
}

/// Features that moved most in any run, where all runs with features have the same autoencoder.
fn features(runs: &[RunFiles], shared: &Shared) -> SideBySide {
    if !shared.autoencoder {
        return SideBySide::default();
    }
    let moves = |run: &RunFiles| -> HashMap<usize, FeatureMove> {
        let all = run.evaluation.iter().flat_map(|evaluation| &evaluation.features);
        all.map(|feature| (feature.index, feature.clone())).collect()
    };
    let by_run: Vec<HashMap<usize, FeatureMove>> = runs.iter().map(moves).collect();
    let moved = |feature: &FeatureMove| (feature.after - feature.before).abs();
    let largest = |index: usize| {
        let found = by_run.iter().filter_map(|run| run.get(&index)).map(moved);
        found.filter(|change| change.is_finite()).fold(0.0, f64::max)
    };
    let indices: BTreeSet<usize> = by_run.iter().flat_map(|run| run.keys().copied()).collect();
    let mut indices: Vec<(f64, usize)> =
        indices.into_iter().map(|index| (largest(index), index)).collect();
    indices.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let all = indices.len();
    indices.truncate(FEATURES_SHOWN);
    let row = |&(_, index): &(f64, usize)| SideRow {
        name: format!("Feature {index}"),
        cells: by_run
            .iter()
            .map(|run| run.get(&index).map(moved_cell).unwrap_or_default())
            .collect(),
        ..SideRow::default()
    };
    SideBySide {
        caption: format!(
            "Mean activation on held-out responses before → after alignment, and the change: {} of {all} features that moved \
             most in any run, the largest change first. A dash: not among those that moved most in that run, or the run has no features.",
            indices.len()
        ),
        heading: "Feature".into(),
        before: None,
        rows: indices.iter().map(row).collect(),
    }
}

fn moved_cell(feature: &FeatureMove) -> SideCell {
    let row = TableRow {
        before: Some(feature.before),
        after: Some(feature.after),
        better: Better::Neither,
        ..TableRow::default()
    };
    SideCell {
        text: format!("{} → {}", row.before_text(), row.after_text()), change: row.change()
    }
}

/// Wall clock, tokens per second and memory of each stage.
fn time(runs: &[RunFiles]) -> SideBySide {
    type Of<'a> = &'a dyn Fn(&fpo_run::timing::StageTiming) -> Option<String>;
    let row = |name: String, stage: &str, of: Of| {
        let cell =
            |run: &RunFiles| SideCell::new(run.timing.get(stage).and_then(of).unwrap_or_default());
        let cells: Vec<SideCell> = runs.iter().map(cell).collect();
        let any = cells.iter().any(|cell| !cell.text.is_empty());
        any.then(|| SideRow { name, cells, ..SideRow::default() })
    };
    let mut rows = Vec::new();
    for stage in ["prepared", "sft", "sae", "reference", "align", "evaluate"] {
        rows.push(row(format!("{stage}, wall clock"), stage, &|one| Some(duration(one.seconds))));
        rows.push(row(format!("{stage}, tokens per second"), stage, &|one| {
            Some(format!("{:.0}", one.tokens_per_second?))
        }));
        rows.push(row(format!("{stage}, peak memory"), stage, &|one| {
            Some(format!("{:.0} MiB", one.peak_memory_mib?))
        }));
    }
    rows.push(row("Hardware".into(), "align", &|one| Some(one.hardware.clone())));
    SideBySide {
        caption: "Of the process that finished a stage: a stage that was interrupted took longer in all. Memory is the \
                  machine's own, not a GPU's."
            .into(),
        heading: "Stage".into(),
        before: None,
        rows: rows.into_iter().flatten().collect(),
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
