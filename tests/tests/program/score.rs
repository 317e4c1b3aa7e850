//! `fpo score` and `fpo activations` give the numbers that transformers gives.
//!
//! Oracle: values recorded from transformers 5.23 by `tests/fixtures/score/generate.py`, row by row.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::common::{RealPairs, arg, fail, succeed};

const CASES: [&str; 2] = ["plain", "chat"];

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The objects of a JSON-lines file.
pub fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn scores_are_those_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    for case in CASES {
        let model = fixture("score").join(case);
        for batch_size in ["1", "3", "100"] {
            let (data, out) = (model.join("pairs.jsonl"), folder.path().join("scores.jsonl"));
            let files = ["--model", arg(&model), "--data", arg(&data), "--out", arg(&out)];
            let more = ["--rendering", "none", "--batch-size", batch_size];
            succeed(&[&["score"], &files[..], &more].concat());

            let (ours, theirs) = (json_lines(&out), json_lines(&model.join("scores.jsonl")));
            assert_eq!(ours.len(), theirs.len(), "{case}");
            for (row, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                let names = |value: &Value| -> Vec<String> {
                    value.as_object().unwrap().keys().cloned().collect()
                };
                assert_eq!(names(ours), names(theirs));
                for name in names(theirs) {
                    let (ours, theirs) =
                        (ours[&name].as_f64().unwrap(), theirs[&name].as_f64().unwrap());
                    let difference = (ours - theirs).abs();
                    assert!(difference < 1e-4, "{case}, row {row}: {name} {ours}, not {theirs}");
                }
            }
        }
    }
}

#[test]
fn activations_are_those_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    for case in CASES {
        let model = fixture("score").join(case);
        for data in ["texts", "pairs"] {
            let expected = Tensors::read(&model.join(data).with_extension("safetensors"));
            let sites: Vec<&String> = expected.floats.keys().collect();
            assert!(sites.len() >= 2);
            for site in sites {
                let out = folder.path().join("activations.safetensors");
                let data = model.join(data).with_extension("jsonl");
                let site_name = site.replace('.', ":");
                let files = ["--model", arg(&model), "--data", arg(&data), "--out", arg(&out)];
                let more = ["--rendering", "none", "--site", &site_name, "--batch-size", "3"];
                succeed(&[&["activations"], &files[..], &more].concat());
                let found = Tensors::read(&out);
                for column in ["tokens", "sequence", "position", "response"] {
                    assert_eq!(found.ints[column], expected.ints[column], "{case}: {column}");
                }
                let special = found.ints["tokens"].iter().map(|id| i64::from(*id < 3));
                assert_eq!(found.ints["special"], special.collect::<Vec<_>>(), "{case}");
                let (ours, theirs) = (&found.floats["activations"], &expected.floats[site]);
                assert_eq!(ours.len(), theirs.len(), "{case}: {site}");
                let difference = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
                let largest = difference.fold(0.0, f32::max);
                assert!(largest < 2e-5, "{case}: {site} differs by {largest}");
            }
        }
    }
}

/// Oracle: the same texts as JSON lines.
#[test]
fn lines_of_text_are_sequences_too() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("score/plain");
    let activations = |name: &str, content: &str| {
        let (data, out) = (folder.path().join(name), folder.path().join("out.safetensors"));
        fs::write(&data, content).unwrap();
        let files = ["--model", arg(&model), "--data", arg(&data), "--out", arg(&out)];
        succeed(&[&["activations"], &files[..], &["--site", "mlp_out:1"]].concat());
        fs::read(out).unwrap()
    };
    let json = "{\"text\": \"One line.\"}\n{\"text\": \"{Another} one\"}\n";
    assert!(activations("a.txt", "One line.\n\n{Another} one\r\n") == activations("a.jsonl", json));
}

/// Real dialogues of every length and shape, some of them without an answer.
#[test]
fn every_pair_of_real_data_has_its_line() {
    let data = RealPairs::hh_rlhf();
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("score/plain"), folder.path().join("scores.jsonl"));
    let files = ["--model", arg(&model), "--data", arg(&data.path), "--out", arg(&out)];
    let printed = fail(&[&["score"], &files[..]].concat());
    assert!(printed.contains("160 positions") && printed.contains("row "), "{printed}");
    let cut = ["--max-length", "96", "--max-prompt-length", "48", "--batch-size", "32"];
    succeed(&[&["score"], &files[..], &cut].concat());
    let lines = json_lines(&out);
    assert_eq!(lines.len(), data.rows);
    for line in &lines {
        for side in ["chosen", "rejected"] {
            let tokens = line[format!("{side}_tokens")].as_u64().unwrap();
            assert!((1..=94).contains(&tokens), "{line}");
            assert!(line[format!("{side}_log_prob")].as_f64().unwrap() < 0.0, "{line}");
        }
    }
    assert!(lines.iter().any(|line| line["rejected_tokens"] == 1 || line["chosen_tokens"] == 1));
}

