//! Pages of run folders that are written here, whole, cut off, of other data and of another version. Oracle: what was written.

use std::{fs, path::Path};

use fpo_config::Settings;
use fpo_data::{Fingerprint, PairStore};
use fpo_pages::{PageError, RunFiles, curves_csv, page, side_by_side};
use fpo_report::{RunsReport, SideBySide, Stroke, Verdict, render, render_runs};
use serde_json::{Value, json};
use tempfile::TempDir;

fn write(path: &Path, text: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// What a run differs in.
struct Given<'a> {
    set: &'a [&'a str],
    /// What the held-out pairs are.
    held_out: &'a str,
    model: &'a str,
    sae: &'a str,
    version: &'a str,
    steps: usize,
    finished: bool,
    accuracy: f64,
    answer: &'a str,
}

const PLAIN: Given = Given {
    set: &[],
    held_out: "held-out",
    model: "sft",
    sae: "weights",
    version: env!("CARGO_PKG_VERSION"),
    steps: 3,
    finished: true,
    accuracy: 0.75,
    answer: "two big owls",
};

fn stage(run: &Path, stage: &str, fingerprint: Value) {
    let note = json!({"stage": stage, "fingerprint": fingerprint});
    write(&run.join(stage).join("stage.json"), note.to_string());
}

fn log(steps: usize, scale: f64) -> String {
    let line = |step: usize| {
        let loss = scale / step as f64;
        let mut line =
            json!({"step": step, "loss": loss, "learning_rate": 0.1, "num_tokens": 9 * step});
        if step == 2 {
            line["accuracy"] = json!(0.5);
            let held_out = json!({"step": step, "eval_loss": loss, "eval_right": 0.25});
            return format!("{line}\n{held_out}\n");
        }
        format!("{line}\n")
    };
    (1..=steps).map(line).collect()
}

/// A run's folder as `fpo train` leaves it, without what pages don't read.
fn run(folder: &Path, name: &str, given: &Given) -> RunFiles {
    let run = folder.join(name);
    let set: Vec<String> = given.set.iter().map(|set| (*set).to_owned()).collect();
    let settings = Settings::resolve("tiny", None, &set).unwrap();
    write(&run.join("run.toml"), settings.to_toml().unwrap());
    let counts = json!({"read": 9, "kept": 8, "dropped_empty": 1, "clipped": 0, "clipped_prompts": 0, "clipped_responses": 0,
                        "tokens": 1, "response_tokens": 1, "longest": 1});
    let summary = json!({"source": null, "sft": counts, "train": counts, "held_out": counts});
    write(&run.join("prepared/summary.json"), summary.to_string());
    for (store, what) in [("train", "pairs"), ("held_out", given.held_out)] {
        let fingerprint = Fingerprint::default().with("tokens", what);
        PairStore::write(&run.join(format!("prepared/{store}.arrow")), &fingerprint, []).unwrap();
    }
    write(&run.join("sft/metrics.jsonl"), log(2, 1.0));
    write(&run.join("sae/sae_weights.safetensors"), given.sae);
    write(&run.join("sae/quality.json"), r#"{"l0": 9.5, "explained_variance": 0.75}"#);
    let align = json!({"model": given.model, "version": given.version});
    if !given.finished {
        let begun = run.join("checkpoints/align");
        write(&begun.join("metrics.jsonl"), log(given.steps, 2.0) + "{\"step\":9,\"lo");
        write(
            &begun.join("stage.json"),
            json!({"stage": "align", "fingerprint": align}).to_string(),
        );
        return RunFiles::read(&run).unwrap();
    }
    write(&run.join("align/metrics.jsonl"), log(given.steps, 2.0));
    stage(&run, "align", align);
    let feature = |index: usize, after: f64| json!({"index": index, "before": 1.0, "after": after, "density": 0.1, "examples": []});
    let text = |text: &str, right: bool| json!({"text": text, "verdict": "said", "right": right});
    let prompt = |at: usize| {
        json!({"prompt": format!("Prompt {at}?"), "expected": "owls", "before": text("one big owl", false),
               "after": text(given.answer, at > 0 || given.answer.contains("two"))})
    };
    let evaluation = json!({
        "before": {"loss": 0.7, "accuracy": 0.5, "reward_accuracy": 0.0, "reward_margin": 0.0},
        "after": {"loss": 0.5, "accuracy": given.accuracy, "reward_accuracy": 0.8, "reward_margin": 0.1},
        "answers": (0..20).map(prompt).collect::<Vec<_>>(),
        "features": [feature(7, 1.5), feature(given.answer.len(), 0.25)],
    });
    let hash = fpo_run::made_from(&run.join("align")).unwrap().hash();
    stage(&run, "evaluate", json!({"align": hash, "version": given.version}));
    write(&run.join("evaluate/evaluation.json"), evaluation.to_string());
    let timing = json!({"align": {"hardware": "a machine", "seconds": 12.0, "tokens": 24, "tokens_per_second": 2.0,
                                  "peak_memory_mib": 512.0}});
    write(&run.join("timing.json"), timing.to_string());
    RunFiles::read(&run).unwrap()
}

fn compare(given: &[Given]) -> (RunsReport, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..given.len()).map(|at| format!("run {at}")).collect();
    let runs: Vec<RunFiles> =
        names.iter().zip(given).map(|(name, given)| run(folder.path(), name, given)).collect();
    (side_by_side(&names, &runs), folder)
}

