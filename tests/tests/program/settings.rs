//! What is said about settings, and before a run.

use std::{fs, path::Path};

use crate::common::{arg, fail, fpo, skip_when_quick, succeed};

/// Oracle: the keys of a resolved configuration.
#[test]
fn every_setting_is_explained() {
    let help = succeed(&["train", "--help-settings"]);
    let config = succeed(&["train", "--print-config", "--set", "align.lora.rank=4"]);
    let config: toml::Table = toml::from_str(&config).unwrap();
    fn keys(table: &toml::Table, prefix: &str, found: &mut Vec<String>) {
        for (name, value) in table {
            match value.as_table() {
                Some(below) => keys(below, &format!("{prefix}{name}."), found),
                None => found.push(format!("{prefix}{name}")),
            }
        }
    }
    let mut found = Vec::new();
    keys(&config, "", &mut found);
    assert!(found.len() > 70, "{found:?}");
    for key in found {
        let mut lines = help.lines().skip_while(|line| !line.starts_with(&format!("{key} ")));
        assert!(lines.next().is_some(), "{key} is not listed");
        let meaning = lines.next().unwrap_or_default();
        assert!(meaning.starts_with("      ") && meaning.trim().len() > 3, "{key}: {meaning:?}");
    }
    assert!(succeed(&["recipes"]).contains("--help-settings"));
}

#[test]
fn a_configuration_is_printed_as_it_resolves() {
    let folder = tempfile::tempdir().unwrap();
    let printed =
        succeed(&["train", "--recipe", "smoke", "--print-config", "--set", "align.alpha=0.25"]);
    let config = folder.path().join("config.toml");
    fs::write(&config, &printed).unwrap();
    // What is printed is a configuration again.
    assert_eq!(succeed(&["train", "--print-config", "--config", arg(&config)]), printed);
    assert!(printed.contains("alpha = 0.25"), "{printed}");
    // Options under their names in other commands.
    let options = ["--rendering", "none", "--system", "fold"];
    let printed = succeed(&[&["train", "--print-config"][..], &options].concat());
    for line in ["rendering = \"none\"", "system = \"fold\""] {
        assert!(printed.contains(line), "{printed}");
    }
    assert!(!Path::new("runs").exists());
}

