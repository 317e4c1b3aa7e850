//! Sampling filters are Hugging Face's.
//!
//! Oracle: what transformers' own logits processors made of random logits, recorded by
//! `tests/fixtures/sampling/generate.py`.

use std::{fs, path::Path};

use fpo_transformer::{
    GenerationOptions,
    sampling::{candidates, penalise},
};
use serde_json::Value;

#[test]
fn penalty_temperature_top_k_and_top_p_match() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sampling/cases.json");
    let cases: Vec<Value> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.len() > 20);
    for case in &cases {
        let option = |name: &str| case["options"][name].as_f64();
        let options = GenerationOptions {
            temperature: option("temperature").unwrap_or(1.0),
            top_k: option("top_k").map(|k| k as usize),
            top_p: option("top_p"),
            repetition_penalty: option("repetition_penalty").unwrap_or(1.0),
            ..GenerationOptions::default()
        };
        let numbers = |name: &str| -> Vec<f64> {
            case[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
        };
        let mut logits: Vec<f32> = numbers("logits").iter().map(|&l| l as f32).collect();
        let seen = numbers("seen").into_iter().map(|id| id as u32);
        penalise(&mut logits, seen, options.repetition_penalty);
        let mut ours = vec![0.0; logits.len()];
        for (token, probability) in candidates(&logits, &options) {
            ours[token as usize] = probability;
        }
        let theirs = numbers("probabilities");
        // Among equals at the edge of top-p either may stay: there the sorted probabilities are compared.
        let (mut ours, mut theirs) = (ours, theirs);
        if case["ties"] == true && options.top_p.is_some() {
            ours.sort_by(f64::total_cmp);
            theirs.sort_by(f64::total_cmp);
        }
        let largest = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(largest < 1e-6, "{}: {largest}\n{ours:?}\n{theirs:?}", case["options"]);
    }
}
