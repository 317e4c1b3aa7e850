//! `fpo features drift`, from its beginning to its end, and what it refuses.

use std::{fs, path::Path};

use serde_json::Value;

use crate::common::{arg, fail, fpo, skip_when_quick, succeed};

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    arg(&path).to_owned()
}

/// The columns of a CSV table by their names.
fn column(csv: &str, name: &str) -> Vec<f64> {
    let mut lines = csv.lines();
    let at = lines.next().unwrap().split(',').position(|column| column == name);
    let at = at.unwrap_or_else(|| panic!("no column {name}"));
    lines.map(|line| line.split(',').nth(at).unwrap().parse().unwrap()).collect()
}

/// Oracle: `tests/fixtures/drift/generate.py`, with transformers and numpy.
#[test]
fn all_features_are_those_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| arg(&folder.path().join(name)).to_owned();
    let [before, after, sae, pairs] = ["reference", "policy", "sae", "pairs.jsonl"]
        .map(|name| fixture(&format!("evaluate/{name}")));
    let expected = fs::read_to_string(fixture("drift/expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let page = path("drift.html");
    let base = ["features", "drift", "--sae", &sae, "--before", &before, "--texts", &pairs];
    let call = |more: &[&str]| succeed(&[&base[..], &["--out", &page], more].concat());

    let printed = call(&["--after", &after, "--batch-size", "2"]);
    let (texts, tokens) = (&expected["texts"], &expected["tokens"]);
    assert!(printed.contains(&format!("over {tokens} tokens of {texts} texts")), "{printed}");
    let csv = || fs::read_to_string(path("drift.csv")).unwrap();
    let names =
        ["mean_before", "firing_before", "mean_after", "firing_after", "change", "standard_error"];
    for name in names {
        let ours = column(&csv(), name);
        let theirs: Vec<f64> = serde_json::from_value(expected[name].clone()).unwrap();
        assert_eq!(ours.len(), theirs.len());
        for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert!((ours - theirs).abs() < 2e-5, "{name} of {index}: {ours}, {theirs}");
        }
    }

    // The page has them all, the most changed first; the order of its rows is that of the table.
    let html = fs::read_to_string(&page).unwrap();
    let changes = column(&csv(), "change");
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_by(|&a, &b| changes[b].abs().total_cmp(&changes[a].abs()));
    let shown = |html: &str| -> Vec<usize> {
        html.split("data-index=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect()
    };
    assert_eq!(shown(&html), order);
    call(&["--after", &after, "--top", "3", "--features", "0-1"]);
    assert_eq!(shown(&fs::read_to_string(&page).unwrap()).len(), 5);
    call(&["--after", &after, "--batch-size", "2"]);
    assert_eq!(html, fs::read_to_string(&page).unwrap(), "not deterministic");

    // Two aligned models: the second is the first model again, which changed nothing.
    let printed = call(&["--after", &after, "--after", &before]);
    assert!(printed.contains(&format!("{before}: over")), "{printed}");
    assert!(column(&csv(), "change_2").iter().all(|change| *change == 0.0));
    assert_eq!(column(&csv(), "mean_before"), column(&csv(), "mean_after_2"));
    let close =
        column(&csv(), "change").into_iter().zip(changes).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close, "the first model's change depends on the second");

    let output = fpo(&[&base[..], &["--after", &after, "--out", &page, "--json"]].concat())
        .output()
        .unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["models"][0]["features"][0]["feature"], order[0]);
    assert_eq!((&json["texts"], &json["tokens"]), (texts, tokens));
    let piped = fpo(&[&base[..], &["--after", &after, "--out", "-"]].concat()).output().unwrap();
    assert!(piped.stdout.starts_with(b"<!DOCTYPE html>"));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| arg(&folder.path().join(name)).to_owned();
    let [before, after, sae] =
        ["reference", "policy", "sae"].map(|name| fixture(&format!("evaluate/{name}")));
    let (texts, page) = (path("texts.txt"), path("drift.html"));
    fs::write(&texts, "An apple.\n").unwrap();
    let refused = |replaced: &[(&str, &str)], says: &[&str]| {
        let mut args = vec!["features", "drift"];
        for (option, value) in [
            ("--before", &*before),
            ("--after", &after),
            ("--sae", &sae),
            ("--texts", &texts),
            ("--out", &page),
        ] {
            let other = replaced.iter().find(|(name, _)| *name == option);
            args.extend([option, other.map_or(value, |(_, other)| other)]);
        }
        let more = replaced.iter().filter(|(name, _)| !args.contains(name)).collect::<Vec<_>>();
        more.iter().for_each(|(name, value)| args.extend([*name, *value]));
        let printed = fail(&args);
        for says in says {
            assert!(printed.contains(says), "{replaced:?}: no {says:?} in:\n{printed}");
        }
        assert!(!Path::new(&page).exists() && !Path::new(&path("drift.csv")).exists());
    };

    // Autoencoders of another width, layer or kind of file.
    refused(&[("--sae", &fixture("sae/evaluation/resid_post_1"))], &["resid_post_1", "width"]);
    refused(&[("--site", "resid_post:0")], &["trained on resid_post:1, not on resid_post:0"]);
    refused(&[("--site", "resid_post:9")], &["resid_post:9"]);
    refused(&[("--sae", &before)], &["reference"]);
    refused(&[("--sae", &path("none"))], &["none"]);

    // Models that aren't the same one.
    let copy = |name: &str, change: &dyn Fn(&str, String) -> String| {
        let folder = folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            let text = fs::read_to_string(Path::new(&after).join(file)).unwrap();
            fs::write(folder.join(file), change(file, text)).unwrap();
        }
        fs::copy(Path::new(&after).join("model.safetensors"), folder.join("model.safetensors"))
            .unwrap();
        arg(&folder).to_owned()
    };
    let wider =
        copy("wider", &|_, text| text.replace("\"hidden_size\": 12", "\"hidden_size\": 16"));
    refused(
        &[("--after", &wider)],
        &["wider has 3 layers of width 16", "reference has 3 of width 12"],
    );
    let other = copy("other", &|_, text| {
        text.replace("\".\": 17", "\".\": 36").replace("\"A\": 36", "\"A\": 17")
    });
    refused(&[("--after", &other)], &["other", "different tokenizers"]);
    refused(&[("--after", &path("missing"))], &["missing"]);
    let broken = copy("broken", &|_, text| text);
    fs::write(Path::new(&broken).join("model.safetensors"), "short").unwrap();
    refused(&[("--after", &broken)], &["broken"]);

    // Texts without anything to read, and outputs in the way.
    fs::write(path("empty.txt"), "\n\n").unwrap();
    refused(&[("--texts", &path("empty.txt"))], &["empty.txt"]);
    fs::write(path("special.txt"), "<bos>\n<eos><pad>\n").unwrap();
    refused(&[("--texts", &path("special.txt"))], &["special.txt", "no text has a token"]);
    fs::write(path("rows.jsonl"), "{\"prompt\": \"a\"}\n").unwrap();
    refused(&[("--texts", &path("rows.jsonl"))], &["rows.jsonl", "line 1"]);
    refused(&[("--features", "47-48")], &["no feature 48", "0 to 47"]);
    refused(&[("--csv", &page)], &["is the page"]);
    refused(&[("--csv", &texts)], &["would replace the input"]);
    refused(&[("--run", &path("none"))], &["no run's folder"]);
}

