//! A process killed at any moment, and started again, ends where an undisturbed one ends.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::common::{PATIENCE, arg, fail, fpo, skip_when_quick, succeed};

/// Long enough for a kill to come in between.
const LONGER: [&str; 8] = [
    "--set",
    "sft.epochs=8",
    "--set",
    "align.epochs=12",
    "--set",
    "sae.training.steps=400",
    // Several buffers, so that a resumed training has to find its own again.
    "--set",
    "sae.buffer_tokens=900",
];

fn train<'a>(run: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let start = ["train", "--recipe", "smoke", "--until", "align", "--run", arg(run)];
    [&start[..], &LONGER, more].concat()
}

/// How many steps a running stage has logged.
fn steps(run: &Path, stage: &str) -> usize {
    let path = run.join("checkpoints").join(stage).join("metrics.jsonl");
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

fn results(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = ["sft/model.safetensors", "sae/sae_weights.safetensors", "align/model.safetensors"];
    let metrics = ["sft/metrics.jsonl", "sae/metrics.jsonl", "align/metrics.jsonl"];
    files.iter().chain(&metrics).map(|f| (f.into(), fs::read(run.join(f)).unwrap())).collect()
}

#[test]
fn a_killed_run_resumes_exactly() {
    if skip_when_quick("a_killed_run_resumes_exactly") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = folder.path().join("undisturbed");
    succeed(&train(&undisturbed, &[]));
    let expected = results(&undisturbed);

    // Before the first checkpoint of SFT (every 5 steps), in its middle, and in the middle of the others.
    for (name, stage, after) in
        [("early", "sft", 2), ("middle", "sft", 60), ("sparse", "sae", 100), ("late", "align", 40)]
    {
        let run = folder.path().join(name);
        kill(&run, &[], stage, after);
        let printed = succeed(&train(&run, &["--resume"]));
        if after > 5 {
            assert!(printed.contains("resumes from step"), "{name}: began anew:\n{printed}");
        }
        for ((file, expected), (_, found)) in expected.iter().zip(results(&run)) {
            assert!(*expected == found, "{name}: {} differs", file.display());
        }
        let left = fs::read_dir(&run).unwrap().filter_map(|e| e.ok());
        let left: Vec<_> = left
            .map(|e| e.file_name())
            .filter(|n| n.to_string_lossy().starts_with(".sft."))
            .collect();
        assert!(left.is_empty(), "{name}: leftovers {left:?}");
    }
}

/// The reference's finished parts outlast a kill, and are not made again.
#[test]
fn a_killed_reference_goes_on_with_the_parts_that_are_missing() {
    if skip_when_quick("a_killed_reference_goes_on_with_the_parts_that_are_missing") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (undisturbed, run) = (folder.path().join("undisturbed"), folder.path().join("killed"));
    let train = |run: &Path, until: &'static str| -> Vec<String> {
        let fixed = ["train", "--recipe", "smoke", "--set", "data.built_in.pairs=5000", "--until"];
        let more = [until, "--resume", "--run", arg(run)];
        fixed.into_iter().chain(more).map(str::to_owned).collect()
    };
    let complete = |arguments: &[String]| {
        succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    };
    complete(&train(&undisturbed, "reference"));
    complete(&train(&run, "sae"));
    let arguments = train(&run, "reference");
    let mut child = fpo(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).spawn().unwrap();
    let first = run.join("checkpoints/reference/train/part-00000-of-00003.parquet");
    let begun = Instant::now();
    while !first.exists() {
        assert!(begun.elapsed() < PATIENCE, "the first part never came");
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    assert!(!run.join("reference").exists(), "an unfinished stage has its folder");
    let made = fs::metadata(&first).unwrap().modified().unwrap();

    complete(&arguments);
    let kept = run.join("reference/train/part-00000-of-00003.parquet");
    assert_eq!(fs::metadata(kept).unwrap().modified().unwrap(), made, "it was made again");
    for part in
        ["train/part-00000-of-00003", "train/part-00002-of-00003", "held_out/part-00000-of-00001"]
    {
        let bytes =
            |run: &Path| fs::read(run.join("reference").join(part).with_extension("parquet"));
        assert!(bytes(&run).unwrap() == bytes(&undisturbed).unwrap(), "{part} differs");
    }
}

/// A checkpoint holds the adapters alone; the base is read again.
#[test]
fn adapters_resume_exactly() {
    if skip_when_quick("adapters_resume_exactly") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let adapters = [
        "--set",
        "align.lora.rank=4",
        "--set",
        "align.lora.dropout=0.1",
        "--set",
        "align.method=tdpo2",
        "--set",
        "evaluate.features=true",
    ];
    let undisturbed = folder.path().join("undisturbed");
    succeed(&train(&undisturbed, &adapters));
    let run = folder.path().join("killed");
    kill(&run, &adapters, "align", 40);
    let checkpoint =
        fs::read_dir(run.join("checkpoints/align")).unwrap().map(|e| e.unwrap().path());
    let checkpoint = checkpoint.max_by_key(|path| path.is_dir()).unwrap();
    assert!(checkpoint.join("adapter_model.safetensors").is_file());
    assert!(!checkpoint.join("model.safetensors").exists(), "a checkpoint holds the base");

    let printed = succeed(&train(&run, &[&adapters[..], &["--resume"]].concat()));
    assert!(printed.contains("resumes from step"), "{printed}");
    let file = "align/adapter/adapter_model.safetensors";
    for file in results(&run).into_iter().map(|(file, _)| file).chain([file.into()]) {
        let [expected, found] = [&undisturbed, &run].map(|run| fs::read(run.join(&file)).unwrap());
        assert!(expected == found, "{} differs", file.display());
    }
}

/// Killed between two evaluations, and after the one that is the best so far.
#[test]
fn what_evaluations_decided_outlasts_a_kill() {
    if skip_when_quick("what_evaluations_decided_outlasts_a_kill") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let set = [
        "evaluate.every=7",
        "track=[\"csv\", \"tensorboard\"]",
        "align.keep_best=eval_rewards/margins",
        "align.keep_last=2",
        "align.early_stopping={metric='eval_loss',patience=4,threshold=0.01}",
    ];
    let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    let undisturbed = folder.path().join("undisturbed");
    succeed(&train(&undisturbed, &set));
    let run = folder.path().join("killed");
    kill(&run, &set, "align", 26);
    let printed = succeed(&train(&run, &set));
    assert!(printed.contains("resumes from step"), "{printed}");
    let more = ["align/kept.json", "track/align/metrics.csv", "track/sae/metrics.csv"];
    let files = results(&run).into_iter().map(|(file, _)| file);
    for file in files.chain(more.map(PathBuf::from)) {
        let [expected, found] = [&undisturbed, &run].map(|run| fs::read(run.join(&file)).unwrap());
        assert!(expected == found, "{} differs", file.display());
    }
    // The second file of events takes back what the first has of the steps that were repeated.
    let events = fs::read_dir(run.join("track/align")).unwrap();
    let names = events.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.contains("tfevents")).count(), 2);
}

