//! `fpo evaluate` gives, pair by pair, what the equations give.
//!
//! Oracle: transformers' logits and hidden states, and scalar arithmetic in Python behind them
//! (`tests/fixtures/evaluate/generate.py`).

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use fpo_data::{
    ReferenceCache, ReferenceRow, SparseFeatures,
    reference::{CacheShape, ReferenceResponse, SharedCache, StoredFeatures},
};
use serde_json::Value;

use crate::{
    common::{arg, fail, succeed},
    score::{fixture, json_lines},
};

const METHODS: [&str; 6] = ["dpo", "simpo", "tdpo1", "tdpo2", "simpo-kl", "fpo"];

pub fn file(name: &str) -> PathBuf {
    fixture("evaluate").join(name)
}

/// Runs `fpo reference` on the fixture's files into `out`, with more options.
pub fn reference(out: &Path, more: &[&str]) -> String {
    let (model, sae, data) = (file("reference"), file("sae"), file("pairs.jsonl"));
    let files = ["--model", arg(&model), "--sae", arg(&sae), "--data", arg(&data)];
    let base = ["reference", "--site", "resid_post:1", "--out", arg(out)];
    succeed(&[&base[..], &files, more].concat())
}

/// The arguments of `fpo evaluate` on the fixture's files.
pub struct Evaluate {
    pub policy: PathBuf,
    pub cache: PathBuf,
    pub sae: PathBuf,
    pub data: PathBuf,
    pub out: PathBuf,
}

impl Evaluate {
    pub fn new(folder: &Path) -> Self {
        Self {
            policy: file("policy"),
            cache: folder.join("cache"),
            sae: file("sae"),
            data: file("pairs.jsonl"),
            out: folder.join("pairs.jsonl"),
        }
    }

    fn arguments<'a>(&'a self, method: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let files = ["evaluate", "--policy", arg(&self.policy), "--reference", arg(&self.cache)];
        let data = ["--data", arg(&self.data), "--per-pair", arg(&self.out)];
        let method = ["--sae", arg(&self.sae), "--method", method];
        [&files[..], &data, &method, more].concat()
    }

    pub fn run(&self, method: &str, more: &[&str]) -> Vec<Value> {
        succeed(&self.arguments(method, more));
        json_lines(&self.out)
    }

    pub fn refused(&self, method: &str, more: &[&str], says: &[&str]) {
        let printed = fail(&self.arguments(method, more));
        for says in says {
            assert!(printed.contains(says), "{method} {more:?}: no {says:?} in:\n{printed}");
        }
    }
}

#[test]
fn every_method_gives_the_values_of_its_equations() {
    let folder = tempfile::tempdir().unwrap();
    let evaluate = Evaluate::new(folder.path());
    reference(&evaluate.cache, &[]);
    let settings: Value =
        serde_json::from_str(&fs::read_to_string(file("settings.json")).unwrap()).unwrap();
    let model = file("reference");
    for method in METHODS {
        let given = settings[method].as_object().unwrap().iter();
        let given = given.flat_map(|(name, value)| [format!("--{name}"), value.to_string()]);
        let given: Vec<String> = given.collect();
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let k = if method == "fpo" { &[][..] } else { &["--k", "5"] };
        let kl = ["--kl", arg(&model)];
        let ours = evaluate.run(method, &[&given[..], k, &kl].concat());
        let theirs = json_lines(&file(&format!("{method}.jsonl")));
        assert_eq!(ours.len(), theirs.len());
        for (row, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            let names = |value: &Value| -> Vec<String> {
                value.as_object().unwrap().keys().cloned().collect()
            };
            assert_eq!(names(ours), names(theirs), "{method}: fields and their order");
            for name in names(theirs) {
                let (ours, theirs) =
                    (ours[&name].as_f64().unwrap(), theirs[&name].as_f64().unwrap());
                let close = (ours - theirs).abs() < 1e-4;
                assert!(close, "{method}, row {row}: {name} is {ours}, not {theirs}");
            }
        }
    }
}

/// Whatever was not asked for is not there.
#[test]
fn only_what_was_asked_for_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let evaluate = Evaluate::new(folder.path());
    let (model, data) = (file("reference"), file("pairs.jsonl"));
    let files = ["--model", arg(&model), "--data", arg(&data), "--out", arg(&evaluate.cache)];
    succeed(&[&["reference"], &files[..]].concat());
    evaluate.refused("dpo", &[], &["without an autoencoder"]);
    let without: Vec<&str> = evaluate
        .arguments("dpo", &[])
        .into_iter()
        .filter(|a| *a != "--sae" && *a != arg(&evaluate.sae))
        .collect();
    succeed(&without);
    let expected = json_lines(&file("dpo.jsonl"));
    for (ours, theirs) in json_lines(&evaluate.out).iter().zip(&expected) {
        let names: Vec<&String> = ours.as_object().unwrap().keys().collect();
        let log_probs =
            ["chosen_log_prob", "rejected_log_prob", "chosen_tokens", "rejected_tokens"];
        assert_eq!(names, [&log_probs[..], &["margin", "u", "loss"]].concat());
        assert!((ours["u"].as_f64().unwrap() - theirs["u"].as_f64().unwrap()).abs() < 1e-4);
    }
}

