//! The shrunken recipe from nothing to its report, on built-in and on real data.

use std::{fs, path::Path};

use crate::common::{RealPairs, arg, fail, skip_when_quick, succeed};
use serde_json::Value;

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

#[test]
fn train_makes_everything_and_makes_nothing_twice() {
    if skip_when_quick("train_makes_everything_and_makes_nothing_twice") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let train = ["train", "--recipe", "smoke", "--run", arg(&run)];
    let printed = succeed(&train);
    for row in [
        "Loss",
        "Accuracy",
        "Reward accuracy",
        "Reward margin",
        "KL, chosen",
        "D, rejected",
        "Right answers",
    ] {
        assert!(printed.contains(row), "no row {row:?}:\n{printed}");
    }
    for file in [
        "run.toml",
        "prepared/tokenizer.json",
        "prepared/train.arrow",
        "sft/config.json",
        "sft/model.safetensors",
        "sft/tokenizer_config.json",
        "sae/cfg.json",
        "sae/sae_weights.safetensors",
        "reference/stage.json",
        "align/model.safetensors",
        "align/generation_config.json",
        "align/metrics.jsonl",
        "evaluate/evaluation.json",
        "report.html",
    ] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }

    // Policy equals reference before alignment: loss ln 2, no margin, no divergence, no distance.
    let evaluation = json(&run.join("evaluate/evaluation.json"));
    let (before, after) = (&evaluation["before"], &evaluation["after"]);
    assert!((number(before, "loss") - 2f64.ln()).abs() < 1e-5);
    for key in ["reward_margin", "chosen_kl", "rejected_kl", "chosen_distance", "rejected_distance"]
    {
        assert!(number(before, key).abs() < 1e-5, "{key} is not 0 before: {before}");
    }
    for key in ["chosen_kl", "rejected_kl", "chosen_distance", "rejected_distance"] {
        assert!(number(after, key) > 0.0, "{key} did not move: {after}");
    }
    assert!(number(after, "loss") < number(before, "loss"));

    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("<svg") && report.contains("Changed features"));
    for outside in ["<script", "src=\"http", "href=\"http", "url(http"] {
        assert!(!report.contains(outside), "the report reaches out: {outside}");
    }

    // Nothing changed: nothing is made again. Another method: only what depends on it.
    let again = succeed(&train);
    assert_eq!(again.matches("up to date").count(), 6, "{again}");
    let dpo = [&train[..], &["--set", "align.method=dpo"]].concat();
    let refused = fail(&dpo);
    for says in [
        "align.method is \"dpo\", was \"fpo\"",
        "discard reference, align, evaluate",
        "--overwrite",
    ] {
        assert!(refused.contains(says), "no {says:?} in:\n{refused}");
    }
    let measured = ["--set", "evaluate.features=true", "--overwrite"];
    let other = succeed(&[&dpo[..], &measured].concat());
    assert_eq!(other.matches("up to date").count(), 4, "{other}");
    assert!(other.contains("align  done") && other.contains("evaluate  done"), "{other}");
    // Without features, their autoencoder isn't needed, and the reference is made without them.
    let without = succeed(&[&dpo[..], &["--overwrite"]].concat());
    assert_eq!(without.matches("up to date").count(), 2, "{without}");
    assert!(without.contains("reference  done") && !without.contains("D, chosen"), "{without}");

    let model = run.join("align");
    let generate = ["generate", "--model", arg(&model), "--prompt", "Reverse: owl, fox, sun."];
    assert_eq!(succeed(&generate), succeed(&generate));
}

/// bf16-mixed: the frozen reference and the trained policy begin as one function, and what is saved is float32.
#[test]
fn mixed_precision_goes_the_same_way() {
    if skip_when_quick("mixed_precision_goes_the_same_way") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let train = ["train", "--recipe", "smoke", "--run", arg(&run), "--until", "evaluate"];
    let mixed = [&train[..], &["--set", "model.precision=bf16-mixed"]].concat();
    succeed(&mixed);
    let evaluation = json(&run.join("evaluate/evaluation.json"));
    let (before, after) = (&evaluation["before"], &evaluation["after"]);
    assert!((number(before, "loss") - 2f64.ln()).abs() < 1e-5);
    for key in ["reward_margin", "chosen_kl", "rejected_kl", "chosen_distance", "rejected_distance"]
    {
        assert!(number(before, key).abs() < 1e-5, "{key} is not 0 before: {before}");
    }
    assert!(number(after, "loss") < number(before, "loss"));
    let config = json(&run.join("align/config.json"));
    assert_eq!(config["torch_dtype"], "float32", "{config}");

    // The data don't depend on it, all else does.
    let float32 = succeed(&[&train[..], &["--overwrite"]].concat());
    assert_eq!(float32.matches("up to date").count(), 1, "{float32}");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    if skip_when_quick("the_same_seed_gives_the_same_bytes") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let weights = |name: &str, threads: &str| {
        let run = folder.path().join(name);
        let output = crate::common::fpo(&[
            "train",
            "--recipe",
            "smoke",
            "--run",
            arg(&run),
            "--until",
            "align",
        ])
        .env("RAYON_NUM_THREADS", threads)
        .output()
        .unwrap();
        assert!(output.status.success(), "{}", crate::common::text(&output));
        fs::read(run.join("align/model.safetensors")).unwrap()
    };
    let first = weights("first", "2");
    assert!(first == weights("second", "2"), "two runs differ");
    assert!(first == weights("third", "1"), "the number of threads shows in the weights");
}

