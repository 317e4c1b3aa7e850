//! A whole session against a server that fails in every way an endpoint can. The oracle is the server's own list of requests.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fpo_judge::endpoint::Usage;
use fpo_judge::session::{self, Outcome};
use fpo_judge::summary;
use fpo_judge::verdict::{NoVerdict, Order, ReadFrom};
use fpo_judge::{
    Control, Endpoint, EndpointError, Error, Journal, JournalError, Judge, Key, Pair, Patience,
    Template, VERDICTS, Verdict, Wording,
};
use serde_json::{Map, json};

use crate::server::{Answer, Request, Server, completion, longer};

const KEY: &str = "sk-very-secret";

fn quick() -> Patience {
    let milliseconds = Duration::from_millis;
    Patience {
        attempts: 4,
        first_wait: milliseconds(1),
        longest_wait: milliseconds(5),
        timeout: Duration::from_secs(5),
    }
}

fn judge() -> Judge {
    Judge {
        model: "judge".to_owned(),
        wording: Wording::Own,
        temperature: 0.0,
        max_tokens: 16,
        logprobs: true,
        body: Map::new(),
    }
}

/// The model's answer is the longer one to even questions.
fn questions(count: usize) -> Vec<Pair> {
    let pair = |i: usize| Pair {
        position: i,
        question: i.to_string(),
        turns: vec![format!("Question {i}")],
        baseline: vec![format!("baseline {i}{}", "!".repeat(20 * (i % 2)))],
        model: vec![format!("the model {i}")],
    };
    (0..count).map(pair).collect()
}

/// A session with what the file holds already.
fn run(
    server: &Server,
    file: &Path,
    pairs: &[Pair],
    judge: &Judge,
    parallel: usize,
) -> Result<Outcome, Error> {
    run_until(server, file, pairs, judge, parallel, usize::MAX)
}

/// A session that is asked to stop after so many verdicts.
fn run_until(
    server: &Server,
    file: &Path,
    pairs: &[Pair],
    judge: &Judge,
    parallel: usize,
    until: usize,
) -> Result<Outcome, Error> {
    let endpoint = Endpoint::new(&server.url(), Key::new(KEY)?, quick())?;
    let settings = judge.settings(endpoint.url(), "base", "model");
    let (mut journal, kept) = Journal::open(file, VERDICTS, &settings)?;
    let stopped = AtomicBool::new(false);
    let stop = || stopped.load(Ordering::SeqCst);
    let mut progress =
        |progress: session::Progress| stopped.store(progress.done >= until, Ordering::SeqCst);
    let control = Control { parallel, stop: &stop, progress: &mut progress };
    session::run(&endpoint, judge, pairs, &mut journal, kept, control)
}

fn scratch() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new/verdicts.jsonl");
    (folder, file)
}

#[test]
fn both_orders_are_asked_and_probabilities_are_read() {
    let server = Server::likes_length(0.8);
    let (_folder, file) = scratch();
    let pairs = questions(6);
    let outcome = run(&server, &file, &pairs, &judge(), 3).unwrap();
    let asked = server.requests();
    assert_eq!(asked.len(), 12);
    assert_eq!(asked.iter().map(Request::question).collect::<HashSet<_>>().len(), 12);
    for request in &asked {
        assert_eq!(request.path, "/v1/chat/completions");
        assert_eq!(request.authorization.as_deref(), Some("Bearer sk-very-secret"));
        assert_eq!(request.body["model"], "judge");
        assert_eq!(request.body["logprobs"], true);
    }
    assert!(
        outcome.verdicts.iter().all(|v| v.read_from == Some(ReadFrom::Logprobs) && v.replies == 1)
    );
    assert_eq!(
        session::usage(&outcome.verdicts),
        Usage { prompt_tokens: 1200, completion_tokens: 12 }
    );
    for (pair, judged) in pairs.iter().zip(summary::judged(&pairs, &outcome.verdicts)) {
        let expected = if pair.position % 2 == 0 { 0.8 } else { 0.2 };
        assert!((judged.preference.unwrap() - expected).abs() < 1e-9, "{}", pair.position);
    }
    let orders = summary::orders(&outcome.verdicts);
    assert!((orders.first_preferred.unwrap() - 50.0).abs() < 1e-9);
    assert_eq!(orders.agreement, Some(100.0));
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept.starts_with("{\"fpo_judge\":1,") && !kept.contains(KEY));
    assert_eq!(kept.lines().count(), 13);
}

