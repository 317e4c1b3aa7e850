//! Question files: read as each benchmark has them, and refused by name where they are something else.

use std::{fs, path::PathBuf};

use fpo_benchmarks::{Benchmark, read_questions};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/benchmarks").join(name)
}

const FILES: [(Benchmark, &str); 4] = [
    (Benchmark::AlpacaEval, "alpaca_eval.json"),
    (Benchmark::ArenaHard, "arena_hard.jsonl"),
    (Benchmark::MtBench, "mt_bench.jsonl"),
    (Benchmark::IfEval, "ifeval.jsonl"),
];

/// Oracle: the files, and FastChat's table of temperatures.
#[test]
fn every_benchmark_is_read_from_its_own_file() {
    let expected: [(usize, &str, &[f64]); 4] = [
        (4, "Name a bird that cannot fly.", &[0.7; 4]),
        (5, "Sort 3, 1, 2.", &[0.0; 5]),
        (7, "Write a line about rain.", &[0.7, 0.0, 0.1, 0.7, 0.1, 0.7, 0.0]),
        (3, "Name two colours. Use no commas.", &[0.0; 3]),
    ];
    for ((benchmark, file), (rows, first, temperatures)) in FILES.into_iter().zip(expected) {
        let questions = read_questions(&fixture(file), benchmark).unwrap();
        assert_eq!((questions.len(), questions[0].turns[0].as_str()), (rows, first));
        let found: Vec<f64> = questions.iter().map(|question| question.temperature).collect();
        assert_eq!(found, temperatures);
        let turns = if benchmark == Benchmark::MtBench { 2 } else { 1 };
        assert!(questions.iter().all(|question| question.turns.len() == turns));
        assert_eq!(benchmark.name().parse(), Ok(benchmark));
    }
}

#[test]
fn a_file_of_another_benchmark_is_refused_by_its_name() {
    for (wanted, _) in FILES {
        for (found, file) in FILES.into_iter().filter(|(found, _)| *found != wanted) {
            let message = read_questions(&fixture(file), wanted).unwrap_err().to_string();
            let says = format!(
                "1: these are not the questions of {}: they look like those of {}; use --for {found}",
                wanted.title(),
                found.title()
            );
            assert!(message.ends_with(&says), "{message}");
        }
    }
}

