//! One reference cache for the commands and the runs: made by `fpo reference` in shards, trained on by `fpo train`, evaluated against
//! by `fpo evaluate`; and the cache that a run made itself, read by the same command.

use std::{fs, path::Path};

use crate::{
    common::{arg, fail, skip_when_quick, succeed},
    score::json_lines,
};

/// Plain-text pairs: short sums, right and wrong.
fn write_pairs(path: &Path, range: std::ops::Range<usize>) {
    let line = |i: usize| {
        let (a, b) = (i % 7, i % 11);
        let (right, wrong) = (a + b, a + b + 1 + i % 3);
        format!(
            "{{\"prompt\": \"{a} + {b} = ?\", \"chosen\": \"{right}\", \"rejected\": \"It is {wrong}\"}}\n"
        )
    };
    fs::write(path, range.map(line).collect::<String>()).unwrap();
}

#[test]
fn a_cache_made_in_shards_feeds_a_run_and_an_evaluation() {
    if skip_when_quick("a_cache_made_in_shards_feeds_a_run_and_an_evaluation") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (pairs, held_out, cache) = (path("pairs.jsonl"), path("held_out.jsonl"), path("cache"));
    write_pairs(&pairs, 0..300);
    write_pairs(&held_out, 300..330);
    let base = path("base");
    succeed(&["train", "--recipe", "smoke", "--until", "sae", "--run", arg(&base)]);
    let (model, sae) = (base.join("sft"), base.join("sae"));

    // The smoke recipe's lengths, site and pooling.
    let lengths = ["--max-length", "64", "--max-prompt-length", "40"];
    for shard in ["2/4", "0/4", "3/4", "1/4"] {
        let files = ["--model", arg(&model), "--sae", arg(&sae), "--data", arg(&pairs)];
        let part = ["--out", arg(&cache), "--site", "resid_post:0", "--shard", shard];
        succeed(&[&["reference"], &files[..], &part, &lengths].concat());
    }

    let run = path("run");
    let set = |key: &str, value: &Path| format!("{key}={}", value.display());
    let settings = [
        set("data.train", &pairs),
        set("data.eval", &held_out),
        set("model.path", &model),
        set("sae.path", &sae),
        set("reference.path", &cache),
        "sft.epochs=0".to_owned(),
    ];
    let mut train = vec!["train", "--recipe", "smoke", "--run", arg(&run)];
    settings.iter().for_each(|setting| train.extend(["--set", setting]));
    succeed(&train);
    assert!(!run.join("reference/train").exists(), "the given cache is read where it lies");

    // What differs is named, and nothing is trained.
    let other = path("other");
    let elsewhere = ["--run", arg(&other), "--set", "data.max_prompt_length=20"];
    let other = train.iter().filter(|word| !["--run", arg(&run)].contains(word)).copied();
    let printed = fail(&other.chain(elsewhere).collect::<Vec<_>>());
    assert!(
        printed.contains("reference.path") && printed.contains("max_prompt_length"),
        "{printed}"
    );

    // Both caches, and the pairs as text or as the run prepared them.
    let policy = run.join("align");
    let evaluate = |reference: &Path, data: &Path, more: &[&str]| {
        let out = path("values.jsonl");
        let files = ["--policy", arg(&policy), "--reference", arg(reference), "--sae", arg(&sae)];
        let data = ["--data", arg(data), "--method", "fpo", "--k", "10", "--per-pair", arg(&out)];
        succeed(&[&["evaluate"], &files[..], &data, more].concat());
        fs::read_to_string(out).unwrap()
    };
    let of_text = evaluate(&cache, &pairs, &lengths);
    let of_prepared = evaluate(&cache, &run.join("prepared/train.arrow"), &[]);
    assert_eq!(of_text, of_prepared);
    assert_eq!(of_text.lines().count(), 300);
    let own = run.join("reference/held_out");
    evaluate(&own, &held_out, &lengths);
    evaluate(&own, &run.join("prepared/held_out.arrow"), &["--kl", arg(&model)]);
    assert_eq!(json_lines(&path("values.jsonl")).len(), 30);
}
