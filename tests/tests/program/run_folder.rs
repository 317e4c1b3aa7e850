//! A run's folder can't be damaged by a call.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::common::{PATIENCE, arg, fail, fpo, skip_when_quick, succeed, text};

/// Every file of a folder with its content, without what is never the same twice: wall clocks.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.ends_with("timing.json") => {}
                false => {
                    let name = path.strip_prefix(folder).unwrap().to_owned();
                    found.insert(name, fs::read(path).unwrap());
                }
            }
        }
    }
    found
}

fn same(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
    let names = |all: &BTreeMap<PathBuf, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(before), names(after), "{what}");
    for (name, content) in before {
        assert!(*content == after[name], "{what}: {} differs", name.display());
    }
}

#[test]
fn a_call_goes_on_with_the_folders_own_settings() {
    if skip_when_quick("a_call_goes_on_with_the_folders_own_settings") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let first = ["train", "--recipe", "smoke", "--set", "align.alpha=0.7", "--run", arg(&run)];
    succeed(&[&first[..], &["--until", "sft"]].concat());
    let sft = contents(&run.join("sft"));
    // The recipe is not repeated, and the old name of what is now the default is understood.
    for more in [&["--until", "sae"][..], &["--until", "align", "--resume"]] {
        let printed = succeed(&[&["train", "--run", arg(&run)], more].concat());
        assert!(printed.contains("sft  up to date"), "{printed}");
    }
    same(&sft, &contents(&run.join("sft")), "the finished stage");
    // A damaged result isn't taken for a finished one.
    let weights = run.join("sft/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..1000]).unwrap();
    let message = fail(&["train", "--run", arg(&run)]);
    let expected = format!("has 1000 bytes and had {} when the stage ended; delete", whole.len());
    assert!(message.contains(&expected), "{message}");
    fs::write(&weights, whole).unwrap();
    let saved = fs::read_to_string(run.join("run.toml")).unwrap();
    assert!(saved.contains("alpha = 0.7") && saved.contains("hidden_size = 32"), "{saved}");

    // What would discard work is listed, and nothing is touched.
    let before = contents(&run);
    let train = ["train", "--run", arg(&run), "--until", "align"];
    for (more, says) in [
        (&["--recipe", "smoke"][..], &["align.alpha is 0.5, was 0.7", "discard align"][..]),
        (
            &["--set", "sft.epochs=2"],
            &["sft.epochs is 2, was 1", "discard sft, sae, reference, align"],
        ),
        (
            &["--set", "data.max_length=50"],
            &["data.max_length is 50, was 64", "discard prepared, sft"],
        ),
        (&["--set", "align.pooling=response"], &["align.pooling", "discard reference, align"]),
        (&["--recipe", "tiny"], &["model.hidden_size is 128, was 32", "discard prepared"]),
        (
            &["--set", "data.train=nowhere.jsonl"],
            &["data.train", "no file or folder nowhere.jsonl"],
        ),
        (&["--set", "model.precision=half"], &["model.precision"]),
    ] {
        let printed = fail(&[&train[..], more].concat());
        for says in says {
            assert!(printed.contains(says), "{more:?}: no {says:?} in:\n{printed}");
        }
        same(&before, &contents(&run), &format!("after {more:?}"));
    }

    // Settings that no finished stage depends on are taken over; what only says how to compute discards nothing.
    let free = [
        "--set",
        "evaluate.max_new_tokens=3",
        "--set",
        "evaluate.prompts=5",
        "--set",
        "align.micro_batch_size=4",
    ];
    let printed = succeed(&[&train[..], &free].concat());
    assert_eq!(printed.matches("up to date").count(), 5, "{printed}");
    assert!(printed.contains("evaluate.max_new_tokens is 3, was 16"), "{printed}");
    let saved = fs::read_to_string(run.join("run.toml")).unwrap();
    assert!(saved.contains("max_new_tokens = 3"), "{saved}");
    let printed = succeed(&[&train[..], &["--set", "align.alpha=0.1", "--overwrite"]].concat());
    assert_eq!(printed.matches("up to date").count(), 4, "{printed}");
    assert!(printed.contains("discards align"), "{printed}");
}

#[test]
fn a_refused_call_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("deep/runs/run");
    let one = folder.path().join("one.jsonl");
    fs::write(&one, "{\"prompt\":\"Say hi.\",\"chosen\":\"Hi.\",\"rejected\":\"No.\"}\n").unwrap();
    let one = format!("data.train={}", one.display());
    for (set, says) in [
        (one.as_str(), "1 pairs"),
        ("data.train=nowhere.jsonl", "data.train: there is no file or folder nowhere.jsonl"),
        ("data.eval=nowhere.jsonl", "data.eval"),
        ("data.sft=nowhere.jsonl", "data.sft"),
        ("model.path=nowhere", "model.path"),
        ("sae.path=nowhere", "sae.path"),
        ("reference.path=nowhere", "reference.path"),
        ("align.feature_weights=nowhere", "align.feature_weights"),
    ] {
        let printed = fail(&["train", "--recipe", "smoke", "--run", arg(&run), "--set", set]);
        assert!(printed.contains(says), "{set}: no {says:?} in:\n{printed}");
        assert!(!folder.path().join("deep").exists(), "{set}: something was left");
    }
    let own = folder.path().join("own");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("notes.txt"), "mine").unwrap();
    fail(&["train", "--recipe", "smoke", "--run", arg(&own), "--set", &one]);
    assert_eq!(contents(&own).keys().collect::<Vec<_>>(), [Path::new("notes.txt")]);
}