#[test]
fn what_is_not_a_question_is_refused_where_it_stands() {
    use Benchmark::{AlpacaEval, ArenaHard, IfEval, MtBench};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("questions");
    let good = r#"{"question_id": 1, "turns": ["Hi."]}"#;
    let twice = format!("{good}\n\n{good}\n");
    let half = format!("{good}\n{}", &good[..20]);
    let long = format!(r#"{{"question_id": 1, "turns": [{}"x"]}}"#, r#""x","#.repeat(16));
    let cases: &[(Benchmark, &str, &str)] = &[
        (MtBench, "", "no question"),
        (MtBench, "[]", "no question"),
        (MtBench, "Who are you?\n", "line 1: not a JSON object"),
        (MtBench, "[1]", "row 1: not a JSON object"),
        (MtBench, &twice, "line 3: question 1 stands in line 1 already"),
        (MtBench, &half, "row 2: the file ends in the middle of a question"),
        (MtBench, &long, "line 1: it has 17 turns"),
        (MtBench, r#"{"question_id": 1, "turns": []}"#, "line 1: it has 0 turns"),
        (MtBench, r#"{"question_id": 1, "turns": ["a", 2]}"#, "turn 2 is not a text"),
        (MtBench, r#"{"question_id": null, "turns": ["a"]}"#, "`question_id` is neither"),
        (MtBench, r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#, "preference pairs"),
        (MtBench, r#"{"question_id": 1, "choices": []}"#, "answers to MT-Bench"),
        (MtBench, r#"{"question_id": "a", "turns": [{"content": "b"}]}"#, "those of Arena-Hard"),
        (ArenaHard, r#"{"uid": "a", "prompt": " "}"#, "`prompt` is empty"),
        (ArenaHard, r#"{"uid": 1, "prompt": "b"}"#, "`uid` is not a text"),
        (ArenaHard, r#"{"uid": "a", "messages": []}"#, "answers to Arena-Hard"),
        (
            ArenaHard,
            r#"{"question_id": "a", "turns": [{"content": "b"}, {"content": "c"}]}"#,
            "2 turns",
        ),
        (IfEval, r#"{"prompt": "a", "response": "b"}"#, "answers to IFEval"),
        (IfEval, r#"{"prompt": "a"}"#, "prompts of no benchmark; leave --for out"),
        (IfEval, r#"{"prompt": "a", "instruction_id_list": []}"#, "`key` is neither"),
        (AlpacaEval, r#"[{"instruction": "a", "input": "b"}]"#, "row 1: it has an `input`"),
        (AlpacaEval, r#"[{"a": 1}]"#, "nothing that is known"),
    ];
    for (benchmark, text, says) in cases {
        fs::write(&path, text).unwrap();
        let message = read_questions(&path, *benchmark).unwrap_err().to_string();
        assert!(message.contains(says), "{text}: no {says:?} in {message}");
    }
    fs::write(&path, b"\xff\xfe").unwrap();
    assert!(read_questions(&path, MtBench).is_err());
    let missing = read_questions(&folder.path().join("nowhere"), MtBench).unwrap_err().to_string();
    assert!(missing.contains("nowhere"), "{missing}");
}

#[test]
fn other_forms_of_a_file_ask_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("questions");
    let read = |text: &str, benchmark| {
        fs::write(&path, text).unwrap();
        read_questions(&path, benchmark).unwrap()
    };
    let (one, two) = (r#"{"uid": "a", "prompt": "b"}"#, r#"{"uid": "c", "prompt": "d"}"#);
    let lines = read(&format!("{one}\n{two}"), Benchmark::ArenaHard);
    assert_eq!(lines.len(), 2);
    for text in [
        format!("[{one},{two}]"),
        format!("\u{FEFF}\r\n{one}\r\n\r\n{two}\r\n"),
        format!("  [\n {one} ,\n\n{two}\n]\n"),
        r#"{"question_id": "a", "turns": [{"content": "b"}]}
           {"question_id": "c", "turns": [{"content": "d"}]}"#
            .to_owned(),
    ] {
        assert_eq!(read(&text, Benchmark::ArenaHard), lines, "{text}");
    }
}

/// One stream a question, choice and turn, whatever stands beside it in the file.
#[test]
fn streams_follow_from_the_question_alone() {
    let mut streams = std::collections::BTreeSet::new();
    for (benchmark, file) in FILES {
        for question in read_questions(&fixture(file), benchmark).unwrap() {
            for (choice, turn) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                assert!(streams.insert(question.stream(choice, turn)));
            }
        }
    }
    // Recorded: a file that is completed by a later version has to go on as it began.
    let questions = read_questions(&fixture("mt_bench.jsonl"), Benchmark::MtBench).unwrap();
    assert_eq!(questions[0].stream(0, 1), 1_241_353_016_420_919_619);
}

/// The benchmarks' own files, where they lie beside the checkout.
#[test]
fn published_files_are_read() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/benchmarks");
    for (benchmark, file, rows, turns, greedy) in [
        (Benchmark::ArenaHard, "arena_hard_v0.1_question.jsonl", 500, 1, 500),
        (Benchmark::MtBench, "mt_bench_question.jsonl", 80, 2, 40),
    ] {
        if !folder.join(file).is_file() {
            eprintln!("SKIPPED {file}: it doesn't lie beside the checkout");
            continue;
        }
        let questions = read_questions(&folder.join(file), benchmark).unwrap();
        assert_eq!(questions.len(), rows);
        assert!(questions.iter().all(|question| question.turns.len() == turns));
        let found = questions.iter().filter(|question| question.temperature == 0.0).count();
        assert_eq!(found, greedy);
    }
}
