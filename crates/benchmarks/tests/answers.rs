//! Answer files: the benchmarks' own keys, completed where they were cut, and never mixed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use fpo_benchmarks::{Answer, AnswerFile, Benchmark, Error, Maker, Question, read_questions};
use fpo_files::Fingerprint;
use serde_json::{Value, json};

fn questions(benchmark: Benchmark) -> Vec<Question> {
    let name = match benchmark {
        Benchmark::AlpacaEval => "alpaca_eval.json",
        Benchmark::ArenaHard => "arena_hard.jsonl",
        Benchmark::MtBench => "mt_bench.jsonl",
        Benchmark::IfEval => "ifeval.jsonl",
    };
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/benchmarks");
    read_questions(&folder.join(name), benchmark).unwrap()
}

fn maker(temperature: f64) -> Maker {
    let settings = Fingerprint::default().with("weights", "a".repeat(64));
    Maker { model: "ours".into(), settings: settings.with("temperature", temperature) }
}

fn open(path: &Path, benchmark: Benchmark) -> AnswerFile {
    AnswerFile::open(path, benchmark, questions(benchmark), maker(0.5)).unwrap()
}

/// Answers up to `most` open questions, with texts that follow from the question.
fn answer(file: &mut AnswerFile, most: usize, time: f64) {
    for index in file.open_questions().into_iter().take(most) {
        let turns: Vec<String> = file.questions()[index]
            .turns
            .iter()
            .map(|turn| format!("# {}\n\n**said** to \"{turn}\"", turn.len()))
            .collect();
        file.add(index, &Answer { choices: vec![turns], tokens: index + 1 }, time);
    }
    file.write().unwrap();
}

/// Oracle: the keys and values that each benchmark's code reads.
#[test]
fn rows_have_the_keys_of_their_benchmark() {
    let folder = tempfile::tempdir().unwrap();
    for benchmark in Benchmark::ALL {
        let path = folder.path().join(benchmark.name());
        let mut file = open(&path, benchmark);
        answer(&mut file, usize::MAX, 12.5);
        let text = fs::read_to_string(&path).unwrap();
        let rows: Vec<Value> = match benchmark {
            Benchmark::AlpacaEval => serde_json::from_str(&text).unwrap(),
            _ => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        };
        assert_eq!(rows.len(), file.questions().len());
        let (asked, row) = (&file.questions()[1].turns, &rows[1]);
        let said =
            |turn: usize| format!("# {}\n\n**said** to \"{}\"", asked[turn].len(), asked[turn]);
        let id = |key: &str| {
            let id = row[key].as_str().unwrap();
            assert!(id.len() == 22 && id.chars().all(|c| c.is_ascii_alphanumeric()), "{id}");
            json!(id)
        };
        let expected = match benchmark {
            Benchmark::AlpacaEval => json!({
                "dataset": "ours", "instruction": asked[0], "output": said(0), "generator": "ours",
            }),
            Benchmark::ArenaHard => json!({
                "uid": "00a2", "ans_id": id("ans_id"), "model": "ours",
                "messages": [
                    { "role": "user", "content": asked[0] },
                    { "role": "assistant", "content": { "answer": said(0) } },
                ],
                "tstamp": 12.5,
                "metadata": {
                    "token_len": 2,
                    "header_count": { "h1": 1, "h2": 0, "h3": 0, "h4": 0, "h5": 0, "h6": 0 },
                    "list_count": { "ordered": 0, "unordered": 0 },
                    "bold_count": { "**": 1, "__": 0 },
                },
            }),
            Benchmark::MtBench => json!({
                "question_id": 2, "answer_id": id("answer_id"), "model_id": "ours",
                "choices": [{ "index": 0, "turns": [said(0), said(1)] }],
                "tstamp": 12.5,
            }),
            Benchmark::IfEval => json!({ "prompt": asked[0], "response": said(0) }),
        };
        // As texts, so that the order counts.
        assert_eq!(row.to_string(), expected.to_string());
    }
}