/// Settings that only say how to compute may change on the way. With others a checkpoint is not thrown away unasked.
#[test]
fn a_resumed_run_may_compute_in_smaller_pieces() {
    if skip_when_quick("a_resumed_run_may_compute_in_smaller_pieces") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("killed");
    kill(&run, &[], "align", 40);
    let other = ["--resume", "--set", "align.optimizer.warmup_steps=2", "--set", "align.alpha=0.7"];
    let message = fail(&train(&run, &other));
    for part in
        ["align.alpha is 0.7, was 0.5", "align.optimizer.warmup_steps is 2, was 3", "--overwrite"]
    {
        assert!(message.contains(part), "{message}");
    }
    let pieces = [
        "align.micro_batch_size=1",
        "align.checkpoint_activations=true",
        "align.optimizer_in_backward=true",
        "sft.micro_batch_size=1",
    ];
    let settings: Vec<&str> = pieces.iter().flat_map(|piece| ["--set", piece]).collect();
    let printed = succeed(&train(&run, &[&["--resume"], &settings[..]].concat()));
    assert!(printed.contains("sft  up to date"), "{printed}");
    assert!(printed.contains("align  resumes from step"), "{printed}");
}

/// Kills a run once a stage has logged so many steps.
fn kill(run: &Path, more: &[&str], stage: &str, after: usize) {
    let mut child = fpo(&train(run, more)).spawn().unwrap();
    let begun = Instant::now();
    while steps(run, stage) < after {
        assert!(begun.elapsed() < PATIENCE, "{stage} never got there");
        assert!(child.try_wait().unwrap().is_none(), "{stage}: ended before it was killed");
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap(); // SIGKILL
    let status = child.wait().unwrap();
    assert!(!status.success(), "{stage}: ended before it was killed");
    assert!(!run.join(stage).exists(), "{stage}: an unfinished stage has its folder");
}
