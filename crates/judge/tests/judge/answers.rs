//! Answer files in every format, and what is wrong with some. The oracle is the text of each case.

use std::path::{Path, PathBuf};

use fpo_judge::{Answers, Error, Missing, Pair, Questions, pairs};

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn put_together(
    baseline: &Path,
    model: &Path,
    questions: Option<&Path>,
    missing: Missing,
) -> Result<Vec<Pair>, Error> {
    let questions = questions.map(Questions::read).transpose()?;
    pairs(&Answers::read(baseline)?, &Answers::read(model)?, questions.as_ref(), missing)
}

/// Two checkpoints of one name get those of their files, or of their folders where these are alike.
#[test]
fn models_of_one_name_are_told_apart() {
    let files = Files::new();
    let answers = |file: &str, generator: &str| {
        let row = format!(r#"{{"instruction": "Q", "output": "x", "generator": "{generator}"}}"#);
        Answers::read(&files.write(file, &row)).unwrap()
    };
    for folder in ["a", "b"] {
        std::fs::create_dir(files.0.path().join(folder)).unwrap();
    }
    let names = |mut first: Answers, mut second: Answers| {
        first.tell_apart(&mut second);
        [first.generator, second.generator]
    };
    let found = names(answers("step-50.jsonl", "mine"), answers("step-100.jsonl", "mine"));
    assert_eq!(found, ["mine (step-50)", "mine (step-100)"]);
    let found = names(answers("step-50.jsonl", "mine"), answers("step-100.jsonl", "yours"));
    assert_eq!(found, ["mine", "yours"]);
    let [first, second] = names(answers("a/x.jsonl", "mine"), answers("b/x.jsonl", "mine"));
    assert!(first.ends_with("a/x.jsonl)") && second.ends_with("b/x.jsonl)"), "{first}, {second}");
}

#[test]
fn every_format_is_read() {
    let files = Files::new();
    let alpaca = r#"[
        {"dataset": "x", "instruction": "Q1", "output": "b1", "generator": "base"},
        {"dataset": "x", "instruction": "Q2", "output": "b2", "generator": "base"}]"#;
    let lines = "{\"prompt\": \"Q2\", \"response\": \"m2\"}\n\n{\"prompt\": \"Q1\", \"response\": \"m1\"}\n";
    let found = put_together(
        &files.write("b.json", alpaca),
        &files.write("mine.jsonl", lines),
        None,
        Missing::Refuse,
    );
    let found = found.unwrap();
    let one = |i: usize| {
        (&*found[i].question, &*found[i].turns[0], &*found[i].baseline[0], &*found[i].model[0])
    };
    assert_eq!((one(0), one(1)), (("0", "Q1", "b1", "m1"), ("1", "Q2", "b2", "m2")));
    assert_eq!(Answers::read(&files.0.path().join("mine.jsonl")).unwrap().generator, "mine");

    // Arena-Hard, both of its layouts.
    let new = r#"{"uid": "u1", "ans_id": "a", "model": "m", "tstamp": 1.0, "metadata": {"token_len": 1},
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": {"answer": "long"}}]}"#;
    let old = r#"{"question_id": "u1", "answer_id": "a", "model_id": "base", "tstamp": 1.0,
        "choices": [{"index": 0, "turns": [{"content": "short", "token_len": 1}]}]}"#;
    let found = put_together(
        &files.write("old.jsonl", &old.replace('\n', " ")),
        &files.write("new.jsonl", &new.replace('\n', " ")),
        None,
        Missing::Refuse,
    )
    .unwrap();
    assert_eq!((&*found[0].question, &*found[0].turns[0]), ("u1", "Q"));
    assert_eq!((&*found[0].baseline[0], &*found[0].model[0]), ("short", "long"));

    // MT-Bench, two turns, its questions in a file of their own.
    let answers = |name: &str| {
        format!(
            r#"{{"question_id": 81, "model_id": "{name}", "choices": [{{"index": 0, "turns": ["{name} 1", "{name} 2"]}}]}}"#
        )
    };
    let questions = files
        .write("q.jsonl", r#"{"question_id": 81, "category": "writing", "turns": ["T1", "T2"]}"#);
    let (base, mine) =
        (files.write("b.jsonl", &answers("b")), files.write("m.jsonl", &answers("m")));
    let found = put_together(&base, &mine, Some(&questions), Missing::Refuse).unwrap();
    assert_eq!(found[0].turns, ["T1", "T2"]);
    assert_eq!(found[0].model, ["m 1", "m 2"]);
    let error = put_together(&base, &mine, None, Missing::Refuse).unwrap_err().to_string();
    assert!(error.contains("--questions"), "{error}");
    let other = files.write("other.jsonl", r#"{"question_id": 1, "turns": ["T1", "T2"]}"#);
    let error = put_together(&base, &mine, Some(&other), Missing::Refuse).unwrap_err().to_string();
    assert!(
        error.contains("other.jsonl has no question 81") && error.contains("another benchmark"),
        "{error}"
    );
}

/// The same instruction twice is two questions.
#[test]
fn an_instruction_that_comes_twice_is_two_questions() {
    let files = Files::new();
    let file = |name: &str, outputs: [&str; 2]| {
        let row = |output| format!(r#"{{"instruction": "Q", "output": "{output}"}}"#);
        files.write(name, &outputs.map(row).join("\n"))
    };
    let (a, b) = (file("a.jsonl", ["1", "2"]), file("b.jsonl", ["3", "4"]));
    let found = put_together(&a, &b, None, Missing::Refuse).unwrap();
    assert_eq!((&*found[1].baseline[0], &*found[1].model[0]), ("2", "4"));
}

#[test]
fn what_cant_be_compared_is_refused_in_one_sentence() {
    let files = Files::new();
    let row =
        |q: usize| format!(r#"{{"instruction": "Q{q}", "output": "x{q}", "generator": "g"}}"#);
    let rows = |range: std::ops::Range<usize>| range.map(row).collect::<Vec<String>>().join("\n");
    let whole = files.write("whole.jsonl", &rows(0..10));
    for (name, text, part) in [
        ("half.jsonl", rows(0..4), "lacks 6 of the 10 questions"),
        ("others.jsonl", rows(20..30), "no question in common"),
        (
            "broken.jsonl",
            format!("{}\n{{\"instruction\": \"Q1\", \"out", row(0)),
            "row 2: isn't whole JSON",
        ),
        ("broken.json", format!("[{},", row(0)), "was it written to its end?"),
        ("empty.jsonl", " \n".to_owned(), "is empty"),
        ("list.jsonl", "[1]".to_owned(), "isn't an object"),
        (
            "null.jsonl",
            r#"{"instruction": "Q", "output": null}"#.to_owned(),
            "row 1: `output` is null",
        ),
        (
            "number.jsonl",
            r#"{"instruction": "Q", "output": 3}"#.to_owned(),
            "`output` isn't a text",
        ),
        (
            "question.jsonl",
            r#"{"uid": "1", "prompt": "Q"}"#.to_owned(),
            "is a question without an answer",
        ),
        (
            "pairs.jsonl",
            r#"{"chosen": "a", "rejected": "b"}"#.to_owned(),
            "has no answer; answers are",
        ),
        (
            "two.jsonl",
            format!("{}\n{}", row(0), row(1).replace("\"g\"", "\"h\"")),
            "row 2: is an answer of h",
        ),
        (
            "anonymous.jsonl",
            r#"{"output": "x"}"#.to_owned(),
            "neither the question's text nor an identity",
        ),
        (
            "talk.jsonl",
            r#"{"uid": "1", "messages": [{"role": "user", "content": "Q"}]}"#.to_owned(),
            "end without an answer",
        ),
    ] {
        let path = files.write(name, &text);
        let error = put_together(&whole, &path, None, Missing::Refuse).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(name), "{name}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let half = files.0.path().join("half.jsonl");
    assert_eq!(put_together(&whole, &half, None, Missing::LeaveOut).unwrap().len(), 4);
    let error = Answers::read(&files.0.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");

    let ids = |name: &str, text: &str| {
        files.write(name, &format!(r#"{{"uid": "1", "prompt": "{text}", "response": "x"}}"#))
    };
    let (a, b) = (ids("ia.jsonl", "Q"), ids("ib.jsonl", "another"));
    let error = put_together(&a, &b, None, Missing::Refuse).unwrap_err().to_string();
    assert!(error.contains("question 1 is another text"), "{error}");
    let twice = files.write(
        "twice.jsonl",
        &[std::fs::read_to_string(&a).unwrap(), std::fs::read_to_string(&a).unwrap()].join("\n"),
    );
    let error = put_together(&twice, &a, None, Missing::Refuse).unwrap_err().to_string();
    assert!(error.contains("row 2: answers question 1 again"), "{error}");
}
