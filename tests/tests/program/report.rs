//! `fpo report`: the page again, and several runs on one page.

use std::fs;

use crate::common::{arg, fail, skip_when_quick, succeed};

/// Oracle: the page that the run itself wrote, and what the runs were given.
#[test]
fn a_page_is_made_again_and_runs_are_compared() {
    if skip_when_quick("a_page_is_made_again_and_runs_are_compared") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (first, second) = (path("first"), path("second"));
    succeed(&["train", "--recipe", "smoke", "--run", arg(&first)]);
    let page = fs::read(first.join("report.html")).unwrap();
    succeed(&["report", arg(&first), "--out", arg(&path("again.html"))]);
    assert!(fs::read(path("again.html")).unwrap() == page, "the page isn't the same");
    fs::remove_file(first.join("report.html")).unwrap();
    let printed = succeed(&["report", arg(&first)]);
    assert!(printed.contains("report.html") && !printed.contains("warning"), "{printed}");
    assert!(fs::read(first.join("report.html")).unwrap() == page);

    // Another β, on the same data and reference.
    let set = ["--set", "align.beta=0.5", "--set", "evaluate.every=2"];
    let start = ["train", "--recipe", "smoke", "--run", arg(&second)];
    succeed(&[&start[..], &set].concat());
    let (out, csv) = (path("both.html"), path("both.csv"));
    let both = ["report", arg(&first), arg(&second)];
    let printed = succeed(&[&both[..], &["--out", arg(&out), "--csv", arg(&csv)]].concat());
    assert!(
        !printed.contains("same held-out pairs") && !printed.contains("same model"),
        "{printed}"
    );
    let page = fs::read_to_string(&out).unwrap();
    for part in [
        "<th scope=\"row\">align.<wbr>beta</th><td>not set</td><td>0.5</td>",
        "<th scope=\"row\">evaluate.<wbr>every</th><td>0</td><td>2</td>",
        "second, held-out",
        "Reward accuracy",
        "Changed features",
        "peak memory",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    // Both start from the same fine-tuned model, whose curves are there once, and have the same autoencoder.
    assert!(page.matches("The same in all runs").count() == 2 && page.contains("Feature "));
    for outside in ["<script", "src=\"http", "href=\"http", "url(http"] {
        assert!(!page.contains(outside), "the page reaches out: {outside}");
    }
    let csv = fs::read_to_string(csv).unwrap();
    assert!(csv.starts_with("run,stage,step,metric,value\nfirst,sft,1,loss,"), "{csv}");
    assert!(csv.lines().any(|line| line.starts_with("second,align,2,eval_loss,")), "{csv}");

    let same = fail(&[&both[..], &["--out", "x", "--csv", "x"]].concat());
    assert!(same.contains("can't be the same file"), "{same}");
    let twice = fail(&["report", arg(&first), arg(&first)]);
    assert!(twice.contains("is given twice"), "{twice}");
}

#[test]
fn what_is_no_run_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let empty = fail(&["report", arg(folder.path())]);
    assert!(empty.contains("is not the folder of a run"), "{empty}");
    let missing = folder.path().join("missing");
    let missing = fail(&["report", arg(&missing)]);
    assert!(missing.contains("missing"), "{missing}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
