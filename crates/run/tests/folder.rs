//! What a call leaves in a run's folder, and what it refuses.

use std::{cell::RefCell, fs, path::Path};

use anyhow::Result;
use burn::tensor::Device;
use fpo_config::Settings;
use fpo_data::Fingerprint;
use fpo_device::progress::Reporter;
use fpo_run::{Existing, Run, Stale, saved_settings, timing};

fn open(folder: &Path, set: &[&str], existing: Existing) -> Result<Run> {
    let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
    let settings = Settings::resolve("smoke", None, &set)?;
    Run::open(folder, settings, Device::flex(), existing, Reporter::silent())
}

/// Stages whose fingerprints are a setting each; the names of those that were made.
fn stages(run: &Run) -> Result<Vec<&'static str>> {
    let made = RefCell::new(Vec::new());
    let mut hash = String::new();
    let s = &run.settings;
    let of = [
        ("prepared", s.data.max_length.to_string()),
        ("sft", format!("{} {}", s.sft.epochs, s.seed)),
        ("align", s.align.alpha.to_string()),
    ];
    for (name, value) in of {
        let fingerprint = Fingerprint::default().with("before", &hash).with("value", value);
        let stage = run.stage(name, fingerprint, |workspace| {
            made.borrow_mut().push(name);
            Ok(fs::write(workspace.output.join("file"), name)?)
        })?;
        hash = stage.hash;
    }
    Ok(made.into_inner())
}

#[test]
fn work_is_kept_unless_it_may_be_overwritten() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("deep/run");
    assert_eq!(stages(&open(&folder, &[], Existing::Keep).unwrap()).unwrap().len(), 3);
    let first = saved_settings(&folder).unwrap().unwrap();
    assert_eq!(timing::read(&folder).keys().collect::<Vec<_>>(), ["align", "prepared", "sft"]);
    assert!(stages(&open(&folder, &[], Existing::Keep).unwrap()).unwrap().is_empty());

    for (set, stage, discards) in [
        ("align.alpha=0.9", "align", &["align"][..]),
        ("sft.epochs=7", "sft", &["sft", "align"]),
        ("data.max_length=60", "prepared", &["prepared", "sft", "align"]),
    ] {
        let run = open(&folder, &[set], Existing::Keep).unwrap();
        let refused = run.settle(|| stages(&run).map(drop)).unwrap_err();
        let stale = refused.downcast::<Stale>().unwrap();
        assert_eq!((stale.stage.as_str(), stale.discards.join(" ")), (stage, discards.join(" ")));
        assert!(stale.to_string().contains("--overwrite"), "{stale}");
        // Also where nobody asked first: the stage itself refuses.
        assert!(stages(&run).unwrap_err().is::<Stale>());
        drop(run);
        assert_eq!(saved_settings(&folder).unwrap().unwrap(), first, "{set}");
    }

    // What no finished stage depends on is taken over.
    let run = open(&folder, &["align.epochs=9"], Existing::Keep).unwrap();
    run.settle(|| stages(&run).map(drop)).unwrap();
    assert_eq!(saved_settings(&folder).unwrap().unwrap().align.epochs, 9.0);
    drop(run);

    let run = open(&folder, &["sft.epochs=7"], Existing::Overwrite).unwrap();
    run.settle(|| stages(&run).map(drop)).unwrap();
    assert_eq!(stages(&run).unwrap(), ["sft", "align"]);
    assert_eq!(saved_settings(&folder).unwrap().unwrap().sft.epochs, 7.0);
}

#[test]
fn a_checkpoint_of_other_settings_is_work_too() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("run");
    let stage = |run: &Run, value: u32| {
        run.stage("sft", Fingerprint::default().with("value", value), |workspace| {
            fs::create_dir(workspace.checkpoints.join("step-00000001"))?;
            anyhow::bail!("stops in its middle")
        })
        .map(drop)
    };
    let run = open(&folder, &[], Existing::Keep).unwrap();
    run.stage("prepared", Fingerprint::default(), |_| Ok(())).unwrap();
    assert!(stage(&run, 1).unwrap_err().to_string().contains("stage sft"));
    assert!(folder.join("checkpoints/sft/step-00000001").is_dir());
    let stale = stage(&run, 2).unwrap_err().downcast::<Stale>().unwrap();
    assert_eq!(stale.discards, ["checkpoints/sft"]);
    assert!(folder.join("checkpoints/sft/step-00000001").is_dir(), "it was discarded");
}

#[test]
fn a_call_that_fails_at_once_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("deep/run");
    let run = open(&folder, &[], Existing::Keep).unwrap();
    assert!(open(&folder, &[], Existing::Keep).is_err(), "two at once");
    let failed = run.stage("prepared", Fingerprint::default(), |_| anyhow::bail!("no rows"));
    assert!(failed.is_err());
    drop(run);
    assert!(!temporary.path().join("deep").exists(), "something was left");
    assert!(open(&folder, &["data.train=nowhere.jsonl"], Existing::Keep).is_err());
    assert!(!temporary.path().join("deep").exists(), "something was left");
}
