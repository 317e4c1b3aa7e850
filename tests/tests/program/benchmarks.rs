//! `fpo bench step --profile` and `fpo bench load`.

use serde_json::Value;

use crate::common::{arg, fail, succeed};

fn measured(args: &[&str]) -> Value {
    let printed = succeed(&[&["bench"], args, &["--json"]].concat());
    let line = printed.lines().find(|line| line.starts_with('{')).expect("a line of JSON");
    serde_json::from_str(line).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// A number of every place of a profile.
fn of_places(report: &Value, what: &str) -> impl Iterator<Item = f64> {
    report["profile"]["places"].as_array().unwrap().iter().map(move |place| number(&place[what]))
}

const SMALL: [&str; 14] = [
    "step",
    "--layers",
    "2",
    "--vocab",
    "600",
    "--d-model",
    "128",
    "--ffn",
    "256",
    "--head-dim",
    "32",
    "--d-sae",
    "256",
    "--profile",
];

/// Oracles: the clock around the step for the times, and the count of the step's products by formula (which has a brute force of
/// its own) for the FLOPs that were counted call by call.
#[test]
fn a_profile_is_the_whole_step_and_counts_every_product() {
    let args = [&SMALL[..], &["--steps", "3", "--pairs", "4", "--tokens", "64"]].concat();
    // Another process may get the processor between the two clocks, though not each time.
    let mut off = Vec::new();
    let report = loop {
        let report = measured(&args);
        let counted: f64 = of_places(&report, "seconds").sum();
        let watched = number(&report["profile"]["watched_step_seconds"]);
        match (counted / watched - 1.0).abs() {
            difference if difference < 0.03 => break report,
            difference => off.push(difference),
        }
        assert!(off.len() < 3, "the places' times are off by {off:?} of the step's");
    };
    assert_eq!(of_places(&report, "flops").sum::<f64>(), number(&report["model_flops"]));
    let profile = &report["profile"];
    let places = profile["places"].as_array().unwrap();
    assert_eq!(number(&profile["launches"]), 0.0);
    assert!(number(&profile["memory_rate"]) > 1e8 && number(&profile["product_rate"]) > 1e8);

    let calls = |phase: &str, part: &str, operation: &str| {
        let found = places.iter().find(|place| {
            place["phase"] == phase && place["part"] == part && place["operation"] == operation
        });
        found.map_or(0.0, |place| number(&place["calls"]))
    };
    for (phase, part, operation, expected) in [
        ("forward", "attention", "linear", 8.0),
        ("forward", "attention", "flat_attention", 2.0),
        ("forward", "mlp", "linear", 6.0),
        ("forward", "mlp", "geglu", 2.0),
        ("forward", "block", "rms_norm", 8.0),
        ("forward", "final norm", "rms_norm", 1.0),
        ("forward", "head", "linear_log_probs", 1.0),
        ("forward", "autoencoder", "pooled_features", 1.0),
        ("backward", "attention", "linear", 8.0),
        ("backward", "mlp", "linear", 6.0),
        ("backward", "head", "linear_log_probs", 1.0),
        ("backward", "autoencoder", "pooled_features", 1.0),
        // 11 parameters in each block, the final norm, and the embedding.
        ("optimiser", "", "adamw_step", 24.0),
        ("optimiser", "clipping", "sums_of_squares", 24.0),
    ] {
        let found = calls(phase, part, operation);
        assert_eq!(found, expected, "{phase}, {part}, {operation}: {places:#?}");
    }
}

/// Recomputation makes the forward pass of the blocks twice, and the table says where.
#[test]
fn what_is_computed_again_is_in_the_backward_pass_and_the_table_is_readable() {
    let sizes = ["--steps", "1", "--pairs", "2", "--tokens", "32", "--checkpoint-activations"];
    let printed = succeed(&[&["bench"], &SMALL[..], &sizes].concat());
    let (_, table) = printed.split_once("where a step's time goes").expect("a table");
    let phase = table.lines().skip_while(|line| !line.trim().starts_with("backward"));
    let phase: Vec<_> =
        phase.skip(1).take_while(|line| !line.trim().starts_with("optimiser")).collect();
    // Twice as many calls as layers: forward again, and backward.
    let attention = phase.iter().find(|line| line.contains("flat_attention")).unwrap();
    let words: Vec<_> = attention.split_whitespace().collect();
    assert_eq!(words[..3], ["attention", "flat_attention", "4"], "{printed}");
    for word in ["watched", "of products", "of memory", "TFLOP/s", "GB/s", "start"] {
        assert!(printed.contains(word), "no {word} in:\n{printed}");
    }
    assert!(!printed.contains("launches"), "the CPU launches no kernels:\n{printed}");
}

#[test]
fn loading_is_measured() {
    let report = measured(&["load", "--repeats", "1"]);
    // SmolLM2-135M in bfloat16.
    assert_eq!(number(&report["parameters"]), 134_515_008.0);
    let bytes = number(&report["bytes"]);
    assert!((bytes / (2.0 * 134_515_008.0) - 1.0).abs() < 1e-3, "{bytes} bytes");
    let rate = bytes / number(&report["seconds"]);
    assert!((number(&report["bytes_per_second"]) / rate - 1.0).abs() < 1e-6);

    let empty = tempfile::tempdir().unwrap();
    assert!(fail(&["bench", "load", arg(empty.path())]).contains("no weights in this folder"));
}