/// A judge that always says A prefers the first place entirely, and no model.
#[test]
fn a_position_bias_is_seen() {
    let server = Server::new(|_, _| Answer::Text("A".to_owned()));
    let (_folder, file) = scratch();
    let pairs = questions(5);
    let outcome = run(&server, &file, &pairs, &judge(), 2).unwrap();
    let orders = summary::orders(&outcome.verdicts);
    assert_eq!((orders.first_preferred, orders.agreement), (Some(100.0), Some(0.0)));
    assert!(
        summary::judged(&pairs, &outcome.verdicts).iter().all(|row| row.preference == Some(0.5))
    );
    assert!(outcome.verdicts.iter().all(|v| v.read_from == Some(ReadFrom::Letter)));
}

/// Each fault passes on the second request.
#[test]
fn passing_faults_are_tried_again() {
    let html = "<html>bad gateway</html>".to_owned();
    for fault in [
        Answer::Status(429, None, "slow down".to_owned()),
        Answer::Status(500, None, "oops".to_owned()),
        Answer::Status(503, None, String::new()),
        Answer::Cut,
        Answer::Hang(Duration::from_millis(1)),
        Answer::Body("{\"choices\": [".to_owned()),
        Answer::Body("{}".to_owned()),
        Answer::Body("{\"choices\": [{\"message\": {\"content\": 3}}]}".to_owned()),
        Answer::Body(html),
        Answer::Body(String::new()),
    ] {
        let first = fault.clone();
        let server = Server::new(move |n, request| match n {
            0 => first.clone(),
            _ => longer(request, 0.9),
        });
        let (_folder, file) = scratch();
        let outcome = run(&server, &file, &questions(1), &judge(), 1).unwrap();
        assert_eq!(server.requests().len(), 3, "{fault:?}");
        assert!(
            outcome.verdicts.iter().all(|v| v.preference.is_some() && v.replies == 1),
            "{fault:?}"
        );
    }
}

#[test]
fn retry_after_is_honoured() {
    let wait =
        |text: &str, message: &str| Answer::Status(429, Some(text.to_owned()), message.to_owned());
    let first = wait("1", "later");
    let server =
        Server::new(move |n, request| if n == 0 { first.clone() } else { longer(request, 0.9) });
    let (_folder, file) = scratch();
    let begun = Instant::now();
    run(&server, &file, &questions(1), &judge(), 1).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    // A wait of a day and an unpaid quota both end the judging at once.
    for (answer, part) in
        [(wait("86400", "tomorrow"), "1440 minutes"), (wait("1", "insufficient_quota: pay"), "pay")]
    {
        let server = Server::new(move |_, _| answer.clone());
        let (_folder, file) = scratch();
        let error = run(&server, &file, &questions(1), &judge(), 1).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn lasting_faults_end_it_in_one_sentence_without_the_key() {
    for (answer, requests, part) in [
        (
            Answer::Status(401, None, format!("Incorrect API key: {KEY}")),
            1,
            "status 401): Incorrect API key: (the key)",
        ),
        (Answer::Status(404, None, "no model judge".to_owned()), 1, "no model judge"),
        (Answer::Status(301, None, "moved".to_owned()), 1, "status 301"),
        (
            Answer::Status(500, None, format!("{KEY} oops")),
            4,
            "failed 4 times, at last: status 500: (the key) oops",
        ),
        (Answer::Body(format!("nonsense {KEY}")), 4, "isn't a chat completion: nonsense (the key)"),
        (
            Answer::Status(400, None, "logprobs aren't supported".to_owned()),
            4,
            "logprobs aren't supported",
        ),
    ] {
        let script = answer.clone();
        let server = Server::new(move |_, _| script.clone());
        let (_folder, file) = scratch();
        let error = run(&server, &file, &questions(2), &judge(), 1).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains(KEY) && !error.contains('\n'), "{error}");
        assert_eq!(server.requests().len(), requests, "{answer:?}");
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 1, "settings alone");
    }
    let endpoint = Endpoint::new("http://127.0.0.1:1", None, quick()).unwrap();
    let error = endpoint.ask(&json!({}), &|| false).unwrap_err();
    assert!(matches!(error, EndpointError::Failed { attempts: 4, .. }), "{error}");
}

