//! What users get wrong: one clear message, a non-zero status, nothing damaged.

use std::{
    fs,
    io::Write,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::common::{PATIENCE, arg, fail, fpo, skip_when_quick, succeed, text};

const GOOD: &str = r#"{"prompt":"Say hi.","chosen":"Hi.","rejected":"No."}"#;

#[test]
fn data_that_is_wrong_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let missing = folder.path().join("missing.jsonl");
    let cases: [(&str, String, &[&str]); 5] = [
        ("malformed.jsonl", format!("{GOOD}\n{{\"prompt\": \n"), &["malformed.jsonl", "line 2"]),
        (
            "columns.jsonl",
            "{\"question\":\"a\",\"answer\":\"b\"}\n".into(),
            &["columns.jsonl", "chosen", "rejected", "question, answer"],
        ),
        (
            "empty.jsonl",
            format!("{GOOD}\n{}\n", GOOD.replace("No.", "")),
            &["empty.jsonl", "line 2", "rejected", "empty response"],
        ),
        ("nothing.jsonl", String::new(), &["nothing.jsonl", "no rows"]),
        ("binary.parquet", "PAR1 and then nothing".into(), &["binary.parquet", "Parquet"]),
    ];
    for (name, content, says) in cases {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        check(&run, &format!("data.train={}", path.display()), says);
    }
    check(&run, &format!("data.train={}", missing.display()), &["missing.jsonl"]);
    check(&run, &format!("model.path={}", missing.display()), &["missing.jsonl"]);
}

fn check(run: &Path, setting: &str, says: &[&str]) {
    let printed = fail(&["train", "--recipe", "smoke", "--run", arg(run), "--set", setting]);
    for says in says {
        assert!(printed.contains(says), "{setting}: no {says:?} in:\n{printed}");
    }
    assert!(!run.join("prepared").exists(), "{setting}: something was left");
}

#[test]
fn settings_and_devices_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let base = ["train", "--run", arg(&run)];
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--set", "model.precision=float16"], &["float16", "float32", "bf16-mixed"]),
        (&["--set", "align.metod=dpo"], &["align.metod", "align.method"]),
        (&["--set", "align.method=ppo"], &["ppo", "fpo"]),
        (&["--recipe", "huge"], &["huge", "tiny"]),
        (&["--config", "nowhere.toml"], &["nowhere.toml"]),
        (&["--device", "vulkan"], &["vulkan", "cargo xtask train --device vulkan"]),
        (&["--device", "abacus"], &["abacus", "cpu"]),
        (&["--device", "cuda,wgpu"], &["cuda,wgpu", "one device"]),
        (&["--device", "cuda", "--device", "wgpu"], &["--device", "multiple times"]),
    ];
    for (more, says) in cases {
        let printed = fail(&[&base[..], more].concat());
        for says in says {
            assert!(printed.contains(says), "{more:?}: no {says:?} in:\n{printed}");
        }
    }
    assert!(!run.exists(), "a refused run leaves no folder");
    for (name, says) in [
        ("vulkan", "cargo xtask train --device vulkan"),
        ("abacus", "expected cpu, cuda"),
        ("cpu:1", "such as cuda:1"),
    ] {
        let printed = fail(&["devices", "--device", name]);
        assert!(printed.contains(says), "devices of {name}: no {says:?} in:\n{printed}");
    }
    for devices in [&["devices"][..], &["devices", "--device", "cpu"]] {
        assert!(succeed(devices).starts_with("cpu  "), "{devices:?}");
    }
}

#[test]
fn a_site_or_k_that_the_model_or_autoencoder_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let base = ["train", "--recipe", "smoke", "--run", arg(&run), "--set"];
    for (setting, says) in [
        ("sae.site=resid_post:9", "resid_post:9"),
        ("sae.site=residual", "KIND:LAYER"),
        ("align.k=500", "128 features"),
        ("sae.training.target_l0=-3", "target_l0"),
    ] {
        let printed = fail(&[&base[..], &[setting]].concat());
        assert!(printed.contains(says), "{setting}: no {says:?} in:\n{printed}");
    }
}

#[test]
fn a_diverging_run_stops_with_its_place() {
    if skip_when_quick("a_diverging_run_stops_with_its_place") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let train = ["train", "--recipe", "smoke", "--run", arg(&run)];
    succeed(&train);
    let before = fs::read(run.join("align/model.safetensors")).unwrap();
    let diverging = [
        "--set",
        "align.optimizer.learning_rate=1e30",
        "--set",
        "align.optimizer.warmup_steps=0",
        "--set",
        "align.checkpoint_every=1",
        "--overwrite",
    ];
    let printed = fail(&[&train[..], &diverging].concat());
    for says in ["stage align", "step 2", "pair ids of the batch: [", "last good checkpoint: "] {
        assert!(printed.contains(says), "no {says:?} in:\n{printed}");
    }
    let after = fs::read(run.join("align/model.safetensors")).unwrap();
    assert!(before == after, "the earlier result was damaged");
}

#[test]
fn two_processes_do_not_share_a_run() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("run")).unwrap();
    let run = folder.path().join("run");
    let lock = fs::File::create(run.join(".lock")).unwrap();
    lock.lock().unwrap();
    let printed = fail(&["train", "--recipe", "smoke", "--run", arg(&run)]);
    assert!(printed.contains("in use by another process"), "{printed}");
}

/// Needs the right to mount; says so where it has none.
#[test]
fn a_full_disk_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs", arg(&disk)])
        .output()
        .is_ok_and(|o| o.status.success());
    if !mounted {
        eprintln!("SKIPPED a_full_disk_is_a_clear_error: cannot mount a small disk");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let run = disk.join("run");
        let long = ["--set", "sft.epochs=100"];
        let train = ["train", "--recipe", "smoke", "--run", arg(&run)];
        let child = fpo(&[&train[..], &long].concat()).spawn().unwrap();
        // There was room when the run began; then somebody else takes it.
        let begun = Instant::now();
        while !run.join("checkpoints/sft").exists() {
            assert!(begun.elapsed() < PATIENCE, "fine-tuning never began");
            sleep(Duration::from_millis(2));
        }
        let mut ballast = fs::File::create(disk.join("ballast")).unwrap();
        while ballast.write_all(&[1; 4096]).is_ok() {}
        let output = child.wait_with_output().unwrap();
        let printed = text(&output);
        assert!(!output.status.success() && !printed.contains("panicked"), "{printed}");
        assert!(printed.contains("No space left on device"), "{printed}");
        assert!(!run.join("sft").exists(), "an unfinished stage has its folder");
    });
    let unmounted = Command::new("umount").arg(&disk).status();
    assert!(unmounted.is_ok_and(|s| s.success()), "the small disk stays mounted");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
