//! `fpo judge` against a server on this machine. The oracle is the server's own list of requests.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::common::{PATIENCE, arg, fail, fpo, skip_when_quick, succeed, text};

#[path = "../../../crates/judge/tests/judge/server.rs"]
#[allow(dead_code, reason = "shared with the tests of fpo-judge")]
mod server;

use server::{Answer, Request, Server, longer};

const KEY: &str = "sk-very-secret";

/// Answers of two models to ten questions; the model's are the longer ones.
struct Files {
    folder: tempfile::TempDir,
    baseline: PathBuf,
    answers: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, answer: &str| {
            let row = |i: usize| {
                let (question, answer) = (format!("Question {i}?"), format!("{answer} {i}"));
                json!({"instruction": question, "output": answer, "generator": name})
            };
            let path = folder.path().join(format!("{name}.json"));
            fs::write(&path, Value::Array((0..10).map(row).collect()).to_string()).unwrap();
            path
        };
        let (baseline, answers) = (file("base", "short"), file("mine", "a longer answer"));
        Self { folder, baseline, answers }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn judge(&self, server: &Server, more: &[&str]) -> Command {
        let verdicts = self.path("verdicts.jsonl");
        let files = ["--baseline", arg(&self.baseline), "--answers", arg(&self.answers)];
        let args =
            [&["judge"], &files[..], &["--judge", "judge", "--out", arg(&verdicts)], more].concat();
        let mut command = fpo(&args);
        command.env("OPENAI_BASE_URL", server.url()).env("OPENAI_API_KEY", KEY);
        command
    }
}