/// Sent what Ctrl-C sends, a training saves its state and says how to go on; the result is that of an undisturbed run.
#[cfg(unix)]
#[test]
fn an_interrupted_run_says_how_to_go_on() {
    if skip_when_quick("an_interrupted_run_says_how_to_go_on") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (whole, run) = (folder.path().join("whole"), folder.path().join("my run"));
    let long = ["--set", "sft.epochs=6", "--set", "sft.checkpoint_every=100000"];
    let sae = ["--set", "sae.training.steps=300", "--set", "sae.checkpoint_every=100000"];
    let start = ["train", "--recipe", "smoke", "--until", "sae"];
    let train = |run: &Path| -> Vec<String> {
        let more = ["--run", arg(run)];
        start.iter().chain(&long).chain(&sae).chain(&more).map(|s| s.to_string()).collect()
    };
    let words =
        |args: &[String]| args.iter().map(String::as_str).map(str::to_owned).collect::<Vec<_>>();
    let call = words(&train(&whole));
    succeed(&call.iter().map(String::as_str).collect::<Vec<_>>());

    for (stage, signal) in [("sft", "INT"), ("sae", "TERM")] {
        let call = train(&run);
        let mut command = fpo(&call.iter().map(String::as_str).collect::<Vec<_>>());
        let child = command.spawn().unwrap();
        let metrics = run.join("checkpoints").join(stage).join("metrics.jsonl");
        let begun = Instant::now();
        while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 8 {
            assert!(begun.elapsed() < PATIENCE, "{stage} never got there");
            sleep(Duration::from_millis(2));
        }
        let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
        assert!(sent.unwrap().success());
        let output = child.wait_with_output().unwrap();
        let printed = text(&output);
        assert_eq!(output.status.code(), Some(130), "{printed}");
        let hint = format!("fpo train --run '{}' --until sae", run.display());
        assert!(printed.contains(&hint) && !printed.contains("error"), "{printed}");
        let saved = fs::read_dir(run.join("checkpoints").join(stage)).unwrap();
        let saved = saved
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("step-"));
        assert_eq!(saved.count(), 1, "{stage}: no checkpoint");
        let hidden = fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name());
        let hidden: Vec<_> = hidden.filter(|n| n.to_string_lossy().starts_with('.')).collect();
        assert_eq!(hidden, [".lock"], "{stage}: leftovers");
    }
    let printed = succeed(&["train", "--run", arg(&run), "--until", "sae"]);
    assert!(printed.contains("sae  resumes from step"), "{printed}");
    same(&contents(&whole), &contents(&run), "interrupted twice");
}

