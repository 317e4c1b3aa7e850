//! `tests/gpu/check`, the script for a machine with a GPU and little else, tried on the CPU.
#![cfg(unix)]

use std::{
    fs,
    os::unix::{fs::PermissionsExt, fs::symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use serde_json::Value;

use crate::common::text;

/// Runs the script and returns its lines; `None` on a machine without Python.
fn check(folder: &Path, args: &[&str]) -> Option<Vec<Value>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu/check");
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: no python3");
        return None;
    }
    let output = Command::new(script)
        .arg(folder)
        .args(["--device", "cpu", "--tiny"])
        .args(args)
        .env("OUT", folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    let kept = fs::read_to_string(folder.join("check.jsonl")).unwrap();
    assert!(kept.ends_with(&printed));
    Some(printed.lines().map(|line| serde_json::from_str(line).expect(line)).collect())
}

fn part<'a>(lines: &'a [Value], name: &str) -> &'a Value {
    lines
        .iter()
        .find(|line| line["part"] == name)
        .unwrap_or_else(|| panic!("no {name}: {lines:#?}"))
}

fn found<'a>(lines: &'a [Value], row: &str) -> &'a Value {
    let line = lines.iter().find(|line| line["row"].as_str().is_some_and(|it| it.contains(row)));
    &line.unwrap_or_else(|| panic!("no {row}: {lines:#?}"))["found"]
}

#[test]
fn every_figure_comes_from_the_program() {
    let folder = tempfile::tempdir().unwrap();
    symlink(env!("CARGO_BIN_EXE_fpo-under-test"), folder.path().join("fpo")).unwrap();
    let parts = "step,profile,whole,in-backward,load,devices";
    let Some(lines) = check(folder.path(), &["--parts", parts]) else { return };
    for name in parts.split(',') {
        assert_eq!(part(&lines, name)["ok"], true, "{lines:#?}");
    }
    assert!(part(&lines, "step")["results"][0]["step_seconds"].as_f64().unwrap() > 0.0);
    for row in ["products", "AdamW", "weights to the first step", "loading"] {
        assert!(found(&lines, row).as_f64().unwrap() > 0.0, "{row}: {lines:#?}");
    }
    // Nothing to compare with.
    assert!(found(&lines, "TRL's speed").is_null());
    assert_eq!(lines.last().unwrap()["ok"], true);
}

/// A program that fails, hangs and prints nonsense.
#[test]
fn what_hangs_is_ended_with_all_that_it_started_and_what_fails_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (program, child) = (folder.path().join("fpo"), folder.path().join("child"));
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n\
         *--profile*) echo '{{\"loss\": NaN}}'; printf '\\377 not json\\n'; exit 0;;\n\
         'bench step'*) sleep 600 & echo $! > {}; wait;;\n\
         devices*) echo out of luck >&2; kill -9 $$;;\n\
         *) echo no >&2; exit 3;;\nesac\n",
        child.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let begun = Instant::now();
    let parts = ["--parts", "profile,load,devices,step,float32", "--seconds", "8"];
    let Some(lines) = check(folder.path(), &parts) else { return };
    assert!(begun.elapsed().as_secs() < 60);
    let error = |name| part(&lines, name)["error"].as_str().unwrap_or_default();
    assert_eq!(part(&lines, "step")["ok"], false);
    assert!(error("step").starts_with("timed out after"), "{lines:#?}");
    assert!(error("float32").contains("the time is up"), "{lines:#?}");
    assert!(
        error("load").contains("the time is up") && error("devices").contains("the time is up")
    );
    // The most important part comes first, whatever the order they are asked for.
    assert_eq!(lines[0]["part"], "step");
    let pid = fs::read_to_string(&child).unwrap();
    let alive = PathBuf::from("/proc").join(pid.trim()).join("stat");
    let state = fs::read_to_string(alive).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "still there: {state}");

    let lines = check(folder.path(), &["--parts", "profile,load,devices"]).unwrap();
    assert_eq!(part(&lines, "profile")["results"][0]["loss"], Value::Null);
    assert!(part(&lines, "profile")["results"][1].as_str().unwrap().ends_with(" not json"));
    assert_eq!(part(&lines, "load")["error"], "exit status 3");
    assert_eq!(part(&lines, "load")["stderr"], "no\n");
    assert_eq!(part(&lines, "devices")["error"], "ended by signal 9");
    assert_eq!(lines.last().unwrap()["ok"], false);
}
