//! `fpo train` repeats TRL's own trainers, step by step.
//!
//! Oracle: 20 full-batch steps of DPOTrainer and CPOTrainer of TRL 1.16 on the same model and pairs, recorded by
//! `tests/fixtures/trl/generate.py`.

use std::path::Path;

use crate::{
    common::{arg, succeed},
    score::{fixture, json_lines},
};
use serde_json::Value;

/// Settings that give a method TRL's constants.
const METHODS: [(&str, &[&str]); 4] = [
    ("dpo", &["align.beta=0.1"]),
    ("ipo", &["align.beta=0.1"]),
    ("sigmoid-norm", &["align.beta=2"]),
    ("simpo", &["align.beta=2", "align.gamma=0.5"]),
];
const SETTINGS: [&str; 12] = [
    "sft.epochs=0",
    "data.max_length=128",
    "data.max_prompt_length=100",
    "align.epochs=20",
    "align.batch_size=16",
    "align.micro_batch_size=16",
    "align.optimizer.kind=adamw",
    "align.optimizer.learning_rate=1e-3",
    "align.optimizer.warmup_steps=0",
    "align.optimizer.schedule=constant",
    "align.optimizer.weight_decay=0",
    "align.optimizer.max_grad_norm=1",
];

/// Trains the fixture's model, and gives what was logged.
fn train(run: &Path, data: &str, method: &str, set: &[&str]) -> Vec<Value> {
    let path = |name: &str| format!("={}", fixture("trl").join(name).display());
    let model = format!("model.path{}", path("model"));
    let [pairs, held_out] = ["train", "eval"].map(|key| format!("data.{key}{}", path(data)));
    let method = format!("align.method={method}");
    let mut arguments = vec!["train", "--recipe", "smoke", "--run", arg(run), "--until", "align"];
    let given = [model.as_str(), &pairs, &held_out, &method];
    for setting in given.into_iter().chain(SETTINGS).chain(set.iter().copied()) {
        arguments.extend(["--set", setting]);
    }
    succeed(&arguments);
    json_lines(&run.join("align/metrics.jsonl"))
}

/// The largest difference in a column of two files' lines, relative to values above 1: all is computed in float32.
fn difference(ours: &[Value], theirs: &[Value], key: &str) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let number = |line: &Value| line[key].as_f64().unwrap_or_else(|| panic!("no {key} in {line}"));
    let relative = |(a, b)| (number(a) - number(b)).abs() / number(b).abs().max(1.0);
    ours.iter().zip(theirs).map(relative).fold(0.0, f64::max)
}

#[test]
fn twenty_steps_are_those_of_trls_trainers() {
    let folder = tempfile::tempdir().unwrap();
    let mut failed = Vec::new();
    for (method, constants) in METHODS {
        let run = folder.path().join(method);
        let ours = train(&run, "pairs.jsonl", method, constants);
        let theirs = json_lines(&fixture("trl").join(format!("{method}.jsonl")));
        let [loss, norm] = ["loss", "grad_norm"].map(|key| difference(&ours, &theirs, key));

        let (model, data) = (run.join("align"), fixture("trl").join("pairs.jsonl"));
        let out = folder.path().join("scores.jsonl");
        let files = ["--model", arg(&model), "--data", arg(&data), "--out", arg(&out)];
        succeed(&[&["score"], &files[..]].concat());
        let theirs = json_lines(&fixture("trl").join(format!("{method}.scores.jsonl")));
        let log_probs = ["chosen_log_prob", "rejected_log_prob"]
            .map(|key| difference(&json_lines(&out), &theirs, key));
        let log_probs = log_probs[0].max(log_probs[1]);
        let found = format!(
            "{method}: at most {loss:.1e} off in loss, {norm:.1e} in gradient norm, {log_probs:.1e} in log-probabilities"
        );
        println!("{found}");
        if loss > 1e-6 || norm > 1e-5 || log_probs > 1e-6 {
            failed.push(found);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Where a boundary falls inside a token, train, score and evaluate draw it where TRL does. Oracle: TRL's token counts, and
/// transformers' values behind `score`.
#[test]
fn every_command_draws_the_boundary_where_trl_does() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let logged = train(&run, "boundary.jsonl", "dpo", &["align.epochs=1"]);
    let expected = json_lines(&fixture("trl").join("boundary.trl.jsonl"));
    let count = |line: &Value, key: &str| line[key].as_array().unwrap().len();
    for side in ["chosen", "rejected"] {
        let ids = format!("{side}_ids");
        let counts = expected.iter().map(|line| count(line, &ids));
        let mean = counts.sum::<usize>() as f64 / expected.len() as f64;
        let ours = logged[0][format!("tokens/{side}")].as_f64().unwrap();
        assert!((ours - mean).abs() < 1e-6, "{side}: {ours}, not {mean}");
    }
    let (model, data) = (fixture("trl").join("model"), fixture("trl").join("boundary.jsonl"));
    let out = folder.path().join("out.jsonl");
    let (held_out, cache) = (run.join("prepared/held_out.arrow"), folder.path().join("cache"));
    let mut scores = Vec::new();
    for data in [&data, &held_out] {
        let files = ["--model", arg(&model), "--data", arg(data), "--out", arg(&out)];
        succeed(&[&["score"], &files[..]].concat());
        scores.push(json_lines(&out));
    }
    let files = ["--model", arg(&model), "--data", arg(&data), "--out", arg(&cache)];
    succeed(&[&["reference"], &files[..]].concat());
    for reference in [&cache, &run.join("reference/held_out")] {
        let files = ["--policy", arg(&model), "--reference", arg(reference), "--data", arg(&data)];
        let more = ["--method", "dpo", "--per-pair", arg(&out)];
        succeed(&[&["evaluate"], &files[..], &more].concat());
        scores.push(json_lines(&out));
    }
    for lines in &scores {
        for (line, expected) in lines.iter().zip(&expected) {
            for side in ["chosen", "rejected"] {
                let tokens = line[format!("{side}_tokens")].as_u64().unwrap() as usize;
                assert_eq!(tokens, count(expected, &format!("{side}_ids")), "{line}");
            }
        }
        for key in ["chosen_log_prob", "rejected_log_prob"] {
            assert!(difference(lines, &scores[0], key) < 1e-4, "{key}");
        }
    }
}