/// The texts of a row, with changes in brackets.
fn row(table: &SideBySide, name: &str) -> Vec<String> {
    let found = table.rows.iter().find(|row| row.name == name);
    let found = found.unwrap_or_else(|| panic!("no row {name} in {table:?}"));
    let text = |cell: &fpo_report::SideCell| match &cell.change {
        Some((change, _)) => format!("{} ({change})", cell.text),
        None => cell.text.clone(),
    };
    found.cells.iter().map(text).collect()
}

#[test]
fn runs_of_other_settings_are_compared() {
    let other = Given {
        set: &["align.method=dpo", "align.optimizer.learning_rate=0.5", "evaluate.features=true"],
        accuracy: 0.8,
        answer: "three big owls",
        steps: 2,
        ..PLAIN
    };
    let (report, _folder) = compare(&[PLAIN, other]);
    let keys: Vec<&str> = report.settings.rows.iter().map(|row| &*row.name).collect();
    assert_eq!(keys, ["align.method", "align.optimizer.learning_rate", "evaluate.features"]);
    assert_eq!(row(&report.settings, "align.method"), ["fpo", "dpo"]);
    assert_eq!(row(&report.facts, "Steps of alignment"), ["3", "2"]);

    assert_eq!(row(&report.metrics, "Accuracy"), ["75.0%", "80.0% (+5.0 pp)"]);
    let accuracy = report.metrics.rows.iter().find(|row| row.name == "Accuracy").unwrap();
    assert_eq!(accuracy.cells[1].change.as_ref().unwrap().1, Verdict::Better);
    // On scales of their own.
    assert_eq!(row(&report.metrics, "Loss"), ["0.5", "0.5"]);
    assert_eq!(row(&report.metrics, "Reward margin"), ["0.1", "0.1"]);
    assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
    assert!(report.warnings[0].starts_with("Methods or their constants differ"));

    // SFT was the same; alignment has a chart for each metric, runs and their evaluations in it.
    let [sft, align] = &report.stages[..] else { panic!("{:?}", report.stages) };
    assert_eq!((&*sft.stage, &*sft.charts[0].series[0].name), ("SFT", "all runs"));
    let titles: Vec<&str> = align.charts.iter().map(|chart| &*chart.title).collect();
    assert_eq!(titles, ["Loss", "Accuracy", "Right answers", "Learning rate"]);
    let series: Vec<(&str, Stroke, usize)> = align.charts[0]
        .series
        .iter()
        .map(|series| (&*series.name, series.stroke, series.points.len()))
        .collect();
    let expected = [
        ("run 0", Stroke::Run(0), 3),
        ("run 1", Stroke::Run(1), 2),
        ("run 0, held-out", Stroke::Rings(0), 1),
        ("run 1, held-out", Stroke::Rings(1), 1),
    ];
    assert_eq!(series, expected);

    // The prompt on which they disagree comes first.
    assert_eq!(report.answers[0].prompt, "Prompt 0?");
    assert_eq!(report.answers[0].before, Some(("one big owl".to_owned(), Some(false))));
    let answers: Vec<&str> =
        report.answers[0].answers.iter().map(|answer| &*answer.as_ref().unwrap().after).collect();
    assert_eq!(answers, ["two big owls", "three big owls"]);
    assert!(report.answers_choice.contains("the first 1 of 1"), "{}", report.answers_choice);

    assert_eq!(row(&report.features, "Feature 7"), ["1 → 1.5 (+0.5)", "1 → 1.5 (+0.5)"]);
    assert_eq!(row(&report.features, "Feature 12"), ["1 → 0.25 (−0.75)", ""]);
    assert_eq!(report.features.rows[0].name, "Feature 12");
    assert_eq!(row(&report.time, "align, wall clock"), ["12.0 s", "12.0 s"]);
    assert_eq!(row(&report.time, "align, peak memory"), ["512 MiB", "512 MiB"]);
    assert!(render_runs(&report).contains("<ins>two</ins> big <ins>owls</ins>"));
}