#[test]
fn what_cannot_be_scored_is_an_error_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("score/plain");
    let good = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    let long = format!(r#"{{"prompt": "a", "chosen": "{}", "rejected": "c"}}"#, "xyz ".repeat(90));
    let cases: [(&str, String, &[&str], &[&str]); 5] = [
        ("empty", String::new(), &[], &["no rows"]),
        ("columns", format!("{good}\n{{\"text\": \"a\"}}\n"), &[], &["line 2", "chosen"]),
        (
            "long",
            format!("{good}\n{long}\n"),
            &[],
            &["row 1", "chosen", "160 positions", "--max-length"],
        ),
        ("cut", format!("{long}\n"), &["--max-length", "2"], &["row 0", "--max-prompt-length"]),
        ("half", format!("{good}\n{{\"prompt\": \"a\", \"cho"), &[], &["line 2"]),
    ];
    for (name, content, more, says) in cases {
        let (data, out) = (folder.path().join(format!("{name}.jsonl")), folder.path().join("out"));
        fs::write(&data, content).unwrap();
        let files = ["--model", arg(&model), "--data", arg(&data), "--out", arg(&out)];
        let printed = fail(&[&["score"], &files[..], more].concat());
        for says in says.iter().chain(&[name]) {
            assert!(printed.contains(says), "{name}: no {says:?} in:\n{printed}");
        }
        assert!(!out.exists(), "{name}: something was written");
    }
    // What may be cut is cut, and that is said.
    let (data, out) = (folder.path().join("long.jsonl"), folder.path().join("out"));
    let files = ["--model", arg(&model), "--data", arg(&data), "--out", arg(&out)];
    let printed = succeed(&[&["score"], &files[..], &["--max-length", "50"]].concat());
    assert!(printed.contains("0 prompts and 1 responses were cut"), "{printed}");
    assert_eq!(json_lines(&out)[1]["chosen_tokens"], 48);
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("score/plain");
    for entry in fs::read_dir(&model).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    let mut token = added[4].clone();
    token["id"] = Value::from(5000);
    token["content"] = Value::from("<far>");
    added.push(token);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let (data, out) = (folder.path().join("a.jsonl"), folder.path().join("out"));
    fs::write(&data, r#"{"prompt": "a", "chosen": "b<far>", "rejected": "c"}"#.to_owned() + "\n")
        .unwrap();
    let files = ["--model", arg(folder.path()), "--data", arg(&data), "--out", arg(&out)];
    let printed = fail(&[&["score"], &files[..]].concat());
    let says = ["row 0", "<far>", "beyond the model's vocabulary", "tokenizer.json"];
    for says in says {
        assert!(printed.contains(says), "no {says:?} in:\n{printed}");
    }
    let (run, settings) = (folder.path().join("run"), ["data.train", "data.eval"]);
    let [train, eval] = settings.map(|key| format!("{key}={}", data.display()));
    let path = format!("model.path={}", folder.path().display());
    let base = ["train", "--recipe", "smoke", "--run", arg(&run), "--set", "align.method=dpo"];
    let train = [&base[..], &["--set", &train, "--set", &eval, "--set", &path]].concat();
    for more in [&[][..], &["--dry-run"]] {
        let printed = fail(&[&train[..], more].concat());
        for says in says {
            assert!(printed.contains(says), "no {says:?} in:\n{printed}");
        }
        assert!(!run.exists(), "it left something");
    }
    let prompt = ["generate", "--model", arg(folder.path()), "--prompt", "a<far>"];
    assert!(fail(&prompt).contains("beyond the model's vocabulary"));
}

/// The tensors of a file by name, integers and truth values as `i64`.
struct Tensors {
    floats: BTreeMap<String, Vec<f32>>,
    ints: BTreeMap<String, Vec<i64>>,
}

impl Tensors {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let (mut floats, mut ints) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let data = view.data();
            match view.dtype() {
                Dtype::F32 => {
                    let values = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
                    floats.insert(name, values.collect());
                }
                Dtype::I64 => {
                    let values = data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b));
                    ints.insert(name, values.collect());
                }
                Dtype::BOOL => {
                    ints.insert(name, data.iter().map(|&b| i64::from(b)).collect());
                }
                other => panic!("{name} is {other:?}"),
            }
        }
        Self { floats, ints }
    }
}