/// Identity: nothing separates a model from itself.
#[test]
fn a_policy_that_is_the_reference_has_no_distance() {
    let folder = tempfile::tempdir().unwrap();
    let evaluate = Evaluate { policy: file("reference"), ..Evaluate::new(folder.path()) };
    reference(&evaluate.cache, &[]);
    for method in ["dpo", "tdpo1", "tdpo2", "fpo"] {
        let lines = evaluate.run(method, &["--kl", arg(&evaluate.policy), "--k", "5"]);
        assert_eq!(lines.len(), 7);
        for line in &lines {
            for name in ["chosen_distance", "rejected_distance", "chosen_kl", "rejected_kl", "u"] {
                assert_eq!(line[name].as_f64().unwrap().abs(), 0.0, "{method}: {name} in {line}");
            }
            assert!((line["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-7);
        }
    }
}

#[test]
fn a_cache_of_something_else_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let evaluate = Evaluate::new(folder.path());
    reference(&evaluate.cache, &[]);
    evaluate.run("fpo", &["--k", "5"]);

    for (more, says) in [
        (&["--site", "resid_post:2"][..], "site: expected `resid_post:2`, found `resid_post:1`"),
        (&["--pooling", "response"], "pooling: expected `response`, found `predicting`"),
        (&["--max-length", "24"], "max_length: expected `24`, found `none`"),
        (&["--max-prompt-length", "5"], "max_prompt_length"),
        (&["--kl", arg(&evaluate.policy)], "reference weights"),
        (&["--precision", "bf16-mixed"], "precision: expected `bf16-mixed`, found `float32`"),
    ] {
        evaluate.refused("fpo", &[&["--k", "5"], more].concat(), &[says]);
    }
    let fewer = folder.path().join("fewer.jsonl");
    let text = fs::read_to_string(file("pairs.jsonl")).unwrap();
    fs::write(&fewer, text.lines().take(3).collect::<Vec<_>>().join("\n")).unwrap();
    let other_data = Evaluate { data: fewer, ..Evaluate::new(folder.path()) };
    other_data.refused("dpo", &["--k", "5"], &["data: expected"]);

    let copy = |from: &Path, name: &str| {
        let to = folder.path().join(name);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
        to
    };
    let sae = copy(&file("sae"), "other sae");
    let weights = sae.join("sae_weights.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // The lowest bit of every number's fraction: tensors of a file may come in any order.
    bytes[8 + header..].chunks_mut(4).for_each(|number| number[0] ^= 1);
    fs::write(&weights, bytes).unwrap();
    let other_sae = Evaluate { sae, ..Evaluate::new(folder.path()) };
    other_sae.refused("fpo", &["--k", "5"], &["autoencoder: expected"]);

    let policy = copy(&file("policy"), "with template");
    fs::write(policy.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    let other_template = Evaluate { policy, ..Evaluate::new(folder.path()) };
    other_template.refused("dpo", &["--k", "5"], &["chat template"]);
}

#[test]
fn a_damaged_cache_and_impossible_options_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let evaluate = Evaluate::new(folder.path());
    evaluate.refused("dpo", &[], &["cache", "can't be read"]);
    reference(&evaluate.cache, &["--top-n", "6"]);
    for (method, more, says) in [
        ("dpo", &["--beta", "0"][..], "beta = 0 must be positive"),
        ("fpo", &["--k", "0"], "k must be at least 1"),
        ("fpo", &["--k", "49"], "k = 49 is more than the autoencoder's 48 features"),
        ("fpo", &["--k", "7"], "6 features of a response, fewer than k = 7"),
        ("fpo", &["--k", "5", "--alpha=-1"], "alpha = -1 must be at least 0"),
        ("tdpo2", &["--k", "5"], "--kl"),
        ("ppo", &[], "simpo-kl"),
    ] {
        evaluate.refused(method, more, &[says]);
    }
    let part = evaluate.cache.join("part-00000-of-00001.parquet");
    let whole = fs::read(&part).unwrap();
    for bytes in [&whole[..whole.len() - 9], &whole[..40], b"", b"PAR1 and no more PAR1"] {
        fs::write(&part, bytes).unwrap();
        evaluate.refused("dpo", &["--k", "5"], &["part-00000", "not a whole shard"]);
    }
    fs::write(&part, &whole).unwrap();
    let fingerprint = ReferenceCache::made_from(&evaluate.cache).unwrap();

    // Pairs that are missing, and pairs that stand in two parts.
    let response = || ReferenceResponse {
        log_prob: -1.0,
        shared_log_prob: -1.0,
        tokens: 3,
        features: SparseFeatures::default(),
    };
    let shape = CacheShape {
        pairs: 8,
        d_sae: 48,
        stored: StoredFeatures::All,
        rows_per_shard: NonZeroUsize::new(4).unwrap(),
    };
    for (name, second, says) in [
        ("missing", [4, 5, 60, 61], "lacks 1 of the pairs asked for, the first of them 6"),
        ("twice", [4, 5, 6, 3], "pair 3 is stored twice"),
    ] {
        let evaluate = Evaluate { cache: folder.path().join(name), ..Evaluate::new(folder.path()) };
        let cache = SharedCache::open(&evaluate.cache, &fingerprint, shape, None).unwrap();
        for (shard, ids) in [[0, 1, 2, 3], second].into_iter().enumerate() {
            let mut writer = cache.writer(shard).unwrap();
            for id in ids {
                writer.push(ReferenceRow { id, chosen: response(), rejected: response() }).unwrap();
            }
            writer.finish().unwrap();
        }
        evaluate.refused("dpo", &["--k", "5"], &[says]);
    }
}
