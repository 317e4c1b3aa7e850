//! What `fpo plan` counts against what a step really takes.

use std::process::Command;

use serde_json::Value;

use crate::common::{fail, succeed};

/// Peak and plan of a step, MiB.
fn step(args: &[&str]) -> (f64, f64) {
    let output = Command::new(env!("CARGO_BIN_EXE_fpo-under-test"))
        .args(["bench", "step", "--steps", "1", "--json", "--pairs", "4"])
        .args(args)
        // Freed memory goes back at once: what is measured is what is needed.
        .env("MIMALLOC_PURGE_DELAY", "0")
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |name: &str| found[name].as_f64().unwrap();
    (number("peak_rss_mib"), number("planned_mib"))
}

#[cfg(target_os = "linux")]
#[test]
fn planned_memory_is_what_a_step_takes() {
    // Where the gradients of blocks are a good part.
    let deep = ["--tokens", "64", "--d-model", "512", "--ffn", "2048", "--layers", "16"];
    let cases: [&[&str]; 9] = [
        &["--tokens", "256"],
        &["--tokens", "256", "--checkpoint-activations"],
        &["--tokens", "64", "--vocab", "65536"],
        &["--tokens", "64", "--vocab", "65536", "--method", "tdpo2"],
        &["--tokens", "64", "--vocab", "65536", "--checkpoint-activations"],
        // The table's gradient in several parts is most of it.
        &["--tokens", "64", "--vocab", "262144"],
        &["--tokens", "128", "--d-model", "512", "--ffn", "2048", "--lora-rank", "8"],
        &[&deep[..], &["--checkpoint-activations"]].concat(),
        &[&deep[..], &["--checkpoint-activations", "--optimizer-in-backward"]].concat(),
    ];
    // What the program takes for itself.
    let (peak, planned) = step(&[
        "--tokens",
        "8",
        "--vocab",
        "64",
        "--d-model",
        "64",
        "--ffn",
        "64",
        "--layers",
        "1",
    ]);
    let itself = peak - planned;
    for case in cases {
        let (peak, planned) = step(case);
        let needed = peak - itself;
        println!("{case:?}: {peak:.0} MiB, {itself:.0} of them for itself, {planned:.0} planned");
        let ratio = planned / needed;
        // Whether the parts of the table's gradient are added in place differs from run to run.
        assert!((0.85..1.2).contains(&ratio), "{case:?}: {needed} MiB, {planned} planned");
    }
}

#[test]
fn a_plan_names_stages_cache_and_settings_that_train_accepts() {
    let recipe = ["--recipe", "gemma-2-9b-fpo-lora"];
    let plan = fail(&[&["plan"][..], &recipe, &["--device-memory", "20.9GB"]].concat());
    for says in
        ["fine-tuning", "fpo", "evaluation", "reference cache", "at most 262.2 MB for 1,000 pairs"]
    {
        assert!(plan.contains(says), "no {says:?} in:\n{plan}");
    }
    let suggested: Vec<&str> =
        plan.lines().filter_map(|line| line.trim().strip_prefix("--set ")).collect();
    let set: Vec<&str> = suggested
        .iter()
        .flat_map(|line| line.rsplit_once("  ").map_or(*line, |(set, _)| set).split("--set "))
        .flat_map(|set| ["--set", set.trim()])
        .collect();
    assert!(set.iter().any(|set| set.starts_with("data.max_prompt_length=")), "{plan}");
    let again = [&["plan"][..], &recipe, &set, &["--device-memory", "20.9GB"]].concat();
    let fits = succeed(&again);
    assert!(fits.ends_with("fits into 20.90 GB\n"), "{again:?}:\n{fits}");
}