/// Oracle: the same training with all activations kept, and with all gradients kept. The order of sums alone may differ, where a
/// gradient has three parts: at the autoencoder's site.
#[test]
fn what_saves_memory_changes_nothing() {
    if skip_when_quick("what_saves_memory_changes_nothing") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let train = |name: &str, more: &[&str]| {
        let run = folder.path().join(name);
        let train = ["train", "--recipe", "smoke", "--run", arg(&run), "--until", "align"];
        succeed(&[&train[..], more].concat());
        ["sft", "align"].map(|stage| metrics(&run.join(stage).join("metrics.jsonl")))
    };
    let recompute =
        ["--set", "sft.checkpoint_activations=true", "--set", "align.checkpoint_activations=true"];
    let in_backward =
        ["--set", "sft.optimizer_in_backward=true", "--set", "align.optimizer_in_backward=true"];
    let plain = train("plain", &[]);
    // The embedding's gradients of a step's passes add up in another order.
    for (name, more) in
        [("recomputed", recompute.to_vec()), ("in-backward", [recompute, in_backward].concat())]
    {
        for (plain, found) in plain.iter().zip(&train(name, &more)) {
            assert_eq!(plain.len(), found.len());
            for (plain, found) in plain.iter().zip(found) {
                for (key, value) in plain.as_object().unwrap() {
                    let (a, b) = (value.as_f64().unwrap(), number(found, key));
                    let apart = (a - b).abs();
                    assert!(apart <= 1e-6 * a.abs().max(1.0), "{name}, {key}: {a} and {b}");
                }
            }
        }
    }
}

/// The lines of a stage's log.
fn metrics(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn compare_runs_every_method_from_the_same_start() {
    if skip_when_quick("compare_runs_every_method_from_the_same_start") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let printed = succeed(&["compare", "--recipe", "smoke", "--run", arg(&run)]);
    let rows: Vec<&str> = printed.lines().filter(|l| l.starts_with('│')).collect();
    for method in ["sft", "dpo", "tdpo1", "tdpo2", "simpo", "simpo-kl", "fpo"] {
        assert!(
            rows.iter().any(|r| r.split_whitespace().nth(1) == Some(method)),
            "no row for {method}:\n{printed}"
        );
    }
    assert!(run.join("compare.html").is_file());
    // The reference is only read where the method needs it: that is where divergence is logged.
    let logged = |method: &str, key: &str| {
        let path = run.join("compare").join(method).join("align/metrics.jsonl");
        fs::read_to_string(path).unwrap().contains(key)
    };
    for (method, kl, distance) in [
        ("dpo", false, false),
        ("tdpo2", true, false),
        ("simpo", false, false),
        ("fpo", false, true),
    ] {
        assert_eq!(logged(method, "kl/chosen"), kl, "{method}");
        assert_eq!(logged(method, "distance/chosen"), distance, "{method}");
    }
}

#[test]
fn real_preference_data_runs_through() {
    if skip_when_quick("real_preference_data_runs_through") {
        return;
    }
    let real = RealPairs::hh_rlhf();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let data = format!("data.train={}", real.path.display());
    let printed = succeed(&["train", "--recipe", "smoke", "--run", arg(&run), "--set", &data]);
    let empty = format!("{} of {} rows have an empty response", real.empty, real.rows);
    assert!(printed.contains(&empty), "{printed}");
    let summary = json(&run.join("prepared/summary.json"));
    let kept =
        |split: &str| number(&summary[split], "kept") + number(&summary[split], "dropped_empty");
    let answered = (real.rows - real.empty) as f64;
    assert_eq!(kept("train") + kept("held_out"), answered);
    let held_out = kept("held_out") / answered;
    assert!((0.05..0.15).contains(&held_out), "held out: {held_out}");
    let evaluation = json(&run.join("evaluate/evaluation.json"));
    // Four held-out pairs, as the sample has, are too few to show what was learned.
    let improved = number(&evaluation["after"], "loss") < number(&evaluation["before"], "loss");
    assert!(real.is_sample() || improved, "{evaluation}");
    assert!(evaluation["after"]["right"].is_null(), "nobody can check these answers");
    assert!(run.join("report.html").is_file());
}
