//! A device that cannot do what is asked of it: an error that says so, and nothing that was written before is damaged.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use burn::tensor::{Device, Tensor};
use fpo_data::hash::hash_folder;
use fpo_device::{DeviceFailure, facts::facts, guard, list};

use crate::support::{devices, name};

fn fpo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fpo-under-test")).args(args).output().unwrap()
}

/// What was printed by a run that must end with one message and no panic.
fn fail(args: &[&str]) -> String {
    let output = fpo(args);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{args:?} succeeded:\n{printed}");
    assert!(!printed.contains("panicked"), "{args:?} panicked:\n{printed}");
    // Mesa's remark on a machine without a display begins like an error.
    let errors =
        printed.lines().filter(|l| l.starts_with("error") && !l.contains("XDG_RUNTIME_DIR"));
    assert_eq!(errors.count(), 1, "{printed}");
    printed
}

/// Bytes of the largest tensor.
fn largest(device: &Device) -> u64 {
    facts(device).expect("a GPU has facts").largest_tensor
}

#[test]
fn a_tensor_that_is_too_large_is_an_error_and_the_device_lives_on() {
    let Some([_, device]) = devices() else { return };
    let sum = |numbers: usize| {
        guard(|| Ok(Tensor::<1>::ones([numbers], &device).sum().into_scalar::<f32>()))
    };
    let too_many = largest(&device) as usize / 4 + 1024;
    let failure = sum(too_many).unwrap_err().downcast::<DeviceFailure>().unwrap();
    let DeviceFailure::BufferTooLarge(Some(bytes)) = failure else { panic!("{failure:?}") };
    assert!((bytes as usize).abs_diff(4 * too_many) < 4096, "{bytes} of {}", 4 * too_many);
    assert_eq!(sum(8).unwrap(), 8.0);
}

#[test]
fn every_device_that_is_listed_can_be_named() {
    if devices().is_none() {
        return;
    }
    let listed = list();
    let kind = name().split(':').next().unwrap_or_default();
    assert!(listed.iter().any(|device| device.name == format!("{kind}:0")), "{listed:?}");
    for device in &listed {
        let tiny =
            ["--pairs", "1", "--tokens", "8", "--vocab", "16", "--d-model", "16", "--layers", "1"];
        let more =
            ["--heads", "1", "--kv-heads", "1", "--head-dim", "8", "--ffn", "16", "--d-sae", "16"];
        let device_name = device.name.as_str();
        let rest = ["--k", "2", "--steps", "1", "--json", "--device", device_name];
        let output = fpo(&[&["bench", "step"][..], &tiny, &more, &rest].concat());
        assert!(output.status.success(), "{device:?}: {}", String::from_utf8_lossy(&output.stderr));
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let reserved = found["device_reserved_mib"].as_f64();
        assert_eq!(
            reserved.is_some_and(|mib| mib > 0.0),
            device_name != "cpu",
            "{device_name}: {found}"
        );
    }
    let none = format!("{kind}:99");
    let printed = fail(&["bench", "step", "--device", &none]);
    assert!(printed.contains(&none) && printed.contains("no such GPU"), "{printed}");
}

/// The last batch has texts whose activations are larger than the device holds in one piece: the batches before are trained on, and
/// on another device the run goes on where this one failed.
#[test]
fn a_run_that_fails_on_its_device_goes_on_elsewhere() {
    let Some([_, device]) = devices() else { return };
    let largest = largest(&device);
    if largest > 1 << 29 {
        eprintln!(
            "SKIPPED: what this device cannot hold, {largest} bytes, is too much for a test on the CPU"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, run) = (folder.path().join("pairs.jsonl"), folder.path().join("run"));
    fs::write(&data, pairs()).unwrap();
    let settings = [
        format!("data.train={}", data.display()),
        "data.max_length=4096".into(),
        "model.num_hidden_layers=1".into(),
        format!("model.intermediate_size={}", largest.div_ceil(4 * 4000)),
        "sft.micro_batch_size=1".into(),
        "sft.checkpoint_every=1".into(),
    ];
    let mut train = vec!["train", "--recipe", "smoke", "--until", "sft", "--run", path(&run)];
    for setting in &settings {
        train.extend(["--set", setting]);
    }
    let printed = fail(&[&train[..], &["--device", name()]].concat());
    for says in [
        "stage sft: step 3: a tensor of",
        "exceeds the device's largest buffer",
        "sft.micro_batch_size, data.max_length, model.intermediate_size",
        "checkpoints and finished stages are unchanged",
    ] {
        assert!(printed.contains(says), "no {says:?} in:\n{printed}");
    }
    assert!(!run.join("sft").exists(), "an unfinished stage has its folder");
    let checkpoint = run.join("checkpoints/sft/step-00000002");
    let before = hash_folder(&checkpoint).unwrap();

    let again = fail(&[&train[..], &["--device", name(), "--resume"]].concat());
    assert!(again.contains("resumes from step 2"), "{again}");
    assert_eq!(hash_folder(&checkpoint).unwrap(), before, "the checkpoint was damaged");

    let elsewhere = fpo(&[&train[..], &["--device", "cpu", "--resume"]].concat());
    let printed = String::from_utf8_lossy(&elsewhere.stderr);
    assert!(elsewhere.status.success() && printed.contains("resumes from step 2"), "{printed}");
    let steps = fs::read_to_string(run.join("sft/metrics.jsonl")).unwrap();
    assert_eq!(steps.lines().count(), 3, "{steps}");
}

/// Short ones and three long ones, which are among the rest after two full batches in the order of the recipe's seed.
fn pairs() -> String {
    let pair = |i: usize, words: usize| {
        let chosen: Vec<String> =
            (0..words).map(|w| format!("{:x}", (i + 7) * (w + 3) * 2_654_435_761)).collect();
        let chosen = chosen.join(" ");
        format!("{{\"prompt\":\"Say {i}.\",\"chosen\":\"{chosen}\",\"rejected\":\"No.\"}}\n")
    };
    (0..44).map(|i| pair(i, if [0, 3, 14].contains(&i) { 2000 } else { 2 })).collect()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