/// Oracle: the file made in one go.
#[test]
fn a_file_that_was_cut_is_completed_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for benchmark in Benchmark::ALL {
        let path = folder.path().join(benchmark.name());
        answer(&mut open(&path, benchmark), usize::MAX, 1.0);
        let whole = fs::read(&path).unwrap();
        let count = questions(benchmark).len();
        // Between two answers, within one, within a character, before the closing bracket.
        let near_an_end = |at: usize| whole[at.saturating_sub(2)..=at].contains(&b'\n');
        let within_a_character = |at: usize| !whole[at].is_ascii();
        for end in 0..whole.len() {
            if !(near_an_end(end) || within_a_character(end) || end % 97 == 0) {
                continue;
            }
            fs::write(&path, &whole[..end]).unwrap();
            let mut file = open(&path, benchmark);
            let open_now = file.open_questions().len();
            assert_eq!(open_now + file.answered(), count, "{benchmark} to byte {end}");
            assert!(open_now > 0 || end + 3 >= whole.len(), "{benchmark} to byte {end}");
            let ends_a_line = end == 0 || whole[end - 1] == b'\n' || whole[end] == b'\n';
            assert!(file.was_cut() || ends_a_line, "{benchmark} to byte {end}");
            answer(&mut file, usize::MAX, 1.0);
            assert_eq!(fs::read(&path).unwrap(), whole, "{benchmark} to byte {end}");
        }
        // What is there keeps its time and whatever else it says; what is missing in between is filled in.
        let lines: Vec<&str> = std::str::from_utf8(&whole).unwrap().lines().collect();
        let missing = [&lines[..1], &lines[2..]].concat().join("\n");
        fs::write(&path, missing).unwrap();
        let mut file = open(&path, benchmark);
        assert!(!file.open_questions().is_empty());
        answer(&mut file, usize::MAX, 1.0);
        assert_eq!(fs::read(&path).unwrap(), whole, "{benchmark}");
    }
}

#[test]
fn answers_are_never_mixed() {
    let folder = tempfile::tempdir().unwrap();
    for benchmark in Benchmark::ALL {
        let path = folder.path().join(benchmark.name());
        answer(&mut open(&path, benchmark), 2, 1.0);
        let before = fs::read(&path).unwrap();
        let again = |maker: Maker| AnswerFile::open(&path, benchmark, questions(benchmark), maker);

        let changed = again(maker(0.75)).unwrap_err();
        assert!(matches!(changed, Error::Changed { .. }));
        assert!(changed.to_string().contains("temperature is 0.75, was 0.5;"), "{changed}");
        let weights = maker(0.5).settings.with("weights", "b".repeat(64));
        let changed = again(Maker { settings: weights, ..maker(0.5) }).unwrap_err();
        assert!(changed.to_string().contains("differently: weights;"), "{changed}");
        if benchmark != Benchmark::IfEval {
            let other = again(Maker { model: "theirs".into(), ..maker(0.5) }).unwrap_err();
            assert!(other.to_string().contains("an answer of ours, not of theirs"), "{other}");
        }
        let mut fewer = questions(benchmark);
        fewer.remove(0);
        let other = AnswerFile::open(&path, benchmark, fewer, maker(0.5)).unwrap_err();
        assert!(other.to_string().contains("another file of questions"), "{other}");
        let mut reworded = questions(benchmark);
        reworded[0].turns[0] += "!";
        assert!(AnswerFile::open(&path, benchmark, reworded, maker(0.5)).is_err());

        for (text, says) in [
            (&b"{\"some\": \"json\"}\n"[..], "this is no answer to"),
            (b"not JSON\n", "not a JSON object"),
            (b"[{\"a\": 1}, 3]", "not a JSON object"),
        ] {
            fs::write(&path, text).unwrap();
            let error = again(maker(0.5)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert_eq!(fs::read(&path).unwrap(), text, "left alone");
        }
        fs::write(&path, &before).unwrap();
        let beside = path.with_file_name(format!("{benchmark}.settings.json"));
        fs::write(&beside, "{").unwrap();
        assert!(matches!(again(maker(0.5)), Err(Error::Json { .. })));
        fs::remove_file(&beside).unwrap();
        assert!(matches!(again(maker(0.5)), Err(Error::NoSettings { .. })));
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

/// A longer file of the same questions: what is answered stays.
#[test]
fn more_questions_may_follow() {
    let folder = tempfile::tempdir().unwrap();
    for benchmark in Benchmark::ALL {
        let path = folder.path().join(benchmark.name());
        let few = questions(benchmark)[..2].to_vec();
        let mut file = AnswerFile::open(&path, benchmark, few, maker(0.5)).unwrap();
        answer(&mut file, usize::MAX, 1.0);
        let mut file = open(&path, benchmark);
        assert_eq!(file.answered(), 2);
        answer(&mut file, usize::MAX, 2.0);
        assert_eq!(open(&path, benchmark).open_questions(), [0; 0]);
    }
}