/// Refusals, other languages and nonsense are asked again once, then recorded; nothing is made of them.
#[test]
fn what_is_no_verdict_is_recorded_as_none() {
    let refusal = r#"{"choices": [{"message": {"content": null, "refusal": "I can't."}, "finish_reason": "stop"}]}"#;
    let filtered =
        r#"{"choices": [{"message": {"content": "A"}, "finish_reason": "content_filter"}]}"#;
    let cut =
        r#"{"choices": [{"message": {"content": "Well, the first"}, "finish_reason": "length"}]}"#;
    for (answer, why) in [
        (Answer::Body(refusal.to_owned()), NoVerdict::Refusal),
        (Answer::Body(filtered.to_owned()), NoVerdict::Refusal),
        (Answer::Body(cut.to_owned()), NoVerdict::CutOff),
        (Answer::Text("Beide Antworten sind gut.".to_owned()), NoVerdict::NoLetter),
        (Answer::Text("第一个更好。".to_owned()), NoVerdict::NoLetter),
        (Answer::Text("I'm sorry, but I can't judge that.".to_owned()), NoVerdict::NoLetter),
        (Answer::Text(String::new()), NoVerdict::NoLetter),
    ] {
        let script = answer.clone();
        let bad = |request: &Request| {
            request.question().contains("Question 0") && request.answer('A').starts_with("base")
        };
        let server = Server::new(
            move |_, request| if bad(request) { script.clone() } else { longer(request, 0.9) },
        );
        let (_folder, file) = scratch();
        let pairs = questions(2);
        let outcome = run(&server, &file, &pairs, &judge(), 1).unwrap();
        let asked = server.requests();
        assert_eq!(asked.len(), 5, "{answer:?}");
        assert!(
            asked[1].is_reminder()
                && asked.iter().filter(|request| request.is_reminder()).count() == 1
        );
        let verdict = &outcome.verdicts[0];
        assert_eq!((verdict.order, verdict.replies), (Order::BaselineFirst, 2));
        assert_eq!((verdict.preference, verdict.no_verdict), (None, Some(why)), "{answer:?}");
        let judged = summary::judged(&pairs, &outcome.verdicts);
        assert!(
            judged[0].preference.is_none() && judged[1].preference.is_some(),
            "half a question doesn't count"
        );
        assert_eq!(summary::orders(&outcome.verdicts).without_verdict[&why], 1);
        // It was paid for, so it isn't asked again.
        run(&server, &file, &pairs, &judge(), 1).unwrap();
        assert_eq!(server.requests().len(), 5);
    }
    // A reminder that helps.
    let server = Server::new(|_, request| match request.is_reminder() {
        true => Answer::Text("B".to_owned()),
        false => Answer::Text("Hard to say.".to_owned()),
    });
    let (_folder, file) = scratch();
    let outcome = run(&server, &file, &questions(1), &judge(), 1).unwrap();
    assert!(outcome.verdicts.iter().all(|v| v.preference.is_some() && v.replies == 2));
    assert_eq!(session::usage(&outcome.verdicts).prompt_tokens, 400, "both replies were paid for");
}

/// One question that the endpoint refuses doesn't end the others, and is asked again by the next run.
#[test]
fn a_rejected_request_is_reported_and_asked_again_later() {
    let rejected = AtomicUsize::new(0);
    let server = Server::new(move |_, request| {
        let is_long = request.question().contains("Question 1");
        match is_long && rejected.fetch_add(1, Ordering::SeqCst) < 2 {
            true => Answer::Status(400, None, "context_length_exceeded".to_owned()),
            false => longer(request, 0.9),
        }
    });
    let (_folder, file) = scratch();
    let pairs = questions(3);
    let outcome = run(&server, &file, &pairs, &judge(), 1).unwrap();
    assert_eq!((outcome.verdicts.len(), outcome.rejections.len()), (4, 2));
    assert_eq!(outcome.rejections[0].question, "1");
    assert!(outcome.rejections[0].message.contains("context_length_exceeded"));
    let outcome = run(&server, &file, &pairs, &judge(), 1).unwrap();
    assert_eq!((outcome.verdicts.len(), outcome.rejections.len()), (6, 0));
    assert_eq!(server.requests().len(), 8);
}

