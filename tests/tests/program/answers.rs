//! `fpo generate --for`: the benchmarks' own files, the same whatever the batch and however often a call was cut off.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    common::{arg, fail, succeed},
    score::fixture,
};

const BENCHMARKS: [(&str, &str); 4] = [
    ("alpaca-eval", "alpaca_eval.json"),
    ("arena-hard", "arena_hard.jsonl"),
    ("mt-bench", "mt_bench.jsonl"),
    ("ifeval", "ifeval.jsonl"),
];

fn questions(file: &str) -> PathBuf {
    fixture("benchmarks").join(file)
}

/// The rows of a file of answers.
fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    match text.starts_with('[') {
        true => serde_json::from_str(&text).unwrap(),
        false => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
    }
}

/// The file without the times, the only thing that differs from one call to the next.
fn timeless(path: &Path) -> Vec<String> {
    let mut rows = rows(path);
    for row in &mut rows {
        if let Some(time) = row.get_mut("tstamp") {
            assert!(time.as_f64().unwrap() > 1.7e9);
            *time = Value::Null;
        }
    }
    rows.iter().map(Value::to_string).collect()
}

/// Every answer in a row, turn by turn.
fn said(row: &Value) -> Vec<String> {
    let texts = match row {
        _ if row.get("output").is_some() => vec![&row["output"]],
        _ if row.get("response").is_some() => vec![&row["response"]],
        _ if row.get("messages").is_some() => vec![&row["messages"][1]["content"]["answer"]],
        _ => {
            let choices = row["choices"].as_array().unwrap();
            choices.iter().flat_map(|choice| choice["turns"].as_array().unwrap()).collect()
        }
    };
    texts.into_iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn answer(benchmark: &str, file: &str, out: &Path, more: &[&str]) -> String {
    let (model, questions) = (fixture("score/chat"), questions(file));
    let base = ["generate", "--model", arg(&model), "--for", benchmark, "--prompts"];
    let rest = [arg(&questions), "--out", arg(out), "--max-new-tokens", "12"];
    succeed(&[&base[..], &rest, more].concat())
}

/// Oracle: the same questions in batches of another size, and a file that was cut and completed.
#[test]
fn answers_depend_on_the_question_alone() {
    let folder = tempfile::tempdir().unwrap();
    for (benchmark, file) in BENCHMARKS {
        // At a temperature, so that a stream of random numbers shared between questions shows.
        let hot: &[&str] = &["--temperature", "1.3", "--seed", "4"];
        let made = |name: &str, more: &[&str]| {
            let out = folder.path().join(format!("{benchmark}-{name}"));
            answer(benchmark, file, &out, &[hot, more].concat());
            out
        };
        let alone = made("1", &["--batch-size", "1"]);
        let whole = timeless(&alone);
        for size in ["3", "8"] {
            assert_eq!(
                timeless(&made(size, &["--batch-size", size])),
                whole,
                "{benchmark}, {size}"
            );
        }
        let answers: Vec<String> = rows(&alone).iter().flat_map(said).collect();
        assert!(answers.iter().any(|answer| answer.len() > 10), "a dull test: {answers:?}");
        let different: std::collections::BTreeSet<&String> = answers.iter().collect();
        assert!(different.len() > answers.len() / 2, "{different:?}");

        let times = rows(&alone);
        let bytes = fs::read(&alone).unwrap();
        let cut = bytes.len() * 2 / 3;
        fs::write(&alone, &bytes[..cut]).unwrap();
        let printed = answer(benchmark, file, &alone, &[hot, &["--batch-size", "2"]].concat());
        assert!(printed.contains("was cut off"), "{printed}");
        assert!(printed.contains("are kept"), "{printed}");
        assert_eq!(timeless(&alone), whole, "{benchmark}, completed");
        assert_eq!(rows(&alone)[0], times[0], "what was kept keeps its time");
        // Once more: nothing is left to do.
        let completed = fs::read(&alone).unwrap();
        answer(benchmark, file, &alone, hot);
        assert_eq!(fs::read(&alone).unwrap(), completed);

        let seed = made("seed", &["--batch-size", "3", "--model-id", "another"]);
        let named = fs::read_to_string(&seed).unwrap().contains("\"another\"");
        assert_eq!(named, benchmark != "ifeval");
    }
}

/// Oracle: `fpo generate` on the same messages.
#[test]
fn a_second_turn_follows_the_first_answer() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("answers.jsonl");
    answer("mt-bench", "mt_bench.jsonl", &out, &["--temperature", "0"]);
    let asked: Vec<Value> = fs::read_to_string(questions("mt_bench.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let user = |text: &Value| serde_json::json!({ "role": "user", "content": text });
    let mut prompts = String::new();
    for (question, row) in asked.iter().zip(rows(&out)) {
        let (turns, first) = (&question["turns"], &row["choices"][0]["turns"][0]);
        let answered = serde_json::json!({ "role": "assistant", "content": first });
        let second = [user(&turns[0]), answered, user(&turns[1])];
        for messages in [&second[..1], &second[..]] {
            prompts += &(serde_json::json!({ "prompt": messages }).to_string() + "\n");
        }
    }
    let (file, expected) = (folder.path().join("prompts.jsonl"), folder.path().join("expected"));
    fs::write(&file, prompts).unwrap();
    let model = fixture("score/chat");
    let base = ["generate", "--model", arg(&model), "--prompts", arg(&file)];
    succeed(&[&base[..], &["--max-new-tokens", "12", "--out", arg(&expected)]].concat());
    let expected: Vec<String> = crate::score::json_lines(&expected)
        .iter()
        .map(|line| line["response"].as_str().unwrap().trim().to_owned())
        .collect();
    assert_eq!(rows(&out).iter().flat_map(said).collect::<Vec<_>>(), expected);
}

#[test]
fn choices_and_temperatures_are_mt_benchs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("answers.jsonl");
    answer("mt-bench", "mt_bench.jsonl", &out, &["--choices", "2", "--batch-size", "3"]);
    let rows = rows(&out);
    for (row, category) in rows.iter().zip(["writing", "math", "stem", "roleplay"]) {
        let choices = row["choices"].as_array().unwrap();
        assert_eq!((choices.len(), &choices[1]["index"]), (2, &Value::from(1)));
        // Greedy answers are the same each time.
        match category {
            "math" => assert_eq!(choices[0]["turns"], choices[1]["turns"]),
            "writing" | "roleplay" => assert_ne!(choices[0]["turns"], choices[1]["turns"]),
            _ => {}
        }
    }
}

#[test]
fn questions_and_answers_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (fixture("score/chat"), folder.path().join("answers.jsonl"));
    let (mt_bench, ifeval) = (questions("mt_bench.jsonl"), questions("ifeval.jsonl"));
    answer("ifeval", "ifeval.jsonl", &out, &[]);
    let before = fs::read(&out).unwrap();
    let long = folder.path().join("long.jsonl");
    let words = "word ".repeat(2000);
    fs::write(&long, format!(r#"{{"uid": "x9", "prompt": "{words}"}}"#)).unwrap();
    let new = folder.path().join("new");
    let cases: [(&[&str], &[&str]); 9] = [
        (
            &["ifeval", "--prompts", arg(&mt_bench), "--out", arg(&new)],
            &["MT-Bench", "--for mt-bench"],
        ),
        (
            &["ifeval", "--prompts", arg(&ifeval), "--out", arg(&out), "--seed", "1"],
            &["seed is 1, was 0"],
        ),
        (
            &["ifeval", "--prompts", arg(&ifeval), "--out", arg(&ifeval)],
            &["would replace the input"],
        ),
        (&["ifeval", "--prompts", arg(&ifeval), "--out", "-"], &["--out has to be a file"]),
        (&["ifeval", "--prompts", arg(&ifeval)], &["--out"]),
        (&["ifeval", "--prompt", "Hi.", "--out", arg(&new)], &["--prompt"]),
        (
            &["ifeval", "--questions", arg(&ifeval), "--out", arg(&new), "--choices", "2"],
            &["mt-bench"],
        ),
        (&["mmlu", "--prompts", arg(&ifeval), "--out", arg(&new)], &["no benchmark `mmlu`"]),
        (
            &["arena-hard", "--prompts", arg(&long), "--out", arg(&new)],
            &["x9", "positions", "leave it out"],
        ),
    ];
    for (more, says) in cases {
        let base = ["generate", "--model", arg(&model), "--max-new-tokens", "12", "--for"];
        let printed = fail(&[&base[..], more].concat());
        for says in says {
            assert!(printed.contains(says), "{more:?}: no {says:?} in:\n{printed}");
        }
        assert!(!new.exists());
    }
    assert_eq!(fs::read(&out).unwrap(), before);
}
