//! A few pairs, and runs that use no features: what preference training takes, and nothing else. And whatever a run measures, the other
//! commands measure too.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    common::{arg, fail, fpo, succeed, text},
    evaluate::file,
    score::{fixture, json_lines},
};
use safetensors::SafeTensors;
use serde_json::Value;

const TRAINING: usize = 37;
const HELD_OUT: usize = 13;

/// Writes `rows` pairs of a few words.
fn write_pairs(path: &Path, rows: usize, salt: usize) {
    const WORDS: [&str; 9] =
        ["Paris", "look", "it", "up", "good", "morning", "one", "four", "answer"];
    let words = |seed: usize, count: usize| -> String {
        let words: Vec<&str> =
            (0..count).map(|i| WORDS[(seed * 31 + i * 17 + seed / 3) % 9]).collect();
        words.join(" ")
    };
    let lines = (0..rows).map(|row| {
        let row = row + salt;
        let pair = serde_json::json!({
            "prompt": words(row, 2 + row % 4),
            "chosen": words(row + 5, 1 + row % 5),
            "rejected": words(row + 11, 1 + row % 7),
        });
        pair.to_string() + "\n"
    });
    fs::write(path, lines.collect::<String>()).unwrap();
}

/// A folder with pairs to train on and held-out ones, and a run.
struct World {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl World {
    fn new(model: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_pairs(&folder.path().join("train.jsonl"), TRAINING, 0);
        write_pairs(&folder.path().join("held_out.jsonl"), HELD_OUT, 1000);
        Self { folder, model }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Trains into a folder of that name, and returns it with what was printed.
    fn train(&self, name: &str, set: &[&str]) -> (PathBuf, String) {
        let run = self.path(name);
        let [train, held_out] = [("train", "train.jsonl"), ("eval", "held_out.jsonl")]
            .map(|(key, file)| format!("data.{key}={}", self.path(file).display()));
        let model = format!("model.path={}", self.model.display());
        let mut arguments = vec!["train", "--recipe", "smoke", "--run", arg(&run)];
        let fixed = [train.as_str(), &held_out, &model, "align.k=5", "sae.training.d_sae=32"];
        for setting in fixed.into_iter().chain(set.iter().copied()) {
            arguments.extend(["--set", setting]);
        }
        let printed = succeed(&arguments);
        (run, printed)
    }
}

/// Rows too few for a later stage are found before the first one is made.
#[test]
fn rows_too_few_for_an_autoencoder_are_refused_before_anything_is_written() {
    let world = World::new(file("reference"));
    write_pairs(&world.path("one.jsonl"), 1, 0);
    let run = world.path("run");
    let [one, eval, model] = [
        ("data.train", world.path("one.jsonl")),
        ("data.eval", world.path("held_out.jsonl")),
        ("model.path", world.model.clone()),
    ]
    .map(|(key, path)| format!("{key}={}", path.display()));
    let base = ["train", "--recipe", "smoke", "--run", arg(&run), "--set", &eval, "--set", &model];
    let with = |more: &[&'static str], train: &str| -> Vec<String> {
        let set =
            more.iter().copied().chain(["sae.training.d_sae=32", "align.k=5"]).map(str::to_owned);
        let set = set.chain([train.to_owned()]).flat_map(|setting| ["--set".to_owned(), setting]);
        base.iter().map(|&argument| argument.to_owned()).chain(set).collect()
    };
    let says = [
        "stage sae are too few",
        "data.sft",
        "sae.path",
        "align.method=dpo",
        "1 rows are too few to train an autoencoder: of their ",
    ];
    let refused = |arguments: &[String]| {
        let message = fail(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        for part in says {
            assert!(message.contains(part), "{message}");
        }
    };
    refused(&with(&[], &one));
    refused(&[&with(&[], &one)[..], &["--dry-run".to_owned()]].concat());
    refused(&with(&["align.method=dpo", "evaluate.features=true"], &one));
    assert!(!run.exists(), "it left something");

    // Where only the autoencoder's settings change, too.
    let whole = format!("data.train={}", world.path("train.jsonl").display());
    let prepare = [&with(&[], &whole)[..], &["--until".to_owned(), "prepare".to_owned()]].concat();
    succeed(&prepare.iter().map(String::as_str).collect::<Vec<_>>());
    let before = fs::read(run.join("run.toml")).unwrap();
    let fewer = with(&["sae.tokens=1"], &whole);
    let message = fail(&fewer.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(message.contains("raise sae.tokens = 1"), "{message}");
    assert_eq!(fs::read(run.join("run.toml")).unwrap(), before);
}

/// An autoencoder for another width or site, with too few features, or that is damaged, is found before anything is written; also
/// for methods without features that measure them.
#[test]
fn an_autoencoder_that_does_not_fit_is_refused_before_anything_is_written() {
    let world = World::new(file("reference"));
    let run = world.path("run");
    let (sae, damaged) = (file("sae"), world.path("damaged"));
    fs::create_dir(&damaged).unwrap();
    for name in ["cfg.json", "sae_weights.safetensors"] {
        let bytes = fs::read(sae.join(name)).unwrap();
        let end = if name == "cfg.json" { bytes.len() } else { bytes.len() - 5 };
        fs::write(damaged.join(name), &bytes[..end]).unwrap();
    }
    let paths = [("data.train", "train.jsonl"), ("data.eval", "held_out.jsonl")];
    let [train, eval] = paths.map(|(key, name)| format!("{key}={}", world.path(name).display()));
    let model = format!("model.path={}", world.model.display());
    let [path, other] = [&sae, &damaged].map(|path| format!("sae.path={}", path.display()));
    let also = |site: &str| {
        format!("align.more_sites=[{{ site = \"{site}\", sae = {:?} }}]", sae.display().to_string())
    };
    let [fits, earlier] = [also("resid_post:1"), also("resid_post:0")];
    let (model, path, other) = (model.as_str(), path.as_str(), other.as_str());
    let cases: [(&[&str], &[&str]); 8] = [
        // The recipe's model has a width of 32.
        (&[path, "sae.site=resid_post:1"], &["sae.path", "12", "32"]),
        (
            &[model, path, "sae.site=resid_post:0"],
            &["sae.path", "resid_post:1, not on resid_post:0"],
        ),
        (&[model, path, "sae.site=mlp_out:1"], &["sae.path", "resid_post:1, not on mlp_out:1"]),
        (
            &[model, path, "sae.site=resid_post:1", "align.k=49"],
            &["sae.path", "48", "align.k = 49"],
        ),
        (&[model, &earlier, "sae.site=resid_post:1"], &["align.more_sites", "not on resid_post:0"]),
        (&[&fits, "sae.site=resid_post:0"], &["align.more_sites", "12", "32"]),
        (&[model, other, "sae.site=resid_post:1"], &["sae.path", "sae_weights.safetensors"]),
        (
            &[path, "sae.site=resid_post:1", "align.method=dpo", "evaluate.features=true"],
            &["sae.path", "12", "32"],
        ),
    ];
    for (set, says) in cases {
        let base = ["train", "--recipe", "smoke", "--run", arg(&run), "--set", &train];
        let mut arguments = [&base[..], &["--set", &eval, "--set", "align.k=5"]].concat();
        arguments.extend(set.iter().flat_map(|setting| ["--set", setting]));
        for more in [&[][..], &["--dry-run"]] {
            let message = fail(&[&arguments[..], more].concat());
            for part in says {
                assert!(message.contains(part), "{set:?}: no {part:?} in:\n{message}");
            }
            assert!(!run.exists(), "{set:?}: it left something");
        }
    }
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn preference_training_needs_no_autoencoder() {
    let world = World::new(file("reference"));
    for method in ["dpo", "simpo", "tdpo2"] {
        // A site that the model lacks, and an autoencoder that isn't there: nobody asks for them.
        let method_is = format!("align.method={method}");
        let set = [&method_is, "sae.site=resid_post:99", "sae.path=nowhere"];
        let (run, printed) = world.train(method, &set);
        assert!(printed.contains("nothing uses features"), "{printed}");
        assert!(!run.join("sae").exists() && run.join("report.html").is_file(), "{method}");
        for row in ["Accuracy", "KL, chosen"] {
            assert!(printed.contains(row), "no row {row:?}:\n{printed}");
        }
        assert!(!printed.contains("D, chosen"), "{printed}");
        let evaluation = json(&run.join("evaluate/evaluation.json"));
        assert!(evaluation["after"]["chosen_kl"].is_number());
        assert!(evaluation["after"].get("chosen_distance").is_none(), "{evaluation}");
        assert_eq!(evaluation["features"], serde_json::json!([]));
        let report = fs::read_to_string(run.join("report.html")).unwrap();
        assert!(!report.contains("SAE L0") && !report.contains("Changed features"), "{method}");
        let again = world.train(method, &set).1;
        assert_eq!(again.matches("up to date").count(), 5, "{again}");
    }
}

/// Oracle: the autoencoder's own file.
#[test]
fn few_pairs_are_enough_with_features_too() {
    let world = World::new(file("reference"));
    let path = format!("sae.path={}", file("sae").display());
    let given = [path.as_str(), "sae.site=resid_post:1"];
    let measured = |run: &Path| {
        let evaluation = json(&run.join("evaluate/evaluation.json"));
        evaluation["after"]["chosen_distance"].as_f64().unwrap()
    };
    for (name, set) in [
        ("given", &given[..]),
        ("dpo, measured", &[&given[..], &["align.method=dpo", "evaluate.features=true"]].concat()),
        ("trained", &["sae.site=resid_post:1"]),
    ] {
        let (run, printed) = world.train(name, set);
        assert!(measured(&run) > 0.0, "{name}");
        assert!(run.join("sae/quality.json").is_file(), "{name}");
        assert_eq!(run.join("sae/metrics.jsonl").exists(), name == "trained", "{printed}");
    }
    let encoder = |folder: &Path| {
        let bytes = fs::read(folder.join("sae_weights.safetensors")).unwrap();
        SafeTensors::deserialize(&bytes).unwrap().tensor("W_enc").unwrap().data().to_vec()
    };
    assert!(encoder(&world.path("given/sae")) == encoder(&file("sae")), "something was trained");
}

/// A cache with features that nobody reads serves methods without them.
#[test]
fn a_cache_with_features_serves_methods_without() {
    let world = World::new(file("reference"));
    let (cache, sae) = (world.path("cache"), file("sae"));
    let data = world.path("train.jsonl");
    let files = ["--model", arg(&world.model), "--sae", arg(&sae), "--data", arg(&data)];
    let more = ["--site", "resid_post:1", "--out", arg(&cache)];
    succeed(&[&["reference"], &files[..], &more].concat());
    let path = format!("reference.path={}", cache.display());
    world.train("run", &["align.method=dpo", "sft.epochs=0", &path]);
}

/// What `train` measured on held-out pairs is what `score` and `evaluate` measure, of the same file and of the prepared pairs, through
/// the chat template or not. Oracle: three routes to the same numbers.
#[test]
fn what_train_measured_is_what_score_and_evaluate_measure() {
    let world = World::new(fixture("score/chat"));
    for rendering in ["auto", "none"] {
        let (rendering_is, out) = (format!("data.rendering={rendering}"), world.path("out.jsonl"));
        let (run, printed) = world.train(rendering, &["align.method=dpo", &rendering_is]);
        let ways = match rendering {
            "auto" => {
                "100 rows went through the chat template, 0 already carried it, 0 are as given"
            }
            _ => "0 rows went through the chat template, 0 already carried it, 100 are as given",
        };
        assert!(printed.contains(ways), "{printed}");
        let summary = json(&run.join("prepared/summary.json"));
        let way = if rendering == "auto" { "templated" } else { "as_given" };
        assert_eq!(summary["train"][way], 2 * TRAINING);
        let expected = json(&run.join("evaluate/evaluation.json"));

        let (text, prepared) = (world.path("held_out.jsonl"), run.join("prepared/held_out.arrow"));
        let lengths = ["--max-length", "64", "--max-prompt-length", "40", "--rendering", rendering];
        for (data, more) in [(&text, &lengths[..]), (&prepared, &[])] {
            for (stage, when) in [("sft", "before"), ("align", "after")] {
                let model = run.join(stage);
                let files = ["--model", arg(&model), "--data", arg(data), "--out", arg(&out)];
                succeed(&[&["score"], &files[..], more].concat());
                check(
                    &json_lines(&out),
                    &expected[when],
                    &["chosen_log_prob", "rejected_log_prob"],
                );

                let reference = run.join("reference/held_out");
                let files = ["--policy", arg(&model), "--reference", arg(&reference)];
                let output = ["--data", arg(data), "--per-pair", arg(&out), "--method", "dpo"];
                succeed(&[&["evaluate"], &files[..], &output, more].concat());
                let names = ["chosen_log_prob", "rejected_log_prob", "loss"];
                check(&json_lines(&out), &expected[when], &names);
            }
        }
    }
    // Under its name in the other commands.
    let run = world.path("by_flag");
    let again = [
        "train",
        "--recipe",
        "smoke",
        "--run",
        arg(&run),
        "--rendering",
        "template",
        "--until",
        "prepare",
    ];
    let printed = succeed(&again);
    assert!(printed.contains("0 already carried it, 0 are as given"), "{printed}");
}

/// Means of lines against what the stage recorded, and the accuracy that they make.
fn check(lines: &[Value], expected: &Value, names: &[&str]) {
    assert_eq!(lines.len(), HELD_OUT);
    let number = |value: &Value, name: &str| {
        value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"))
    };
    for name in names {
        let mean = lines.iter().map(|line| number(line, name)).sum::<f64>() / lines.len() as f64;
        let theirs = number(expected, name);
        assert!((mean - theirs).abs() < 1e-5 * theirs.abs().max(1.0), "{name}: {mean}, {theirs}");
    }
    let average = |line: &Value, side: &str| {
        number(line, &format!("{side}_log_prob")) / number(line, &format!("{side}_tokens"))
    };
    let right = |line: &&Value| average(line, "chosen") > average(line, "rejected");
    let accuracy = lines.iter().filter(right).count() as f64 / lines.len() as f64;
    assert!((accuracy - number(expected, "accuracy")).abs() < 1e-9, "{accuracy}: {expected}");
}

/// `activations` and `sae` take prepared data too. Oracle: the same rows as text.
#[test]
fn prepared_data_are_taken_wherever_data_are() {
    let world = World::new(file("reference"));
    let (run, _) =
        world.train("run", &["align.method=dpo", "sft.epochs=0", "data.max_prompt_length=60"]);
    let read = |data: &Path, more: &[&str]| {
        let out = world.path("activations.safetensors");
        let files = ["--model", arg(&world.model), "--data", arg(data), "--out", arg(&out)];
        succeed(&[&["activations", "--site", "resid_post:1"], &files[..], more].concat());
        fs::read(&out).unwrap()
    };
    let lengths = ["--max-length", "64", "--max-prompt-length", "60"];
    let as_text = read(&world.path("held_out.jsonl"), &lengths);
    assert!(read(&run.join("prepared/held_out.arrow"), &[]) == as_text, "other activations");
    assert!(read(&run.join("prepared/sft.arrow"), &[]).len() > 1000);

    let prepared = run.join("prepared/train.arrow");
    let quality = |data: &Path, more: &[&str]| {
        let sae = file("sae");
        let files = ["--model", arg(&world.model), "--sae", arg(&sae), "--data", arg(data)];
        let evaluate = ["sae", "evaluate", "--site", "resid_post:1"];
        let output = fpo(&[&evaluate[..], &files, more].concat()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let as_text = quality(&world.path("train.jsonl"), &["--max-length", "64"]);
    assert_eq!(quality(&prepared, &[]), as_text);

    let out = world.path("nothing");
    let refused = [
        "activations",
        "--model",
        arg(&world.model),
        "--data",
        arg(&prepared),
        "--site",
        "resid_post:1",
    ];
    let printed = fail(&[&refused[..], &["--out", arg(&out), "--max-length", "9"]].concat());
    assert!(printed.contains("already tokenised"), "{printed}");
}

/// Rows that can't be used name the setting that says what becomes of them.
#[test]
fn an_empty_response_names_its_setting() {
    let world = World::new(file("reference"));
    let data = world.path("empty.jsonl");
    fs::write(&data, r#"{"prompt": "a", "chosen": "", "rejected": "b"}"#).unwrap();
    let set = format!("data.train={}", data.display());
    let run = world.path("run");
    let printed = fail(&["train", "--recipe", "smoke", "--run", arg(&run), "--set", &set]);
    assert!(printed.contains("data.on_empty"), "{printed}");
}

/// What runs all the same, but hardly as it was meant.
#[test]
fn data_and_settings_that_teach_little_are_said() {
    let world = World::new(file("reference"));
    let pairs = fs::read_to_string(world.path("train.jsonl")).unwrap();
    let same = "{\"prompt\": \"look up\", \"chosen\": \"it\", \"rejected\": \"it\"}\n";
    fs::write(world.path("train.jsonl"), pairs + same).unwrap();
    fs::copy(world.path("train.jsonl"), world.path("held_out.jsonl")).unwrap();
    let set = ["align.method=dpo", "align.optimizer.warmup_steps=1000", "sft.epochs=0"];
    let (_, printed) = world.train("run", &set);
    let pairs = TRAINING + 1;
    for says in [
        format!("1 of {pairs} training pairs have the same tokens twice"),
        format!("{pairs} of {pairs} held-out pairs are training pairs too"),
        "align: a warm-up of 1000 steps".to_owned(),
    ] {
        assert!(printed.contains(&says), "no {says:?} in:\n{printed}");
    }
    let (_, printed) = World::new(file("reference")).train("other", &set[..1]);
    assert!(!printed.contains("warning"), "{printed}");
}
