//! What `fpo plan` counts against what a step really takes.

use std::process::Command;

use serde_json::Value;

/// Peak and plan of a step, MiB.
fn step(args: &[&str]) -> (f64, f64) {
    let output = Command::new(env!("CARGO_BIN_EXE_fpo-under-test"))
        .args(["bench", "step", "--steps", "1", "--json", "--pairs", "4"])
        .args(args)
        // Freed memory goes back at once: what is measured is what is needed.
        .env("MIMALLOC_PURGE_DELAY", "0")
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
    let cases: [&[&str]; 5] = [
        &["--tokens", "256"],
        &["--tokens", "256", "--checkpoint-activations"],
        &["--tokens", "64", "--vocab", "65536"],
        &["--tokens", "64", "--vocab", "65536", "--method", "tdpo2"],
        &["--tokens", "128", "--d-model", "512", "--ffn", "2048", "--lora-rank", "8"],
    ];
    for case in cases {
        let (peak, planned) = step(case);
        println!("{case:?}: {peak:.0} MiB, {planned:.0} planned");
        assert!((0.7..1.4).contains(&(planned / peak)), "{case:?}: {peak} MiB, {planned} planned");
    }
}