/// Stopped, broken off in the middle of a line, failed: each time the next run asks for what is missing and nothing else.
#[test]
fn nothing_is_asked_twice() {
    let (_folder, file) = scratch();
    let pairs = questions(20);
    let server = Server::new(|n, request| match n {
        25.. => Answer::Status(401, None, "no more".to_owned()),
        _ => longer(request, 0.9),
    });
    let error = run_until(&server, &file, &pairs, &judge(), 3, 10).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    let asked = server.requests().len();
    assert!((10..25).contains(&asked), "{asked}");
    let whole = std::fs::read_to_string(&file).unwrap();
    assert_eq!(whole.lines().count(), 1 + asked, "what was on its way was waited for");
    // What a kill leaves of a line.
    std::fs::write(&file, format!("{whole}{{\"question\":\"7\",\"ord")).unwrap();
    let error = run(&server, &file, &pairs, &judge(), 3).unwrap_err().to_string();
    assert!(error.contains("no more"), "{error}");
    let answered = std::fs::read_to_string(&file).unwrap().lines().count() - 1;
    assert_eq!(answered, 25);
    drop(server);

    let again = Server::likes_length(0.9);
    // The same endpoint, for the settings.
    let endpoint_of_then = std::fs::read_to_string(&file).unwrap();
    let then = endpoint_of_then.split("\"endpoint\":\"").nth(1).unwrap().split('"').next().unwrap();
    std::fs::write(&file, endpoint_of_then.replace(then, &again.url())).unwrap();
    let outcome = run(&again, &file, &pairs, &judge(), 3).unwrap();
    assert_eq!(outcome.verdicts.len(), 40);
    assert_eq!(again.requests().len(), 40 - answered);
    let asked: HashSet<(String, Order)> =
        outcome.verdicts.iter().map(|v| (v.question.clone(), v.order)).collect();
    assert_eq!(asked.len(), 40);
    // Fewer questions, and more again: nothing is asked.
    assert_eq!(run(&again, &file, &pairs[..5], &judge(), 3).unwrap().verdicts.len(), 10);
    assert_eq!(run(&again, &file, &pairs, &judge(), 3).unwrap().verdicts.len(), 40);
    assert_eq!(again.requests().len(), 40 - answered);
}

#[test]
fn a_verdict_file_with_other_settings_is_refused_by_name_and_kept() {
    let server = Server::likes_length(0.9);
    let (folder, file) = scratch();
    let pairs = questions(2);
    run(&server, &file, &pairs, &judge(), 1).unwrap();
    let before = std::fs::read(&file).unwrap();
    let body = json!({"seed": 1}).as_object().unwrap().clone();
    let prompt = folder.path().join("prompt.txt");
    std::fs::write(&prompt, "{{ instruction }}: {{ a }} or {{ b }}? A or B?").unwrap();
    let wording = Wording::Template(Template::read(&prompt).unwrap());
    for (changed, part) in [
        (Judge { wording, ..judge() }, "(wording: "),
        (Judge { model: "other".to_owned(), ..judge() }, "judge: judge then, other now"),
        (Judge { temperature: 0.7, ..judge() }, "temperature: 0 then, 0.7 now"),
        (Judge { max_tokens: 3, ..judge() }, "max tokens: 16 then, 3 now"),
        (Judge { logprobs: false, ..judge() }, "logprobs: true then, false now"),
        (Judge { body, ..judge() }, "body: {} then, {\"seed\":1} now"),
    ] {
        let error = run(&server, &file, &pairs, &changed, 1).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("verdicts.jsonl"), "{error}");
    }
    let mut other = questions(2);
    other[1].model = vec!["changed".to_owned()];
    let error = run(&server, &file, &other, &judge(), 1).unwrap_err().to_string();
    assert!(error.contains("question 1 or an answer to it has changed"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(server.requests().len(), 4);
    for (content, part) in [
        ("{\"instruction\": \"x\"}\n", "isn't a file of verdicts"),
        ("some notes", "isn't a file of verdicts"),
        ("{\"fpo_judge\":2,\"settings\":{}}\n", "of this version"),
    ] {
        std::fs::write(&file, content).unwrap();
        let error = run(&server, &file, &pairs, &judge(), 1).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), content, "it is left as it is");
    }
    let head = String::from_utf8(before).unwrap().lines().next().unwrap().to_owned();
    std::fs::write(&file, format!("{head}\n{{\"question\": 1}}\n")).unwrap();
    let error = run(&server, &file, &pairs, &judge(), 1).unwrap_err().to_string();
    assert!(error.contains("row 2: isn't one of its verdicts"), "{error}");
}

#[test]
fn two_processes_dont_write_into_one_file() {
    let (_folder, file) = scratch();
    let settings = judge().settings("http://x", "a", "b");
    let open = || Journal::open::<Verdict>(&file, VERDICTS, &settings);
    let _open = open().unwrap();
    assert!(matches!(open(), Err(JournalError::Busy { .. })));
}

/// Fields over those of the request, for endpoints that know others.
#[test]
fn fields_of_the_request_can_be_replaced_and_taken_out() {
    let body = json!({"max_tokens": null, "max_completion_tokens": 500, "temperature": null});
    let judge = Judge { body: body.as_object().unwrap().clone(), logprobs: false, ..judge() };
    let server =
        Server::new(|_, _| Answer::Body(completion("Both are fine.\n\n**B**", json!(null))));
    let (_folder, file) = scratch();
    let outcome = run(&server, &file, &questions(1), &judge, 1).unwrap();
    let sent = &server.requests()[0].body;
    let mut fields: Vec<&String> = sent.as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(fields, ["max_completion_tokens", "messages", "model"]);
    assert_eq!(outcome.verdicts[0].preference, Some(1.0));
}