#[test]
fn equal_runs_differ_in_nothing() {
    let (report, _folder) = compare(&[PLAIN, PLAIN]);
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    assert!(report.settings.rows.is_empty());
    assert_eq!(row(&report.metrics, "Loss"), ["0.5", "0.5 (±0)"]);
    assert_eq!(report.metrics.before.as_deref(), Some("Before"));
    // A reward that doesn't exist yet.
    let reward = report.metrics.rows.iter().find(|row| row.name == "Reward accuracy").unwrap();
    assert_eq!((&*reward.before.text, &*reward.cells[0].text), ("", "80.0%"));
}

/// What can't be compared says so, and has no differences.
#[test]
fn what_cannot_be_compared_is_not() {
    let changed = |report: &RunsReport| {
        report.metrics.rows.iter().flat_map(|row| &row.cells).any(|cell| cell.change.is_some())
    };
    let (report, _folder) = compare(&[PLAIN, Given { held_out: "others", ..PLAIN }]);
    assert!(report.warnings[0].contains("weren't measured on the same held-out pairs"));
    assert!(!changed(&report) && !report.metrics.caption.contains("differences"));

    let (report, _folder) = compare(&[PLAIN, Given { model: "another", ..PLAIN }]);
    assert!(report.warnings[0].contains("don't start from the same model"));
    assert!(changed(&report) && report.metrics.before.is_none());
    assert!(report.answers.iter().all(|answer| answer.before.is_none()));

    let (report, _folder) = compare(&[PLAIN, Given { sae: "others", ..PLAIN }]);
    assert!(report.warnings[0].contains("autoencoders differ") && report.features.rows.is_empty());

    let cold = Given { set: &["evaluate.temperature=0.0", "evaluate.max_new_tokens=5"], ..PLAIN };
    let (report, _folder) = compare(&[PLAIN, cold]);
    assert!(report.warnings[0].contains("other seeds, temperatures or lengths"));

    let old = Given { version: "0.0.9", ..PLAIN };
    let (report, _folder) = compare(&[PLAIN, old]);
    assert!(report.warnings[0].contains("run 1 was made by fpo 0.0.9"));
}

