//! A real pretrained model, SmolLM2-135M-Instruct, in the folder that the variable `FPO_SMOLLM2` names.
//!
//! Oracle: values recorded from transformers 5.24 by `tests/fixtures/smollm2/generate.py`, row by row.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::{
    common::{arg, fpo, succeed},
    score::{fixture, json_lines},
};

/// Largest difference of a summed log-probability, per token.
const TOLERANCE: f64 = 2e-5;

fn model() -> Option<PathBuf> {
    let folder = std::env::var_os("FPO_SMOLLM2").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: FPO_SMOLLM2 doesn't name a folder with SmolLM2-135M-Instruct");
    }
    folder
}

#[test]
fn real_pairs_have_the_log_probabilities_of_transformers() {
    let Some(model) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (fixture("smollm2/pairs.jsonl"), folder.path().join("scores.jsonl"));
    let files = ["--model", arg(&model), "--data", arg(&data), "--out", arg(&out)];
    succeed(&[&["score", "--rendering", "none"], &files[..]].concat());
    let (ours, theirs) = (json_lines(&out), json_lines(&fixture("smollm2/scores.jsonl")));
    assert_eq!((ours.len(), theirs.len()), (64, 64));
    let mut worst = 0.0f64;
    for (row, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        for side in ["chosen", "rejected"] {
            let tokens = format!("{side}_tokens");
            assert_eq!(ours[&tokens], theirs[&tokens], "row {row}");
            let log_prob = |row: &Value| row[format!("{side}_log_prob")].as_f64().unwrap();
            let tokens = ours[&tokens].as_f64().unwrap();
            worst = worst.max((log_prob(ours) - log_prob(theirs)).abs() / tokens);
        }
    }
    println!("log-probabilities differ by at most {worst:.1e} per token");
    assert!(worst < TOLERANCE, "{worst}");
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let Some(model) = model() else { return };
    let recorded = fs::read_to_string(fixture("smollm2/model.json")).unwrap();
    let recorded: Value = serde_json::from_str(&recorded).unwrap();
    let prompt = recorded["prompt"].as_str().unwrap();
    let files = ["generate", "--model", arg(&model), "--prompt", prompt];
    let greedy = ["--rendering", "none", "--temperature", "0", "--max-new-tokens", "8"];
    let output = fpo(&[&files[..], &greedy].concat()).output().unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    assert!(answer.starts_with(" Paris."), "{answer}");
    assert_eq!(answer.trim_end_matches('\n'), recorded["answer"].as_str().unwrap());
}
