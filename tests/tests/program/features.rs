//! Features found by `fpo features find`, and alignment that weighs them.

use std::{fs, path::Path};

use crate::common::{arg, fail, skip_when_quick, succeed};

#[test]
fn features_are_found_and_weighed() {
    if skip_when_quick("features_are_found_and_weighed") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let train =
        ["train", "--recipe", "smoke", "--until", "align", "--overwrite", "--run", arg(&run)];
    succeed(&train);
    let path = |name: &str| folder.path().join(name);
    let words = ["owl", "fox", "sun", "cup", "tree", "map", "ring"];
    let lists = |i: usize| {
        format!("Reverse: {}, {}, {}.\n", words[i % 7], words[(3 * i + 1) % 7], words[(i + 4) % 7])
    };
    let sums = |i: usize| format!("What is {} + {}?\n\n", 3 * i + 1, 7 * i);
    fs::write(path("lists.txt"), (0..40).map(lists).collect::<String>()).unwrap();
    fs::write(path("sums.txt"), (0..40).map(sums).collect::<String>()).unwrap();
    let (model, sae) = (run.join("sft"), run.join("sae"));
    let (lists, sums, out) = (path("lists.txt"), path("sums.txt"), path("features.toml"));
    let find = |positive: &Path, negative: &Path, more: &[&str]| -> Vec<String> {
        let base = [
            "features",
            "find",
            "--model",
            arg(&model),
            "--sae",
            arg(&sae),
            "--site",
            "resid_post:0",
            "--positive",
            arg(positive),
            "--negative",
            arg(negative),
            "--out",
            arg(&out),
        ];
        base.iter().chain(more).map(|s| (*s).to_owned()).collect()
    };
    let borrowed = |args: &[String]| args.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let run_find = |args: Vec<String>| succeed(&borrowed(&args).split('\n').collect::<Vec<_>>());
    let fail_find = |args: Vec<String>| fail(&borrowed(&args).split('\n').collect::<Vec<_>>());

    let printed = run_find(find(&lists, &sums, &["--top", "5"]));
    assert!(printed.contains("40 lines without text were skipped"), "{printed}");
    assert!(printed.contains("Held-out AUROC"), "{printed}");
    let text = fs::read_to_string(&out).unwrap();
    let file: toml::Table = toml::from_str(&text).unwrap();
    let features = file["features"].as_array().unwrap();
    assert!(!features.is_empty() && features.len() <= 5);
    assert_eq!(
        (file["site"].as_str(), file["d_sae"].as_integer()),
        (Some("resid_post:0"), Some(128))
    );
    // Lists and sums look nothing alike, even to a model that has learnt next to nothing.
    assert!(features[0]["auroc"].as_float().unwrap() > 0.9, "{text}");
    run_find(find(&lists, &sums, &["--top", "5"]));
    assert_eq!(text, fs::read_to_string(&out).unwrap(), "not deterministic");

    let setting = format!("align.feature_weights={}", out.display());
    let weighed = [&train[..], &["--set", &setting]].concat();
    let weights = || fs::read(run.join("align/model.safetensors")).unwrap();
    let plain = weights();
    assert_eq!(succeed(&weighed).matches("up to date").count(), 4, "only alignment depends on it");
    let only = weights();
    assert!(only != plain, "weights change nothing");
    assert_eq!(succeed(&weighed).matches("up to date").count(), 5);
    succeed(&[&weighed[..], &["--set", "align.feature_selection=except"]].concat());
    assert!(weights() != plain && weights() != only);
    // The content of the file counts, not its name.
    succeed(&weighed);
    fs::write(&out, text.replace("weight = 1.0", "weight = 0.25")).unwrap();
    assert!(succeed(&weighed).contains("align  done"));

    let refused = |text: String, says: &str| {
        fs::write(&out, text).unwrap();
        let printed = fail(&weighed);
        assert!(printed.contains(says), "no {says:?} in:\n{printed}");
    };
    let hash = file["sae"].as_str().unwrap();
    refused(text.replace(hash, "another"), "find the features again");
    refused(text.replace("d_sae = 128", "d_sae = 4"), "not below d_sae = 4");
    refused(text.replace("resid_post:0", "resid_post:1"), "sae.site is resid_post:0");
    refused(text.replace("weight = 1.0", "weight = -1.0"), "must be at least 0");
    fs::remove_file(&out).unwrap();
    assert!(fail(&weighed).contains("features.toml"));

    // One for the other layer too: the reference is cached anew, and D is of both. Its own is refused there by its file.
    let also = |sae: &Path| {
        format!("align.more_sites=[{{ site = \"resid_post:1\", sae = \"{}\" }}]", sae.display())
    };
    let printed = fail(&[&train[..], &["--set", &also(&sae)]].concat());
    assert!(printed.contains("trained on resid_post:0, not on resid_post:1"), "{printed}");
    let other = path("other");
    fs::create_dir(&other).unwrap();
    fs::copy(sae.join("sae_weights.safetensors"), other.join("sae_weights.safetensors")).unwrap();
    let config = fs::read_to_string(sae.join("cfg.json")).unwrap();
    let config = config.replace("blocks.0.hook_resid_post", "blocks.1.hook_resid_post");
    fs::write(other.join("cfg.json"), config).unwrap();
    let more = also(&other);
    let sites = [&train[..], &["--set", &more]].concat();
    assert!(succeed(&sites).contains("reference  done"));
    assert!(weights() != plain, "the second site changes nothing");
    let unknown = more.replace(arg(&other), "nowhere");
    assert!(fail(&[&train[..], &["--set", &unknown]].concat()).contains("nowhere"));

    assert!(fail_find(find(&lists, &path("none.txt"), &[])).contains("none.txt"));
    assert!(fail_find(find(&lists, &sums, &["--hold-out", "1.5"])).contains("--hold-out"));
    assert!(fail_find(find(&lists, &lists, &[])).contains("no feature is more active"));
    fs::write(path("few.txt"), "one\ntwo\n").unwrap();
    assert!(fail_find(find(&path("few.txt"), &sums, &[])).contains("2 positive texts"));
    assert!(!out.exists(), "a failed search leaves a file");
}
