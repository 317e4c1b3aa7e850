//! `fpo study`: methods tuned and measured over seeds, whenever it is stopped.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::common::{PATIENCE, arg, fail, fpo, skip_when_quick, succeed};

/// Two methods and two seeds, the second part with everything that a study has.
const PLAN: &str = r#"
recipe = "smoke"
set = ["data.built_in.sft=64", "data.built_in.pairs=48", "sae.tokens=1200", "sae.training.steps=10", "evaluate.max_new_tokens=4"]
seeds = [0, 1]
learning_rates = [1e-3, 3e-3]
checkpoints = 3
baseline = "dpo"

[methods]
dpo = {}
fpo = {}

[kinds]
french = "French"
"#;

const MORE: &str = r#"
[ablate]
method = "fpo"
alpha = [0.5, 1.0]
site = ["resid_post:1"]
more_sites = [["resid_post:1"]]

[control]
kinds = ["french"]
features = 8
"#;

fn study<'a>(plan: &'a Path, folder: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["study", "--plan", arg(plan), "--run", arg(folder)][..], more].concat()
}

fn results(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("study.json")).unwrap()).unwrap()
}

fn runs(folder: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.join(part)];
    while let Some(path) = open.pop() {
        if path.join("run.toml").is_file() {
            found.push(path);
        } else {
            open.extend(fs::read_dir(&path).into_iter().flatten().map(|e| e.unwrap().path()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_study_killed_at_any_time_ends_the_same() {
    if skip_when_quick("a_study_killed_at_any_time_ends_the_same") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (undisturbed, killed) = (folder.path().join("undisturbed"), folder.path().join("killed"));
    let plan = folder.path().join("plan.toml");
    fs::write(&plan, [PLAN, MORE].concat()).unwrap();
    let printed = succeed(&study(&plan, &undisturbed, &["--dry-run"]));
    for line in ["tune          4 runs, 4 to do", "measure       4 runs, 4 to do", "not known"] {
        assert!(printed.contains(line), "{printed}");
    }
    assert!(!undisturbed.exists(), "a dry run left something behind");
    succeed(&study(&plan, &undisturbed, &[]));

    // In a trial, in a measured run between two of its checkpoints, in an ablation.
    for stage in ["tune/fpo", "measure/dpo", "ablate"] {
        let mut child = fpo(&study(&plan, &killed, &[])).spawn().unwrap();
        let begun = Instant::now();
        let is_aligning = || {
            runs_begun(&killed.join(stage)).iter().any(|run| {
                let log = run.join("checkpoints/align/metrics.jsonl");
                fs::read_to_string(log).is_ok_and(|text| text.lines().count() >= 2)
            })
        };
        while !is_aligning() {
            assert!(begun.elapsed() < PATIENCE, "{stage} never came");
            if child.try_wait().unwrap().is_some() {
                break;
            }
            sleep(Duration::from_millis(2));
        }
        let _ = child.kill(); // SIGKILL
        child.wait().unwrap();
    }
    succeed(&study(&plan, &killed, &[]));
    let file = |folder: &Path| fs::read_to_string(folder.join("study.json")).unwrap();
    assert_eq!(file(&killed), file(&undisturbed));

    // A call that finds all done changes nothing, wherever the folder was moved.
    let [moved, there] = ["moved", "killed"].map(|name| folder.path().join(name));
    fs::rename(&there, &moved).unwrap();
    let killed = moved;
    let printed = succeed(&study(&plan, &killed, &["--dry-run"]));
    let done: Vec<&str> = printed.lines().filter(|line| line.ends_with(" 0 to do")).collect();
    assert_eq!(done.len(), 4, "{printed}");
    assert!(printed.contains("tune          4 runs, 0 to do"), "{printed}");
    let before =
        fs::metadata(runs(&killed, "measure")[0].join("align")).unwrap().modified().unwrap();
    succeed(&study(&plan, &killed, &[]));
    let after =
        fs::metadata(runs(&killed, "measure")[0].join("align")).unwrap().modified().unwrap();
    assert_eq!(before, after);

    let found = results(&undisturbed);
    let steps = |method: &Value| -> Vec<u64> {
        let points = method["points"].as_array().unwrap();
        points.iter().map(|point| point["step"].as_u64().unwrap()).collect()
    };
    for method in found["methods"].as_array().unwrap() {
        assert_eq!(steps(method), [1, 2, 3], "{method}");
        assert_eq!(method["points"][2]["metrics"]["kl"]["seeds"], 2);
    }
    // The reference is where it is.
    assert_eq!(found["reference"]["points"][0]["metrics"]["kl"]["mean"], 0.0);
    assert!(found["differences"]["methods"]["fpo"]["accuracy"]["low"].is_number());
    // α is 0.5 already, so that 1.0, a site, and two sites are left.
    let keys = |of: &str| -> Vec<String> {
        let all = found[of].as_array().unwrap().iter();
        all.map(|run| format!("{} {}", run["key"], run["value"]).replace('"', "")).collect()
    };
    let expected = ["null null", "alpha 1.0", "more_sites resid_post:1", "site resid_post:1"];
    assert_eq!(keys("ablations"), expected);
    assert_eq!(keys("control"), ["null null", "only french-8", "except french-8"]);
    for file in [
        "study.html",
        "cost.json",
        "tables/methods.csv",
        "tables/differences.csv",
        "tables/ablations.csv",
        "tables/control-french.csv",
        "tables/trials.csv",
        "figures/frontier-accuracy.svg",
        "figures/frontier-accuracy.csv",
        "figures/steps-entropy.svg",
    ] {
        let [text, other] =
            [&undisturbed, &killed].map(|folder| fs::read_to_string(folder.join(file)).unwrap());
        assert!(!text.is_empty(), "{file}");
        // All but time and memory are the same.
        if !["study.html", "cost.json", "tables/methods.csv"].contains(&file) {
            assert_eq!(text, other, "{file}");
        }
    }
    let page = fs::read_to_string(undisturbed.join("study.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("src="));
    // Its own, that saves charts.
    assert_eq!(page.matches("<script").count(), 1);
    let kind = &found["control"][1]["kinds"]["french"];
    assert!(kind["pairs"].as_u64().unwrap() > 0 && kind["inside"]["kl"].is_number(), "{kind}");
}

/// Run folders that have begun, finished or not.
fn runs_begun(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        if path.join("checkpoints").is_dir() || path.join("run.toml").is_file() {
            found.push(path);
        } else {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(entries.map(|e| e.path()).filter(|path| path.is_dir()));
        }
    }
    found
}

/// What is valid is kept, what isn't is said, and nothing that was paid for goes unasked.
#[test]
fn a_plan_that_changes_half_way() {
    if skip_when_quick("a_plan_that_changes_half_way") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (run, plan) = (folder.path().join("study"), folder.path().join("plan.toml"));
    fs::write(&plan, PLAN.replace("[0, 1]", "[0]")).unwrap();
    let message = fail(&study(&plan, &run, &["--only", "measure"]));
    assert!(message.contains("tuning isn't finished"), "{message}");
    succeed(&study(&plan, &run, &["--only", "tune"]));
    let tuned = runs(&run, "tune");
    assert_eq!(tuned.len(), 4);
    let made = |run: &Path| fs::metadata(run.join("align")).unwrap().modified().unwrap();
    let before: Vec<_> = tuned.iter().map(|run| made(run)).collect();

    // Another trial for each method, one less, and a method more: only what is new is made.
    let line = "learning_rates = [3e-3, 2e-3]\n";
    let grown = PLAN.replace("[0, 1]", "[0]").replace("learning_rates = [1e-3, 3e-3]\n", line);
    fs::write(&plan, grown.replace("fpo = {}", "fpo = {}\nsimpo = {}")).unwrap();
    let printed = succeed(&study(&plan, &run, &["--dry-run"]));
    assert!(printed.contains("tune          6 runs, 4 to do"), "{printed}");
    let printed = succeed(&study(&plan, &run, &[]));
    assert!(!printed.contains("tune 1 of 6"), "made again: {printed}");
    assert_eq!(runs(&run, "tune").len(), 8);
    assert_eq!(tuned.iter().map(|run| made(run)).collect::<Vec<_>>(), before);
    let printed = succeed(&study(&plan, &run, &[]));
    assert!(printed.contains("2 runs in the folder are not in the plan"), "{printed}");
    assert_eq!(results(&run)["trials"].as_array().unwrap().len(), 6);

    // Other settings for all: refused in one sentence, and everything is as it was.
    let measured = runs(&run, "measure");
    let changed = grown.replace("[\"data", "[\"sft.epochs=2\", \"data");
    fs::write(&plan, changed).unwrap();
    let message = fail(&study(&plan, &run, &[]));
    for part in ["were made from another plan", "sft.epochs is 2, was 1", "--overwrite"] {
        let short = part.trim_start_matches("sft.");
        assert!(message.contains(part) || message.contains(short), "{part}: {message}");
    }
    assert_eq!(runs(&run, "measure"), measured);
    assert_eq!(tuned.iter().map(|run| made(run)).collect::<Vec<_>>(), before);
    succeed(&study(&plan, &run, &["--overwrite", "--only", "tune"]));
    assert_ne!(made(&run.join("tune/dpo/learning_rate=0.003/seed-0")), before[1]);
}

#[test]
fn a_plan_that_cannot_work_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let (run, plan) = (folder.path().join("study"), folder.path().join("plan.toml"));
    for (from, to, says) in [
        ("recipe = \"smoke\"", "recipe = \"smok\"", "no recipe `smok`"),
        ("seeds = [0, 1]", "seeds = []", "seeds must not be empty"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "seeds must be different"),
        ("seeds = [0, 1]", "seed = [0, 1]", "unknown field `seed`"),
        ("dpo = {}", "dpo = { beta = [0.1, 0.2] }", "dpo has 4 trials and fpo has 2"),
        ("dpo = {}", "dpo = { alpha = [0.1] }", "methods.dpo.alpha changes nothing of dpo"),
        ("dpo = {}", "dpo = { beta = 0.1 }", "methods.dpo.beta must be a list"),
        ("dpo = {}", "dpo = { betta = [0.1] }", "beta"),
        ("dpo = {}", "dop = {}", "methods.dop"),
        ("dpo = {}", "dpo = 3", "methods.dpo must be a table"),
        ("baseline = \"dpo\"", "baseline = \"ipo\"", "baseline = \"ipo\" must be one"),
        ("checkpoints = 3", "checkpoints = 0", "checkpoints must be"),
        ("checkpoints = 3", "validation = 1.0", "validation = 1 must be between 0 and 1"),
        ("checkpoints = 3", "criterion = \"eval_acuracy\"", "no metric `eval_acuracy`"),
    ] {
        fs::write(&plan, PLAN.replace(from, to)).unwrap();
        let message = fail(&study(&plan, &run, &[]));
        assert!(message.contains(says), "{to}: {message}");
        assert!(!run.exists(), "{to}");
    }
    for (more, says) in [
        ("[ablate]\nmethod = \"simpo\"", "ablate.method = \"simpo\" must be one"),
        ("[ablate]\nmethod = \"fpo\"\nsite = [\"resid_post:9\"]", "resid_post:9"),
        ("[ablate]\nmethod = \"fpo\"\nmore_sites = [\"resid_post:1\"]", "a list of lists"),
        ("[ablate]\nmethod = \"dpo\"\nk = [5]", "ablate.k changes nothing of dpo"),
        ("[control]\nkinds = [\"german\"]", "names `german`"),
    ] {
        fs::write(&plan, format!("{PLAN}\n{more}\n")).unwrap();
        let message = fail(&study(&plan, &run, &[]));
        assert!(message.contains(says), "{more}: {message}");
    }
    let message = fail(&["study", "--plan", "smoke", "--run", arg(&run), "--set", "align.bet=1"]);
    assert!(message.contains("align.bet") && !run.exists(), "{message}");
    let message = fail(&["study", "--plan", "large", "--run", arg(&run)]);
    assert!(message.contains("no plan `large`: there are tiny, smollm2, smoke"), "{message}");
    let binary = folder.path().join("binary");
    fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    fail(&study(&binary, &run, &[]));
}