#[test]
fn a_run_that_was_cut_off_is_shown_as_far_as_it_goes() {
    let cut = Given { finished: false, steps: 2, ..PLAIN };
    let (report, folder) = compare(&[cut, PLAIN]);
    assert_eq!(
        report.warnings[0],
        "run 0 isn't finished: it was interrupted, or is still being made, after step 2 of stage align."
    );
    assert_eq!(row(&report.facts, "Steps of alignment"), ["2, unfinished", "3"]);
    assert_eq!(row(&report.metrics, "Accuracy"), ["", "75.0%"]);
    assert!(report.answers[0].answers[0].is_none());
    assert!(render_runs(&report).contains("no answer"));

    let alone = page(&RunFiles::read(&folder.path().join("run 0")).unwrap()).unwrap();
    assert!(alone.warnings[0].starts_with("This run isn't finished"));
    assert!(alone.table.is_empty() && alone.samples.is_empty());
    let stages: Vec<&str> = alone.stages.iter().map(|stage| &*stage.stage).collect();
    assert_eq!(stages, ["SFT", "Align"]);
    assert!(render(&alone).contains("<svg"));
}

/// An alignment that is made again has the evaluation of the one before beside it.
#[test]
fn an_evaluation_of_another_alignment_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    assert!(run(folder.path(), "run", &PLAIN).evaluation.is_some());
    let path = folder.path().join("run");
    stage(&path, "align", json!({"model": "sft", "version": "0.1.0", "align": "other"}));
    let read = RunFiles::read(&path).unwrap();
    assert!(read.evaluation.is_none());
    assert_eq!(read.unfinished().unwrap(), "the aligned model isn't measured yet");
}

#[test]
fn what_is_no_run_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    fs::create_dir(&path).unwrap();
    assert!(matches!(RunFiles::read(&path), Err(PageError::NotARun(_))));

    run(folder.path(), "run", &PLAIN);
    write(&path.join("align/metrics.jsonl"), "{\"step\":1}\n[2]\n{}\n");
    let error = RunFiles::read(&path).unwrap_err().to_string();
    assert!(error.contains("align/metrics.jsonl") && error.contains("line 2 is not"), "{error}");

    run(folder.path(), "run", &PLAIN);
    write(&path.join("evaluate/evaluation.json"), "{\"before\": 3}");
    let error = RunFiles::read(&path).unwrap_err().to_string();
    assert!(error.contains("evaluation.json is damaged, or of another version"), "{error}");

    write(&path.join("run.toml"), "[align]\nhoney = 1\n");
    let error = RunFiles::read(&path).unwrap_err().to_string();
    assert!(error.contains("another version of fpo") && error.contains("honey"), "{error}");
}

#[test]
fn one_run_and_the_runs_of_a_comparison() {
    let folder = tempfile::tempdir().unwrap();
    let whole = run(folder.path(), "run", &PLAIN);
    let report = page(&whole).unwrap();
    assert_eq!(report.title, "FPO on built-in data");
    assert!(report.warnings.is_empty());
    let fact = |name: &str| report.summary.iter().find(|(n, _)| n == name).map(|(_, v)| &**v);
    assert_eq!((fact("Pairs"), fact("SAE L0"), fact("α")), (Some("8"), Some("9.5"), Some("0.5")));
    assert_eq!(report.samples[0].samples.len(), 12);
    // What was sampled on the way is drawn too.
    let align = report.stages.iter().find(|stage| stage.stage == "Align").unwrap();
    assert!(align.charts.iter().any(|chart| chart.title == "Right answers"));

    // `fpo compare` keeps alignment and evaluation of each method below the run.
    let nested = folder.path().join("run/compare/dpo");
    for part in ["run.toml", "align/metrics.jsonl", "align/stage.json", "evaluate/evaluation.json"]
    {
        let text = fs::read(folder.path().join("run").join(part)).unwrap();
        write(&nested.join(part), text);
    }
    let nested = RunFiles::read(&nested).unwrap();
    assert_eq!(nested.data, whole.data);
    assert_eq!(nested.autoencoder, whole.autoencoder);
    assert!(nested.training("sft").is_some() && nested.evaluation.is_some());
}

#[test]
fn curves_are_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), "run", &PLAIN);
    let csv = curves_csv(&["a, \"b\"".to_owned()], &[run]);
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], "run,stage,step,metric,value");
    assert_eq!(lines[1], "\"a, \"\"b\"\"\",sft,1,loss,1");
    assert!(lines.contains(&"\"a, \"\"b\"\"\",align,2,eval_right,0.25"), "{csv}");
}
