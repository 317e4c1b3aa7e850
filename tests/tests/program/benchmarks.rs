//! `fpo bench step` with `--profile` and with `--lengths`, and `fpo bench load`.

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

/// Oracles: the step on `--tokens` and `--prompt-tokens`, whose pairs are the same to the token; and for pairs of several lengths, sums
/// by hand, and the products counted call by call.
#[test]
fn a_step_takes_its_pairs_lengths_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, pairs: &[[usize; 3]]| {
        let line = |[prompt, chosen, rejected]: &[usize; 3]| {
            format!("{{\"prompt\": {prompt}, \"chosen\": {chosen}, \"rejected\": {rejected}}}\n")
        };
        let path = folder.path().join(name);
        std::fs::write(&path, pairs.iter().map(line).collect::<String>()).unwrap();
        path
    };
    let step = |sizes: &[&str]| measured(&[&SMALL[..], sizes].concat());

    let alike = step(&["--pairs", "3", "--tokens", "24", "--prompt-tokens", "6", "--steps", "2"]);
    let path = file("alike.jsonl", &[[6, 18, 18]; 3]);
    let by_file = step(&["--pairs", "3", "--lengths", arg(&path), "--steps", "2"]);
    for what in ["tokens", "loss", "model_flops", "planned_mib", "steps"] {
        assert_eq!(by_file[what], alike[what], "{what}");
    }

    // Steps 1 to 3 are on the second, the first and again the second batch; the last pair is in none.
    let pairs = [[50, 120, 7], [9, 3, 200], [2, 1, 4], [16, 9, 9], [160, 60, 60]];
    let path = file("several.jsonl", &pairs);
    let several = step(&["--pairs", "2", "--lengths", arg(&path), "--steps", "3"]);
    let tokens = [(170 + 57) + (12 + 209), (3 + 6) + (25 + 25)];
    assert_eq!(number(&several["tokens"]), ((2 * tokens[1] + tokens[0]) as f64 / 3.0).round());
    let flops = number(&several["model_flops"]);
    assert!((of_places(&several, "flops").sum::<f64>() / flops - 1.0).abs() < 1e-12);
    let all = (2 * tokens[1] + tokens[0]) as f64;
    let speed = all / (3.0 * number(&several["step_seconds"]));
    assert!((number(&several["tokens_per_second"]) / speed - 1.0).abs() < 1e-9);
    let loss = number(&several["loss"]);
    assert!((loss - std::f64::consts::LN_2).abs() < 0.01, "{loss}");

    // Each batch alone; the plan is that of the one with more tokens, a prompt's counted once.
    let [first, second] = [&pairs[..2], &pairs[2..4]].map(|pairs| {
        let path = file("batch.jsonl", pairs);
        step(&["--pairs", "2", "--lengths", arg(&path), "--steps", "1"])
    });
    let mean = (number(&first["model_flops"]) + 2.0 * number(&second["model_flops"])) / 3.0;
    assert!((flops / mean - 1.0).abs() < 1e-12);
    assert_eq!(several["planned_mib"], first["planned_mib"]);
    assert!(number(&first["planned_mib"]) > number(&second["planned_mib"]));

    std::fs::write(&path, "{\"prompt\": 3, \"chosen\": 0, \"rejected\": 1}\n").unwrap();
    let message = fail(&["bench", "step", "--lengths", arg(&path)]);
    assert!(message.contains("several.jsonl, line 1: `chosen` is 0; each line"), "{message}");
    let both = fail(&["bench", "step", "--lengths", arg(&path), "--prompt-tokens", "4"]);
    assert!(both.contains("cannot be used with"), "{both}");
}

#[test]
fn sizes_beyond_any_model_are_refused() {
    for size in ["--pairs", "--lora-rank"] {
        let message = fail(&["bench", "step", size, "100000000000"]);
        assert!(message.contains(size) && message.contains("1048576"), "{message}");
    }
    let message = fail(&["bench", "step", "--pairs", "1048576", "--tokens", "1048576"]);
    assert!(message.contains("lower --pairs"), "{message}");
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
