//! How many kernels a step launches and how many bytes its operations move. Both are counts, which a slow device gets right too.

use std::process::Command;

use serde_json::Value;

use crate::support::{devices, name};

/// Launches of a step of two blocks: 201 were counted on WGPU, each time; what is fused may depend on the device.
const LAUNCHES: f64 = 206.0;
/// Launches of each further block: 65 were counted, 28 of them products.
const PER_BLOCK: f64 = 67.0;
/// Bytes that the operations of a step of two blocks move at least.
const BYTES: f64 = 11_218_592.0;

const SIZES: &str = "--pairs 2 --tokens 32 --vocab 512 --d-model 64 --heads 4 --kv-heads 2 --head-dim 16 --ffn 128 \
                     --d-sae 128 --k 16 --steps 2";

/// In a process of its own, because launches are counted in a whole process.
fn measured(layers: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_fpo-under-test"))
        .args(["bench", "step", "--profile", "--json", "--layers", layers, "--device", name()])
        .args(SIZES.split_whitespace())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(printed.lines().last().unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// Bounds of what was counted; a change that needs more of either has to say why. Oracles of the rest: the clock around the step,
/// and the count of its products by formula.
#[test]
fn a_step_launches_and_moves_no_more_than_it_did() {
    if devices().is_none() {
        return;
    }
    let [one, two] = ["1", "2"].map(|layers| {
        let report = measured(layers);
        let profile = &report["profile"];
        let places = profile["places"].as_array().unwrap();
        let sum = |what: &str, of: Option<&str>| -> f64 {
            let of_it = places.iter().filter(|p| of.is_none_or(|name| p["operation"] == name));
            of_it.map(|place| number(&place[what])).sum()
        };
        let watched = number(&profile["watched_step_seconds"]);
        let seconds = sum("seconds", None);
        assert!((seconds / watched - 1.0).abs() < 0.05, "{seconds} s of {watched}");
        assert_eq!(sum("flops", None), number(&report["model_flops"]));
        for operation in ["rotary", "geglu"] {
            let [calls, launches] = ["calls", "launches"].map(|what| sum(what, Some(operation)));
            assert!(calls > 0.0 && launches == calls, "{operation}: {launches} for {calls} calls");
        }
        // Several parameters in each.
        for operation in ["adamw_step", "sums_of_squares"] {
            let launches = sum("launches", Some(operation));
            assert!((1.0..=5.0).contains(&launches), "{operation}: {launches}");
        }
        let kernels = &profile["kernels"];
        println!("{layers} blocks: {} launches: {kernels:#}", profile["launches"]);
        [number(&profile["launches"]), sum("bytes", None)]
    });
    let per_block = two[0] - one[0];
    println!("{per_block} launches per block, {} bytes", two[1]);
    assert!(two[0] > 0.0 && two[0] <= LAUNCHES, "{} launches", two[0]);
    assert!(per_block <= PER_BLOCK, "{per_block} launches per block");
    assert!(two[1] <= BYTES, "{} bytes", two[1]);
}