#[test]
fn a_dry_run_says_what_would_happen_and_leaves_nothing() {
    if skip_when_quick("a_dry_run_says_what_would_happen_and_leaves_nothing") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let train = ["train", "--recipe", "smoke", "--run", arg(&run)];
    let printed = succeed(&[&train[..], &["--dry-run"]].concat());
    assert!(!run.exists(), "it left something");
    succeed(&[&train[..], &["--until", "align"]].concat());
    for stage in ["sft", "sae", "align"] {
        let steps = fs::read_to_string(run.join(stage).join("metrics.jsonl")).unwrap();
        let row = printed.lines().find(|line| line.starts_with(stage)).unwrap();
        let said = row.split_whitespace().nth(1).unwrap();
        assert_eq!(said, steps.lines().count().to_string(), "{stage}:\n{printed}");
    }
    // The tokens that the training counted itself.
    let metrics = fs::read_to_string(run.join("align/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let tokens = format!("{} of training pairs", last["num_tokens"]);
    assert!(printed.contains(&tokens), "no {tokens:?} in:\n{printed}");
    for says in ["600 examples, 240 pairs to train on, 40 held out", "disk ", "TFLOP/s"] {
        assert!(printed.contains(says), "no {says:?} in:\n{printed}");
    }
}

#[test]
fn mistakes_in_settings_are_named_in_their_own_words() {
    for (set, says) in [
        ("lr=1e-4", "`align.optimizer.learning_rate`"),
        ("align.lr=1e-4", "did you mean `align.optimizer.learning_rate`?"),
        ("sft.num_train_epochs=2", "did you mean `sft.epochs`?"),
        ("align.epochs=many", "--set align.epochs=many: got the text \"many\", expected"),
        ("align.lora=3", "expected a table of settings"),
        ("align.batch_size=0", "expected a whole number of at least 1"),
        ("align.stop_gradient=maybe", "expected true or false"),
        ("data.limit=-1", "expected a whole number"),
        ("data.limit=5", "data.limit has no effect"),
        ("data.eval=x.jsonl", "data.eval has no effect"),
    ] {
        let printed = fail(&["train", "--print-config", "--set", set]);
        assert!(printed.contains(says), "{set}: no {says:?} in:\n{printed}");
        for type_name in ["usize", "struct ", "f64", "NonZero"] {
            assert!(!printed.contains(type_name), "{set}: {printed}");
        }
    }
}

#[test]
fn a_plan_that_does_not_fit_is_a_failure() {
    let plan = ["plan", "--recipe", "gemma-2-2b-fpo", "--device-memory"];
    assert!(succeed(&[&plan[..], &["1000GB"]].concat()).contains("fits into"));
    let printed = fail(&[&plan[..], &["40GB"]].concat());
    assert!(printed.contains("error: the run does not fit into 40.00 GB"), "{printed}");
    let header = printed.lines().find(|line| line.contains("would make it fit")).unwrap();
    assert!(header.ends_with("peak"), "{header}");
    assert!(fail(&[&plan[..], &["1GB"]].concat()).contains("with any settings"));
}

#[test]
fn the_program_introduces_itself() {
    let version = succeed(&["--version"]);
    assert!(version.contains("commit ") && version.contains("backends: cpu"), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        let script = succeed(&["completions", shell]);
        for word in ["train", "help-settings", "dashboard"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let train = ["train", "--recipe", "smoke", "--until", "prepare", "--run", arg(&run)];
    let quiet = fpo(&[&train[..], &["-q"]].concat()).output().unwrap();
    assert!(quiet.status.success());
    assert_eq!(String::from_utf8_lossy(&quiet.stderr), "");
    let verbose = succeed(&[&train[..], &["-v"]].concat());
    assert!(verbose.contains("backends: ") && verbose.contains("up to date"), "{verbose}");
}

#[test]
fn the_built_in_data_as_files_train_like_the_built_in_data() {
    if skip_when_quick("the_built_in_data_as_files_train_like_the_built_in_data") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let printed = succeed(&["data", "export", "--recipe", "smoke", "--out", arg(&data)]);
    assert!(printed.contains("pairs.jsonl  240 rows"), "{printed}");
    let set: Vec<String> = [("train", "pairs"), ("eval", "held_out"), ("sft", "examples")]
        .map(|(key, name)| format!("data.{key}={}", data.join(format!("{name}.jsonl")).display()))
        .into();
    let models = ["built-in", "files"].map(|name| {
        let run = folder.path().join(name);
        let mut train = vec!["train", "--recipe", "smoke", "--until", "align", "--run", arg(&run)];
        if name == "files" {
            train.extend(set.iter().flat_map(|set| ["--set", set.as_str()]));
        }
        succeed(&train);
        fs::read(run.join("align/model.safetensors")).unwrap()
    });
    assert!(models[0] == models[1], "the files train another model");
}

#[test]
fn a_training_may_be_a_part_of_an_epoch() {
    if skip_when_quick("a_training_may_be_a_part_of_an_epoch") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let train = ["train", "--recipe", "smoke", "--until", "align", "--run", arg(&run)];
    // 600 examples and 240 pairs in batches of 16.
    let short = [
        "sft.epochs=0.5",
        "sft.optimizer.warmup_ratio=0.2",
        "align.max_steps=4",
        "align.optimizer.betas=[0.8, 0.9]",
    ];
    let short: Vec<&str> = short.iter().flat_map(|set| ["--set", set]).collect();
    succeed(&[&train[..], &short].concat());
    let metrics = |stage: &str| -> Vec<serde_json::Value> {
        let text = fs::read_to_string(run.join(stage).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (sft, align) = (metrics("sft"), metrics("align"));
    assert_eq!((sft.len(), align.len()), (19, 4));
    let rates: Vec<f64> = sft.iter().map(|line| line["learning_rate"].as_f64().unwrap()).collect();
    // A fifth of 19 steps, rounded up, to the peak.
    let peak = rates.iter().copied().fold(0.0, f64::max);
    assert!(
        rates[2] < peak && rates[3] == peak && rates[4] == peak && rates[5] < peak,
        "{rates:?}"
    );
}
