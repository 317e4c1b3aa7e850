//! Standard streams, pipes and links as inputs and outputs.

#![cfg(unix)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

use crate::common::{arg, fail, fpo, skip_when_quick, succeed, text};

/// A closed pipe ends the program without a word, and a full disk behind standard output is an error.
#[test]
fn standard_output_is_written_like_a_file() {
    for args in [
        &["train", "--help-settings"][..],
        &["recipes", "tiny"],
        &["--help"],
        &["completions", "bash"],
        &["--version"],
    ] {
        let mut child = fpo(args).spawn().unwrap();
        // Closed before anything is read.
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        assert_eq!(text(&output), "", "{args:?}");

        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = fpo(args).stdout(full).output().unwrap();
        let printed = text(&output);
        assert!(!output.status.success(), "{args:?}: a full disk went unnoticed");
        assert!(
            printed.starts_with("error: standard output: No space left"),
            "{args:?}: {printed}"
        );
    }
    let mut child = fpo(&["train", "--recipe", "smoke", "--until", "prepare", "--run"])
        .arg(tempfile::tempdir().unwrap().path().join("run"))
        .spawn()
        .unwrap();
    // Nobody reads the progress either.
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success(), "a run ended because nobody read its progress");
}

#[test]
fn inputs_and_outputs_may_be_streams() {
    if skip_when_quick("inputs_and_outputs_may_be_streams") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (run, pairs, out) = (path("run"), path("pairs.jsonl"), path("out.jsonl"));
    let until = ["--until", "sft", "--run", arg(&run)];
    succeed(&[&["train", "--recipe", "smoke", "--set", "sft.epochs=1"], &until[..]].concat());
    let rows = "{\"prompt\":\"Say hi.\",\"chosen\":\"Hi.\",\"rejected\":\"No.\"}\n".repeat(3);
    fs::write(&pairs, &rows).unwrap();
    let model = run.join("sft");
    let score = ["score", "--model", arg(&model)];
    succeed(&[&score[..], &["--data", arg(&pairs), "--out", arg(&out)]].concat());
    let expected = fs::read_to_string(&out).unwrap();
    assert_eq!(expected.lines().count(), 3);

    // From standard input, to standard output.
    for (data, to) in [("-", "-"), ("/dev/stdin", "/dev/stdout")] {
        let mut child = fpo(&[&score[..], &["--data", data, "--out", to]].concat())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(rows.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
    assert!(!fs::symlink_metadata("/dev/stdout").unwrap().is_file());

    // Behind what a shell has already written.
    let log = path("log");
    let line = format!(
        "(echo first; {} score --model {} --data {} --out -; echo last) > {}",
        env!("CARGO_BIN_EXE_fpo-under-test"),
        model.display(),
        pairs.display(),
        log.display()
    );
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    assert_eq!(fs::read_to_string(&log).unwrap(), format!("first\n{expected}last\n"));

    // Through a link, which stays one, and into a pipe.
    let (link, target, pipe) = (path("link"), path("target"), path("pipe"));
    fs::write(&target, "old").unwrap();
    symlink("target", &link).unwrap();
    succeed(&[&score[..], &["--data", arg(&pairs), "--out", arg(&link)]].concat());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&target).unwrap(), expected);
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let into = pipe.clone();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        File::open(into).unwrap().read_to_string(&mut text).unwrap();
        text
    });
    succeed(&[&score[..], &["--data", arg(&pairs), "--out", arg(&pipe)]].concat());
    assert_eq!(reader.join().unwrap(), expected);
    assert!(!fs::metadata(&pipe).unwrap().is_file(), "the pipe was replaced");

    // A full disk behind the output.
    let printed = fail(&[&score[..], &["--data", arg(&pairs), "--out", "/dev/full"]].concat());
    assert!(printed.contains("No space left"), "{printed}");

    // An input is not an output.
    let hard = path("hard.jsonl");
    fs::hard_link(&pairs, &hard).unwrap();
    symlink("pairs.jsonl", path("soft.jsonl")).unwrap();
    for out in [&pairs, &hard, &path("soft.jsonl")] {
        let printed = fail(&[&score[..], &["--data", arg(&pairs), "--out", arg(out)]].concat());
        assert!(printed.contains("would replace the input"), "{printed}");
    }
    let sae_train =
        ["sae", "train", "--recipe", "smoke", "--model", arg(&model), "--site", "resid_post:0"];
    let own = folder.path();
    let printed = fail(&[&sae_train[..], &["--data", arg(&pairs), "--out", arg(own)]].concat());
    assert!(printed.contains("would replace the input"), "{printed}");
    let mine = path("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("thesis.tex"), "all of it").unwrap();
    let printed = fail(&[&sae_train[..], &["--data", arg(&pairs), "--out", arg(&mine)]].concat());
    assert!(printed.contains("left alone") && mine.join("thesis.tex").is_file(), "{printed}");
    assert_eq!(fs::read_to_string(&pairs).unwrap(), rows);

    // Responses, one by one, to somebody who stops reading.
    let generate = ["generate", "--model", arg(&model), "--prompts", "-", "--max-new-tokens", "4"];
    let mut child = fpo(&generate).stdin(Stdio::piped()).spawn().unwrap();
    let prompts = "{\"prompt\":\"Say hi.\"}\n".repeat(200);
    child.stdin.take().unwrap().write_all(prompts.as_bytes()).unwrap();
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("error"), "{}", text(&output));
}