/// What a run's folder gives, the folder of a method of `fpo compare` too.
#[test]
fn a_run_brings_everything() {
    if skip_when_quick("a_run_brings_everything") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let drift = |more: &[&str]| {
        [&["features", "drift", "--run"], more]
            .concat()
            .iter()
            .map(|s| (*s).to_owned())
            .collect::<Vec<String>>()
    };
    let call = |args: Vec<String>| succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let refused = |args: Vec<String>| fail(&args.iter().map(String::as_str).collect::<Vec<_>>());
    succeed(&["train", "--recipe", "smoke", "--until", "sae", "--run", arg(&run)]);
    assert!(refused(drift(&[arg(&run)])).contains("has no align"));
    succeed(&["compare", "--recipe", "smoke", "--run", arg(&run), "--methods", "dpo,fpo"]);
    let method = |name: &str| arg(&run.join("compare").join(name)).to_owned();
    call(drift(&[&method("dpo")]));
    assert!(run.join("compare/dpo/drift.html").is_file());
    let [dpo, fpo] = ["dpo", "fpo"].map(|name| method(name) + "/align");
    call(drift(&[arg(&run), "--after", &dpo, "--after", &fpo]));
    let csv = fs::read_to_string(run.join("drift.csv")).unwrap();
    assert!(column(&csv, "change").iter().any(|change| *change != 0.0));
    assert!(column(&csv, "change_2") != column(&csv, "change"));
    let alone = fs::read_to_string(run.join("compare/dpo/drift.csv")).unwrap();
    assert_eq!(column(&csv, "change"), column(&alone, "change"));
    // The run goes on as before.
    succeed(&["train", "--run", arg(&run)]);
    assert!(run.join("drift.html").is_file());
}