fn finished(output: &Output) -> String {
    let printed = text(output);
    assert!(output.status.success(), "{printed}");
    assert!(!printed.contains(KEY), "{printed}");
    printed
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Killed while two requests are on their way, the program asks again for those two and for nothing else that was asked.
#[test]
fn a_session_that_was_killed_goes_on() {
    const ANSWERED: usize = 7;
    if skip_when_quick("a_session_that_was_killed_goes_on") {
        return;
    }
    let files = Files::new();
    let again = Arc::new(AtomicBool::new(false));
    let seen = again.clone();
    let server = Server::new(move |n, request| match n < ANSWERED || seen.load(Ordering::SeqCst) {
        true => longer(request, 0.75),
        false => Answer::Hang(Duration::from_secs(60)),
    });
    let mut child = files.judge(&server, &["--parallel", "2"]).spawn().unwrap();
    let lines =
        || fs::read_to_string(files.path("verdicts.jsonl")).map_or(0, |text| text.lines().count());
    let begun = Instant::now();
    while server.requests().len() < ANSWERED + 2 || lines() < 1 + ANSWERED {
        assert!(begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none());
        sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before: Vec<String> = server.requests().iter().map(Request::question).collect();
    again.store(true, Ordering::SeqCst);

    let (json, saved) = (files.path("result.json"), files.path("annotations.json"));
    let prices = ["--price-in", "10", "--price-out", "100"];
    let outputs = ["--json", arg(&json), "--save-annotations", arg(&saved)];
    let printed =
        finished(&files.judge(&server, &[&prices[..], &outputs].concat()).output().unwrap());
    let asked: Vec<String> =
        server.requests()[before.len()..].iter().map(Request::question).collect();
    assert_eq!(asked.len(), 20 - ANSWERED);
    let all: HashSet<&String> = before.iter().chain(&asked).collect();
    assert_eq!(all.len(), 20);
    let repeated = asked.iter().filter(|question| before.contains(question)).count();
    assert_eq!(repeated, 2, "those that were on their way");

    assert!(
        printed.contains("mine against base: 10 of 10 questions have a preference"),
        "{printed}"
    );
    assert!(printed.contains("win rate            75.00 %"), "{printed}");
    assert!(printed.contains("2000 tokens in, 20 out, 0.02 to pay"), "{printed}");
    let result = read(&json);
    let percent = &result["comparisons"][0]["raw"]["win_rate"];
    assert!((percent.as_f64().unwrap() - 75.0).abs() < 1e-9, "{percent}");
    assert_eq!(result["asked"]["tokens"]["prompt_tokens"], 2000);
    assert_eq!(result["scores"][0]["model"], "mine");
    let kept = fs::read_to_string(files.path("verdicts.jsonl")).unwrap();
    assert!(!kept.contains(KEY) && !fs::read_to_string(&json).unwrap().contains(KEY));

    // All is known: nothing is asked, and the annotations say the same.
    let count = server.requests().len();
    finished(&files.judge(&server, &[]).output().unwrap());
    assert_eq!(server.requests().len(), count);
    let printed = succeed(&["judge", "--annotations", arg(&saved)]);
    assert!(printed.contains("win rate            75.00 %"), "{printed}");

    for (option, file) in [("--json", "verdicts.jsonl"), ("--save-annotations", "mine.json")] {
        let refused = files.judge(&server, &[option, arg(&files.path(file))]).output().unwrap();
        let printed = text(&refused);
        assert!(
            !refused.status.success() && printed.contains("would replace the input"),
            "{printed}"
        );
    }
    let refused = files.judge(&server, &["--temperature", "1"]).output().unwrap();
    let printed = text(&refused);
    assert!(
        !refused.status.success() && printed.contains("temperature: 0 then, 1 now"),
        "{printed}"
    );
    assert_eq!(fs::read_to_string(files.path("verdicts.jsonl")).unwrap(), kept);
}

#[test]
fn a_dry_run_asks_nothing() {
    let files = Files::new();
    let server = Server::likes_length(0.9);
    let output =
        files.judge(&server, &["--dry-run", "--limit", "2", "--price-in", "1", "--price-out", "1"]);
    let output = { output }.output().unwrap();
    let printed = finished(&output);
    assert!(
        printed.contains("4 requests, about") && printed.contains("nothing was asked"),
        "{printed}"
    );
    let requests: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(requests.len(), 4);
    assert_eq!(requests[0]["model"], "judge");
    assert!(server.requests().is_empty() && !files.path("verdicts.jsonl").exists());
}

/// The length-controlled win rates that `alpaca-eval` gives, recorded by `tests/fixtures/judge/generate.py`.
#[test]
fn annotations_need_no_endpoint() {
    let fixture =
        |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/judge").join(name);
    let (soft, gamed) = (fixture("soft.json"), fixture("df_gamed.csv"));
    let printed = succeed(&["judge", "--annotations", arg(&soft)]);
    assert!(
        printed.contains("win rate            51.30 % ± 2.24  (66 won, 54 lost, 0 drawn)"),
        "{printed}"
    );
    assert!(printed.contains("at equal length     40.20 %"), "{printed}");
    let printed = succeed(&["judge", "--annotations", arg(&soft), "--difficulties", arg(&gamed)]);
    assert!(printed.contains("at equal length     40.15 %"), "{printed}");
    let printed = fail(&["judge", "--annotations", arg(&gamed)]);
    assert!(printed.contains("df_gamed.csv: row 1: isn't whole JSON"), "{printed}");
}

/// Oracles: the messages written out, and games counted by hand.
#[test]
fn the_users_own_wording_and_arena_hards_judgments() {
    let files = Files::new();
    let prompt = files.path("prompt.txt");
    let text = "<|im_start|>system\nA or B?<|im_end|>\n<|im_start|>user\n{{ instruction }} {{ a }} / {{ b }}<|im_end|>\n";
    fs::write(&prompt, text).unwrap();
    let asked = ["--baseline", arg(&files.baseline), "--answers", arg(&files.answers)];
    let asked =
        [&["judge"], &asked[..], &["--judge", "judge", "--dry-run", "--limit", "1"]].concat();
    let output = fpo(&[&asked[..], &["--prompt", arg(&prompt)]].concat()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let requests: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<&Value> =
        requests.iter().map(|request| &request["messages"][1]["content"]).collect();
    assert_eq!(
        said,
        ["Question 0? short 0 / a longer answer 0", "Question 0? a longer answer 0 / short 0"]
    );
    assert_eq!(requests[0]["messages"][0], json!({"role": "system", "content": "A or B?"}));
    fs::write(&prompt, "{instruction} {a} {b}").unwrap();
    let refused = fail(&[&asked[..], &["--prompt", arg(&prompt)]].concat());
    assert!(
        refused.contains("prompt.txt") && refused.contains("doesn't read `instruction`"),
        "{refused}"
    );

    let judgments = files.path("mine.jsonl");
    let row = |uid: usize, games: [&str; 2]| {
        let games = games.map(|score| json!({"score": score}));
        json!({"uid": uid.to_string(), "category": "coding", "judge": "j", "model": "mine", "baseline": "base", "games": games})
    };
    // A clear win is three battles: of 6, 4 are won and one is a tie.
    let rows = [row(1, ["B>>A", "A>B"]).to_string(), row(2, ["A>B", "A=B"]).to_string()];
    fs::write(&judgments, rows.join("\n")).unwrap();
    let json = files.path("scores.json");
    let printed =
        succeed(&["judge", "--judgments", arg(&judgments), "--rounds", "0", "--json", arg(&json)]);
    assert!(
        printed.contains("coding, judged by j: 2 rows against base, 0 games without"),
        "{printed}"
    );
    assert!(printed.contains("75.0 %"), "{printed}");
    let best = &read(&json)["judgments"][0]["scores"][0];
    assert_eq!((best["model"].as_str(), best["battles"].as_u64()), (Some("mine"), Some(6)));
}
