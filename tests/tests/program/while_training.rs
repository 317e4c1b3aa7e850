//! Evaluations while training, what they decide, and where measurements go.

use std::{fs, path::Path};

use serde_json::{Map, Value};

use crate::common::{arg, fail, skip_when_quick, succeed};

fn train(run: &Path, set: &[&str], until: &str) -> String {
    let start = ["train", "--recipe", "smoke", "--until", until, "--run", arg(run)];
    succeed(&[&start[..], &with_set(set)].concat())
}

fn with_set<'a>(set: &[&'a str]) -> Vec<&'a str> {
    set.iter().flat_map(|set| ["--set", set]).collect()
}

fn log(run: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(run.join("align/metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn is_evaluation(line: &Map<String, Value>) -> bool {
    line.contains_key("eval_loss")
}

fn step(line: &Map<String, Value>) -> u64 {
    line["step"].as_u64().unwrap()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Oracles: the same training without evaluations, and what the stage `evaluate` measures of its result.
#[test]
fn evaluations_change_nothing_and_agree_with_the_last_one() {
    if skip_when_quick("evaluations_change_nothing_and_agree_with_the_last_one") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (plain, watched) = (folder.path().join("plain"), folder.path().join("watched"));
    train(&plain, &["align.method=tdpo2"], "align");
    let set = [
        "align.method=tdpo2",
        "evaluate.features=true",
        "evaluate.every=3",
        "evaluate.subset=100000",
        "track=[\"csv\", \"tensorboard\"]",
    ];
    train(&watched, &set, "report");
    let model = "align/model.safetensors";
    assert!(read(&plain.join(model)) == read(&watched.join(model)), "the weights differ");
    let lines = log(&watched);
    let (evaluations, steps): (Vec<_>, Vec<_>) = lines.into_iter().partition(is_evaluation);
    assert_eq!(steps, log(&plain));

    let last = steps.len() as u64;
    let at: Vec<u64> = evaluations.iter().map(step).collect();
    let expected: Vec<u64> = (1..=last).filter(|step| step % 3 == 0 || *step == last).collect();
    assert_eq!(at, expected);
    let evaluation: Value =
        serde_json::from_slice(&read(&watched.join("evaluate/evaluation.json"))).unwrap();
    let after = &evaluation["after"];
    let line = evaluations.last().unwrap();
    for (name, key) in [
        ("loss", "eval_loss"),
        ("accuracy", "eval_accuracy"),
        ("reward_accuracy", "eval_rewards/accuracies"),
        ("reward_margin", "eval_rewards/margins"),
        ("chosen_kl", "eval_kl/chosen"),
        ("rejected_kl", "eval_kl/rejected"),
        ("chosen_distance", "eval_distance/chosen"),
        ("rejected_distance", "eval_distance/rejected"),
    ] {
        let [expected, found] =
            [&after[name], &line[key]].map(|value| value.as_f64().unwrap_or(f64::NAN));
        // Batches are others, and sums of float32 with them.
        assert!(
            (expected - found).abs() < 1e-4 * expected.abs().max(1.0),
            "{key}: {found} for {expected}"
        );
    }
    let samples = line["eval_samples"].as_array().unwrap();
    assert_eq!(samples.len(), 4);
    for (sample, answer) in samples.iter().zip(evaluation["answers"].as_array().unwrap()) {
        assert_eq!(
            (&sample["prompt"], &sample["response"]),
            (&answer["prompt"], &answer["after"]["text"])
        );
    }

    // A row for each line, and what isn't there is empty.
    let table = fs::read_to_string(watched.join("track/align/metrics.csv")).unwrap();
    assert_eq!(table.lines().count(), 1 + steps.len() + evaluations.len());
    assert!(table.lines().next().unwrap().contains("eval_rewards/margins"));
    for stage in ["sft", "sae", "align"] {
        let files = fs::read_dir(watched.join("track").join(stage)).unwrap();
        let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let events = names.filter(|name| name.starts_with("events.out.tfevents."));
        assert_eq!(events.count(), 1, "{stage}");
    }
    let page = fs::read_to_string(watched.join("report.html")).unwrap();
    assert!(page.contains("swatch ring") && page.contains("Answers on the way"));

    let shown = succeed(&["watch", arg(&watched)]);
    for says in [format!("align, {last} steps, finished"), "rewards/margins".into(), "sae, ".into()]
    {
        assert!(shown.contains(&says), "no `{says}` in\n{shown}");
    }
}

/// Oracle: the checkpoints that stay beside the result, of which the best one has to be its model.
#[test]
fn the_best_model_is_kept_and_training_ends_early() {
    if skip_when_quick("the_best_model_is_kept_and_training_ends_early") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let set = [
        "align.method=dpo",
        "align.epochs=3",
        // So fast that it doesn't end with its best model.
        "align.optimizer.learning_rate=0.02",
        "align.optimizer.schedule=constant",
        "align.checkpoint_every=2",
        "align.keep_best=eval_loss",
        "align.keep_last=1000",
        "evaluate.every=2",
        "evaluate.samples=0",
    ];
    let printed = train(&run, &set, "align");
    let lines = log(&run);
    let loss = |line: &Map<String, Value>| line["eval_loss"].as_f64().unwrap_or(f64::INFINITY);
    let evaluations = || lines.iter().filter(|line| is_evaluation(line));
    let best = evaluations().min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap();
    let last = step(lines.last().unwrap());
    assert!(step(best) < last, "a training whose last model is the best tests nothing");
    let kept: Value = serde_json::from_slice(&read(&run.join("align/kept.json"))).unwrap();
    assert_eq!((&kept["metric"], &kept["step"]), (&"eval_loss".into(), &best["step"]));
    assert!(printed.contains(&format!("keeps the model of step {}", step(best))), "{printed}");
    let checkpoint = |step: u64| run.join(format!("align/checkpoints/step-{step:08}"));
    let model = |folder: &Path| read(&folder.join("model.safetensors"));
    assert!(model(&run.join("align")) == model(&checkpoint(step(best))));
    assert!(model(&run.join("align")) != model(&checkpoint(last - last % 2 - 2)));
    assert!(checkpoint(2).join("tokenizer.json").is_file());
    assert!(!checkpoint(2).join("optimizer.safetensors").exists());

    // Each evaluation after the first is worse than so large a threshold asks.
    let set = [
        "align.epochs=3",
        "align.method=dpo",
        "align.keep_last=2",
        "align.checkpoint_every=1",
        "evaluate.every=2",
        "align.early_stopping={metric='eval_loss',patience=2,threshold=100.0}",
    ];
    let run = folder.path().join("early");
    let printed = train(&run, &set, "align");
    assert!(printed.contains("stops, since 2 evaluations in a row"), "{printed}");
    assert_eq!(step(log(&run).last().unwrap()), 6);
    assert!(!run.join("align/kept.json").exists());
    let mut names: Vec<_> = fs::read_dir(run.join("align/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["step-00000004", "step-00000005"]);
}

/// Other evaluations would leave another log, so they don't replace what there is unasked.
#[test]
fn what_is_evaluated_can_t_change_half_way() {
    if skip_when_quick("what_is_evaluated_can_t_change_half_way") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    train(&run, &["align.method=dpo", "evaluate.every=4"], "align");
    let again = ["train", "--run", arg(&run), "--until", "align", "--set"];
    let message = fail(&[&again[..], &["evaluate.every=5"]].concat());
    assert!(message.contains("evaluate.every is 5, was 4"), "{message}");
    // How many checkpoints stay, and what is tracked, concerns the trainings to come.
    let other = ["align.keep_last=2", "--set", "track=[\"csv\"]"];
    let printed = succeed(&[&again[..], &other].concat());
    assert!(printed.contains("align  up to date"), "{printed}");

    let nowhere = fail(&["watch", arg(&folder.path().join("nowhere"))]);
    assert!(nowhere.contains("is not the folder of a run"), "{nowhere}");
}