/// What a kill leaves of files that are being written is removed at the next start; what isn't ours stays.
#[test]
fn leftovers_are_removed() {
    if skip_when_quick("leftovers_are_removed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let train = ["train", "--recipe", "smoke", "--run", arg(&run), "--until", "prepare"];
    succeed(&train);
    let ours = [".report.html.a1B2c3", ".run.toml.ZZZZZZ", ".compare.html.000000"];
    let theirs = [".config.backup", ".notes.a1B2c3", ".report.html.old"];
    for name in ours.iter().chain(&theirs) {
        fs::write(run.join(name), "half").unwrap();
    }
    for name in [".sft.a1B2c3", ".prepared.old-a1B2c3"] {
        fs::create_dir_all(run.join(name).join("replaced")).unwrap();
    }
    // A process that ended between moving the old stage aside and putting the new one in its place.
    let aside = run.join(".prepared.old-x1Y2z3");
    fs::create_dir(&aside).unwrap();
    fs::rename(run.join("prepared"), aside.join("replaced")).unwrap();
    let printed = succeed(&train);
    assert!(printed.contains("prepared  up to date"), "{printed}");
    let hidden = fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut hidden: Vec<String> = hidden.filter(|name| name.starts_with('.')).collect();
    hidden.sort();
    assert_eq!(hidden, [".config.backup", ".lock", ".notes.a1B2c3", ".report.html.old"]);
}

/// Two equal runs, each in a folder of another name.
#[test]
fn equal_runs_are_equal_bytes() {
    if skip_when_quick("equal_runs_are_equal_bytes") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let runs = [folder.path().join("one"), folder.path().join("deep/two")];
    for run in &runs {
        succeed(&["train", "--recipe", "smoke", "--run", arg(run), "--set", "align.lora.rank=2"]);
    }
    for run in &runs {
        let timing = fs::read_to_string(run.join("timing.json")).unwrap();
        let timing: serde_json::Value = serde_json::from_str(&timing).unwrap();
        for stage in ["prepared", "sft", "sae", "reference", "align", "evaluate"] {
            assert!(timing[stage]["seconds"].as_f64().unwrap() > 0.0, "{stage}: {timing}");
            assert!(timing[stage]["hardware"].as_str().unwrap().contains("threads"), "{timing}");
        }
        for stage in ["sft", "align"] {
            assert!(timing[stage]["tokens_per_second"].as_f64().unwrap() > 0.0, "{timing}");
        }
    }
    // The one absolute path: PEFT looks for the base of adapters from the working directory.
    let [one, two] = runs.map(|run| {
        let mut found = contents(&run);
        let config = found.get_mut(Path::new("align/adapter/adapter_config.json")).unwrap();
        let text = String::from_utf8(config.clone()).unwrap();
        let base = run.canonicalize().unwrap().join("sft");
        assert!(text.contains(arg(&base)), "{text}");
        *config = text.replace(arg(&base), "sft").into_bytes();
        found
    });
    same(&one, &two, "two equal runs");
}

/// Needs the right to mount; says so where it has none.
#[cfg(unix)]
#[test]
fn a_disk_without_room_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=100k", "tmpfs", arg(&disk)];
    if !Command::new("mount").args(mount).output().is_ok_and(|o| o.status.success()) {
        eprintln!(
            "SKIPPED a_disk_without_room_is_refused_before_anything_is_written: cannot mount"
        );
        return;
    }
    let run = disk.join("run");
    let printed = std::panic::catch_unwind(|| {
        fail(&["train", "--recipe", "smoke", "--run", arg(&run), "--set", "sft.epochs=0"])
    });
    let left = run.exists();
    assert!(Command::new("umount").arg(&disk).status().is_ok_and(|s| s.success()));
    let printed = printed.unwrap();
    assert!(
        printed.contains("free") && printed.contains("choose a --run on another disk"),
        "{printed}"
    );
    assert!(!left, "something was left");
}

/// Another call's output, a model's weights or a run's settings are no place for results.
#[test]
fn outputs_do_not_replace_parts_of_inputs() {
    if skip_when_quick("outputs_do_not_replace_parts_of_inputs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    succeed(&["train", "--recipe", "smoke", "--run", arg(&run)]);
    let (before, elsewhere) = (contents(&run), tempfile::tempdir().unwrap());
    let [align, settings] = ["align", "run.toml"].map(|name| run.join(name));
    let [weights, held_out, examples, saved] =
        ["align/model.safetensors", "prepared/held_out.arrow", "prepared/sft.arrow", "sae"]
            .map(|name| run.join(name));
    let train = [
        "sae",
        "train",
        "--model",
        arg(&align),
        "--data",
        arg(&examples),
        "--site",
        "resid_post:0",
    ];
    for (call, expected) in [
        (&["report", arg(&run), "--out", arg(&settings)][..], "would replace the input"),
        (
            &["features", "drift", "--run", arg(&run), "--out", arg(&settings)],
            "would replace the input",
        ),
        (
            &["score", "--model", arg(&align), "--data", arg(&held_out), "--out", arg(&weights)],
            "would replace the input",
        ),
        (
            &[
                "score",
                "--model",
                arg(&align),
                "--data",
                arg(&held_out),
                "--out",
                arg(elsewhere.path()),
            ],
            "is a directory",
        ),
        (
            &[&train[..], &["--out", arg(&run.join("sft"))]].concat(),
            "is not the result of a training",
        ),
        (&[&train[..], &["--out", arg(&saved)]].concat(), "is not the result of a training"),
    ] {
        let message = fail(call);
        assert!(message.contains(expected), "{call:?}: {message}");
        same(&before, &contents(&run), expected);
    }
    // Data of another tokenizer: two of its tokens have changed places.
    let prepared = elsewhere.path().join("prepared");
    fs::create_dir(&prepared).unwrap();
    for name in ["held_out.arrow", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(run.join("prepared").join(name), prepared.join(name)).unwrap();
    }
    let other = prepared.join("held_out.arrow");
    let lines = elsewhere.path().join("lines.jsonl");
    let score = ["score", "--model", arg(&align), "--data", arg(&other), "--out", arg(&lines)];
    succeed(&score);
    let path = prepared.join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let [a, b] =
        [270, 271].map(|id| vocabulary.keys().find(|k| vocabulary[*k] == id).unwrap().clone());
    vocabulary.insert(a, 271.into());
    vocabulary.insert(b, 270.into());
    fs::write(&path, tokenizer.to_string()).unwrap();
    let message = fail(&score);
    assert!(message.contains("another tokenizer than the model's (token 270"), "{message}");

    // Refused for its settings, it leaves nothing either.
    let out = folder.path().join("sae");
    let few = ["--out", arg(&out), "--set", "sae.tokens=1000"];
    let message = fail(&[&train[..], &few].concat());
    assert!(message.contains("raise sae.tokens = 1000"), "{message}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
